import { existsSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  checkAnswer,
  countdownRewards,
  verifyCountdown,
} from "../../../../src/learn/tasks/countdown/verify.ts";
import { judge } from "../../../../src/learn/tasks/judge.ts";

const puzzle = { numbers: [83, 18, 75], target: 10 };
const written = (answer: string) => `<think>83-18=65</think><answer>${answer}</answer>`;

describe("a verdict", () => {
  test.each([
    [written("75-(83-18)"), 1, 1, "correct"],
    [written("75−83+18"), 1, 1, "correct"],
    ["<answer>75-(83-18)</answer>", 1, 0, "correct"],
    ["<think>75-(83-18)</think>", 0, 0, "no answer"],
    ["", 0, 0, "no answer"],
    [written(""), 0, 1, "empty"],
    [written("10"), 0, 1, "10 is not among the numbers"],
    [written("75-65"), 0, 1, "65 is not among the numbers"],
    [written("75-75"), 0, 1, "75 is used too often"],
    [written("83-75"), 0, 1, "makes 8, not 10"],
    [written("75/18"), 0, 1, "makes 25/6, not 10"],
    [written("75/(83-83)"), 0, 1, "83 is used too often"],
    [written("83+18+75+10"), 0, 1, "too many numbers: at most 3"],
    [written("75-(83-18)=10"), 0, 1, 'unexpected character: "=" at character 11'],
    [written("83**18"), 0, 1, 'missing number: before "*" at character 4'],
    [written("83//18"), 0, 1, 'missing number: before "/" at character 4'],
    [written("\u0668\u0663-75"), 0, 1, 'unexpected character: "\u0668" (U+0668) at character 1'],
    [`${written("83-75")}<answer>75-(83-18)</answer>`, 1, 0, "correct"],
    [`${written("75-(83-18)")}<answer>83-75</answer>`, 0, 0, "makes 8, not 10"],
  ])("%j: accuracy %d, format %d, %s", (completion, accuracy, format, reason) => {
    expect(verifyCountdown(puzzle, completion)).toEqual({
      reward: accuracy + format,
      accuracy,
      format,
      reason,
    });
  });

  test("numbers are used at most once, or exactly once when asked, counting repeats", () => {
    const twins = { numbers: [5, 5, 2], target: 10 };
    expect(checkAnswer(twins, "5+5").correct).toBe(true);
    expect(checkAnswer(twins, "5*2").correct).toBe(true);
    expect(checkAnswer(twins, "5+5", "exactly-once")).toEqual({ correct: false, reason: "2 is not used" });
    expect(checkAnswer(twins, "5*2", "exactly-once")).toEqual({ correct: false, reason: "5 is not used" });
    expect(checkAnswer({ ...twins, target: 20 }, "(5+5)*2", "exactly-once").correct).toBe(true);
    expect(checkAnswer(twins, "2*5+2-2")).toEqual({ correct: false, reason: "too many numbers: at most 3" });
  });

  test("fractions on the way are exact", () => {
    expect(checkAnswer({ numbers: [8, 3, 8, 3], target: 24 }, "8/(3-8/3)").correct).toBe(true);
    expect(checkAnswer({ numbers: [1, 3, 2], target: 0 }, "1/3-2").reason).toBe("makes -5/3, not 0");
  });

  test("weights scale accuracy and format; leniency is an option", () => {
    const rules = { weights: { accuracy: 1, format: 0.1 }, format: { mode: "lenient" } } as const;
    expect(verifyCountdown(puzzle, `hm ${written("83-75")}`, rules).reward).toBeCloseTo(0.1);
    expect(verifyCountdown(puzzle, written("75-(83-18)"), rules).reward).toBeCloseTo(1.1);
  });

  test("brackets 10,000 deep, long repeats and huge numbers get one too", () => {
    const deep = `${"(".repeat(10_000)}75-(83-18)${")".repeat(9_999)})`;
    expect(verifyCountdown(puzzle, written(deep)).accuracy).toBe(1);
    expect(verifyCountdown(puzzle, written("9".repeat(100_000))).reason).toMatch(/^too long/);
    expect(verifyCountdown(puzzle, "<answer>".repeat(50_000)).reason).toBe("no answer");
    expect(verifyCountdown(puzzle, "<think></answer>".repeat(50_000)).reason).toBe("no answer");
    expect(verifyCountdown(puzzle, "</think><answer>1+".repeat(50_000)).reason).toBe("no answer");
  });

  test("any text gets one", () => {
    const piece = fc.oneof(
      fc.constantFrom(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "83",
        "18",
        "75",
        "+",
        "-",
        "*",
        "/",
        "(",
        ")",
      ),
      fc.string({ unit: "binary", maxLength: 3 }),
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 24 }), (pieces) => {
        const verdict = verifyCountdown(puzzle, pieces.join(""));
        expect(verdict.reward).toBe(verdict.accuracy + verdict.format);
        expect(verdict.accuracy === 1).toBe(verdict.reason === "correct");
      }),
      { numRuns: 2_000 },
    );
  });

  test("a right answer stays right when each of its numbers is renamed together with the puzzle's", () => {
    const numbers = fc.tuple(fc.nat(99), fc.nat(99), fc.nat(99));
    fc.assert(
      fc.property(numbers, ([a, b, c]) => {
        const target = a - (b - c);
        expect(checkAnswer({ numbers: [c, a, b], target }, `${a}-(${b}-${c})`, "exactly-once").correct).toBe(
          true,
        );
        expect(checkAnswer({ numbers: [c, a, b], target: target + 1 }, `${a}-(${b}-${c})`).correct).toBe(
          false,
        );
      }),
    );
  });
});

test("the task rewards are the verdict's two parts", async () => {
  const row = { prompt: "?", ...puzzle };
  const task = {
    name: "countdown",
    rewards: countdownRewards<typeof row>({ weights: { accuracy: 1, format: 0.5 } }),
  };
  const text = written("75-(83-18)");
  const judged = await judge(task, { text, tokens: 9, truncated: false }, { id: "1", prompt: "?", row });
  expect(judged).toEqual({ rewards: { accuracy: 1, format: 1 }, reward: 1.5, correct: true });
});

const shared = (name: string) =>
  new URL(`../../../../../shared/data/reasoning-tasks/${name}`, import.meta.url);

test.skipIf(!existsSync(shared("countdown-cd3-test.jsonl")))(
  "published solutions are right, and only for their puzzle",
  () => {
    for (const name of ["countdown-cd3-test.jsonl", "game24.jsonl"]) {
      const rows = readFileSync(shared(name), "utf8")
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line));
      for (const row of rows) {
        const given = { numbers: row.numbers, target: row.target ?? 24 };
        expect(checkAnswer(given, row.solution, "exactly-once"), row.solution).toEqual({
          correct: true,
          reason: "correct",
        });
        expect(checkAnswer({ ...given, target: given.target + 1 }, row.solution).correct).toBe(false);
      }
    }
  },
);
