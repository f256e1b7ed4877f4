import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, expectTypeOf, test } from "vitest";
import { ConfigError, FileError, FormatError, TaskError } from "../../../src/base/errors.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { jsonl } from "../../../src/learn/tasks/jsonl.ts";
import { openTask } from "../../../src/learn/tasks/open.ts";
import { defineTask, isTaskDefinition } from "../../../src/learn/tasks/task.ts";

const sum = (random: Random) => {
  const [a, b] = [random.integer(30), random.integer(30)];
  return { prompt: `${a}+${b}=`, sum: a + b };
};
const base = { name: "sums", prompts: sum, reward: () => 1 };

describe("defineTask", () => {
  test("infers the row that the judges get from what the prompts yield", () => {
    defineTask({
      ...base,
      reward: (completion, example) => {
        expectTypeOf(example.row).toEqualTypeOf<{ prompt: string; sum: number }>();
        return completion.text === String(example.row.sum) ? 1 : 0;
      },
    });
    defineTask({
      name: "generated",
      *prompts(random: Random) {
        yield { prompt: "a", answer: random.integer(2) };
      },
      reward: (_, { row }) => {
        expectTypeOf(row.answer).toEqualTypeOf<number>();
        return 0;
      },
    });
    defineTask({
      name: "file",
      prompts: "rows.jsonl",
      reward: (_, { row }) => {
        expectTypeOf(row.prompt).toEqualTypeOf<string>();
        return 0;
      },
    });
  });

  test("one reward function weighs 1; named rewards keep their weights", () => {
    expect(defineTask(base).rewards).toMatchObject({ reward: { weight: 1 } });
    const rewards = { accuracy: { weight: 2, reward: () => 1 }, format: { weight: -0.5, reward: () => 0 } };
    expect(defineTask({ ...base, reward: rewards }).rewards).toBe(rewards);
  });

  test("only what it made is a definition", () => {
    expect(isTaskDefinition(defineTask(base))).toBe(true);
    for (const other of [base, null, undefined, 3, () => base]) expect(isTaskDefinition(other)).toBe(false);
  });

  test.each([
    [{ ...base, name: "a b" }, /task a b: name: must be letters, digits, - and _; got "a b"/],
    [
      { ...base, prompts: 7 },
      /task sums: prompts: must be a function, an iterable of rows, or the path.*; got 7/,
    ],
    [{ ...base, reward: "x" }, /task sums: reward: must be a function, or named rewards.*got "x"/],
    [{ ...base, reward: {} }, /task sums: reward: .*got \{\}/],
    [{ ...base, validationShare: 1 }, /task sums: validationShare: must be below 1; got 1/],
    [{ ...base, maxNewTokens: 0 }, /task sums: maxNewTokens: must be at least 1; got 0/],
    [{ ...base, alphabet: "" }, /task sums: alphabet: must not be empty; got ""/],
  ])("refuses %o, naming the field, the rule and the value", (options, message) => {
    const define = () => defineTask(options as never);
    expect(define).toThrow(TaskError);
    expect(define).toThrow(message);
  });

  test("an unknown field is refused with the nearest known one", () => {
    const define = () => defineTask({ ...base, rewards: () => 1 } as never);
    expect(define).toThrow(ConfigError);
    expect(define).toThrow(/task sums.*got "rewards".*Did you mean "reward"\?/);
  });

  test("several rewards without accuracy must say what is correct", () => {
    const reward = { style: { weight: 1, reward: () => 1 }, length: { weight: 1, reward: () => 1 } };
    expect(() => defineTask({ ...base, reward })).toThrow(
      /must say which completions are correct; got rewards style/,
    );
    expect(() => defineTask({ ...base, reward, correct: () => true })).not.toThrow();
  });
});

