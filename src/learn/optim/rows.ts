/**
 * Rows of packed sequences as arrays. The masks in the training graph keep neighbours apart (segments) but for what they begin with
 * (prefixes), and count positions anew.
 */

import { invariant } from "../../base/errors.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";

/** One sequence to train on. */
export interface TrainingSequence {
  readonly ids: ArrayLike<number>;
  /** One per token: the weight of predicting that token in the loss. The first token is never predicted. */
  readonly weights: ArrayLike<number>;
  /** More per-token numbers, one per token of `ids`, by name. */
  readonly extra?: Readonly<Record<string, ArrayLike<number>>>;
  /**
   * Sequences of one key begin with the same `length` tokens, which no loss speaks of: a row may hold those once for all of them.
   * The token that predicts the first of a sequence's own is its own, too, since it predicts another in each.
   */
  readonly prefix?: { readonly key: number; readonly length: number };
}

/** Rows [B, T]; position t holds token t and predicts `targets[t]`, the token after it. */
export interface PackedBatch {
  readonly ids: HostArray<"i32">;
  readonly positions: HostArray<"i32">;
  readonly segments: HostArray<"i32">;
  /** The segment that a token sees beside its own: its prefix, or its own again. Absent: no row shares any. */
  readonly prefixes?: HostArray<"i32">;
  readonly targets: HostArray<"i32">;
  readonly weights: HostArray<"f32">;
  /** Per-token numbers, at the position that predicts the token they belong to. */
  readonly extra: Readonly<Record<string, HostArray<"f32">>>;
  /** Tokens that are not padding. */
  readonly tokens: number;
}

/** Sequences, or what stands for them, by the prefix that they share, each without one by itself; all in their order. */
export function familiesOf<T>(members: readonly T[], sequenceOf: (member: T) => TrainingSequence): T[][] {
  const families = new Map<number | TrainingSequence, T[]>();
  for (const member of members) {
    const sequence = sequenceOf(member);
    const key = sequence.prefix?.key ?? sequence;
    const family = families.get(key);
    if (family === undefined) families.set(key, [member]);
    else family.push(member);
  }
  return [...families.values()];
}

/** Tokens of a sequence that lie side by side in a row, as a segment of their own. */
interface Piece {
  readonly sequence: TrainingSequence;
  readonly from: number;
  readonly to: number;
  readonly segment: number;
  readonly prefix: number;
}

/** The pieces of a row: every prefix once, before the sequences that it belongs to, or each sequence as it is. */
function piecesOf(row: readonly TrainingSequence[], shared: boolean): Piece[] {
  let segment = 0;
  if (!shared) {
    return row.map((sequence) => {
      segment++;
      return { sequence, from: 0, to: sequence.ids.length, segment, prefix: segment };
    });
  }
  return familiesOf(row, (sequence) => sequence).flatMap((family) => {
    const first = family[0]!;
    const length = first.prefix?.length ?? 0;
    const prefix = segment + 1;
    const own = (sequence: TrainingSequence): Piece => {
      segment++;
      return {
        ...{ sequence, from: length, to: sequence.ids.length, segment },
        prefix: length > 0 ? prefix : segment,
      };
    };
    if (length === 0) return family.map(own);
    segment++;
    return [{ sequence: first, from: 0, to: length, segment, prefix }, ...family.map(own)];
  });
}

/**
 * Lays rows of sequences out as arrays [B, T]; rows beyond those given, and the rest of each row, are padding of
 * weight 0 in a segment of its own.
 * @param extraNames  per-token numbers every sequence carries
 * @param shared      whether a row holds a prefix once for all its sequences that have it. @default false
 */
export function layOut(
  sequences: readonly TrainingSequence[],
  rows: readonly (readonly number[])[],
  shape: { readonly batch: number; readonly rowLength: number; readonly padId: number },
  extraNames: readonly string[] = [],
  shared = false,
): PackedBatch {
  const { batch: B, rowLength: T, padId } = shape;
  const integers = (fill = 0): HostArray<"i32"> => hostArray("i32", [B, T], new Int32Array(B * T).fill(fill));
  const ids = integers(padId);
  const [positions, segments, prefixes, targets] = [integers(), integers(), integers(), integers(padId)];
  const weights = hostArray("f32", [B, T]);
  const extra = Object.fromEntries(extraNames.map((name) => [name, hostArray("f32", [B, T])]));
  let tokens = 0;
  for (const [row, indices] of rows.entries()) {
    let at = row * T;
    const pieces = piecesOf(
      indices.map((index) => sequences[index]!),
      shared,
    );
    for (const { sequence, from, to, segment, prefix } of pieces) {
      const length = sequence.ids.length;
      for (let t = from; t < to; t++, at++) {
        ids.data[at] = sequence.ids[t]!;
        positions.data[at] = t;
        segments.data[at] = segment; // 0 is padding
        prefixes.data[at] = prefix;
        if (t + 1 === length) continue;
        targets.data[at] = sequence.ids[t + 1]!;
        weights.data[at] = sequence.weights[t + 1]!;
        invariant(to === length || weights.data[at] === 0, "no loss speaks of a prefix that is shared");
        for (const name of extraNames) extra[name]!.data[at] = sequence.extra![name]![t + 1]!;
      }
      tokens += to - from;
    }
  }
  return { ids, positions, segments, ...(shared ? { prefixes } : {}), targets, weights, extra, tokens };
}

/** How many tokens each segment of a batch has, and how many it sees before its own first. */
export function segmentLengths({
  ids,
  segments,
  prefixes,
}: PackedBatch): { tokens: number; before: number }[] {
  const [B, T] = ids.shape as readonly [number, number];
  return Array.from({ length: B }, (_, row) => {
    const counts = new Map<number, { tokens: number; prefix: number }>();
    for (let at = row * T; at < (row + 1) * T; at++) {
      const segment = segments.data[at]!;
      if (segment === 0) continue;
      const prefix = prefixes?.data[at] ?? segment;
      counts.set(segment, { tokens: (counts.get(segment)?.tokens ?? 0) + 1, prefix });
    }
    return [...counts].map(([segment, { tokens, prefix }]) => ({
      tokens,
      before: prefix === segment ? 0 : counts.get(prefix)!.tokens,
    }));
  }).flat();
}
