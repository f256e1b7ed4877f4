import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/base/errors.ts";
import { bestFit, packAll } from "../../../src/learn/optim/pack.ts";
import { layOut, type TrainingSequence } from "../../../src/learn/optim/rows.ts";

const numbers = (array: { readonly data: ArrayLike<number> }): number[] => Array.from(array.data);

describe("bestFit", () => {
  it("places the longest first, each in the fullest row with room", () => {
    // 7 and 5 open rows; 4 joins 5, 3 joins 7; 2 opens a third row; 1 goes where it fits exactly.
    expect(bestFit([3, 5, 7, 4, 2, 1], 10)).toEqual([[2, 0], [1, 3, 5], [4]]);
  });

  it("keeps the order of equal lengths", () => {
    expect(bestFit([4, 4, 4, 4], 8)).toEqual([
      [0, 1],
      [2, 3],
    ]);
  });

  it("fills a row to its last token and knows no rows for no sequences", () => {
    expect(bestFit([8], 8)).toEqual([[0]]);
    expect(bestFit([], 8)).toEqual([]);
  });

  it("refuses a sequence longer than a row", () => {
    expect(() => bestFit([3, 9], 8)).toThrow(ShapeError);
    expect(() => bestFit([3, 9], 8)).toThrow(
      "pack: a sequence must fit a row of 8 tokens; got 9 tokens. Use longer rows or cut the sequence.",
    );
  });

  it("places every sequence once, overfills no row and opens none that was not needed", () => {
    const lengths = fc.array(fc.integer({ min: 1, max: 32 }), { maxLength: 60 });
    fc.assert(
      fc.property(lengths, (all) => {
        const rows = bestFit(all, 32);
        expect(rows.flat().sort((a, b) => a - b)).toEqual(all.map((_, i) => i));
        const filled = rows.map((row) => row.reduce((total, i) => total + all[i]!, 0));
        for (const tokens of filled) expect(tokens).toBeLessThanOrEqual(32);
        // Two rows that fit into one: the later one's first sequence would have gone into the other.
        const [least = 32, second = 32] = filled.sort((a, b) => a - b);
        expect(least + second).toBeGreaterThan(rows.length > 1 ? 32 : 0);
      }),
    );
  });
});

describe("layOut", () => {
  const sequences: TrainingSequence[] = [
    { ids: [5, 6, 7], weights: [9, 0.5, 0.25], extra: { logp: [9, -1, -2] } },
    { ids: [8, 4], weights: [9, 1], extra: { logp: [9, -3] } },
    { ids: [3], weights: [9], extra: { logp: [9] } },
  ];
  const batch = layOut(sequences, [[0, 1], [2]], { batch: 3, rowLength: 6, padId: 1 }, ["logp"]);

  it("puts a token's weight and numbers where it is predicted: at the token before", () => {
    expect(numbers(batch.ids)).toEqual([5, 6, 7, 8, 4, 1, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    expect(numbers(batch.targets)).toEqual([6, 7, 1, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    expect(numbers(batch.weights)).toEqual([0.5, 0.25, 0, 1, ...new Array<number>(14).fill(0)]);
    expect(numbers(batch.extra["logp"]!)).toEqual([-1, -2, 0, -3, ...new Array<number>(14).fill(0)]);
  });

  it("counts positions anew in every sequence and keeps sequences and padding in segments of their own", () => {
    expect(numbers(batch.positions)).toEqual([0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    expect(numbers(batch.segments)).toEqual([1, 1, 1, 2, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    expect(batch.tokens).toBe(6);
    expect(batch.ids.shape).toEqual([3, 6]);
  });
});

describe("packAll", () => {
  it("makes as many batches of one shape as it takes, and loses no weight", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 16 }), { maxLength: 40 }), (lengths) => {
        const sequences = lengths.map((n, i) => ({
          ids: Array.from({ length: n }, (_, t) => 1 + ((i + t) % 9)),
          weights: Array.from({ length: n }, (_, t) => i + t / 64),
        }));
        const batches = packAll(sequences, { batch: 4, rowLength: 16, padId: 0 });
        const total = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
        expect(total(batches.map(({ tokens }) => tokens))).toBe(total(lengths));
        expect(total(batches.flatMap(({ weights }) => numbers(weights)))).toBeCloseTo(
          total(sequences.flatMap(({ weights }) => weights.slice(1))),
          6,
        );
        for (const { ids } of batches) expect(ids.shape).toEqual([4, 16]);
        expect(batches.length).toBe(Math.ceil(bestFit(lengths, 16).length / 4));
      }),
    );
  });
});
