import { describe, expect, it } from "vitest";
import { ConfigError } from "../../../../src/base/errors.ts";
import { Random } from "../../../../src/compute/tensor/random.ts";
import { contentKey, splitOf } from "../../../../src/learn/tasks/countdown/puzzle.ts";
import { solve, sumsMake } from "../../../../src/learn/tasks/countdown/solve.ts";
import {
  COUNTDOWN_GAMES,
  type CountdownGame,
  countdownTask,
} from "../../../../src/learn/tasks/countdown/task.ts";
import { verifyCountdown } from "../../../../src/learn/tasks/countdown/verify.ts";
import { judge } from "../../../../src/learn/tasks/judge.ts";
import { characterTokenizer } from "../../../../src/model/text/tokenizer.ts";

const games = Object.keys(COUNTDOWN_GAMES) as CountdownGame[];
const completion = (text: string) => ({ text, tokens: text.length, truncated: false });

describe.each(games)("the game %s", (game) => {
  const task = countdownTask({ game, heldOutCount: 20 });
  const drawn = Array.from({ length: 50 }, (_, i) => task.train.draw(new Random(4, i)));

  it("draws training puzzles that have a solution and are held out nowhere", () => {
    for (const { row, id, prompt } of drawn) {
      expect(splitOf(row)).toBe("train");
      expect(solve(row, { use: "exactly-once" }).length).toBeGreaterThan(0);
      expect(id).toBe(contentKey(row));
      expect(prompt).toBe(`${row.numbers.join(" ")} = ${row.target}\n`);
    }
  });

  it("keeps to its numbers and targets", () => {
    const { counts, numbers, target } = COUNTDOWN_GAMES[game];
    for (const { row } of [...drawn, ...task.validation]) {
      expect(counts).toContain(row.numbers.length);
      expect(row.numbers.every((n) => n >= numbers.min && n <= numbers.max)).toBe(true);
      expect(row.target >= target.min && row.target <= target.max).toBe(true);
      if ("needs" in COUNTDOWN_GAMES[game]) expect(sumsMake(row.numbers, row.target)).toBe(false);
    }
  });

  it("holds out different puzzles of the split asked for, the same for every run", () => {
    expect(task.validation).toHaveLength(20);
    expect(new Set(task.validation.map(({ id }) => id)).size).toBe(20);
    expect(task.validation.every(({ row }) => splitOf(row) === "validation")).toBe(true);
    expect(countdownTask({ game, heldOutCount: 20 }).validation).toEqual(task.validation);
    const test = countdownTask({ game, heldOut: "test", heldOutCount: 5 }).validation;
    expect(test.map(({ row }) => splitOf(row))).toEqual(Array(5).fill("test"));
  });

  it("has an alphabet and a length that its prompts and explorations keep to", () => {
    const tokenizer = characterTokenizer({ alphabet: task.alphabet });
    for (let i = 0; i < 50; i++) {
      const { prompt, completion: text } = task.explore!(new Random(5, i));
      tokenizer.encode(text);
      expect(tokenizer.encode(prompt).length).toBeLessThanOrEqual(task.maxPromptTokens!);
    }
    for (const { prompt } of drawn) expect(prompt.length).toBeLessThanOrEqual(task.maxPromptTokens!);
  });
});

