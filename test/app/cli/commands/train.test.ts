import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { configFor } from "../../../../src/app/cli/commands/train.ts";
import { readRun } from "../../../../src/learn/runs/read-run.ts";
import type { RunResult } from "../../../../src/learn/runs/records.ts";
import { PRESETS } from "../../../../src/learn/train/presets.ts";
import { pondera } from "../harness.ts";
import { sitAt } from "../terminal.ts";

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-train-cli-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

/** The smoke preset, smaller still. */
const TINY = [
  ...["--preset", "smoke", "--threads", "1", "--out"],
  ...["model.width=32", "model.heads=2", "model.kvHeads=1", "model.headWidth=16", "pretrain.steps=3"],
  ...["rl.prompts=2", "rl.samples=2", "rl.maxNewTokens=8", "rl.slots=4", "evaluation.count=4"],
  ...["validation.every=0", "checkpointEvery=1"],
];
const tiny = (): string[] =>
  TINY.flatMap((word) => (word === "--out" ? [word, root] : word.includes("=") ? ["--set", word] : [word]));

const task = `
import { defineTask } from "pondera";
export default defineTask({
  name: "echo",
  alphabet: "ab",
  prompts: (random) => ({ prompt: Array.from({ length: 8 }, () => random.pick(["a", "b"])).join("") }),
  explore: (random) => ({ prompt: "a", completion: "ab".repeat(1 + random.integer(3)) }),
  reward: ({ text }) => (text.startsWith("a") ? 1 : 0),
  maxPromptTokens: 8,
  maxNewTokens: 6,
});
`;

describe("pondera train", () => {
  it("trains, tells of every step and of the result, and leaves a run", async () => {
    const { code, out, err } = await pondera([
      "train",
      "countdown",
      ...tiny(),
      "--steps",
      "2",
      "--name",
      "one",
    ]);
    expect(err).toBe("");
    expect(code).toBe(0);
    expect(out).toMatch(/^one: countdown, smoke, seed 1, .* parameters, 1 thread, ffi\n/);
    expect(out.match(/^pretrain \d\/3 {2}loss /gm)).toHaveLength(3);
    expect(out.match(/^rl \d\/2 {2}reward /gm)).toHaveLength(2);
    expect(out).toMatch(/base: .* right on 4 held-out prompts/);
    expect(out).toContain("pondera chat one");
    const { status, manifest, result } = await readRun(join(root, "one"));
    expect(status).toBe("finished");
    expect(manifest.config).toMatchObject({ rl: { steps: 2 }, model: { width: 32 }, threads: 1 });
    expect(result!.final.count).toBe(4);
    expect(await readFile(join(root, "one", "report.html"), "utf8")).toContain("countdown");
  });

  it("prints the result alone as JSON, its progress on standard error", async () => {
    const argv = ["train", "countdown", ...tiny(), "--steps", "1", "--seed", "7", "--loss", "gspo", "--json"];
    const { code, out, err } = await pondera(argv);
    expect(code).toBe(0);
    const result = JSON.parse(out) as RunResult;
    expect(result).toMatchObject({ task: "countdown", seed: 7, preset: "smoke" });
    expect(err).toContain("rl 1/1");
    expect((await readRun(join(root, result.name))).manifest.config).toMatchObject({ rl: { loss: "gspo" } });
  });

  it("trains a task of one's own from its file, with the limits the task knows", async () => {
    const file = join(root, "echo.ts");
    await writeFile(file, task);
    const { code, err } = await pondera([
      "train",
      file,
      ...tiny(),
      "--steps",
      "1",
      "--name",
      "echo",
      "--set",
      "rl.clipHigh=0.3",
    ]);
    // What was asked for beats what the task says.
    expect(err).toBe("");
    expect(code).toBe(0);
    const { manifest } = await readRun(join(root, "echo"));
    expect(manifest).toMatchObject({ task: "echo", taskFile: file, config: { rl: { maxNewTokens: 8 } } });
    expect(manifest.data["echo.ts"]).toMatch(/^[0-9a-f]{64}$/);
    const own = tiny().flatMap((word, i, all) =>
      word === "rl.maxNewTokens=8" || all[i + 1] === "rl.maxNewTokens=8" ? [] : [word],
    );
    await pondera(["train", file, ...own, "--steps", "1", "--name", "echo-own"]);
    expect((await readRun(join(root, "echo-own"))).manifest.config).toMatchObject({
      rl: { maxNewTokens: 6 },
    });
  });

  it("leaves a finished run as it is when asked to go on with it", async () => {
    const { code, out } = await pondera(["train", "--resume", "one", "--out", root, "--json"]);
    expect(code).toBe(0);
    expect((JSON.parse(out) as RunResult).name).toBe("one");
  });

  it.each([
    [2, ["train"], /takes either a task or --resume RUN; got neither/],
    [2, ["train", "countdown", "--resume", "one"], /takes either a task or --resume RUN; got both/],
    [2, ["train", "countdwn"], /task: must be one of countdown; got "countdwn"\. Did you mean "countdown"\?/],
    [2, ["train", "countdown", "--set", "rl.sampels=3"], /--set rl: .*Did you mean "samples"\?/],
    [2, ["train", "countdown", "--set", "rl.samples=1"], /config\.rl\.samples: must be at least 2/],
    [
      2,
      ["train", "--resume", "one", "--seed", "3"],
      /--seed: is for new runs.*Change single fields with --set/,
    ],
    [
      2,
      ["train", "--resume", "one", "--set", "rl.steps=9"],
      /--set: is for a run that has steps to go; got rl\.steps=9 .*Leave it out/,
    ],
    [1, ["train", "./none.ts"], /none\.ts: must be a task file/],
    [
      1,
      ["train", "./examples/arithmetic.ts", "--preset", "r1"],
      /needs demonstrate\(random\) for the stage sft/,
    ],
  ])("fails with %i and says what is wrong: %j", async (expected, argv, message) => {
    const { code, out, err } = await pondera([...argv, "--out", root]);
    expect(code).toBe(expected);
    expect(out).toBe("");
    expect(err).toMatch(message);
  });

  it.each([
    [["train", "countdown", "--preset", "quik"], /Allowed choices are quick, r1, long, smoke/],
    [["train", "countdown", "--loss", "ppo"], /Allowed choices are grpo, dr_grpo/],
    [["train", "countdown", "--dept", "3"], /Did you mean --depth\?/],
  ])("knows its options: %j", async (argv, message) => {
    const { code, err } = await pondera(argv);
    expect(code).toBe(2);
    expect(err).toMatch(message);
  });

  it("shows help with the presets and examples", async () => {
    const { code, out } = await pondera(["train", "--help"]);
    expect(code).toBe(0);
    for (const name of Object.keys(PRESETS)) expect(out).toContain(`  ${name}`);
    expect(out).toMatch(/Examples:\n {2}\$ pondera train countdown/);
  });
});

