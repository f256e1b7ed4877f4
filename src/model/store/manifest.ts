/** What the store knows of a model: where it came from, and which content each of its files has. */

import { lstat } from "node:fs/promises";
import { z } from "zod";
import { FileError, FormatError } from "../../base/errors.ts";
import { fileError, readJson } from "../../base/files.ts";
import { checkFilePaths } from "./file-path.ts";
import { tryModelName } from "./name.ts";

/** Raised when the layout of the store changes so that older programs cannot read it. */
export const FORMAT = 1;

/** Most files of one model; the largest models have some hundreds. */
export const MOST_FILES = 20_000;
const MOST_MANIFEST_BYTES = 32 * 2 ** 20;

const Sha256 = z.string().regex(/^[0-9a-f]{64}$/);

const StoredFile = z.object({
  /** Relative, with forward slashes. */
  path: z.string(),
  /** Bytes. */
  size: z.int().nonnegative(),
  sha256: Sha256,
});
export type StoredFile = z.infer<typeof StoredFile>;

const Source = z.discriminatedUnion("hub", [
  z.object({
    hub: z.literal("hf"),
    endpoint: z.string(),
    /** `owner/model`, as the hub spells it. */
    repo: z.string(),
    /** What was asked for: a branch, a tag or a commit. */
    revision: z.string(),
    commit: z.string(),
  }),
  z.object({
    hub: z.literal("ollama"),
    endpoint: z.string(),
    /** `library/deepseek-r1`. */
    repo: z.string(),
    tag: z.string(),
    /** Of the registry's manifest, sha256. */
    digest: Sha256,
  }),
]);
export type Source = z.infer<typeof Source>;

const Manifest = z.object({
  format: z.literal(FORMAT),
  name: z.string().refine((text) => tryModelName(text) !== undefined, "must be a model's name"),
  source: Source,
  /** ISO 8601, UTC. */
  pulled: z.iso.datetime(),
  files: z.array(StoredFile).min(1).max(MOST_FILES),
});
export type Manifest = z.infer<typeof Manifest>;

/**
 * The manifest in a file; undefined when there is none.
 * @throws FileError when it cannot be read, or is no ordinary file; FormatError when it breaks the format, also by naming files
 *   outside its folder
 */
export async function readManifest(path: string): Promise<Manifest | undefined> {
  let found: Awaited<ReturnType<typeof lstat>>;
  try {
    found = await lstat(path);
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw fileError(path, "readable", error);
  }
  if (!found.isFile() || found.size > MOST_MANIFEST_BYTES) {
    throw new FileError({
      where: path,
      rule: `must be a file of at most ${MOST_MANIFEST_BYTES} bytes`,
      got: found.isFile() ? `${found.size} bytes` : "something else",
    });
  }
  const parsed = Manifest.safeParse(await readJson(path));
  if (!parsed.success) {
    const { path: key, message } = parsed.error.issues[0]!;
    throw new FormatError({
      where: key.length === 0 ? path : `${path}: ${key.join(".")}`,
      rule: `must be ${key.length === 0 ? "" : "that of "}a manifest of the model store`,
      got: message,
    });
  }
  const { files } = parsed.data;
  checkFilePaths(
    path,
    files.map((file) => file.path),
  );
  return parsed.data;
}
