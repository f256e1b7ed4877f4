/** Ways to damage a file, and what a reader must make of it: what it says, or a typed error; never anything else. */

import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { getHeapStatistics } from "node:v8";
import fc from "fast-check";
import { expect } from "vitest";
import { PonderaError } from "../../src/base/errors.ts";

/** A file under a damage that has a name. */
export class Damage {
  readonly what: string;
  readonly bytes: Uint8Array;

  constructor(what: string, bytes: Uint8Array) {
    this.what = what;
    this.bytes = bytes;
  }

  /** What fast-check prints of one. */
  [fc.toStringMethod](): string {
    return this.what;
  }
}

/** A file that is damaged again and again, and whole in the end. In place: some file systems flush one that is made anew. */
export class Patient implements Disposable {
  readonly file: string;
  readonly whole: Buffer;
  readonly #descriptor: number;

  /** @param whole  @default what the file, which is there, holds */
  constructor(file: string, whole?: Buffer) {
    this.file = file;
    this.whole = whole ?? readFileSync(file);
    this.#descriptor = openSync(file, "r+");
    this.write(this.whole);
  }

  write(bytes: Uint8Array): void {
    writeSync(this.#descriptor, bytes, 0, bytes.length, 0);
    ftruncateSync(this.#descriptor, bytes.length);
  }

  [Symbol.dispose](): void {
    this.write(this.whole);
    closeSync(this.#descriptor);
  }
}

/** Where a text's last character that counts ends. */
export const endOfText = (whole: Buffer): number => whole.toString("latin1").trimEnd().length;

/**
 * A file cut short at `count` places all over it, or at each, and around every boundary within it.
 * @param end  where it is whole already
 */
export function* cuts(
  whole: Buffer,
  end: number,
  { boundaries = [], count = 200 }: { readonly boundaries?: readonly number[]; readonly count?: number } = {},
): Generator<Damage> {
  const spread = Array.from({ length: count }, (_, i) => Math.floor((i * end) / count));
  const around = boundaries.flatMap((at) => [at - 1, at, at + 1]);
  const places = new Set([...spread, ...around, end - 1].filter((at) => at >= 0 && at < end));
  for (const at of places) yield new Damage(`cut at ${at}`, whole.subarray(0, at));
}

/** A file with up to four of its bytes changed, half of them in its header. */
export function flipped(whole: Buffer, headerBytes = whole.length): fc.Arbitrary<Damage> {
  const place = fc.oneof(fc.nat({ max: headerBytes - 1 }), fc.nat({ max: whole.length - 1 }));
  const changes = fc.array(fc.tuple(place, fc.nat({ max: 255 })), { minLength: 1, maxLength: 4 });
  return changes.map((changes) => {
    const bytes = Buffer.from(whole);
    for (const [at, value] of changes) bytes[at] = value;
    return new Damage(`bytes [at, value] changed: ${JSON.stringify(changes)}`, bytes);
  });
}

type Path = readonly (string | number)[];

/** Every value of a document, by its path. */
function pathsOf(json: unknown, at: Path = []): Path[] {
  if (typeof json !== "object" || json === null) return [at];
  return [at, ...Object.entries(json).flatMap(([key, value]) => pathsOf(value, [...at, key]))];
}

export function replaced(json: unknown, [key, ...rest]: Path, value: unknown): unknown {
  if (key === undefined) return value;
  const copy = (Array.isArray(json) ? [...json] : { ...(json as object) }) as Record<
    string | number,
    unknown
  >;
  copy[key] = replaced(copy[key], rest, value);
  return copy;
}

/** Stands for a value that JSON.stringify, which recurses, could not write. */
const PLACE = "@@ a value @@";
const DEPTH = 10_000;

const OTHERS: readonly string[] = [
  "null",
  "true",
  "-1",
  "0",
  "0.5",
  `${2 ** 31}`,
  `${2 ** 53}`,
  "1e308",
  '""',
  `"${"x".repeat(5000)}"`,
  "[]",
  "{}",
  "[[]]",
  `{"length":${2 ** 31}}`,
];
const NESTED: readonly string[] = [
  "[".repeat(DEPTH) + "]".repeat(DEPTH),
  `${'{"a":'.repeat(DEPTH)}1${"}".repeat(DEPTH)}`,
  "[".repeat(DEPTH),
];

/** A JSON text with one of its values replaced by one of these. @param wrap makes a file of the text */
function valueReplaced(
  text: string,
  values: readonly string[],
  wrap: (text: string) => Uint8Array,
): fc.Arbitrary<Damage> {
  const json: unknown = JSON.parse(text);
  const place = fc.tuple(fc.constantFrom(...pathsOf(json)), fc.constantFrom(...values));
  return place.map(([path, value]) => {
    const damaged = JSON.stringify(replaced(json, path, PLACE)).replace(JSON.stringify(PLACE), () => value);
    return new Damage(`${path.join(".") || "the whole"} = ${value.slice(0, 40)}`, wrap(damaged));
  });
}

const asFile = (text: string): Uint8Array => Buffer.from(text);

/** A JSON text with one value replaced by another kind, or a huge number. */
export const wrongValue = (text: string, wrap = asFile): fc.Arbitrary<Damage> =>
  valueReplaced(text, OTHERS, wrap);

/** A JSON text with one value replaced by lists or objects nested 10,000 deep. */
export const nestedValue = (text: string, wrap = asFile): fc.Arbitrary<Damage> =>
  valueReplaced(text, NESTED, wrap);

/** Lengths that no file of a test has. */
export const HUGE = [2n ** 64n - 1n, 2n ** 63n, 2n ** 53n, 2n ** 40n, 2n ** 32n, 2n ** 31n - 1n];

/** What reading a damaged file may take beside its own size. */
export const ALLOWED_BYTES = 64 * 2 ** 20;
/** Far more than any of them takes on a busy machine. */
const ALLOWED_MS = 10_000;
const LONGEST_MESSAGE = 2500;

/** Objects and buffers; cheaper to ask than `process.memoryUsage`, which counts pages as well. */
const used = (): number => {
  const { used_heap_size: heap, external_memory: external } = getHeapStatistics();
  return heap + external;
};

interface Reading {
  /** Absent when the file could be read. */
  readonly error?: PonderaError;
  /** Bytes that it added at most, sampled while it waited for the disk and when it ended. */
  readonly growth: number;
  readonly ms: number;
}

/** @throws whatever the reading threw that is none of our errors */
async function watched(what: string, read: () => Promise<unknown>): Promise<Reading> {
  const before = used();
  const start = performance.now();
  let most = before;
  const timer = setInterval(() => {
    most = Math.max(most, used());
  }, 1);
  const reading = () => ({ growth: Math.max(most, used()) - before, ms: performance.now() - start });
  try {
    await read();
    return reading();
  } catch (error) {
    if (!(error instanceof PonderaError)) throw new Error(`${what}: ${String(error)}`, { cause: error });
    return { error, ...reading() };
  } finally {
    clearInterval(timer);
  }
}

/** Bytes that a reading adds at most; its typed errors are passed over. */
export const growth = async (read: () => Promise<unknown>): Promise<number> =>
  (await watched("growth", read)).growth;

/**
 * What a reader makes of a damaged file, in little time and memory.
 * @param place  what the error must say it is about: a file, or the folder it is in
 * @returns the error, which is one of ours, short, and says what was expected; undefined when it could be read
 */
export async function refusal(
  { what, bytes }: Pick<Damage, "what" | "bytes">,
  place: string,
  read: () => Promise<unknown>,
): Promise<PonderaError | undefined> {
  const { error, growth, ms } = await watched(what, read);
  // Thousands of readings: only what is wrong is put into words.
  const allowed = bytes.length + ALLOWED_BYTES;
  if (growth >= allowed) expect.fail(`${what}: took ${growth} bytes, of ${allowed} allowed`);
  if (ms >= ALLOWED_MS) expect.fail(`${what}: took ${ms} ms, of ${ALLOWED_MS} allowed`);
  if (error === undefined) return undefined;
  const { where, rule, message } = error;
  if (!where.startsWith(place) || rule === "" || message.length >= LONGEST_MESSAGE) {
    expect.fail(
      `${what}: must say in short where in ${place} what rule is broken; got ${message.slice(0, 300)}`,
    );
  }
  return error;
}

/** The part of a file that an error is about, as it calls it; empty where it names no more than the file, and without error. */
export const fieldOf = (error: PonderaError | undefined, file: string): string =>
  error?.where.startsWith(`${file}: `) ? error.where.slice(file.length + 2) : "";

/** One seed, so that a failure is found again. */
const SEED = 0xda3a9e;

/** Holds every damage of a kind to a check. @returns how many were refused */
export async function countRefusals(
  damage: fc.Arbitrary<Damage>,
  numRuns: number,
  check: (damage: Damage) => Promise<PonderaError | undefined>,
): Promise<number> {
  let refused = 0;
  const property = fc.asyncProperty(damage, async (damage) => {
    if ((await check(damage)) !== undefined) refused++;
  });
  await fc.assert(property, { seed: SEED, numRuns });
  return refused;
}

/**
 * Holds the reader of a JSON file to all of them: cut anywhere, or nested 10,000 deep anywhere, it is refused by its name; with bytes
 * changed, or values of other kinds, it is refused or read; and whole it is read.
 * @param options.folder   what an error may name instead: another file may be the one that no longer fits
 * @param options.numRuns  changes that are tried
 * @returns how many of the changes were refused
 */
export async function refusalsOfJson(
  patient: Patient,
  read: () => Promise<unknown>,
  { folder, numRuns }: { readonly folder: string; readonly numRuns: number },
): Promise<number> {
  const { file, whole } = patient;
  const reading = (damage: Damage, place: string) => {
    patient.write(damage.bytes);
    return refusal(damage, place, read);
  };
  for (const damage of cuts(whole, endOfText(whole))) {
    expect((await reading(damage, file))?.rule, damage.what).toMatch(/^must be (JSON|UTF-8 text)$/);
  }
  const text = whole.toString("utf8");
  await countRefusals(nestedValue(text), 9, async (damage) => {
    const error = await reading(damage, file);
    expect(error?.rule, damage.what).toBe("must not nest deeper than 64");
    return error;
  });
  const bytes = await countRefusals(flipped(whole), numRuns / 2, (damage) => reading(damage, folder));
  const values = await countRefusals(wrongValue(text), numRuns / 2, async (damage) => {
    const error = await reading(damage, folder);
    // An error names the field, unless it is all of them.
    if (error?.where === file) expect(damage.what, error.message).toMatch(/^the whole = /);
    return error;
  });
  expect(await reading(new Damage("whole", whole), file)).toBeUndefined();
  return bytes + values;
}
