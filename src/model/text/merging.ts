/**
 * The loop of byte-pair encoding and of SentencePiece's: neighbouring symbols are merged, the most wanted pair first, the
 * leftmost of equals, until no pair is wanted. A heap of candidates makes it O(n log n) in the number of symbols, for any text.
 */

import { invariant } from "../../base/errors.ts";
import { MergeHeap } from "./merge-heap.ts";

/** What becomes of a pair of neighbours. */
export interface Merge {
  /** The lower, the sooner; a whole number from 0 to 2^22 - 1. */
  readonly rank: number;
  readonly id: number;
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
