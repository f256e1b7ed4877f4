import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { Random } from "../../../src/compute/tensor/random.ts";
import { readAnswer } from "../../../src/learn/tasks/answer.ts";
import { judge } from "../../../src/learn/tasks/judge.ts";
import { loadTask } from "../../../src/learn/tasks/load.ts";
import { openTask } from "../../../src/learn/tasks/open.ts";
import { formatReward } from "../../../src/learn/tasks/rewards.ts";
import { defineTask } from "../../../src/learn/tasks/task.ts";

const modules = { pondera: { defineTask, formatReward, readAnswer } };
const open = async (name: string) =>
  openTask(await loadTask(fileURLToPath(new URL(`../../../examples/${name}.ts`, import.meta.url)), modules));

const wrote = (text: string) => ({ text, tokens: text.length, truncated: false });
const TAGS = /<\/?(?:think|answer)>/g;

describe.each(["arithmetic", "json-extraction", "sql"])("the example %s", (name) => {
  test("is short, keeps to its alphabet, and leaves most of the task to be learned", async () => {
    const task = await open(name);
    const byPrompt = new Map(
      Array.from({ length: 1_500 }, (_, i) => task.train.draw(new Random(9, i))).map((x) => [x.prompt, x]),
    );
    let [judged, right] = [0, 0];
    for (let i = 0; i < 600; i++) {
      const { prompt, completion } = task.explore!(new Random(9, i));
      expect(prompt.length).toBeLessThanOrEqual(Math.min(48, task.maxPromptTokens ?? 0));
      expect(completion.length).toBeLessThanOrEqual(64);
      // Tags are one token each, and the end of the completion is one too.
      expect(completion.replace(TAGS, "#").length).toBeLessThan(task.maxNewTokens ?? 0);
      for (const character of `${prompt}${completion.replace(TAGS, "")}`)
        expect(task.alphabet).toContain(character);
      const example = byPrompt.get(prompt);
      if (example === undefined) continue;
      judged++;
      if ((await judge(task, wrote(completion), example)).correct) right++;
    }
    expect(judged).toBeGreaterThan(300);
    expect(right / judged).toBeGreaterThan(0.1);
    expect(right / judged).toBeLessThan(0.45);
    expect(task.validation.length).toBeGreaterThanOrEqual(40);
  });
});

describe("example rewards", () => {
  const judgeFirst = async (name: string, prompt: string, text: string) => {
    const task = await open(name);
    for (let i = 0; i < 20_000; i++) {
      const example = task.train.draw(new Random(2, i));
      if (example.prompt === prompt) return (await judge(task, wrote(text), example)).rewards;
    }
    throw new Error(`no example with the prompt ${prompt}`);
  };

  test("sums wants the number alone, and half as much for a right one among words", async () => {
    const task = await open("sums");
    const example = task.train.draw(new Random(1));
    const { total } = example.row as unknown as { total: number };
    expect(example.messages).toEqual([
      { role: "system", content: "Answer with the number alone." },
      { role: "user", content: example.prompt },
    ]);
    const rewarded = async (text: string) => (await judge(task, wrote(text), example)).reward;
    expect(await rewarded(` ${total}`)).toBeCloseTo(1.7, 10);
    expect(await rewarded(`It is 7, no: ${total}.`)).toBeCloseTo(0.5, 10);
    expect(await rewarded(`${total + 1}`)).toBeCloseTo(0.2, 10);
    expect(await rewarded("no idea")).toBe(0);
  });

  test("arithmetic reads the answer and asks for the form", async () => {
    const task = await open("arithmetic");
    const example = { id: "1", prompt: "17+25-8=", row: { prompt: "17+25-8=", total: 34 } };
    const rewards = async (text: string) => (await judge(task, wrote(text), example)).rewards;
    expect(await rewards("<think>17+25=42 42-8=34</think><answer>34</answer>")).toEqual({
      accuracy: 1,
      format: 1,
    });
    expect(await rewards("<think>17+25=42</think><answer>42</answer>")).toEqual({ accuracy: 0, format: 1 });
    expect(await rewards("<answer>34</answer>")).toEqual({ accuracy: 1, format: 0 });
  });

  test("JSON extraction wants the schema, and the right fields in any order", async () => {
    const task = await open("json-extraction");
    const row = { prompt: "?", person: { name: "Ana", age: 34, city: "Oslo" } };
    const rewards = async (text: string) =>
      (await judge(task, wrote(text), { id: "1", prompt: "?", row })).rewards;
    expect(await rewards('{"city":"Oslo","name":"Ana","age":34}')).toEqual({ accuracy: 1, schema: 1 });
    expect(await rewards('{"name":"Ana","age":35,"city":"Oslo"}')).toEqual({ accuracy: 0, schema: 1 });
    for (const bad of [
      '{"name":"Ana","age":"34","city":"Oslo"}',
      '{"name":"Ana","age":34}',
      '{"name":',
      "null",
      "",
    ]) {
      expect(await rewards(bad), bad).toEqual({ accuracy: 0, schema: 0 });
    }
  });

  test("SQL is right by its result, and cannot write", async () => {
    const rewards = (text: string) => judgeFirst("sql", "oldest of cats under 7\n", text);
    const right = { accuracy: 1, runs: 1 };
    expect(await rewards("SELECT max(age) FROM pets WHERE kind='cat' AND age<7")).toEqual(right);
    expect(await rewards("SELECT max(age) FROM pets WHERE age<=6 AND kind='cat'")).toEqual(right);
    expect(await rewards("SELECT kind FROM pets")).toEqual({ accuracy: 0, runs: 1 });
    for (const bad of [
      "SELECT max(age) FROM pet",
      "DROP TABLE pets",
      "SELECT 1; DROP TABLE pets",
      "SELECT 1 INTO copied FROM pets",
      "",
    ]) {
      expect(await rewards(bad), bad).toEqual({ accuracy: 0, runs: 0 });
    }
  });
});
