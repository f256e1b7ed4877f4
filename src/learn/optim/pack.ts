/**
 * Packing: sequences of different lengths side by side in rows of one length, so that little is spent on padding.
 * A pure host function; the masks in the training graph keep neighbours apart (segments) and count positions anew.
 */

import { ShapeError } from "../../base/errors.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";

/** One sequence to train on. */
export interface TrainingSequence {
  readonly ids: ArrayLike<number>;
  /** One per token: the weight of predicting that token in the loss. The first token is never predicted. */
  readonly weights: ArrayLike<number>;
  /** More per-token numbers, one per token of `ids`, by name. */
  readonly extra?: Readonly<Record<string, ArrayLike<number>>>;
}

/** Rows [B, T]; position t holds token t and predicts `targets[t]`, the token after it. */
export interface PackedBatch {
  readonly ids: HostArray<"i32">;
  readonly positions: HostArray<"i32">;
  readonly segments: HostArray<"i32">;
  readonly targets: HostArray<"i32">;
  readonly weights: HostArray<"f32">;
  /** Per-token numbers, at the position that predicts the token they belong to. */
  readonly extra: Readonly<Record<string, HostArray<"f32">>>;
  /** Tokens that are not padding. */
  readonly tokens: number;
}

/**
 * Assigns sequences to rows: longest first, each to the fullest row with room (best-fit decreasing, as R1's
 * infrastructure does, arXiv:2501.12948v2 B.1). Deterministic: equal lengths keep their order.
 * @returns for each row, indices into `lengths`
 * @throws ShapeError when a sequence is longer than a row
 */
export function bestFit(lengths: readonly number[], rowLength: number): number[][] {
  const order = lengths.map((_, i) => i).sort((a, b) => lengths[b]! - lengths[a]! || a - b);
  const rows: { indices: number[]; room: number }[] = [];
  // Rows by the room left, so that each placement looks at few of them.
  const byRoom: number[][] = Array.from({ length: rowLength + 1 }, () => []);
  for (const i of order) {
    const length = lengths[i]!;
    if (length > rowLength) {
      throw new ShapeError({
        where: "pack",
        rule: `a sequence must fit a row of ${rowLength} tokens`,
        got: `${length} tokens`,
        remedy: "Use longer rows or cut the sequence",
      });
    }
    let room = length;
    while (room <= rowLength && byRoom[room]!.length === 0) room++;
    const row = room <= rowLength ? byRoom[room]!.pop()! : rows.push({ indices: [], room: rowLength }) - 1;
    rows[row]!.indices.push(i);
    rows[row]!.room -= length;
    byRoom[rows[row]!.room]!.push(row);
  }
  return rows.map((row) => row.indices);
}

/**
 * Lays rows of sequences out as arrays [B, T]; rows beyond those given, and the rest of each row, are padding of
 * weight 0 in a segment of its own.
 * @param extraNames  per-token numbers every sequence carries
 */
export function layOut(
  sequences: readonly TrainingSequence[],
  rows: readonly (readonly number[])[],
  shape: { readonly batch: number; readonly rowLength: number; readonly padId: number },
  extraNames: readonly string[] = [],
): PackedBatch {
  const { batch: B, rowLength: T, padId } = shape;
  const integers = (fill = 0): HostArray<"i32"> => hostArray("i32", [B, T], new Int32Array(B * T).fill(fill));
  const ids = integers(padId);
  const [positions, segments, targets] = [integers(), integers(), integers(padId)];
  const weights = hostArray("f32", [B, T]);
  const extra = Object.fromEntries(extraNames.map((name) => [name, hostArray("f32", [B, T])]));
  let tokens = 0;
  for (const [row, indices] of rows.entries()) {
    let at = row * T;
    for (const [segment, index] of indices.entries()) {
      const sequence = sequences[index]!;
      const length = sequence.ids.length;
      for (let t = 0; t < length; t++) {
        ids.data[at + t] = sequence.ids[t]!;
        positions.data[at + t] = t;
        segments.data[at + t] = segment + 1; // 0 is padding
        if (t + 1 === length) continue;
        targets.data[at + t] = sequence.ids[t + 1]!;
        weights.data[at + t] = sequence.weights[t + 1]!;
        for (const name of extraNames) extra[name]!.data[at + t] = sequence.extra![name]![t + 1]!;
      }
      at += length;
      tokens += length;
    }
  }
  return { ids, positions, segments, targets, weights, extra, tokens };
}

/** Packs everything into as many batches of `batch` rows as it takes. */
export function packAll(
  sequences: readonly TrainingSequence[],
  shape: { readonly batch: number; readonly rowLength: number; readonly padId: number },
  extraNames: readonly string[] = [],
): PackedBatch[] {
  const rows = bestFit(
    sequences.map((s) => s.ids.length),
    shape.rowLength,
  );
  const batches: PackedBatch[] = [];
  for (let i = 0; i < rows.length; i += shape.batch) {
    batches.push(layOut(sequences, rows.slice(i, i + shape.batch), shape, extraNames));
  }
  return batches;
}

