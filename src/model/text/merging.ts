/**
 * The loop of byte-pair encoding and of SentencePiece's: neighbouring symbols are merged, the most wanted pair first, the
 * leftmost of equals, until no pair is wanted. A heap of candidates makes it O(n log n) in the number of symbols, for any text.
 */

import { randomInt } from "node:crypto";
import { invariant } from "../../base/errors.ts";
import { MergeHeap } from "./merge-heap.ts";
import { hashPlaces } from "./strings.ts";

/** What becomes of a pair of neighbours. */
export interface Merge {
  /** The lower, the sooner; a whole number from 0 to 2^22 - 1. */
  readonly rank: number;
  readonly id: number;
}

/** Odd, and others in each process: nobody can write a file whose pairs all have one hash. */
const FACTORS = [2 * randomInt(2 ** 31) + 1, 2 * randomInt(2 ** 31) + 1] as const;

/**
 * Merges by their pairs of ids, in the order of ranks: in arrays of numbers, since there are as many as tokens and a map of objects takes
 * ten times the memory.
 */
export class MergeTable {
  /** Of each merge, by rank. */
  readonly #left: Int32Array;
  readonly #right: Int32Array;
  readonly #id: Int32Array;
  /** Ranks plus one, where the pair's hash says or after; 0: none. Half of them stay empty. */
  readonly #places: Int32Array;
  #count = 0;

  constructor(most: number) {
    [this.#left, this.#right, this.#id] = [most, most, most].map((n) => new Int32Array(n)) as [
      Int32Array,
      Int32Array,
      Int32Array,
    ];
    this.#places = hashPlaces(most);
  }

  /** Where the pair is, or would be. */
  #place(left: number, right: number): number {
    const mask = this.#places.length - 1;
    const hash = Math.imul(left, FACTORS[0]) ^ Math.imul(right, FACTORS[1]);
    let place = (hash ^ (hash >>> 15)) & mask;
    for (let rank = this.#places[place]! - 1; rank >= 0; rank = this.#places[place]! - 1) {
      if (this.#left[rank] === left && this.#right[rank] === right) break;
      place = (place + 1) & mask;
    }
    return place;
  }

  /** The next merge; of two of one pair the later counts. */
  add(left: number, right: number, id: number): void {
    const rank = this.#count++;
    this.#places[this.#place(left, right)] = rank + 1;
    this.#left[rank] = left;
    this.#right[rank] = right;
    this.#id[rank] = id;
  }

  /** What becomes of a pair of ids; undefined where it is not merged. */
  find(left: number, right: number): Merge | undefined {
    const rank = this.#places[this.#place(left, right)]! - 1;
    return rank < 0 ? undefined : { rank, id: this.#id[rank]! };
  }
}

/** A key is rank · 2^30 + position, exact in a double up to 2^53. */
const POSITIONS = 2 ** 30;
export const MOST_RANKS = 2 ** 22;

/**
 * Merges symbols in the order of ranks.
 * @param symbols ids, at most 2^30
 * @param find    the merge of two neighbours, undefined where there is none; the same answer each time
 * @returns the ids left
 */
export function mergeSymbols(
  symbols: readonly number[],
  find: (left: number, right: number) => Merge | undefined,
): number[] {
  const count = symbols.length;
  if (count < 2) return [...symbols];
  invariant(count <= POSITIONS, "more symbols than positions");
  const ids = Int32Array.from(symbols);
  // A symbol merged away has itself as its next one.
  const next = Int32Array.from({ length: count }, (_, i) => i + 1);
  const previous = Int32Array.from({ length: count }, (_, i) => i - 1);
  const heap = new MergeHeap();
  const offer = (left: number, right: number): void => {
    const merge = find(ids[left]!, ids[right]!);
    if (merge !== undefined) heap.push(merge.rank * POSITIONS + left);
  };
  for (let i = 0; i + 1 < count; i++) offer(i, i + 1);
  for (let key = heap.pop(); key !== undefined; key = heap.pop()) {
    const left = key % POSITIONS;
    const right = next[left]!;
    if (right === left || right === count) continue;
    const merge = find(ids[left]!, ids[right]!);
    // The pair has changed since it was offered; what it is now has an offer of its own.
    if (merge === undefined || merge.rank !== (key - left) / POSITIONS) continue;
    ids[left] = merge.id;
    const after = next[right]!;
    next[left] = after;
    next[right] = right;
    if (after < count) {
      previous[after] = left;
      offer(left, after);
    }
    if (previous[left]! >= 0) offer(previous[left]!, left);
  }
  const merged: number[] = [];
  for (let i = 0; i < count; i = next[i]!) merged.push(ids[i]!);
  return merged;
}
