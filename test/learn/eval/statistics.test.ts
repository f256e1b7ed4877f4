import { existsSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../../src/compute/tensor/random.ts";
import {
  clusteredInterval,
  majorityVote,
  passAtK,
  summarize,
  wilsonInterval,
} from "../../../src/learn/eval/statistics.ts";

describe("wilsonInterval", () => {
  it("equals the formula worked by hand", () => {
    // p = 0.5, n = 100: centre 0.5, half = 1.96/(1 + 0.038415)·√(0.0025 + 0.000096) = 0.09617
    expect(wilsonInterval(50, 100)[0]).toBeCloseTo(0.40383, 5);
    expect(wilsonInterval(50, 100)[1]).toBeCloseTo(0.59617, 5);
    // With every trial won, the lower end is n / (n + z²).
    expect(wilsonInterval(10, 10)[0]).toBeCloseTo(10 / (10 + 3.841459), 6);
  });

  it("keeps a width at 0 and 1, and knows nothing without trials", () => {
    expect(wilsonInterval(0, 20)[0]).toBe(0);
    expect(wilsonInterval(0, 20)[1]).toBeGreaterThan(0.1);
    expect(wilsonInterval(20, 20)[1]).toBe(1);
    expect(wilsonInterval(0, 0)).toEqual([0, 1]);
  });

  it("contains the proportion, and is mirrored by exchanging success and failure", () => {
    fc.assert(
      fc.property(fc.nat(500), fc.nat(500), (wins, losses) => {
        fc.pre(wins + losses > 0);
        const n = wins + losses;
        const [low, high] = wilsonInterval(wins, n);
        const [mirrorLow, mirrorHigh] = wilsonInterval(losses, n);
        expect(low).toBeLessThanOrEqual(wins / n);
        expect(high).toBeGreaterThanOrEqual(wins / n);
        expect(low).toBeCloseTo(1 - mirrorHigh, 12);
        expect(high).toBeCloseTo(1 - mirrorLow, 12);
      }),
    );
  });

  it("refuses more successes than trials", () => {
    expect(() => wilsonInterval(3, 2)).toThrow(
      "wilsonInterval: successes must lie between 0 and a whole number of trials; got 3 of 2.",
    );
  });
});

describe("clusteredInterval", () => {
  it("is the Wilson interval at one sample per prompt", () => {
    const scores = Array.from({ length: 40 }, (_, i) => [i < 30 ? 1 : 0]);
    const { mean, interval } = clusteredInterval(scores);
    expect(mean).toBe(0.75);
    const [low, high] = wilsonInterval(30, 40);
    expect(interval[0]).toBeCloseTo(low, 12);
    expect(interval[1]).toBeCloseTo(high, 12);
  });

  it("gives no credit for samples that only repeat their prompt", () => {
    const once = Array.from({ length: 40 }, (_, i) => [i < 30 ? 1 : 0]);
    const eightTimes = once.map(([score]) => new Array<number>(8).fill(score!));
    expect(clusteredInterval(eightTimes).interval[0]).toBeCloseTo(clusteredInterval(once).interval[0], 12);
    expect(clusteredInterval(eightTimes).interval[1]).toBeCloseTo(clusteredInterval(once).interval[1], 12);
  });

  it("equals the effective sample size worked by hand", () => {
    // Means 1, 0.5, 0.5, 0: p = 0.5; variance (0.25 + 0.25)/3 = 1/6; SE² = 1/24; n = 0.25·24 = 6, between 4 and 8.
    const { interval } = clusteredInterval([
      [1, 1],
      [1, 0],
      [0, 1],
      [0, 0],
    ]);
    const [low, high] = wilsonInterval(3, 6);
    expect(interval[0]).toBeCloseTo(low, 12);
    expect(interval[1]).toBeCloseTo(high, 12);
  });

  it("counts prompts, not samples, when every sample is right", () => {
    const perfect = Array.from({ length: 25 }, () => [1, 1, 1, 1]);
    expect(clusteredInterval(perfect).interval).toEqual(wilsonInterval(25, 25));
  });

  it("covers the truth about 95 times in 100 where samples of a prompt agree", () => {
    // Each prompt has its own difficulty, uniform on [0.2, 1]: the true mean is 0.6.
    const experiments = 600;
    let covered = 0;
    for (let e = 0; e < experiments; e++) {
      const random = new Random(7, e);
      const scores = Array.from({ length: 60 }, () => {
        const solvable = 0.2 + 0.8 * random.uniform();
        return Array.from({ length: 8 }, () => (random.uniform() < solvable ? 1 : 0));
      });
      const [low, high] = clusteredInterval(scores).interval;
      if (low <= 0.6 && 0.6 <= high) covered++;
    }
    expect(covered / experiments).toBeGreaterThan(0.92);
    expect(covered / experiments).toBeLessThan(0.98);
  });

  it("names the prompt without samples", () => {
    expect(() => clusteredInterval([[1], []])).toThrow("clusteredInterval (prompt 1)");
  });
});

describe("passAtK", () => {
  it("equals the binomial formula on hand-computed cases", () => {
    expect(passAtK(3, 1, 2)).toBeCloseTo(2 / 3, 12); // 1 − C(2,2)/C(3,2)
    expect(passAtK(10, 3, 1)).toBeCloseTo(0.3, 12);
    expect(passAtK(10, 3, 5)).toBeCloseTo(1 - 21 / 252, 12); // C(7,5)/C(10,5)
    expect(passAtK(5, 0, 5)).toBe(0);
    expect(passAtK(5, 1, 5)).toBe(1);
  });

  it("is the mean over all subsets of k samples", () => {
    fc.assert(
      fc.property(
        fc.array(fc.boolean(), { minLength: 1, maxLength: 8 }),
        fc.integer({ min: 1, max: 8 }),
        (right, k) => {
          fc.pre(k <= right.length);
          let subsets = 0;
          let passed = 0;
          for (let mask = 0; mask < 2 ** right.length; mask++) {
            const chosen = right.filter((_, i) => (mask >> i) & 1);
            if (chosen.length !== k) continue;
            subsets++;
            if (chosen.some(Boolean)) passed++;
          }
          expect(passAtK(right.length, right.filter(Boolean).length, k)).toBeCloseTo(passed / subsets, 12);
        },
      ),
    );
  });

  it("does not overflow where binomials would", () => {
    expect(passAtK(10_000, 1, 5_000)).toBeCloseTo(0.5, 9);
  });

  it("refuses k above the number of samples, with a remedy", () => {
    expect(() => passAtK(4, 2, 8)).toThrow(/k=8\. Draw at least k samples per prompt\./);
  });
});

describe("majorityVote", () => {
  it("takes the most frequent answer", () => {
    expect(majorityVote(["6", "7", "7", null])).toBe("7");
  });
  it("breaks ties by who came first", () => {
    expect(majorityVote(["b", "a", "a", "b"])).toBe("b");
  });
  it("does not let missing answers vote", () => {
    expect(majorityVote([null, null, "5"])).toBe("5");
    expect(majorityVote([null])).toBeUndefined();
  });
});

describe("summarize", () => {
  const right = { correct: true, tokens: 10, truncated: false };
  const wrong = { correct: false, tokens: 30, truncated: true };

  it("reports pass@1 with its interval, unbiased pass@k, length and truncation", () => {
    const summary = summarize([
      [right, wrong],
      [wrong, wrong],
    ]);
    expect(summary.pass1).toBe(0.25);
    expect(summary.passK).toEqual({ "1": 0.25, "2": 0.5 });
    expect(summary.count).toBe(2);
    expect(summary.samplesPerPrompt).toBe(2);
    expect(summary.meanLength).toBe(25);
    expect(summary.truncatedFraction).toBe(0.75);
    expect(summary.interval[0]).toBeLessThan(0.25);
    expect(summary.interval[1]).toBeGreaterThan(0.25);
  });

  it("refuses an empty evaluation", () => {
    expect(() => summarize([])).toThrow("at least one prompt");
  });
});

interface PublishedCase {
  name: string;
  metric_params: { k: number; n?: number };
  doc: { choices: string[]; gold_index: number | number[] };
  model_response: { text: string[] };
  expected_output: Record<string, number>;
  tolerance: number;
}

const folder = "../shared/data/eval-metrics/lighteval";
describe.skipIf(!existsSync(folder))("published metric vectors (lighteval)", () => {
  // The body of a skipped suite still runs to collect its tests.
  const cases = (file: string): PublishedCase[] =>
    existsSync(folder) ? JSON.parse(readFileSync(`${folder}/${file}.json`, "utf8")).test_cases : [];
  const golds = (c: PublishedCase) => [c.doc.gold_index].flat().map((i) => c.doc.choices[i]!);
  const expected = (c: PublishedCase) => Object.values(c.expected_output)[0]!;

  it.each(cases("pass_at_k"))("pass_at_k: $name", (c) => {
    const { k, n = k } = c.metric_params;
    const correct = c.model_response.text.slice(0, n).filter((text) => golds(c).includes(text)).length;
    expect(Math.abs(passAtK(n, correct, k) - expected(c))).toBeLessThanOrEqual(c.tolerance);
  });

  it.each(cases("maj_at_k"))("maj_at_k: $name", (c) => {
    const winner = majorityVote(c.model_response.text.slice(0, c.metric_params.k));
    expect(golds(c).includes(winner!) ? 1 : 0).toBe(expected(c));
  });

  const oneGold = cases("avg_at_k").filter((c) => !Array.isArray(c.doc.gold_index));
  it.each(oneGold)("avg_at_k is pass@1 over the first k: $name", (c) => {
    const { k } = c.metric_params;
    const correct = c.model_response.text.slice(0, k).filter((text) => golds(c).includes(text)).length;
    expect(Math.abs(passAtK(k, correct, 1) - expected(c))).toBeLessThanOrEqual(c.tolerance);
  });
});
