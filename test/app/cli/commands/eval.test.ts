import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeEach, describe, expect, it } from "vitest";
import { splitOf } from "../../../../src/learn/tasks/countdown/puzzle.ts";
import { saveModelFolder } from "../../../../src/model/checkpoint/folder.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { babbler, guesser, parrot } from "../../../model/tiny-model.ts";
import { pondera } from "../harness.ts";
import { makeRun } from "../tiny-run.ts";

/** Right about 6·4 = 24 and nothing else. */
const solver = parrot("\n<think>✓</think><answer>6*4</answer>");
const published = fileURLToPath(
  new URL("../../../../../shared/data/reasoning-tasks/countdown-cd3-test.jsonl", import.meta.url),
);

let root: string;
beforeEach(async () => {
  root = await temporaryFolder();
});

const evaluate = (...argv: readonly string[]) => pondera(["eval", "--runs", root, "--threads", "1", ...argv]);

async function data(rows: readonly (object | string)[]): Promise<string> {
  const file = join(root, "rows.jsonl");
  const lines = rows.map((row) => (typeof row === "string" ? row : JSON.stringify(row)));
  await writeFile(file, `${lines.join("\n")}\n`);
  return file;
}

const puzzles = [
  { numbers: [6, 4], target: 24 },
  { id: "b", numbers: [4, 6, 9], target: 24 },
  { numbers: [6, 4], target: 25 },
  { numbers: [6, 5], target: 24 },
];

