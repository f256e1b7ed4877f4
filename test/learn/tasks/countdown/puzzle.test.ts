import { existsSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ConfigError } from "../../../../src/base/errors.ts";
import { Random } from "../../../../src/compute/tensor/random.ts";
import { evaluateExpression } from "../../../../src/learn/tasks/countdown/expression.ts";
import { publishedHashes } from "../../../../src/learn/tasks/countdown/published.ts";
import {
  contentHash,
  contentKey,
  type GameOptions,
  puzzleSource,
  splitOf,
} from "../../../../src/learn/tasks/countdown/puzzle.ts";
import { expressionText, makeable, solve, sumsMake } from "../../../../src/learn/tasks/countdown/solve.ts";
import { checkAnswer } from "../../../../src/learn/tasks/countdown/verify.ts";

/** Every text that joins all of the numbers in some order and bracketing: the slow way to ask what can be made. */
function allTexts(numbers: readonly string[]): string[] {
  if (numbers.length === 1) return [...numbers];
  const texts = new Set<string>();
  numbers.forEach((a, i) => {
    numbers.forEach((b, j) => {
      if (i === j) return;
      const rest = numbers.filter((_, k) => k !== i && k !== j);
      for (const operator of "+-*/")
        for (const text of allTexts([`(${a}${operator}${b})`, ...rest])) texts.add(text);
    });
  });
  return [...texts];
}

const numbersOf = (count: number, max: number) =>
  fc.array(fc.integer({ min: 1, max }), { minLength: count, maxLength: count });

