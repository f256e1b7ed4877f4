import { existsSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ConfigError, TaskError } from "../../../src/base/errors.ts";
import { hasFormat, readAnswer } from "../../../src/learn/tasks/answer.ts";
import { combine, judge } from "../../../src/learn/tasks/judge.ts";
import {
  cosineLength,
  formatReward,
  repetitionPenalty,
  softOverlong,
} from "../../../src/learn/tasks/rewards.ts";
import type { Example, Judged, Reward } from "../../../src/learn/tasks/task.ts";

const wrote = (text: string, tokens = text.length, truncated = false): Judged => ({
  text,
  tokens,
  truncated,
});
const example: Example<unknown> = { id: "7", prompt: "1+1=", row: { prompt: "1+1=" } };

describe("the written form", () => {
  test.each([
    ["<think>a</think><answer>b</answer>", true, true, "b"],
    [" <think>\na\n</think>\n<answer>\nb\n</answer>\n", true, true, "b"],
    ["<think></think><answer></answer>", true, true, ""],
    ["<answer>b</answer>", false, false, "b"],
    ["a</think><answer>b</answer>", false, true, "b"],
    ["<think>a</think>so<answer>b</answer>", false, true, "b"],
    ["<think>a</think><answer>b</answer>.", false, true, "b"],
    ["<think>a</think><answer>b</answer><answer>c</answer>", false, true, "c"],
    ["<think>a</think><answer>b</answer><answer>c", false, true, "b"],
    ["<think><answer>b</answer></think>", false, false, undefined],
    ["<think>a<answer>b</answer>", false, false, "b"],
    ["<think>a</answer><answer>b</think>", false, false, undefined],
    ["<answer>b</answer><think>a</think>", false, false, undefined],
    ["</answer><answer>", false, false, undefined],
    ["", false, false, undefined],
  ])("%j: strict %s, lenient %s, answer %j", (text, strict, lenient, answer) => {
    expect(hasFormat(text)).toBe(strict);
    expect(hasFormat(text, { mode: "lenient" })).toBe(lenient);
    expect(readAnswer(text)).toBe(answer);
  });

  test("a prompt that opened the thought leaves only its end to write", () => {
    expect(hasFormat("a</think><answer>b</answer>", { thinkOpened: true })).toBe(true);
    expect(hasFormat("<think>a</think><answer>b</answer>", { thinkOpened: true })).toBe(false);
  });

  test("any mixture of tags gets an answer to whether it is in form, and strict implies lenient", () => {
    const piece = fc.constantFrom(
      "<think>",
      "</think>",
      "<answer>",
      "</answer>",
      " ",
      "\n",
      "x",
      "<",
      "é",
      "\u{1f600}",
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
        const text = pieces.join("");
        const strict = hasFormat(text);
        if (strict) {
          expect(hasFormat(text, { mode: "lenient" })).toBe(true);
          expect(text).toMatch(/^\s*<think>[\s\S]*<\/think>\s*<answer>[\s\S]*<\/answer>\s*$/);
        }
      }),
    );
  });
});

describe("shaping", () => {
  test("overlong punishment is flat, then a line, then −1 (DAPO eq 13)", async () => {
    const punish = softOverlong({ maxTokens: 100, slopeTokens: 20 });
    const at = (tokens: number) => punish(wrote("", tokens), example);
    expect([0, 80, 85, 90, 100, 101].map(at)).toEqual([0, 0, -0.25, -0.5, -1, -1]);
    expect(() => softOverlong({ maxTokens: 10, slopeTokens: 0 })).toThrow(ConfigError);
    expect(() => softOverlong({ maxTokens: 10, slopeTokens: 11 })).toThrow(
      /needs 0 < slopeTokens ≤ maxTokens/,
    );
  });

  test("a right answer is worth less the longer it is, a wrong one more, both flat past the end", () => {
    const shape = cosineLength({ isCorrect: ({ text }) => text === "right", maxTokens: 100 });
    const at = (text: string, tokens: number) => shape(wrote(text, tokens), example);
    expect([0, 50, 100, 300].map((tokens) => at("right", tokens))).toEqual([1, 0.75, 0.5, 0.5]);
    expect([0, 50, 100, 300].map((tokens) => at("wrong", tokens))).toEqual([-1, -0.75, -0.5, -0.5]);
  });

  test("repetition counts n-grams written before", () => {
    // "a b a b a": the pairs are ab ba ab ba, two of four distinct.
    expect(repetitionPenalty({ size: 2 })(wrote("a b A b a"), example)).toBe(-0.5);
    expect(repetitionPenalty({ size: 2, unit: "characters", worst: -2 })(wrote("aaa"), example)).toBe(-1);
    expect(repetitionPenalty()(wrote("a b c"), example)).toBe(0);
    expect(() => repetitionPenalty({ size: 0 })).toThrow(ConfigError);
  });
});

const vectors = new URL("../../../../shared/data/reward-format/open-r1-rewards.jsonl", import.meta.url);

interface Vector {
  readonly fn: string;
  readonly params: Record<string, number | string>;
  readonly args: readonly unknown[];
  readonly kwargs: Record<string, unknown>;
  readonly index: number | null;
  readonly op: string;
  readonly expected: number | readonly number[];
  readonly tol: number;
}

