import { describe, expect, test } from "vitest";
import type { CountdownRules } from "../../../src/learn/tasks/countdown/verify.ts";
import { gradeCountdown } from "../../../src/learn/tasks/grade.ts";

const row = (answer: string, extra = {}) =>
  JSON.stringify({
    numbers: [83, 18, 75],
    target: 10,
    completion: `<think>.</think><answer>${answer}</answer>`,
    ...extra,
  });

async function grade(lines: Iterable<string> | AsyncIterable<string>, rules?: CountdownRules) {
  const verdicts = [];
  for await (const verdict of gradeCountdown(lines, rules)) verdicts.push(verdict);
  return verdicts;
}

describe("grading rows", () => {
  test("gives each row its verdict, in order, from any kind of lines", async () => {
    const lines = [row("75-(83-18)", { id: 7, solution: "ignored" }), "", row("83-75"), row("(83-18)*75/75")];
    const verdicts = await grade(lines);
    expect(verdicts).toEqual([
      { reward: 2, accuracy: 1, format: 1, reason: "correct" },
      { reward: 1, accuracy: 0, format: 1, reason: "makes 8, not 10" },
      { reward: 1, accuracy: 0, format: 1, reason: "too many numbers: at most 3" },
    ]);
    const stream = (async function* () {
      yield* lines;
    })();
    expect(await grade(stream)).toEqual(verdicts);
  });

  test("rules apply to every row", async () => {
    const rules = { use: "exactly-once", weights: { accuracy: 1, format: 0 } } as const;
    expect(await grade([row("83-75", { target: 8 })])).toMatchObject([{ reward: 2 }]);
    expect(await grade([row("83-75", { target: 8 })], rules)).toMatchObject([
      { reward: 0, reason: "18 is not used" },
    ]);
  });

  test.each([
    ["not json", /^line 2: not JSON: /],
    ["[1, 2]", /^line 2: the row: .*expected object, received array/],
    ["null", /^line 2: the row: .*expected object, received null/],
    [row("1", { numbers: "83 18 75" }), /^line 2: numbers: .*expected array/],
    [row("1", { numbers: [] }), /^line 2: numbers: /],
    [row("1", { numbers: [1, -2] }), /^line 2: numbers\.1: /],
    [row("1", { numbers: [1, 2.5] }), /^line 2: numbers\.1: /],
    [row("1", { numbers: Array(65).fill(1) }), /^line 2: numbers: /],
    [row("1").replace("18", "1e999"), /^line 2: numbers\.1: /],
    [row("1", { target: "10" }), /^line 2: target: .*expected/],
    [row("1", { target: null }), /^line 2: target: /],
    [row("1", { numbers: [1_234_567_890_123_456] }), /^line 2: numbers\.0: Too big: .*<=999999999999999$/],
    [row("1", { target: 1_234_567_890_123_456 }), /^line 2: target: Too big: /],
    [row("1", { target: -1_234_567_890_123_456 }), /^line 2: target: Too small: /],
    [row("1", { completion: undefined }), /^line 2: completion: .*received undefined/],
    [row("1", { completion: ["1"] }), /^line 2: completion: /],
  ])("a malformed row, %s, gets zeros and its line, and the rest go on", async (line, reason) => {
    const verdicts = await grade(["", line, row("75-(83-18)")]);
    expect(verdicts[0]).toEqual({ reward: 0, accuracy: 0, format: 0, reason: expect.stringMatching(reason) });
    expect(verdicts[1]).toMatchObject({ accuracy: 1 });
  });

  test("the largest numbers that an answer may hold are graded", async () => {
    const [most, less] = [999_999_999_999_999, 999_999_999_999_998];
    const large = (answer: string, target: number) => row(answer, { numbers: [most, 1], target });
    expect(
      await grade([large(`${most}`, most), large(`${most}-1`, less), large(`${less}`, less)]),
    ).toMatchObject([
      { accuracy: 1 },
      { accuracy: 1 },
      { accuracy: 0, reason: `${less} is not among the numbers` },
    ]);
  });

  test("ten thousand rows of the worst kinds all get one", async () => {
    const worst = [
      row(`${"(".repeat(500)}75${")".repeat(500)}`),
      row("75**18"),
      row("75//18"),
      row("9".repeat(400)),
      row("\u0667\u0665"),
      row("75</answer><answer>83</answer><answer>18"),
      row("", { completion: "" }),
      row("1-".repeat(400)),
    ];
    const verdicts = await grade(Array.from({ length: 10_000 }, (_, i) => worst[i % worst.length]!));
    expect(verdicts).toHaveLength(10_000);
    expect(verdicts.every(({ accuracy, reason }) => accuracy === 0 && reason !== "")).toBe(true);
  });
});
