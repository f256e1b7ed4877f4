import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { philox, Random } from "../../../src/compute/tensor/random.ts";

const take = (n: number, draw: () => number): number[] => Array.from({ length: n }, draw);

/** Σ (observed − expected)² / expected over equally likely outcomes. */
function chiSquare(counts: readonly number[]): number {
  const expected = counts.reduce((a, b) => a + b) / counts.length;
  return counts.reduce((total, n) => total + (n - expected) ** 2 / expected, 0);
}

/**
 * A bound for χ² with k degrees of freedom that a fair source exceeds about once in 10⁶ (Wilson–Hilferty, z = 4.75).
 * Seeds are fixed, so a test that passes once passes always.
 */
function chiSquareLimit(k: number): number {
  return k * (1 - 2 / (9 * k) + 4.75 * Math.sqrt(2 / (9 * k))) ** 3;
}

function histogram(n: number, bins: number, draw: () => number): number[] {
  const counts = new Array<number>(bins).fill(0);
  for (let i = 0; i < n; i++) counts[draw()]!++;
  return counts;
}

const moment = (xs: readonly number[], k: number): number => xs.reduce((a, x) => a + x ** k, 0) / xs.length;

describe("philox", () => {
  // Known answers of Random123's kat_vectors, philox4x32 with 10 rounds.
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ])("of %o under %o is the published answer", (counter, key, answer) => {
    expect(philox(counter, key)).toEqual(answer);
  });
});

describe("a stream", () => {
  it("without a path counts through the blocks of its seed", () => {
    const random = new Random(0);
    const words = take(8, () => random.bits());
    expect(words).toEqual([...philox([0, 0, 0, 0], [0, 0]), ...philox([1, 0, 0, 0], [0, 0])]);
  });

  it("is the same wherever and whenever it is made", () => {
    fc.assert(
      fc.property(fc.maxSafeInteger(), fc.array(fc.nat()), (seed, path) => {
        const random = new Random(seed, ...path);
        const first = take(9, () => random.bits());
        new Random(seed, ...path, 1).bits();
        const again = new Random(seed, ...path);
        expect(take(9, () => again.bits())).toEqual(first);
      }),
    );
  });

  it("differs from the streams of other seeds and paths", () => {
    const names: number[][] = [
      [1],
      [2],
      [1, 0],
      [1, 0, 0],
      [1, 1, 23],
      [1, 12, 3],
      [1, 3, 12],
      [0, 1],
      [1 + 2 ** 32],
      [1, 2 ** 32],
      [-1],
      [2 ** 32 - 1],
    ];
    const starts = names.map(([seed, ...path]) => {
      const random = new Random(seed!, ...path);
      return take(4, () => random.bits()).join();
    });
    expect(new Set(starts).size).toBe(names.length);
  });

  it("is not correlated with its neighbours in step, prompt or sample", () => {
    const n = 4000;
    const draws = (...path: number[]): number[] => {
      const random = new Random(5, ...path);
      return take(n, () => random.uniform() - 0.5);
    };
    const reference = draws(3, 7, 1);
    for (const path of [
      [3, 7, 2],
      [3, 8, 1],
      [4, 7, 1],
      [7, 3, 1],
    ]) {
      const other = draws(...path);
      const correlation = (12 * reference.reduce((a, x, i) => a + x * other[i]!, 0)) / n;
      // The standard deviation is 1/√n.
      expect(Math.abs(correlation)).toBeLessThan(4 / Math.sqrt(n));
    }
  });

  it("drawn once from each of many streams is uniform too", () => {
    let sample = 0;
    const counts = histogram(16_000, 16, () => new Random(9, 2, sample++).integer(16));
    expect(chiSquare(counts)).toBeLessThan(chiSquareLimit(15));
  });
});

describe("uniform", () => {
  const random = new Random(17);
  const xs = take(20_000, () => random.uniform());

  it("lies in [0, 1) and is evenly spread", () => {
    expect(xs.every((x) => x >= 0 && x < 1)).toBe(true);
    const counts = new Array<number>(64).fill(0);
    for (const x of xs) counts[Math.floor(x * 64)]!++;
    expect(chiSquare(counts)).toBeLessThan(chiSquareLimit(63));
  });

  it("has 53 bits, the low ones as even as the high ones", () => {
    expect(xs.every((x) => Number.isInteger(x * 2 ** 53))).toBe(true);
    const odd = xs.filter((x) => (x * 2 ** 53) % 2 === 1).length;
    expect(chiSquare([odd, xs.length - odd])).toBeLessThan(chiSquareLimit(1));
  });
});

describe("integer", () => {
  it.each([2, 3, 10, 97])("below %i is unbiased", (n) => {
    const random = new Random(23, n);
    expect(chiSquare(histogram(20_000, n, () => random.integer(n)))).toBeLessThan(chiSquareLimit(n - 1));
  });

  it("is unbiased where the remainder of a 32-bit word would not be", () => {
    // The words 3·2³⁰ … 2³²−1 would fold onto the first third and make it twice as likely.
    const n = 3 * 2 ** 30;
    const random = new Random(29);
    const thirds = histogram(6000, 3, () => Math.floor(random.integer(n) / 2 ** 30));
    expect(chiSquare(thirds)).toBeLessThan(chiSquareLimit(2));
  });

  it("takes every n from 1 to 2³² and nothing else", () => {
    const random = new Random(31);
    expect(take(5, () => random.integer(1))).toEqual([0, 0, 0, 0, 0]);
    expect(random.integer(2 ** 32)).toBeGreaterThan(0);
    for (const n of [0, -1, 1.5, 2 ** 32 + 1, Number.NaN]) {
      expect(() => random.integer(n)).toThrow(`invariant broken: integer below ${n}`);
    }
  });
});

describe("normal", () => {
  it("has the moments of the standard normal distribution", () => {
    const random = new Random(37);
    const xs = take(40_000, () => random.normal());
    expect(xs.every(Number.isFinite)).toBe(true);
    // Standard errors for n = 40,000: 0.005, 0.007, 0.012 and 0.049; four of them are allowed.
    expect(Math.abs(moment(xs, 1))).toBeLessThan(0.02);
    expect(Math.abs(moment(xs, 2) - 1)).toBeLessThan(0.03);
    expect(Math.abs(moment(xs, 3))).toBeLessThan(0.08);
    expect(Math.abs(moment(xs, 4) - 3)).toBeLessThan(0.2);
  });
});

describe("pick and shuffle", () => {
  it("pick takes each element equally often, and none from nothing", () => {
    const random = new Random(41);
    const counts = histogram(9000, 3, () => random.pick([0, 1, 2]));
    expect(chiSquare(counts)).toBeLessThan(chiSquareLimit(2));
    expect(() => random.pick([])).toThrow("invariant broken: integer below 0");
  });

  it("shuffle makes every order equally likely", () => {
    const random = new Random(43);
    const orders = ["abc", "acb", "bac", "bca", "cab", "cba"];
    const counts = histogram(12_000, 6, () => orders.indexOf(random.shuffle(["a", "b", "c"]).join("")));
    expect(chiSquare(counts)).toBeLessThan(chiSquareLimit(5));
  });

  it("shuffle keeps every element, in place", () => {
    fc.assert(
      fc.property(fc.array(fc.nat()), fc.nat(), (items, seed) => {
        const copy = [...items];
        expect(new Random(seed).shuffle(copy)).toBe(copy);
        expect(copy.sort()).toEqual([...items].sort());
      }),
    );
  });
});