export interface BucketShape {
  /** Ascending; the last must hold the longest sequence. */
  readonly rowLengths: readonly number[];
  /** Tokens of a batch, of any row length, at most; a batch has at least one row. */
  readonly batchTokens: number;
  readonly padId: number;
  /** What a token of a row of that length costs, padding or not, in any unit. @default as much in every row */
  readonly costOfToken?: (rowLength: number) => number;
}

/** The last batch of a bucket has as many rows as the others, or a half, or a quarter: few programs, little padding. */
const FRACTIONS = [4, 2, 1];

/** Rows of one length, and how many of them each batch has. */
interface Bucket {
  readonly rowLength: number;
  readonly rows: readonly (readonly number[])[];
  readonly batches: readonly number[];
}

/**
 * Packs sequences of very different lengths into rows of one length or of several: attention costs a row the square of its
 * length, and short rows are filled badly, so the cheapest is taken of all row lengths, all but the shortest, and so on to the
 * longest alone. Each sequence goes to the shortest rows that hold it, after the gaps in longer rows have been filled.
 * Batches come in a fixed order: long rows first, whole batches before the last one.
 */
export function packInto(
  sequences: readonly TrainingSequence[],
  shape: BucketShape,
  extraNames: readonly string[] = [],
): PackedBatch[] {
  const { rowLengths, padId, costOfToken = () => 1 } = shape;
  const costOf = (buckets: readonly Bucket[]): number => {
    const each = buckets.map(({ rowLength, batches }) => {
      const rows = batches.reduce((sum, n) => sum + n, 0);
      return rows * rowLength * costOfToken(rowLength);
    });
    return each.reduce((sum, cost) => sum + cost, 0);
  };
  const ways = rowLengths.map((_, from) => intoBuckets(sequences, rowLengths.slice(from), shape.batchTokens));
  const cheapest = ways.reduce((best, way) => (costOf(way) < costOf(best) ? way : best));
  return cheapest.flatMap(({ rowLength, rows, batches }) => {
    let start = 0;
    return batches.map((batch) => {
      const part = rows.slice(start, start + batch);
      start += batch;
      return layOut(sequences, part, { batch, rowLength, padId }, extraNames);
    });
  });
}

/** Each sequence in the shortest rows that hold it, or in a gap of longer ones; long rows first. */
function intoBuckets(
  sequences: readonly TrainingSequence[],
  rowLengths: readonly number[],
  batchTokens: number,
): Bucket[] {
  const buckets: Bucket[] = [];
  let left = sequences.map((_, i) => i);
  for (const [at, rowLength] of [...rowLengths.entries()].reverse()) {
    const shorter = rowLengths[at - 1] ?? 0;
    const own = left.filter((i) => sequences[i]!.ids.length > shorter);
    if (own.length === 0) continue;
    const rows = bestFit(
      own.map((i) => sequences[i]!.ids.length),
      rowLength,
    ).map((row) => row.map((i) => own[i]!));
    const placed = new Set([...own, ...fillGaps(sequences, rows, rowLength, left, shorter)]);
    left = left.filter((i) => !placed.has(i));
    const most = Math.max(1, Math.floor(batchTokens / rowLength));
    const sizes = FRACTIONS.map((fraction) => Math.ceil(most / fraction));
    const batches: number[] = [];
    for (let rest = rows.length; rest > 0; rest -= most)
      batches.push(sizes.find((size) => size >= rest) ?? most);
    buckets.push({ rowLength, rows, batches });
  }
  return buckets;
}

/** Puts what is at most `limit` long into the room that rows have left, longest first. @returns what was placed */
function fillGaps(
  sequences: readonly TrainingSequence[],
  rows: readonly number[][],
  rowLength: number,
  candidates: readonly number[],
  limit: number,
): number[] {
  const lengthOf = (i: number): number => sequences[i]!.ids.length;
  const room = rows.map((row) => row.reduce((space, i) => space - lengthOf(i), rowLength));
  const small = candidates
    .filter((i) => lengthOf(i) <= limit)
    .sort((a, b) => lengthOf(b) - lengthOf(a) || a - b);
  const placed: number[] = [];
  for (const i of small) {
    let best: number | undefined;
    for (const [row, space] of room.entries()) {
      if (space >= lengthOf(i) && (best === undefined || space < room[best]!)) best = row;
    }
    if (best === undefined) continue;
    rows[best]!.push(i);
    room[best]! -= lengthOf(i);
    placed.push(i);
  }
  return placed;
}
