/**
 * Packing: sequences of different lengths side by side in rows of one length, so that little is spent on padding.
 * A pure host function; the masks in the training graph keep neighbours apart (segments) and count positions anew.
 */

import { invariant, ShapeError } from "../../base/errors.ts";
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
  const families = new Map<number | TrainingSequence, TrainingSequence[]>();
  for (const sequence of row) {
    const key = sequence.prefix?.key ?? sequence;
    families.set(key, [...(families.get(key) ?? []), sequence]);
  }
  return [...families.values()].flatMap((family) => {
    const [first] = family as [TrainingSequence];
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
  /** Of rows that hold a prefix once for several sequences; each must hold the longest sequence. @default none do */
  readonly sharedRowLengths?: readonly number[];
  /** What a token of a row of that length costs, padding or not, in any unit. @default as much in every row */
  readonly costOfToken?: (rowLength: number) => number;
}

/** The last batch of a bucket has as many rows as the others, or a half, or a quarter: few programs, little padding. */
const FRACTIONS = [4, 2, 1];

/** Rows that share have programs of their own, which take longer to build than a little saves. */
const WORTH_SHARING = 1.1;

/** Rows of one length, and how many of them each batch has. */
interface Bucket {
  readonly rowLength: number;
  readonly shared: boolean;
  readonly rows: readonly (readonly number[])[];
  readonly batches: readonly number[];
}

/**
 * Packs sequences of very different lengths into rows of one length or of several: attention costs a row the square of its
 * length, and short rows are filled badly, so the cheapest is taken of all row lengths, all but the shortest, and so on to the
 * longest alone, and of rows of one length in which sequences share what they begin with. Otherwise each sequence goes to the shortest
 * rows that hold it, after the gaps in longer rows have been filled.
 * Batches come in a fixed order: long rows first, whole batches before the last one.
 */
export function packInto(
  sequences: readonly TrainingSequence[],
  shape: BucketShape,
  extraNames: readonly string[] = [],
): PackedBatch[] {
  const { rowLengths, sharedRowLengths = [], batchTokens, padId, costOfToken = () => 1 } = shape;
  const costOf = (buckets: readonly Bucket[]): number => {
    const each = buckets.map(({ rowLength, shared, batches }) => {
      const rows = batches.reduce((sum, n) => sum + n, 0);
      return rows * rowLength * costOfToken(rowLength) * (shared ? WORTH_SHARING : 1);
    });
    return each.reduce((sum, cost) => sum + cost, 0);
  };
  const ways = [
    ...rowLengths.map((_, from) => intoBuckets(sequences, rowLengths.slice(from), batchTokens)),
    ...sharedRowLengths.map((rowLength) => [
      bucketOf(sharedRows(sequences, rowLength), rowLength, batchTokens, true),
    ]),
  ];
  const cheapest = ways.reduce((best, way) => (costOf(way) < costOf(best) ? way : best));
  return cheapest.flatMap(({ rowLength, shared, rows, batches }) => {
    let start = 0;
    return batches.map((batch) => {
      const part = rows.slice(start, start + batch);
      start += batch;
      return layOut(sequences, part, { batch, rowLength, padId }, extraNames, shared);
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
    buckets.push(bucketOf(rows, rowLength, batchTokens, false));
  }
  return buckets;
}

function bucketOf(
  rows: readonly (readonly number[])[],
  rowLength: number,
  batchTokens: number,
  shared: boolean,
): Bucket {
  const most = Math.max(1, Math.floor(batchTokens / rowLength));
  const sizes = FRACTIONS.map((fraction) => Math.ceil(most / fraction));
  const batches: number[] = [];
  for (let rest = rows.length; rest > 0; rest -= most)
    batches.push(sizes.find((size) => size >= rest) ?? most);
  return { rowLength, shared, rows, batches };
}

/**
 * Rows in which sequences of one key need their prefix only once: the longest families first and of each the longest sequences, each
 * in the fullest row of its family with room, else in the fullest row with room for its prefix, too.
 */
function sharedRows(sequences: readonly TrainingSequence[], rowLength: number): number[][] {
  const families = new Map<number | TrainingSequence, number[]>();
  for (const [i, sequence] of sequences.entries()) {
    const key = sequence.prefix?.key ?? sequence;
    families.set(key, [...(families.get(key) ?? []), i]);
  }
  const prefixOf = (i: number): number => sequences[i]!.prefix?.length ?? 0;
  const ownOf = (i: number): number => sequences[i]!.ids.length - prefixOf(i);
  const total = (family: readonly number[]): number =>
    family.reduce((sum, i) => sum + ownOf(i), prefixOf(family[0]!));
  const rows: { readonly indices: number[]; room: number }[] = [];
  const put = (i: number, length: number, among: readonly { indices: number[]; room: number }[]) => {
    const fitting = among.filter(({ room }) => room >= length);
    if (fitting.length === 0) return undefined;
    const row = fitting.reduce((best, each) => (each.room < best.room ? each : best));
    row.indices.push(i);
    row.room -= length;
    return row;
  };
  for (const family of [...families.values()].sort((a, b) => total(b) - total(a) || a[0]! - b[0]!)) {
    const held = new Set<{ indices: number[]; room: number }>();
    for (const i of [...family].sort((a, b) => ownOf(b) - ownOf(a) || a - b)) {
      const whole = prefixOf(i) + ownOf(i);
      let row = put(i, ownOf(i), [...held]) ?? put(i, whole, rows);
      if (row === undefined) {
        row = { indices: [i], room: rowLength - whole };
        rows.push(row);
      }
      held.add(row);
    }
  }
  return rows.map(({ indices }) => indices);
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
