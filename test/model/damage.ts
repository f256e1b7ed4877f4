/** Ways to damage a file, and what a reader must make of it: what it says, or a typed error; never anything else. */

import { expect } from "vitest";
import { PonderaError } from "../../src/base/errors.ts";
import { Random } from "../../src/compute/tensor/random.ts";

/** A file cut short at `count` places; the last of them just before its last character that counts. */
export function* cuts(whole: Buffer, count = 200): Generator<readonly [what: string, bytes: Buffer]> {
  const end = whole.toString("latin1").trimEnd().length;
  for (let i = 0; i < count; i++) {
    const at = Math.floor((i * end) / count);
    yield [`cut at ${at}`, whole.subarray(0, at)];
  }
}

/** A file with up to four of its bytes changed. */
export function* flips(whole: Buffer, count = 100): Generator<readonly [what: string, bytes: Buffer]> {
  const random = new Random(0xda3a9e, whole.length);
  for (let i = 0; i < count; i++) {
    const bytes = Buffer.from(whole);
    const places = Array.from({ length: 1 + random.integer(4) }, () => random.integer(whole.length));
    for (const at of places) bytes[at] = random.integer(256);
    yield [`bytes ${places} changed`, bytes];
  }
}

type Path = readonly (string | number)[];

/** Every value of a document, by its path. */
function pathsOf(json: unknown, at: Path = []): Path[] {
  if (typeof json !== "object" || json === null) return [at];
  return [at, ...Object.entries(json).flatMap(([key, value]) => pathsOf(value, [...at, key]))];
}

const DEEP = "@@ nested @@";
const deep = (depth: number): string => "[".repeat(depth) + "]".repeat(depth);
const OTHERS: readonly unknown[] = [
  null,
  true,
  -1,
  0,
  0.5,
  2 ** 31,
  2 ** 53,
  1e308,
  "",
  "x".repeat(5000),
  [],
  {},
  [[]],
  { length: 2 ** 31 },
  DEEP,
];

function replaced(json: unknown, [key, ...rest]: Path, value: unknown): unknown {
  if (key === undefined) return value;
  const copy = (Array.isArray(json) ? [...json] : { ...(json as object) }) as Record<
    string | number,
    unknown
  >;
  copy[key] = replaced(copy[key], rest, value);
  return copy;
}

/** A JSON document with one value replaced by another kind, a huge number, or lists nested 10,000 deep. */
export function* wrongValues(whole: Buffer, count = 150): Generator<readonly [what: string, bytes: Buffer]> {
  const json: unknown = JSON.parse(whole.toString("utf8"));
  const paths = pathsOf(json);
  const random = new Random(0xbad, whole.length);
  for (let i = 0; i < count; i++) {
    // Every kind of value is tried; of a long document, not every path.
    const path = paths[paths.length <= count / 4 ? i % paths.length : random.integer(paths.length)]!;
    const value = OTHERS[i % OTHERS.length];
    const text = JSON.stringify(replaced(json, path, value)).replace(JSON.stringify(DEEP), deep(10_000));
    yield [
      `${path.join(".") || "the whole"} = ${String(JSON.stringify(value)).slice(0, 40)}`,
      Buffer.from(text),
    ];
  }
}

/**
 * What a reader makes of a damaged file.
 * @param place what the error must say it is about: a file, or the folder it is in
 * @returns the error, which is one of ours, short, and says what was expected; undefined when it could be read
 */
export async function refusal(
  what: string,
  place: string,
  read: () => Promise<unknown>,
): Promise<PonderaError | undefined> {
  try {
    await read();
    return undefined;
  } catch (error) {
    if (!(error instanceof PonderaError)) throw new Error(`${what}: ${String(error)}`, { cause: error });
    expect(error.where.startsWith(place), `${what}: ${error.message.slice(0, 300)}`).toBe(true);
    expect(error.rule, what).not.toBe("");
    expect(error.message.length, `${what}: ${error.message.slice(0, 300)}`).toBeLessThan(2500);
    return error;
  }
}

const used = (): number => {
  const { heapUsed, external, arrayBuffers } = process.memoryUsage();
  return heapUsed + Math.max(external, arrayBuffers);
};

/** Bytes that a reading adds at most, sampled while it waits for the disk and when it ends; its typed errors are passed over. */
export async function growth(read: () => Promise<unknown>): Promise<number> {
  const before = used();
  let most = before;
  const timer = setInterval(() => {
    most = Math.max(most, used());
  }, 1);
  try {
    await read();
  } catch (error) {
    if (!(error instanceof PonderaError)) throw error;
  } finally {
    clearInterval(timer);
  }
  return Math.max(most, used()) - before;
}

/** What reading a damaged file may take beside its own size. */
export const ALLOWED_BYTES = 64 * 2 ** 20;
