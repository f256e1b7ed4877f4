import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/base/errors.ts";
import { type PackedBatch, packInto, type TrainingSequence } from "../../../src/learn/optim/pack.ts";

/** A sequence whose tokens tell which it is. */
const sequence = (length: number, id: number): TrainingSequence => ({
  ids: Array.from({ length }, (_, t) => 1000 * (id + 1) + t),
  weights: Array.from({ length }, () => 1),
  extra: { share: Array.from({ length }, (_, t) => id + t / 1000) },
});

/** The sequences found in a batch, by their segments. */
function read({ ids, segments }: PackedBatch): number[][] {
  const [B, T] = ids.shape as [number, number];
  const found: number[][] = [];
  for (let row = 0; row < B; row++) {
    const bySegment = new Map<number, number[]>();
    for (let t = 0; t < T; t++) {
      const segment = segments.data[row * T + t]!;
      if (segment > 0) bySegment.set(segment, [...(bySegment.get(segment) ?? []), ids.data[row * T + t]!]);
    }
    found.push(...bySegment.values());
  }
  return found;
}

const shape = { rowLengths: [8, 16], batchTokens: 64, padId: 0 };
const shapes = (batches: readonly PackedBatch[]) => batches.map(({ ids }) => [...ids.shape]);

describe("packing into rows of several lengths", () => {
  it("keeps every sequence whole, once, in rows of the lengths given", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 16 }), { maxLength: 60 }), (lengths) => {
        const sequences = lengths.map(sequence);
        const batches = packInto(sequences, shape, ["share"]);
        const found = batches.flatMap(read).sort((a, b) => a[0]! - b[0]!);
        expect(found).toEqual(sequences.map(({ ids }) => ids));
        for (const { ids } of batches) {
          expect(shape.rowLengths).toContain(ids.shape[1]);
          expect(ids.data.length).toBeLessThanOrEqual(shape.batchTokens);
        }
        expect(batches.reduce((n, { tokens }) => n + tokens, 0)).toBe(lengths.reduce((a, b) => a + b, 0));
      }),
    );
  });

  it("gives long sequences long rows and short ones short rows", () => {
    const batches = packInto([16, 15, 8, 8, 8].map(sequence), shape);
    expect(shapes(batches)).toEqual([
      [2, 16],
      [4, 8],
    ]);
  });

  it("fills what long rows have left before it opens short ones", () => {
    // 10 leaves 6 and 11 leaves 5: the 5s go there, 6 goes to 10, and nothing is left for short rows.
    const batches = packInto([10, 11, 6, 5].map(sequence), shape);
    expect(shapes(batches)).toEqual([[2, 16]]);
    expect(batches[0]!.tokens).toBe(32);
  });

  it("takes long rows alone where short ones would be filled badly, unless long ones cost more", () => {
    const lengths = [16, 5, 5, 5, 5, 5, 5].map(sequence);
    expect(shapes(packInto(lengths, shape))).toEqual([[4, 16]]);
    expect(shapes(packInto(lengths, { ...shape, costOfToken: (rowLength) => rowLength }))).toEqual([
      [1, 16],
      [8, 8],
    ]);
  });

  it("has batches of a whole, a half or a quarter of the rows that fit", () => {
    const rows = (count: number) =>
      shapes(
        packInto(
          Array.from({ length: count }, (_, i) => sequence(16, i)),
          shape,
        ),
      ).map(([B]) => B);
    expect(rows(1)).toEqual([1]);
    expect(rows(2)).toEqual([2]);
    expect(rows(3)).toEqual([4]);
    expect(rows(4)).toEqual([4]);
    expect(rows(5)).toEqual([4, 1]);
  });

  it("has at least a row a batch, however few tokens it may have", () => {
    expect(shapes(packInto([16, 16].map(sequence), { ...shape, batchTokens: 3 }))).toEqual([
      [1, 16],
      [1, 16],
    ]);
  });

  it("puts extra numbers where the token they belong to is predicted", () => {
    const [batch] = packInto([sequence(3, 2)], shape, ["share"]);
    expect([...batch!.extra["share"]!.data.slice(0, 3)]).toEqual([2.001, 2.002, 0].map(Math.fround));
  });

  it("is empty for nothing, and refuses what no row holds", () => {
    expect(packInto([], shape)).toEqual([]);
    expect(() => packInto([sequence(17, 0)], shape)).toThrow(ShapeError);
  });
});