test.skipIf(!existsSync(vectors))("rewards agree with what open-r1 asserts of its own", () => {
  const factories: Record<string, (params: Vector["params"]) => Reward<unknown>> = {
    format_reward: () => formatReward(),
    repetition_penalty_reward: (p) =>
      repetitionPenalty({ size: Number(p["ngram_size"]), worst: Number(p["max_penalty"]) }),
    soft_overlong_punishment: (p) =>
      softOverlong({
        maxTokens: Number(p["max_completion_len"]),
        slopeTokens: Number(p["soft_punish_cache"]),
      }),
    cosine_scaled_reward: (p) =>
      cosineLength({
        isCorrect: ({ text }) => text.trim() === "\\boxed{\\frac{63}{400}}",
        maxTokens: Number(p["max_len"]),
        correct: { shortest: Number(p["max_value_correct"]), longest: Number(p["min_value_correct"]) },
        wrong: { shortest: Number(p["min_value_wrong"]), longest: Number(p["max_value_wrong"]) },
      }),
  };
  let checked = 0;
  for (const line of readFileSync(vectors, "utf8").trim().split("\n")) {
    const vector: Vector = JSON.parse(line);
    const factory = factories[vector.fn];
    // Chinese needs a word segmenter, which this penalty does not have.
    if (factory === undefined || vector.params["language"] === "zh") continue;
    const reward = factory(vector.params);
    const inputs = (vector.args[0] ?? vector.kwargs["completion_ids"]) as (
      | [{ content: string }]
      | number[]
    )[];
    const got = inputs.map((input) => {
      const first = input[0];
      return typeof first === "object"
        ? reward(wrote(first.content), example)
        : reward(wrote("", input.length), example);
    });
    const [expected] = [vector.expected].flat();
    expect(got[vector.index ?? 0], line).toBeCloseTo(expected!, 2);
    expect(Math.abs((got[vector.index ?? 0] as number) - expected!), line).toBeLessThanOrEqual(vector.tol);
    checked++;
  }
  // 4 cosine, 7 format, 17 repetition, 3 overlong.
  expect(checked).toBe(31);
});

describe("judge", () => {
  const task = (rewards: Record<string, readonly [number, Reward<unknown>]>) => ({
    name: "sums",
    rewards: Object.fromEntries(
      Object.entries(rewards).map(([key, [weight, reward]]) => [key, { weight, reward }]),
    ),
  });

  test("weighs what was said and skips what was not", async () => {
    const judged = await judge(
      task({ accuracy: [2, () => 1], format: [0.5, async () => -1], style: [100, () => null] }),
      wrote("2"),
      example,
    );
    expect(judged).toEqual({ rewards: { accuracy: 1, format: -1, style: null }, reward: 1.5, correct: true });
    const skipped = await judge(task({ accuracy: [1, () => null] }), wrote("2"), example);
    expect(skipped).toEqual({ rewards: { accuracy: null }, reward: null, correct: false });
  });

  test("a reward that shapes others leaves a sample skipped", async () => {
    const shaped = (accuracy: number | null) => {
      const { name, rewards } = task({ accuracy: [1, () => accuracy] });
      const overlong = { weight: 1, reward: () => -0.5, shaping: true };
      return judge({ name, rewards: { ...rewards, overlong } }, wrote("2"), example);
    };
    expect(await shaped(1)).toMatchObject({ rewards: { accuracy: 1, overlong: -0.5 }, reward: 0.5 });
    expect(await shaped(null)).toMatchObject({ rewards: { accuracy: null, overlong: null }, reward: null });
  });

  test("correct is accuracy, else the only reward, else what the task says", async () => {
    const correct = async (judged: Parameters<typeof judge>[0]) =>
      (await judge(judged, wrote("2"), example)).correct;
    expect(await correct(task({ format: [1, () => 1], accuracy: [1, () => 0.5] }))).toBe(false);
    expect(await correct(task({ reward: [1, () => 1] }))).toBe(true);
    expect(await correct({ ...task({ reward: [1, () => 1] }), correct: async () => false })).toBe(false);
  });

  test.each([
    [
      "throws",
      () => {
        throw new RangeError("bad row");
      },
      /must not throw; got "bad row" on "two"\. Return 0/,
    ],
    ["rejects", async () => Promise.reject(new Error("offline")), /must not throw; got "offline"/],
    ["returns NaN", () => Number.NaN, /must return a finite number, or null to skip; got NaN on "two"/],
    ["returns infinity", () => Number.POSITIVE_INFINITY, /got Infinity/],
    ["returns a boolean", () => true as never, /got true/],
    ["returns nothing", () => undefined as never, /got undefined/],
  ])("a reward that %s is an error naming task, reward and example", async (_, reward, message) => {
    const judged = judge(task({ accuracy: [1, reward] }), wrote("two"), example);
    await expect(judged).rejects.toThrow(TaskError);
    await expect(judged).rejects.toThrow(/^task sums: reward accuracy, example 7: /);
    await expect(judged).rejects.toThrow(message);
  });

  test("combined rewards are their weighted sum", async () => {
    const reward = combine({ a: { weight: 2, reward: () => 3 }, b: { weight: 1, reward: async () => null } });
    expect(await reward(wrote(""), example)).toBe(6);
    expect(await combine({ b: { weight: 1, reward: () => null } })(wrote(""), example)).toBeNull();
  });
});
