/** Typed access to a GGUF file's metadata: what is missing or of another kind is an error that names the file and the key. */

import { FormatError } from "../../../base/errors.ts";
import { StringTable } from "../../text/strings.ts";
import type { GgufFile, GgufValue } from "./reader.ts";

/** A value as an error shows it. */
function show(value: GgufValue | undefined): string {
  if (value === undefined) return "nothing";
  if (typeof value === "object") return `an array of ${value.length}`;
  const text = typeof value === "string" ? JSON.stringify(value) : `${value}`;
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/**
 * The shortest decimal number that is the same float32: the 1e-5 that somebody wrote, where the double nearest to the float32
 * would read 0.000009999999747378752.
 */
export function shortestF32(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value)) return short;
  }
  return value;
}

export class Metadata {
  readonly file: string;
  readonly #values: ReadonlyMap<string, GgufValue>;

  constructor({ file, metadata }: Pick<GgufFile, "file" | "metadata">) {
    this.file = file;
    this.#values = metadata;
  }

  fail(key: string, rule: string, got?: string): never {
    throw new FormatError({ where: `${this.file}: ${key}`, rule, got: got ?? show(this.#values.get(key)) });
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  #get<T>(key: string, rule: string, parse: (value: GgufValue) => T | undefined, absent: T | undefined): T {
    const value = this.#values.get(key);
    const parsed = value === undefined ? absent : parse(value);
    return parsed ?? this.fail(key, rule);
  }

  /** A whole number from 0 to 2^31 − 1, whatever its width in the file. @throws FormatError when absent without a default */
  count(key: string, absent?: number): number {
    return this.#get(
      key,
      "must be a whole number below 2^31",
      (value) => {
        const number = typeof value === "bigint" ? Number(value) : value;
        const counts =
          typeof number === "number" && Number.isInteger(number) && number >= 0 && number < 2 ** 31;
        return counts ? number : undefined;
      },
      absent,
    );
  }

  /** A finite number, as the decimal that was meant. @throws FormatError when absent without a default */
  number(key: string, absent?: number): number {
    return this.#get(
      key,
      "must be a finite number",
      (value) => (typeof value === "number" && Number.isFinite(value) ? shortestF32(value) : undefined),
      absent,
    );
  }

  boolean(key: string, absent?: boolean): boolean {
    return this.#get(
      key,
      "must be true or false",
      (value) => (typeof value === "boolean" ? value : undefined),
      absent,
    );
  }

  string(key: string, absent?: string): string {
    return this.#get(key, "must be text", (value) => (typeof value === "string" ? value : undefined), absent);
  }

  strings(key: string): StringTable {
    return this.#get(
      key,
      "must be an array of texts",
      (value) => (value instanceof StringTable ? value : undefined),
      undefined,
    );
  }

  floats(key: string): Float32Array {
    return this.#get(
      key,
      "must be an array of float32",
      (value) => (value instanceof Float32Array ? value : undefined),
      undefined,
    );
  }

  ints(key: string): Int32Array {
    return this.#get(
      key,
      "must be an array of int32",
      (value) => {
        if (value instanceof Int32Array) return value;
        return value instanceof Uint32Array ? Int32Array.from(value) : undefined;
      },
      undefined,
    );
  }
}
