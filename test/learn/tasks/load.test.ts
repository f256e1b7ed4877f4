import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ConfigError, FileError, TaskError } from "../../../src/base/errors.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { judge } from "../../../src/learn/tasks/judge.ts";
import { loadTask } from "../../../src/learn/tasks/load.ts";
import { openTask } from "../../../src/learn/tasks/open.ts";
import { formatReward } from "../../../src/learn/tasks/rewards.ts";
import { defineTask } from "../../../src/learn/tasks/task.ts";

const modules = { pondera: { defineTask, formatReward } };

describe("a task file", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "pondera-load-"));
    mkdirSync(join(folder, "nested.ts"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const load = (name: string, text: string) => {
    const path = join(folder, name);
    writeFileSync(path, text);
    return loadTask(path, modules);
  };

  test("in TypeScript, with imports of its own beside and above it, becomes a task", async () => {
    writeFileSync(join(folder, "words.ts"), "export const greeting: string = 'hi';\n");
    const definition = await load(
      "greet.ts",
      `import { defineTask, formatReward } from "pondera";
       import type { Random } from "pondera";
       import { sep } from "node:path";
       import { greeting } from "./words.ts";
       interface Row { readonly prompt: string; readonly expected: string }
       const made: Row[] = await Promise.resolve(["a", "b", "c"].map((prompt) => ({ prompt, expected: greeting + sep })));
       export default defineTask({
         name: "greet",
         prompts: made,
         reward: {
           accuracy: { weight: 1, reward: ({ text }, { row }) => (text === row.expected ? 1 : 0) },
           format: { weight: 1, reward: formatReward() },
         },
       });`,
    );
    const task = await openTask(definition);
    const example = task.train.draw(new Random(1));
    const text = (example.row as unknown as { expected: string }).expected;
    expect(text.startsWith("hi")).toBe(true);
    const judged = await judge(task, { text, tokens: 3, truncated: false }, example);
    expect(judged).toEqual({ rewards: { accuracy: 1, format: 0 }, reward: 1, correct: true });
  });

  test("in JavaScript works as well", async () => {
    const text = `import { defineTask } from "pondera"; export default defineTask({ name: "js", prompts: [], reward: () => 0 });`;
    expect((await load("plain.js", text)).name).toBe("js");
    expect((await load("plain.mjs", text)).name).toBe("js");
  });

  test.each([
    [
      "nothing.ts",
      "export const task = 1;",
      /nothing\.ts: must have a default export; got task\. Write: import/,
    ],
    ["empty.ts", "", /empty\.ts: must have a default export; got no exports/],
    [
      "plain.ts",
      'export default { name: "x" };',
      /plain\.ts: must export what defineTask returns; got \{"name":"x"\}/,
    ],
    ["function.ts", "export default () => 1;", /function\.ts: .*; got a function/],
    [
      "throws.ts",
      'throw new RangeError("no key");',
      /throws\.ts: must import without an error; got RangeError: no key/,
    ],
    ["missing.ts", 'import "./nowhere.ts";', /missing\.ts: must import without an error; got .*nowhere/],
    ["syntax.ts", "export default {", /syntax\.ts: must import without an error; got .*/],
  ])("%s is refused with the reason", async (name, text, message) => {
    const loaded = load(name, text);
    await expect(loaded).rejects.toThrow(TaskError);
    await expect(loaded).rejects.toThrow(message);
  });

  test("what defineTask says of it is passed on as it is", async () => {
    const loaded = load(
      "typo.ts",
      'import { defineTask } from "pondera"; export default defineTask({ name: "x", promts: [], reward: () => 0 });',
    );
    await expect(loaded).rejects.toThrow(ConfigError);
    await expect(loaded).rejects.toThrow(/Did you mean "prompts"/);
  });

  test("a missing file and a folder are named", async () => {
    await expect(loadTask(join(folder, "none.ts"), modules)).rejects.toThrow(FileError);
    await expect(loadTask(join(folder, "none.ts"), modules)).rejects.toThrow(
      /none\.ts: must be a task file; got ENOENT/,
    );
    await expect(loadTask(join(folder, "nested.ts"), modules)).rejects.toThrow(
      /must be a task file; got a folder/,
    );
  });
});
