import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/base/errors.ts";
import { packInto } from "../../../src/learn/optim/pack.ts";
import { type PackedBatch, segmentLengths, type TrainingSequence } from "../../../src/learn/optim/rows.ts";

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

/** A sequence that begins as all of its family do, and whose own tokens tell which it is. */
const relative = (family: number, prefix: number, own: number, id: number): TrainingSequence => {
  const tokens = (length: number, value: (t: number) => number) => Array.from({ length }, (_, t) => value(t));
  return {
    ids: [...tokens(prefix, (t) => 100 * (family + 1) + t), ...tokens(own, (t) => 1000 * (id + 1) + t)],
    weights: [...tokens(prefix + 1, () => 0), ...tokens(own - 1, () => 1)],
    extra: { share: tokens(prefix + own, (t) => id + t / 1000) },
    prefix: { key: family, length: prefix },
  };
};

describe("rows that hold a prefix once", () => {
  const together = { ...shape, rowLengths: [16], sharedRowLengths: [16] };

  it("lay it out before the sequences that go on from it", () => {
    const family = [relative(0, 3, 4, 0), relative(0, 3, 2, 1), relative(0, 3, 2, 2)];
    const batches = packInto([...family, relative(1, 3, 9, 3)], together, ["share"]);
    expect(batches).toHaveLength(1);
    const { ids, positions, segments, prefixes, targets, weights, extra, tokens } = batches[0]!;
    expect(ids.shape).toEqual([2, 16]);
    // The longest family first, its row filled by nothing else.
    const row = (array: { readonly data: ArrayLike<number> }, r: number) =>
      Array.from(array.data).slice(16 * r, 16 * r + 12);
    expect(row(ids, 0)).toEqual([200, 201, 202, ...Array.from({ length: 9 }, (_, t) => 4000 + t)]);
    expect(row(ids, 1)).toEqual([100, 101, 102, 1000, 1001, 1002, 1003, 2000, 2001, 3000, 3001, 0]);
    expect(row(positions, 1)).toEqual([0, 1, 2, 3, 4, 5, 6, 3, 4, 3, 4, 0]);
    expect(row(segments, 1)).toEqual([1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 0]);
    expect(row(prefixes!, 1)).toEqual([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    expect(row(weights, 1)).toEqual([0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0, 0]);
    expect(row(targets, 1).filter((_, t) => weights.data[16 + t]! > 0)).toEqual([
      1001, 1002, 1003, 2001, 3001,
    ]);
    expect(row(extra["share"]!, 1)[7]).toBeCloseTo(1.004, 6);
    expect(tokens).toBe(12 + 11);
    expect(segmentLengths(batches[0]!)).toEqual([
      { tokens: 3, before: 0 },
      { tokens: 9, before: 3 },
      { tokens: 3, before: 0 },
      { tokens: 4, before: 3 },
      { tokens: 2, before: 3 },
      { tokens: 2, before: 3 },
    ]);
  });

  it("are not made where nothing is saved", () => {
    const [batch] = packInto([relative(0, 3, 13, 0), relative(0, 3, 13, 1)], together, ["share"]);
    expect(batch!.prefixes).toBeUndefined();
    expect(packInto([sequence(5, 0), sequence(6, 1)], together)[0]!.prefixes).toBeUndefined();
  });

  it("hold every sequence whole, its prefix before it, none twice", () => {
    const family = fc.record({
      prefix: fc.integer({ min: 0, max: 8 }),
      own: fc.array(fc.integer({ min: 1, max: 8 })),
    });
    fc.assert(
      fc.property(fc.array(family, { maxLength: 8 }), (families) => {
        let id = 0;
        const sequences = families.flatMap(({ prefix, own }, key) =>
          own.map((length) => relative(key, prefix, length, id++)),
        );
        // Short rows cost so much that those that share are taken wherever there are any.
        const batches = packInto(sequences, { ...together, rowLengths: [1000] }, ["share"]);
        const found: number[][] = [];
        for (const { ids, segments, prefixes } of batches) {
          const [B, T] = ids.shape as [number, number];
          for (let row = 0; row < B; row++) {
            const pieces = new Map<number, { prefix: number; ids: number[] }>();
            for (let at = row * T; at < (row + 1) * T; at++) {
              const segment = segments.data[at]!;
              if (segment === 0) continue;
              const piece = pieces.get(segment) ?? { prefix: prefixes!.data[at]!, ids: [] };
              piece.ids.push(ids.data[at]!);
              pieces.set(segment, piece);
            }
            for (const [segment, piece] of pieces) {
              const before = piece.prefix === segment ? [] : pieces.get(piece.prefix)!.ids;
              // What nobody goes on from is a sequence; a prefix is not.
              if (![...pieces].some(([other, { prefix }]) => other !== segment && prefix === segment))
                found.push([...before, ...piece.ids]);
            }
          }
        }
        const key = (ids: readonly number[]) => ids.join(" ");
        expect(found.map(key).sort()).toEqual(sequences.map(({ ids }) => key(Array.from(ids))).sort());
      }),
    );
  });
});
