/** The files of test/fixtures/ by what reads them: Pondera, as it would read anybody's, or tests alone. */

import { cpSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, sep } from "node:path";
import { afterAll } from "vitest";
import { fixturePath } from "../fixture.ts";

/** Of each kind of file that Pondera reads. */
const KINDS = {
  gguf: /\.gguf$/,
  safetensors: /\/(all|model|model-\d{5}-of-\d{5}|adapter_model)\.safetensors$/,
  index: /\/model\.safetensors\.index\.json$/,
  config: /\/config\.json$/,
  generation: /\/generation_config\.json$/,
  adapter: /\/adapter_config\.json$/,
  tokenizer: /\/tokenizer(_config)?\.json$/,
} as const satisfies Readonly<Record<string, RegExp>>;

export type FixtureKind = keyof typeof KINDS;

/** What only tests read: what a model or a rule is expected to give, and keys for servers of theirs. */
const EXPECTATIONS: readonly RegExp[] = [
  /\/expected\.(json|safetensors)$/,
  /^gguf\/[^/]+\.(json|safetensors)$/,
  /\/gradients\.safetensors$/,
  /^(grpo|rules|sampling|saved-model-expected)\.json$/,
  /^tls\/(certificate|key)\.pem$/,
];

/** Paths within test/fixtures/, of files. */
const FILES: readonly string[] = readdirSync(fixturePath(""), { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => join(entry.parentPath, entry.name).slice(fixturePath("").length).replaceAll(sep, "/"))
  .sort();

/** Every fixture with the lists it is in: exactly one, for a fixture that somebody has thought about. */
export const listings: readonly { readonly file: string; readonly in: readonly string[] }[] = FILES.map(
  (file) => ({
    file,
    in: [
      ...Object.entries(KINDS).flatMap(([kind, pattern]) => (pattern.test(file) ? [kind] : [])),
      ...EXPECTATIONS.flatMap((pattern) => (pattern.test(file) ? [`${pattern}`] : [])),
    ],
  }),
);

/** Every list of fixtures. */
export const lists: readonly string[] = [...Object.keys(KINDS), ...EXPECTATIONS.map(String)];

/** All fixtures of a kind. */
export const fixturesOf = (kind: FixtureKind): string[] => FILES.filter((file) => KINDS[kind].test(file));

/**
 * A copy of all that Pondera reads, for the tests of one file to damage.
 * @returns the path of one of them
 */
export function copyOfFixtures(): (file: string) => string {
  const folder = mkdtempSync(join(tmpdir(), "pondera-test-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  for (const kind of Object.keys(KINDS) as FixtureKind[]) {
    for (const file of fixturesOf(kind)) cpSync(fixturePath(file), join(folder, file));
  }
  return (file) => join(folder, file);
}