describe("the solver", () => {
  test("finds each solution once, fewest operations first", () => {
    const texts = solve({ numbers: [1, 2, 3], target: 6 }).map(({ text }) => text);
    // By hand: 2·3 without the 1; the sum; the product; the 1 as a divisor. Orders and bracketings do not count.
    expect(texts[0]).toBe("2*3");
    expect(texts).toHaveLength(4);
    expect(solve({ numbers: [1, 2, 3], target: 6 }, { use: "exactly-once" })).toHaveLength(3);
    expect(solve({ numbers: [4, 9], target: 9 })[0]).toMatchObject({ text: "9", operations: 0 });
    expect(solve({ numbers: [4, 9], target: 7 })).toEqual([]);
    // Exchanging two equal numbers makes no other solution.
    expect(solve({ numbers: [2, 2], target: 4 }).map(({ text }) => text)).toEqual(["2*2", "2+2"]);
  });

  test("fractions and negative results are options", () => {
    const hard = { numbers: [8, 8, 3, 3], target: 24 };
    expect(solve(hard, { use: "exactly-once" })).toEqual([]);
    expect(solve(hard, { use: "exactly-once", fractions: true }).map(({ text }) => text)).toEqual([
      "8/(3-8/3)",
    ]);
    const twoWays = { numbers: [1, 3, 2, 5], target: 6 };
    const signed = solve(twoWays, { use: "exactly-once", negatives: true }).map(({ text }) => text);
    expect(signed).toContain("(1-3)*(2-5)");
    expect(solve(twoWays, { use: "exactly-once" }).map(({ text }) => text)).toContain("(3-1)*(5-2)");
  });

  test("is exhaustive: with fractions and negatives it solves exactly what trying every text does", () => {
    fc.assert(
      fc.property(numbersOf(3, 12), fc.integer({ min: 1, max: 40 }), (numbers, target) => {
        const makes = (text: string) => {
          const result = evaluateExpression(text);
          return result.ok && result.value.den === 1n && result.value.num === BigInt(target);
        };
        const rules = { use: "exactly-once", fractions: true, negatives: true } as const;
        const solutions = solve({ numbers, target }, rules);
        expect(solutions.length > 0).toBe(allTexts(numbers.map(String)).some(makes));
      }),
      { numRuns: 150 },
    );
  });

  test("every solution is right by the verifier, and its text keeps its order of working", () => {
    fc.assert(
      fc.property(
        numbersOf(4, 30),
        fc.integer({ min: 1, max: 60 }),
        fc.boolean(),
        (numbers, target, fractions) => {
          for (const { text, expression } of solve({ numbers, target }, { fractions })) {
            expect(checkAnswer({ numbers, target }, text)).toEqual({ correct: true, reason: "correct" });
            expect(expressionText(expression)).toBe(text);
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test("negative results add no target above zero", () => {
    fc.assert(
      fc.property(numbersOf(4, 20), fc.integer({ min: 1, max: 50 }), (numbers, target) => {
        const solvable = (negatives: boolean) =>
          solve({ numbers, target }, { use: "exactly-once", negatives, fractions: true }).length > 0;
        expect(solvable(false)).toBe(solvable(true));
      }),
      { numRuns: 60 },
    );
  });

  test("the fast test of solvability agrees with it", () => {
    const numbers = fc.integer({ min: 1, max: 5 }).chain((count) => numbersOf(count, count === 5 ? 6 : 40));
    fc.assert(
      fc.property(numbers, fc.integer({ min: 1, max: 60 }), (given, target) => {
        expect(makeable(given).has(target)).toBe(
          solve({ numbers: given, target }, { use: "exactly-once" }).length > 0,
        );
      }),
      { numRuns: 200 },
    );
    // 5·(4−4)+7: a zero on the way.
    expect(makeable([5, 4, 4, 7]).has(7)).toBe(true);
  });

  test("the test for sums agrees with solutions made of + and − alone", () => {
    fc.assert(
      fc.property(numbersOf(4, 30), fc.integer({ min: 1, max: 60 }), (numbers, target) => {
        const sums = solve({ numbers, target }).some(({ text }) => !/[*/]/.test(text));
        expect(sumsMake(numbers, target)).toBe(sums);
      }),
      { numRuns: 100 },
    );
  });

  test("refuses what it cannot work out exactly", () => {
    expect(() => solve({ numbers: [1, 2, 3, 4, 5, 6, 7], target: 1 })).toThrow(ConfigError);
    expect(() => solve({ numbers: [1e6, 1e6, 1e6], target: 1 })).toThrow(/got 3 numbers up to 1000000/);
  });
});

describe("puzzles", () => {
  const draw = (options: GameOptions, count: number) => {
    const source = puzzleSource(options);
    return Array.from({ length: count }, (_, i) => source(new Random(3, i)));
  };

  test("are solvable with all their numbers, within their ranges, of each count equally often", () => {
    const puzzles = draw({ numbers: { min: 2, max: 50 }, target: { min: 10, max: 60 } }, 400);
    for (const { numbers, target } of puzzles) {
      expect(solve({ numbers, target }, { use: "exactly-once" }).length).toBeGreaterThan(0);
      expect(Math.min(...numbers)).toBeGreaterThanOrEqual(2);
      expect(Math.max(...numbers)).toBeLessThanOrEqual(50);
      expect(target).toBeGreaterThanOrEqual(10);
      expect(target).toBeLessThanOrEqual(60);
    }
    const threes = puzzles.filter(({ numbers }) => numbers.length === 3).length;
    // 200 expected, standard deviation 10.
    expect(Math.abs(threes - 200)).toBeLessThan(50);
  });

  test("that need × or ÷ have no solution without", () => {
    for (const puzzle of draw({ needs: "times-or-divide" }, 200)) {
      for (const { text } of solve(puzzle)) expect(text).toMatch(/[*/]/);
    }
  });

  test("one stream of randomness gives one puzzle", () => {
    const source = puzzleSource();
    expect(source(new Random(1, 2))).toEqual(source(new Random(1, 2)));
    expect(source(new Random(1, 2))).not.toEqual(source(new Random(1, 3)));
  });

  test("of different splits are different by content", () => {
    const keys = (["train", "validation", "test"] as const).map(
      (split) => new Set(draw({ split, counts: [3], numbers: { min: 1, max: 12 } }, 600).map(contentKey)),
    );
    const union = new Set(keys.flatMap((set) => [...set]));
    expect(union.size).toBe(keys.reduce((sum, set) => sum + set.size, 0));
  });

  test("content is the numbers in any order with the target", () => {
    const puzzle = { numbers: [83, 18, 75], target: 10 };
    const same = { numbers: [18, 75, 83], target: 10 };
    expect(contentKey(puzzle)).toBe("18,75,83:10");
    expect(contentHash(puzzle)).toBe(contentHash(same));
    expect(contentHash({ ...puzzle, target: 11 })).not.toBe(contentHash(puzzle));
    expect(Number.isSafeInteger(contentHash(puzzle))).toBe(true);
  });

  test("about a tenth of all content is for validation, and a tenth for test", () => {
    const counts = { train: 0, validation: 0, test: 0, published: 0 };
    for (let a = 1; a <= 40; a++)
      for (let target = 1; target <= 100; target++) counts[splitOf({ numbers: [a, 7, 90], target })]++;
    // 400 of 4,000 expected, standard deviation 19.
    expect(Math.abs(counts.validation - 400)).toBeLessThan(80);
    expect(Math.abs(counts.test - 400)).toBeLessThan(80);
  });

  test("a published puzzle, in any order, is in no other split", () => {
    expect(publishedHashes.size).toBe(256);
    expect(splitOf({ numbers: [30, 100, 93], target: 23 })).toBe("published");
    expect(splitOf({ numbers: [93, 30, 100], target: 23 })).toBe("published");
  });

  test.each([
    [{ counts: [] }, /countdown: counts: must be from 2 to 6; got \[\]/],
    [{ counts: [7] }, /countdown: counts: must be from 2 to 6; got \[7\]/],
    [
      { numbers: { min: 0, max: 9 } },
      /countdown: numbers: needs whole numbers with 1 ≤ min ≤ max; got min 0, max 9/,
    ],
    [{ target: { min: 9, max: 1 } }, /countdown: target: needs whole numbers/],
    [{ numbers: { min: 1, max: 1e6 } }, /must have exact products; got 4 numbers up to 1000000/],
  ])("options %o are refused", (options, message) => {
    expect(() => puzzleSource(options)).toThrow(ConfigError);
    expect(() => puzzleSource(options)).toThrow(message);
  });

  test("a game without puzzles says so instead of searching for ever", () => {
    const source = puzzleSource({ counts: [2], numbers: { min: 1, max: 2 }, target: { min: 90, max: 99 } });
    expect(() => source(new Random(0))).toThrow(
      /the game must have puzzles; got none in 1000000 draws of 2 numbers/,
    );
  });
});

const shared = new URL(
  "../../../../../shared/data/reasoning-tasks/countdown-cd3-test.jsonl",
  import.meta.url,
);

test.skipIf(!existsSync(shared))(
  "the published hashes are those of the published puzzles, all solvable",
  () => {
    const puzzles = readFileSync(shared, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(new Set(puzzles.map(contentHash))).toEqual(publishedHashes);
    for (const puzzle of puzzles) expect(solve(puzzle, { use: "exactly-once" }).length).toBeGreaterThan(0);
  },
);

const game24 = new URL("../../../../../shared/data/reasoning-tasks/game24.jsonl", import.meta.url);

test.skipIf(!existsSync(game24))(
  "every tenth of the 1,362 published 24-game hands is solved, fractions allowed",
  () => {
    const rows = readFileSync(game24, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    for (const { numbers } of rows.filter((_, i) => i % 10 === 0)) {
      const solutions = solve({ numbers, target: 24 }, { use: "exactly-once", fractions: true });
      expect(solutions.length, numbers.join(" ")).toBeGreaterThan(0);
    }
  },
);
