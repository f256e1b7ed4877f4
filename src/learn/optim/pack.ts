/**
 * Packing: which sequences lie side by side in which row, so that little is spent on padding. Pure host functions; `rows.ts` lays the
 * rows out.
 */

import { ShapeError } from "../../base/errors.ts";
import { familiesOf, layOut, type PackedBatch, type TrainingSequence } from "./rows.ts";

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
  const families = familiesOf([...sequences.keys()], (i) => sequences[i]!);
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
  for (const family of families.sort((a, b) => total(b) - total(a) || a[0]! - b[0]!)) {
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