describe("countdown's judges", () => {
  const task = countdownTask({ heldOutCount: 1, formatWeight: 0.25 });
  const example = { id: "x", prompt: "83 18 75 = 10\n", row: { numbers: [83, 18, 75], target: 10 } };

  it("weigh a right answer 1 and the form as asked", async () => {
    const right = "<think>83-18=65 75-65=10✓\n</think><answer>75-(83-18)</answer>";
    expect(await judge(task, completion(right), example)).toEqual({
      rewards: { accuracy: 1, format: 1 },
      reward: 1.25,
      correct: true,
    });
    const wrong = "<think></think><answer>75-83-18</answer>";
    expect(await judge(task, completion(wrong), example)).toEqual({
      rewards: { accuracy: 0, format: 1 },
      reward: 0.25,
      correct: false,
    });
  });

  it("may ask for every number", async () => {
    const strict = countdownTask({ heldOutCount: 1, use: "exactly-once" });
    const answer = completion("<answer>5+5</answer>");
    const row = { numbers: [5, 5, 7], target: 10 };
    expect((await judge(task, answer, { ...example, row })).correct).toBe(true);
    expect((await judge(strict, answer, { ...example, row })).correct).toBe(false);
  });

  it("say in words how often each number is to be used", () => {
    for (const [use, words, other] of [
      [undefined, "each at most once", "exactly once"],
      ["exactly-once", "each exactly once", "at most once"],
    ] as const) {
      const strict = countdownTask({ heldOutCount: 1, ...(use === undefined ? {} : { use }) });
      const shown = Array.from({ length: 40 }, (_, i) => strict.demonstrate!(new Random(2, i)).messages);
      const all = [strict.train.draw(new Random(1)).messages, strict.validation[0]!.messages, ...shown];
      const contents = all.flatMap((messages) => messages?.map(({ content }) => content) ?? []);
      expect(contents.length).toBeGreaterThan(20);
      for (const content of contents) {
        expect(content).toContain(words);
        expect(content).not.toContain(other);
      }
    }
  });

  it("may punish repetition and shape length", async () => {
    const shaped = countdownTask({
      ...{ heldOutCount: 1, formatWeight: 0, repetitionWeight: 0.5, use: "exactly-once" },
      length: { weight: 2, maxTokens: 100 },
    });
    const judged = async (text: string, tokens: number) => {
      const { rewards } = await judge(shaped, { ...completion(text), tokens }, example);
      return rewards;
    };
    const right = await judged("<answer>75-(83-18)</answer>", 100);
    // At its longest a right answer has half of the reward, a wrong one half of the punishment.
    expect(right).toMatchObject({ accuracy: 1, length: 0.5, repetition: -0 });
    expect(await judged("<answer>75</answer>", 0)).toMatchObject({ accuracy: 0, length: -1 });
    const again = await judged("0123456789".repeat(10), 100);
    // 91 runs of ten, ten of them different.
    expect(again["repetition"]).toBeCloseTo(-(1 - 10 / 91));
    expect(Object.keys(task.rewards)).toEqual(["accuracy", "format"]);
  });

  it("know a thought that went back after a failed check", () => {
    const wentBack = (text: string) => task.wentBack!(completion(text), example);
    expect(wentBack("1+2=3✗\n4+5=9✓\n")).toBe(true);
    expect(wentBack("4+5=9✓\n")).toBe(false);
    expect(wentBack("4+5=9✓\n1+2=3✗\n")).toBe(false);
    expect(wentBack("1+2=3✗\n")).toBe(false);
    expect(wentBack("")).toBe(false);
  });
});

describe("countdown's demonstrations", () => {
  it("are right, of training puzzles of the game, but for drills and puzzles that have no solution", () => {
    const task = countdownTask({ heldOutCount: 1 });
    const kinds = { drill: 0, hopeless: 0, solved: 0 };
    const count = 600;
    for (let i = 0; i < count; i++) {
      const { prompt, completion, messages } = task.demonstrate!(new Random(1, i));
      if (prompt === "") {
        kinds.drill++;
        continue;
      }
      const [numbers, target] = prompt.trim().split(" = ");
      expect(messages?.[0]?.content).toContain(`to make ${target}.`);
      const puzzle = { numbers: numbers!.split(" ").map(Number), target: Number(target) };
      expect(splitOf(puzzle)).toBe("train");
      const { accuracy, format } = verifyCountdown(puzzle, completion);
      expect(format).toBe(1);
      expect(accuracy).toBe(completion.includes("✓") ? 1 : 0);
      kinds[accuracy === 1 ? "solved" : "hopeless"]++;
    }
    expect(kinds.drill / count).toBeCloseTo(0.2, 1);
    expect(kinds.hopeless / count).toBeCloseTo(0.15, 1);
  });
});

describe("countdown's options", () => {
  it("name the nearest game", () => {
    expect(() => countdownTask({ game: "quik" as CountdownGame })).toThrow(ConfigError);
    expect(() => countdownTask({ game: "quik" as CountdownGame })).toThrow(/Did you mean "quick"\?/);
  });

  it("reach exploration", () => {
    const tries = (stopAfterMiss: number) => {
      const task = countdownTask({ heldOutCount: 1, explore: { stopAfterMiss } });
      const texts = Array.from({ length: 20 }, (_, i) => task.explore!(new Random(3, i)).completion);
      return texts.join("").split("✗").length;
    };
    expect(tries(0.9)).toBeLessThan(tries(0.1));
  });
});