describe("openTask", () => {
  test("the same stream draws the same example, whatever was drawn before", async () => {
    const { train } = await openTask(defineTask(base));
    const first = train.draw(new Random(5, 1, 2));
    train.draw(new Random(5, 1, 3));
    expect(train.draw(new Random(5, 1, 2))).toEqual(first);
    expect(first.row.prompt).toBe(first.prompt);
  });

  test.each([
    ["made on demand", sum],
    [
      "from an endless generator",
      function* (random: Random) {
        for (;;) yield sum(random);
      },
    ],
    [
      "from an async generator",
      async function* (random: Random) {
        for (let i = 0; i < 400; i++) yield sum(random);
      },
    ],
    ["from an array", Array.from({ length: 300 }, (_, i) => ({ prompt: `${i % 200}`, sum: i }))],
  ])("no validation prompt %s is ever trained on or explored", async (_, prompts) => {
    const explore = (random: Random) => ({ prompt: sum(random).prompt, completion: "?" });
    const task = await openTask(defineTask({ ...base, prompts, explore, take: 600 }));
    const held = new Set(task.validation.map((example) => example.prompt));
    expect(held.size).toBe(task.validation.length);
    expect(held.size).toBeGreaterThan(5);
    for (let i = 0; i < 2_000; i++) {
      expect(held).not.toContain(task.train.draw(new Random(7, i)).prompt);
      expect(held).not.toContain(task.explore?.(new Random(8, i)).prompt);
    }
  });

  test("validation prompts do not depend on the order of rows", async () => {
    const rows = Array.from({ length: 100 }, (_, i) => ({ prompt: `row ${i}` }));
    const open = async (prompts: typeof rows) =>
      (await openTask(defineTask({ ...base, prompts }))).validation.map(({ prompt }) => prompt).sort();
    expect(await open(rows)).toEqual(await open(rows.toReversed()));
    expect(await open(rows)).toHaveLength(10);
  });

  test("content that the user calls equal stays on one side", async () => {
    const prompts = Array.from({ length: 60 }, (_, i) => [{ prompt: `${i} a` }, { prompt: `${i} b` }]).flat();
    const contentKey = (prompt: string) => prompt.split(" ")[0]!;
    const task = await openTask(defineTask({ ...base, prompts, contentKey }));
    const held = new Set(task.validation.map(({ prompt }) => contentKey(prompt)));
    expect(task.train.size).toBe(2 * (60 - held.size));
    for (let i = 0; i < 500; i++)
      expect(held).not.toContain(contentKey(task.train.draw(new Random(1, i)).prompt));
  });

  test("given validation prompts are left out of training", async () => {
    const prompts = [{ prompt: "a" }, { prompt: "b" }, { prompt: "c" }];
    const task = await openTask(
      defineTask({ ...base, prompts, validation: [{ prompt: "b" }, { prompt: "z" }] }),
    );
    expect(task.validation.map(({ prompt }) => prompt)).toEqual(["b", "z"]);
    expect(task.train.size).toBe(2);
  });

  test("an id is the row's own, or one that its prompt decides", async () => {
    const task = await openTask(defineTask({ ...base, prompts: [{ prompt: "a", id: 7 }, { prompt: "b" }] }));
    const ids = [...task.validation, task.train.draw(new Random(0))].map(({ id }) => id);
    expect(ids).toContain("7");
    // The first twelve hexadecimal digits of SHA-256 of "b".
    expect(ids).toContain("3e23e8160039");
  });

  test.each([
    [{ prompts: [] }, /needs prompts to train on/],
    [{ prompts: [{ prompt: "only" }] }, /needs prompts to train on/],
    [
      { prompts: [{ question: "a" }] },
      /each row of prompts must have a text `prompt`; got \{"question":"a"\}/,
    ],
    [{ prompts: async () => ({ prompt: "a" }) }, /got a promise\. Make rows at once/],
    [
      {
        prompts: () => {
          throw new RangeError("no luck");
        },
      },
      /task sums: prompts: must not throw; got RangeError: no luck/,
    ],
    [
      {
        prompts: async function* () {
          yield { prompt: "a" };
          throw new Error("offline");
        },
      },
      /prompts: must not throw; got Error: offline/,
    ],
    [{ validation: [] }, /needs prompts to validate on/],
    [{ prompts: () => ({ prompt: "1+1=" }), validation: [{ prompt: "1+1=" }] }, undefined],
  ])("refuses %o", async (options, message) => {
    const opened = openTask(defineTask({ ...base, ...options } as never));
    if (message !== undefined) {
      await expect(opened).rejects.toThrow(message);
      await expect(opened).rejects.toThrow(TaskError);
      return;
    }
    const task = await opened;
    expect(() => task.train.draw(new Random(1))).toThrow(/must also make prompts that are not held out/);
  });

  test("traces are checked", async () => {
    const task = await openTask(defineTask({ ...base, explore: () => "1+1=2" as never }));
    expect(() => task.explore?.(new Random(1))).toThrow(
      /explore: must return \{ prompt, completion \}.*got "1\+1=2"/,
    );
  });
});

describe("jsonl", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "pondera-task-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const file = (name: string, text: string) => {
    const path = join(folder, name);
    writeFileSync(path, text);
    return path;
  };

  test("rows come from a path or a URL, with any line ends and no last one", async () => {
    const path = file("rows.jsonl", '{"prompt":"a"}\r\n\n{"prompt":"b"}\n{"prompt":"c"}');
    for (const prompts of [path, pathToFileURL(path)]) {
      const task = await openTask(defineTask({ ...base, prompts }));
      expect((task.train.size ?? 0) + task.validation.length).toBe(3);
    }
  });

  test("a mapper makes rows of another form", async () => {
    const path = file("other.jsonl", '{"q":"a"}\n{"q":"b"}\n');
    const rows = jsonl(path, (value, line) => ({ prompt: (value as { q: string }).q, line }));
    const read = [];
    for await (const row of rows) read.push(row);
    expect(read).toEqual([
      { prompt: "a", line: 1 },
      { prompt: "b", line: 2 },
    ]);
  });

  test("a broken line is named", async () => {
    const opened = openTask(defineTask({ ...base, prompts: file("broken.jsonl", '{"prompt":"a"}\n{"pro') }));
    await expect(opened).rejects.toThrow(FormatError);
    await expect(opened).rejects.toThrow(/broken\.jsonl:2: must be one JSON value a line/);
  });

  test("a missing file is named", async () => {
    const opened = openTask(defineTask({ ...base, prompts: join(folder, "none.jsonl") }));
    await expect(opened).rejects.toThrow(FileError);
    await expect(opened).rejects.toThrow(/none\.jsonl: must be readable; got ENOENT.* Check the path/);
  });
});