describe("pondera train, at a terminal", () => {
  const sit = (...argv: readonly string[]) =>
    sitAt(["train", "countdown", ...tiny(), "--steps", "1", "--set", "pretrain.steps=1", ...argv]);

  it("opens a chat with the new model once it has said how the run went", async () => {
    const terminal = sit("--name", "talks");
    await terminal.see(/right on 4 held-out prompts/);
    await terminal.see("pondera chat talks");
    await terminal.see(/talks · .*It was trained on countdown\. A prompt looks like/s);
    await terminal.see("> ");
    terminal.type("1 2 3 = 6\r");
    await terminal.see(/1 2 3 = 6\s[\s\S]*\n {2}[✓✗] /);
    await terminal.see("> ");
    terminal.type("/exit\r");
    expect(await terminal.ended).toBe(0);
  });

  it("ends with the result where no chat is wanted", async () => {
    const terminal = sit("--name", "quiet", "--no-chat");
    await terminal.see("pondera chat quiet");
    expect(await terminal.ended).toBe(0);
    expect(terminal.raw).not.toContain("It was trained on countdown");
  });
});

describe("what flags make of a preset", () => {
  it("is the preset when there are none, and flags and fields on top of it", () => {
    expect(configFor("quick", {})).toEqual(PRESETS.quick.config);
    const config = configFor("quick", { depth: 2, loss: "cispo", seed: 4, steps: 9, set: ["rl.steps=10"] });
    expect(config).toMatchObject({ seed: 4, model: { layers: 2 }, rl: { loss: "cispo", steps: 10 } });
  });
});

describe("Ctrl-C", () => {
  const main = fileURLToPath(new URL("../../../../src/app/cli/main.ts", import.meta.url));

  it("loses nothing, and says how to go on", async () => {
    const argv = ["train", "countdown", ...tiny(), "--steps", "400", "--name", "stopped"];
    const life = spawn(process.execPath, ["--import", "jiti/register", main, ...argv], {
      // As `npm start` in a clone, where the command alone would not be found.
      env: { ...process.env, npm_lifecycle_event: "start" },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let out = "";
    createInterface({ input: life.stdout }).on("line", (line) => {
      out += `${line}\n`;
      if (line.startsWith("rl 3/")) life.kill("SIGINT");
    });
    const [code] = (await once(life, "exit")) as [number | null];
    expect(code).toBe(130);
    expect(out).toContain("Stopping after this step");
    expect(out).toMatch(/Stopped\. Go on with: npx pondera train --resume \S*stopped/);
    const path = join(root, "stopped");
    const { status, metrics } = await readRun(path);
    expect(status).toBe("stopped");
    const steps = metrics.filter(({ stage }) => stage === "rl").length;
    expect(steps).toBeGreaterThanOrEqual(3);
    // A killed process may leave half a line behind.
    await appendFile(join(path, "metrics.jsonl"), '{"stage":"rl","st');
    const resume = ["train", "--resume", "stopped", "--out", root, "--set", `rl.steps=${steps + 2}`];
    const resumed = await pondera(resume);
    expect(resumed.err).toBe("");
    expect(resumed.out).toContain(`Going on after step ${steps + 3}.`);
    expect(resumed.out).toContain(`rl ${steps + 1}/${steps + 2}`);
    expect((await readRun(path)).metrics).toHaveLength(3 + steps + 2);
  });
});
