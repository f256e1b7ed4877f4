/**
 * Many strings as the bytes of their UTF-8: a vocabulary of a hundred thousand tokens and merges is read and looked up several times as
 * fast so, and takes a fraction of the memory.
 */

import { randomInt } from "node:crypto";
import { concatBytes, utf8 } from "./byte-level.ts";

/** Strings by index: an array, or a table. */
export interface Strings extends Iterable<string> {
  readonly length: number;
  /** @param index  not below 0, where an array counts from its end; undefined from the length on */
  at(index: number): string | undefined;
}

export class StringTable implements Strings {
  /** Of all of them, and maybe of what is between. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Where in the bytes each begins, and before where it ends. */
  readonly starts: Uint32Array;
  readonly ends: Uint32Array;

  constructor(bytes: Uint8Array<ArrayBuffer>, starts: Uint32Array, ends: Uint32Array) {
    this.bytes = bytes;
    this.starts = starts;
    this.ends = ends;
  }

  /** A table of strings, itself where it is one. Halves of surrogate pairs become U+FFFD. */
  static from(strings: Strings): StringTable {
    if (strings instanceof StringTable) return strings;
    return StringTable.ofPieces(Array.from(strings, utf8));
  }

  /** A table of the strings that these are the bytes of. */
  static ofPieces(pieces: readonly Uint8Array[]): StringTable {
    const [starts, ends] = [new Uint32Array(pieces.length), new Uint32Array(pieces.length)];
    let size = 0;
    for (const [i, piece] of pieces.entries()) {
      starts[i] = size;
      size += piece.length;
      ends[i] = size;
    }
    return new StringTable(concatBytes(pieces), starts, ends);
  }

  get length(): number {
    return this.starts.length;
  }

  at(index: number): string | undefined {
    if (!(Number.isInteger(index) && index >= 0 && index < this.length)) return undefined;
    const { buffer, byteOffset } = this.bytes;
    const start = this.starts[index]!;
    return Buffer.from(buffer, byteOffset + start, this.ends[index]! - start).toString("utf8");
  }

  *[Symbol.iterator](): Generator<string> {
    for (let i = 0; i < this.length; i++) yield this.at(i)!;
  }
}

/** Empty places of a hash table of so many entries: a power of two, of which half stay empty at least. */
export const hashPlaces = (entries: number): Int32Array =>
  new Int32Array(2 ** (1 + Math.ceil(Math.log2(Math.max(1, entries)))));

/** Another one in each process: nobody can write a file whose strings all have one hash. */
const BASIS = randomInt(2 ** 32);

/** FNV-1a but for its basis, its low bits mixed with the high ones. */
function hashOf(bytes: Uint8Array, start: number, end: number): number {
  let hash = BASIS;
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193);
  return hash ^ (hash >>> 15);
}

export function sameBytes(
  a: Uint8Array,
  start: number,
  end: number,
  b: Uint8Array,
  otherStart: number,
): boolean {
  for (let i = start, j = otherStart; i < end; i++, j++) if (a[i] !== b[j]) return false;
  return true;
}

/** Finds strings of a table by their bytes. */
export class StringIndex {
  readonly table: StringTable;
  /** The first of the first two equal strings, and the second. */
  readonly repeated: readonly [first: number, again: number] | undefined;
  /** Indices plus one, where the hash says or after; 0: none. Half of them stay empty. */
  readonly #places: Int32Array;

  /** Of equal strings the first is found. */
  constructor(table: StringTable) {
    this.table = table;
    this.#places = hashPlaces(table.length);
    const { bytes, starts, ends } = table;
    for (let i = 0; i < table.length; i++) {
      const place = this.#place(bytes, starts[i]!, ends[i]!);
      if (this.#places[place] === 0) this.#places[place] = i + 1;
      else this.repeated ??= [this.#places[place]! - 1, i];
    }
  }

  /** Where the string is, or would be. */
  #place(bytes: Uint8Array, start: number, end: number): number {
    const { bytes: all, starts, ends } = this.table;
    const mask = this.#places.length - 1;
    let place = hashOf(bytes, start, end) & mask;
    for (let i = this.#places[place]! - 1; i >= 0; i = this.#places[place]! - 1) {
      if (ends[i]! - starts[i]! === end - start && sameBytes(bytes, start, end, all, starts[i]!)) break;
      place = (place + 1) & mask;
    }
    return place;
  }

  /** The index of the string of these bytes, −1 where there is none. */
  find(bytes: Uint8Array, start = 0, end = bytes.length): number {
    return this.#places[this.#place(bytes, start, end)]! - 1;
  }

  indexOf(text: string): number {
    return this.find(utf8(text));
  }
}