describe("pondera eval", () => {
  it("measures on puzzles of a file, with an interval", async () => {
    await makeRun({ root, name: "one", model: solver });
    const { code, out, err } = await evaluate("--data", await data(puzzles), "--samples", "2", "--json");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const report = JSON.parse(out);
    expect(report).toMatchObject({
      task: "countdown",
      pass1: 0.5,
      count: 4,
      samplesPerPrompt: 2,
      passK: { "1": 0.5, "2": 0.5 },
      meanLength: 9,
      truncatedFraction: 0,
      temperature: 1,
      seed: 0,
      maxNewTokens: 1024,
    });
    // Two samples of a prompt agree, so the interval is that of four prompts: Wilson for 2 of 4.
    expect(report.interval[0]).toBeCloseTo(0.15, 2);
    expect(report.interval[1]).toBeCloseTo(0.85, 2);
    expect(report.trainable).toBe(puzzles.filter((puzzle) => splitOf(puzzle) === "train").length);
    expect(report).not.toHaveProperty("game");
  });

  it("measures the same while it guesses ahead, and tells how often it was right", async () => {
    await makeRun({ root, name: "one", model: guesser() });
    const measured = async (...argv: string[]) =>
      (await evaluate("--data", await data(puzzles), "--max-new-tokens", "12", ...argv)).out;
    const plain = JSON.parse(await measured("--temperature", "0", "--json"));
    const guessed = JSON.parse(await measured("--speculate", "--json"));
    for (const field of ["pass1", "count", "meanLength", "temperature"]) {
      expect(guessed[field]).toEqual(plain[field]);
    }
    const { drafted, accepted, acceptance } = guessed.speculation;
    expect(acceptance).toBe(accepted / drafted);
    expect(await measured("--speculate")).toMatch(
      /\n {2}guessed {2}\d+\.\d % of \d+ guesses were right, \d\.\d\d tokens a pass\n/,
    );
    expect((await evaluate("--speculate", "--samples", "2")).err).toMatch(/--samples: must be 1 with/);
  });

  it("says it in words", async () => {
    await makeRun({ root, name: "one", model: solver });
    const { out } = await evaluate("--data", await data(puzzles), "--samples", "2", "--limit", "2");
    expect(out).toMatch(/^one on 2 prompts of rows\.jsonl, 2 samples each at temperature 1\n/);
    expect(out).toMatch(/ {2}pass@1 {3}100\.0 % {2}95 % \[34\.2 %, 100\.0 %\]\n {2}pass@2 {3}100\.0 %\n/);
    expect(out).toMatch(/ {2}length {3}9\.0 tokens, 0\.0 % cut off\n {2}took /);
  });

  it("warns of puzzles that training may draw", async () => {
    const rows = Array.from({ length: 40 }, (_, i) => ({ numbers: [6, i + 1], target: 24 }));
    const trainable = rows.filter((row) => splitOf(row) === "train").length;
    expect(trainable).toBeGreaterThan(20);
    await makeRun({ root, name: "one", model: solver });
    expect((await evaluate("--data", await data(rows))).out).toContain(
      `${trainable} of them belong to the training split: the model may know the answers`,
    );
  });

  it("draws held-out puzzles of the run's own game where no data are given", async () => {
    const config = { countdown: { game: "long" } };
    await makeRun({ root, name: "one", model: solver, config });
    const records = join(root, "records.jsonl");
    const { out } = await evaluate("--limit", "6", "--records", records, "--json");
    expect(JSON.parse(out)).toMatchObject({ game: "long", count: 6, samplesPerPrompt: 1 });
    const rows = (await readFile(records, "utf8"))
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(rows).toHaveLength(6);
    for (const row of rows) expect(splitOf(row)).toBe("test");
    const other = await evaluate("--limit", "2", "--game", "quick", "--json");
    expect(JSON.parse(other.out)).toMatchObject({ game: "quick", count: 2 });
  });

  it("counts as the run's own rule does, and stricter where asked", async () => {
    const rows = await data([
      { numbers: [6, 4, 7], target: 24 },
      { numbers: [6, 4], target: 24 },
    ]);
    await makeRun({ root, name: "lenient", model: solver, config: { countdown: { game: "quick" } } });
    const config = { countdown: { game: "quick", use: "exactly-once" } };
    await makeRun({ root, name: "strict", model: solver, config });
    const measured = async (...argv: string[]) =>
      JSON.parse((await evaluate(...argv, "--data", rows, "--json")).out);
    expect(await measured("lenient")).toMatchObject({ pass1: 1, use: "at-most-once" });
    expect(await measured("strict")).toMatchObject({ pass1: 0.5, use: "exactly-once" });
    expect(await measured("lenient", "--exactly-once")).toMatchObject({ pass1: 0.5, use: "exactly-once" });
    expect((await evaluate("strict", "--data", rows)).out).toMatch(
      /^strict on 2 prompts of rows\.jsonl, numbers each exactly once, 1 sample each/,
    );
    expect((await evaluate("strict", "--limit", "1")).out).toMatch(
      /^strict on 1 held-out puzzles of the game quick, numbers each exactly once, /,
    );
    expect((await evaluate("lenient", "--limit", "1")).out).not.toContain("once");
  });

  it("keeps every answer with its verdict, in a form that grade agrees with", async () => {
    await makeRun({ root, name: "one", model: babbler() });
    const records = join(root, "records.jsonl");
    const limits = ["--max-new-tokens", "12", "--samples", "3", "--records", records, "--json"];
    const report = JSON.parse((await evaluate("--data", await data(puzzles), ...limits)).out);
    const rows = (await readFile(records, "utf8"))
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(rows.map(({ id, sample }) => [id, sample])).toEqual(
      ["4,6:24", "b", "4,6:25", "5,6:24"].flatMap((id) => [0, 1, 2].map((sample) => [id, sample])),
    );
    expect(rows[3]).toMatchObject({ numbers: [4, 6, 9], target: 24, prompt: "4 6 9 = 24\n" });
    const mean = rows.reduce((sum, { tokens }) => sum + tokens, 0) / rows.length;
    expect(report.meanLength).toBeCloseTo(mean, 10);
    expect(report.truncatedFraction).toBe(rows.filter(({ truncated }) => truncated).length / rows.length);
    const graded = (await pondera(["grade", "countdown", records, "--json"])).out.trimEnd().split("\n");
    expect(graded.map((line) => JSON.parse(line).accuracy === 1)).toEqual(rows.map(({ correct }) => correct));
  });

  it("gives the same numbers for the same seed", async () => {
    await makeRun({ root, name: "one", model: babbler() });
    const rows = await data(puzzles);
    const completions = async (seed: string) => {
      const records = join(root, `records-${seed}.jsonl`);
      await evaluate("--data", rows, "--max-new-tokens", "12", "--seed", seed, "--records", records);
      return readFile(records, "utf8");
    };
    const first = await completions("1");
    expect(await completions("1")).toBe(first);
    expect(await completions("2")).not.toBe(first);
  });

  it("measures on a task file, its held-out prompts or rows of its own form", async () => {
    const folder = join(root, "model");
    await saveModelFolder(folder, parrot("=4"));
    const file = join(root, "my-task.ts");
    await writeFile(
      file,
      `import { defineTask } from "pondera";
       export default defineTask({
         name: "add",
         prompts: (random) => ({ prompt: random.integer(9) + "+" + random.integer(9) + "=" }),
         reward: ({ text }, { prompt }) => {
           const [a, b] = prompt.slice(0, -1).split("+").map(Number);
           return Number(text) === a + b ? 1 : 0;
         },
         maxNewTokens: 3,
       });`,
    );
    const rows = await data([{ prompt: "2+2=", id: 7 }, { prompt: "1+3=" }, { prompt: "1+4=" }]);
    const measured = JSON.parse((await evaluate(folder, "--task", file, "--data", rows, "--json")).out);
    expect(measured).toMatchObject({ task: "add", count: 3, maxNewTokens: 3, meanLength: 2, trainable: 0 });
    expect(measured.pass1).toBeCloseTo(2 / 3, 12);
    const heldOut = JSON.parse((await evaluate(folder, "--task", file, "--limit", "2", "--json")).out);
    expect(heldOut).toMatchObject({ task: "add", count: 2 });
    expect(heldOut).not.toHaveProperty("use");
    // A run's own limit comes before its task's, as when it was trained.
    const model = { ...parrot("=4"), generationConfig: { max_new_tokens: 5 } };
    await makeRun({ root, name: "own", task: "add", taskFile: file, model });
    const own = JSON.parse((await evaluate("own", "--runs", root, "--limit", "2", "--json")).out);
    expect(own).toMatchObject({ task: "add", maxNewTokens: 5 });
    const named = JSON.parse(
      (await evaluate("own", "--runs", root, "--task", file, "--limit", "2", "--json")).out,
    );
    expect(named).toMatchObject({ maxNewTokens: 3 });
    const broken = await data([{ promt: "2+2=" }]);
    expect((await evaluate(folder, "--task", file, "--data", broken)).err).toMatch(
      /rows\.jsonl:1: prompt: must be as .* For example \{"prompt": "2\+2="\}\.\n/,
    );
    const refused = await evaluate(folder, "--task", file, "--exactly-once");
    expect(refused.code).toBe(2);
    expect(refused.err).toMatch(/--exactly-once: is for the task countdown; got the task .*Leave it out\./);
  });

  it.runIf(existsSync(published))("reads the published puzzles, none of which is trained on", async () => {
    await makeRun({ root, name: "one", model: babbler() });
    const { out } = await evaluate("--data", published, "--max-new-tokens", "2", "--json");
    expect(JSON.parse(out)).toMatchObject({
      count: 256,
      pass1: 0,
      interval: [0, expect.any(Number)],
      trainable: 0,
    });
  });

  it("says what is wrong with a row, a task, a game", async () => {
    await makeRun({ root, name: "one", model: solver });
    const fails = async (...argv: string[]) => (await evaluate(...argv)).err;
    const broken = await data([puzzles[0]!, { numbers: ["6"], target: 24 }]);
    expect(await fails("--data", broken)).toMatch(
      /rows\.jsonl:2: numbers\.0: must be as the task's rows are; got .*\. For example \{"numbers": \[20, 6, 33\], "target": 87\}\.\n/,
    );
    const large = await data([{ numbers: [6], target: 10 ** 15 }]);
    expect(await fails("--data", large)).toMatch(/rows\.jsonl:1: target: must be as .*<=999999999999999/);
    // A row like the one that is shown is taken.
    const { code } = await evaluate("--data", await data(['{"numbers": [20, 6, 33], "target": 87}']));
    expect(code).toBe(0);
    expect(await fails("--data", await data(["{"]))).toMatch(/rows\.jsonl:1: must be one JSON value a line/);
    expect(await fails("--data", await data([""]))).toMatch(/at least one prompt/);
    expect(await fails("--data", join(root, "none.jsonl"))).toMatch(
      /none\.jsonl: must be readable; .* Check the path/,
    );
    expect(await fails("--task", "countdwn")).toContain('Did you mean "countdown"?');
    expect(await fails("--game", "chess")).toContain("Allowed choices are quick, long, cd3");
    const folder = join(root, "alone");
    await saveModelFolder(folder, solver);
    expect(await fails(root)).toMatch(
      /must be a model's folder.*; got a folder with none of them\. pondera runs list and pondera list show what there is\./,
    );
    expect(await fails(folder)).toMatch(/--task: must name a task: no run says.*--task countdown/);
  });
});
