/** Twins of a tiny run: that each gets its time, and that all are measured alike. The times themselves are not tested. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  countdownTwins,
  pairedDifference,
  type TwinsOptions,
  type TwinsReport,
  twinsLines,
} from "../../bench/countdown-twins.ts";
import { withoutThoughts } from "../../bench/no-thought.ts";
import { openModel } from "../../src/app/cli/model.ts";
import { ConfigError } from "../../src/base/errors.ts";
import { evaluate } from "../../src/learn/eval/evaluate.ts";
import { readRun } from "../../src/learn/runs/read-run.ts";
import { countdownTask } from "../../src/learn/tasks/countdown/task.ts";
import { parseRunConfig } from "../../src/learn/train/config.ts";
import { startRun } from "../../src/learn/train/run.ts";
import { loadStoredModel } from "../../src/model/checkpoint/load.ts";
import { TINY } from "../learn/train/tiny.ts";

const level = { warmup: 2, decay: 0, final: 1 };
const config = parseRunConfig({
  ...TINY,
  pretrain: { ...TINY.pretrain, steps: 30, schedule: level },
  sft: { ...TINY.sft, steps: 0 },
  rl: { ...TINY.rl, steps: 20, schedule: level },
  evaluation: { ...TINY.evaluation, samples: 1 },
  checkpointEvery: 1000,
});
const peak = 1e11;
const puzzles = 12;
const minutesScale = 0.2;

let root: string;
let path: string;
let options: TwinsOptions;
let report: TwinsReport;
const notes: string[] = [];

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-twins-test-"));
  const task = countdownTask({ heldOutCount: 4 });
  path = (await startRun({ root, name: "tiny", task, preset: "tiny", config, peak })).path;
  options = { run: [path], preset: "smoke", out: root, puzzles, minutesScale };
  report = await countdownTwins({ ...options, onNote: (line) => notes.push(line) });
}, 300_000);
afterAll(() => rm(root, { recursive: true, force: true }));

const rowOf = (variant: string) => report.rows.find((row) => row.variant === variant)!;

/** Everything a run's weights depend on, and the weights. */
async function remains(folder: string) {
  const { metrics } = await readRun(folder);
  const losses = metrics.map(({ stage, step, loss }) => ({ stage, step, loss }));
  return { losses, weights: await readFile(join(folder, "model", "model.safetensors")) };
}

describe("twins of a run", () => {
  it("are three beside it, of its size and seed, each measured on as many puzzles", async () => {
    expect(report.rows.map(({ variant }) => variant)).toEqual([
      "r1-zero",
      "base-on",
      "no-thought",
      "no-thought-sft",
    ]);
    for (const row of report.rows) {
      const { manifest, result } = await readRun(row.path);
      expect(row).toMatchObject({ seed: config.seed, final: { count: puzzles, samplesPerPrompt: 1 } });
      expect(manifest.config["model"]).toEqual(config.model);
      expect(result!.parameters).toBe((await readRun(path)).result!.parameters);
      expect(row.tokens).toBe(result!.tokens);
    }
    expect(basename(rowOf("no-thought").path)).toBe("tiny-x0.2-no-thought");
  });

  it("train in the stages that are theirs", () => {
    const stages = (variant: string) => rowOf(variant).stages.map(({ stage }) => stage);
    expect(stages("r1-zero")).toEqual(["pretrain", "rl"]);
    expect(stages("base-on")).toEqual(["pretrain", "sft"]);
    expect(stages("no-thought")).toEqual(["pretrain", "rl"]);
    expect(stages("no-thought-sft")).toEqual(["sft"]);
    expect(rowOf("base-on").stages[0]!.steps).toBe(6);
  });

  it("train on as the run's own base, step by step", async () => {
    const own = (await remains(path)).losses.slice(0, 6);
    expect((await remains(rowOf("base-on").path)).losses.slice(0, 6)).toEqual(own);
  });

  it("have a curve where there is reinforcement learning", () => {
    for (const { variant, curve, before } of report.rows) {
      const learns = variant === "r1-zero" || variant === "no-thought";
      expect(curve !== undefined).toBe(learns);
      expect(before !== undefined).toBe(learns);
    }
    const { curve = [] } = rowOf("r1-zero");
    expect(curve.length).toBeGreaterThan(1);
    for (const { length } of curve) expect(length).toBeLessThanOrEqual(config.rl.maxNewTokens);
  });

  it("without thoughts are left no room for any", async () => {
    const { maxNewTokens } = withoutThoughts({ heldOutCount: 1 });
    for (const variant of ["no-thought", "no-thought-sft"]) {
      const { manifest } = await readRun(rowOf(variant).path);
      expect(parseRunConfig(manifest.config).rl.maxNewTokens).toBe(maxNewTokens);
      expect(rowOf(variant).final.meanLength).toBeLessThanOrEqual(maxNewTokens!);
    }
  });

  it("learn for a number of steps that is set on the way, as if it had been from the start", async () => {
    const { manifest } = await readRun(rowOf("no-thought").path);
    expect(manifest.changes).toMatchObject([{ set: [expect.stringMatching(/^rl\.steps=\d+$/)] }]);
    const known = parseRunConfig(manifest.config);
    const task = withoutThoughts({ heldOutCount: 4 });
    const straight = await startRun({ root, name: "straight", task, preset: "tiny", config: known, peak });
    expect(await remains(straight.path)).toEqual(await remains(rowOf("no-thought").path));
    expect(rowOf("no-thought").stages.at(-1)!.steps).toBe(known.rl.steps);
  });

  it("say how many steps they take", () => {
    expect(notes).toContainEqual(
      expect.stringMatching(/^seed 1, base-on: \d+ steps on text, \d+\.\d+ s each, in \d/),
    );
    expect(notes).toContainEqual(
      expect.stringMatching(/^seed 1, no-thought: \d+ steps of reinforcement learning, \d+\.\d+ s each/),
    );
  });

  it("are measured on test puzzles, drawn at temperature 1", async () => {
    const { path, final } = rowOf("no-thought-sft");
    const model = await loadStoredModel(join(path, "model"));
    const positions = model.config.maxPositions;
    const open = await openModel(model, { threads: config.threads, slots: config.rl.slots, positions });
    const { maxNewTokens = 0 } = withoutThoughts({ heldOutCount: 1 });
    const limits = { maxNewTokens, temperature: 1, seed: 0, stopIds: model.stopIds };
    const summaryOn = async (heldOut: "validation" | "test") => {
      const task = countdownTask({ heldOut, heldOutCount: puzzles });
      return (await evaluate(open.engine, model.tokenizer, task, task.validation, limits)).summary;
    };
    // A barely trained model has near ties, which another rounding may decide another way: a token, not a puzzle.
    const onTest = await summaryOn("test");
    expect(onTest).toMatchObject({ count: final.count, samplesPerPrompt: 1, pass1: final.pass1 });
    expect(Math.abs(onTest.meanLength - final.meanLength)).toBeLessThan(0.5);
    expect(await summaryOn("validation")).not.toEqual(final);
    await open.dispose();
  });

  it("are not trained again, and measure the same", async () => {
    const again = await countdownTwins(options);
    expect(again.rows).toEqual(report.rows);
    expect(again.slowdown).toEqual([]);
    expect(report.slowdown).toHaveLength(1);
  });

  it("are told of as a table, with margins and curves", () => {
    const text = twinsLines(report).join("\n");
    expect(text).toContain("the game quick: 12 test puzzles, one sample each at temperature 1");
    for (const { variant } of report.rows) expect(text).toContain(variant);
    expect(text).toMatch(/r1-zero over no-thought: -?\d+\.\d points \(-?\d+\.\d to -?\d+\.\d\)/);
    expect(text.match(/% right/g)).toHaveLength(2);
    expect(text).not.toContain("seeds (");
  });

  it("pool the puzzles of several seeds", () => {
    const rows = [...report.rows, ...report.rows.map((row) => ({ ...row, seed: 2 }))];
    expect(twinsLines({ ...report, rows }).join("\n")).toMatch(/base-on: \d+\.\d\u00a0% over 2 seeds \(/);
  });

  it("are told of with a warning where their times do not compare", () => {
    const warnings = (minutes: number, factor: number, minutesScale = 1) => {
      const rows = report.rows.map((row) => ({ ...row, minutes: row.variant === "base-on" ? minutes : 8 }));
      const lines = twinsLines({ ...report, rows, minutesScale, slowdown: [{ seed: 1, factor }] });
      return lines.filter((line) => /^seed 1: |^times /.test(line));
    };
    expect(warnings(8.7, 0.95)).toEqual([]);
    expect(warnings(10, 1)).toEqual([
      "seed 1: base-on took 1.25 times the minutes of r1-zero; keep the machine to itself",
    ]);
    expect(warnings(8, 0.5)).toEqual([
      "seed 1: a step takes 0.50 times as long as when r1-zero was trained; minutes do not compare",
    ]);
    expect(warnings(10, 2, 0.05)).toEqual(["times 0.05 of what they should be: a check, not a result"]);
  });

  it("refuse what is no finished run of the game", async () => {
    const other = rowOf("no-thought-sft").path;
    await expect(countdownTwins({ ...options, run: [other] })).rejects.toThrow(ConfigError);
    await expect(countdownTwins({ ...options, run: [other] })).rejects.toThrow(
      /must be a finished run of countdown that made its own base .*; got countdown-no-thought with the stages sft/,
    );
  });

  it("beside a run with a cold start are one, which has more of that", async () => {
    const task = countdownTask({ heldOutCount: 4 });
    const sft = { ...config.sft, steps: 20, schedule: level };
    const cold = await startRun({
      ...{ root, task, peak },
      name: "cold",
      preset: "tiny",
      config: { ...config, sft },
    });
    const beside = await countdownTwins({ ...options, run: [cold.path] });
    expect(beside.original).toBe("r1");
    const stages = beside.rows.map((row) => [row.variant, ...row.stages.map(({ stage }) => stage)]);
    expect(stages).toEqual([
      ["r1", "pretrain", "sft", "rl"],
      ["sft-on", "pretrain", "sft"],
    ]);
    expect(beside.margins.map(({ over }) => over)).toEqual(["sft-on"]);
    expect(twinsLines(beside).join("\n")).toMatch(/r1 over sft-on: /);
    await expect(countdownTwins({ ...options, run: [path, cold.path] })).rejects.toThrow(
      /must have a cold start where the others have one; got r1 beside r1-zero/,
    );
  });
});

describe("a difference between two, puzzle by puzzle", () => {
  it("is the mean of the differences, with the interval of a mean", () => {
    // Differences 1, 0, 1, 0: mean 1/2, sample variance 1/3, standard error sqrt(1/12).
    const { difference, interval } = pairedDifference([[1], [1], [1], [0]], [[0], [1], [0], [0]]);
    expect(difference).toBe(0.5);
    expect(interval[0]).toBeCloseTo(0.5 - 1.96 / Math.sqrt(12), 12);
    expect(interval[1]).toBeCloseTo(0.5 + 1.96 / Math.sqrt(12), 12);
  });

  it("takes the seeds of a puzzle together", () => {
    const twice = pairedDifference(
      [
        [1, 0],
        [1, 1],
      ],
      [
        [0, 0],
        [0, 0],
      ],
    );
    expect(twice).toEqual(pairedDifference([[0.5], [1]], [[0], [0]]));
    expect(twice.difference).toBe(0.75);
  });
});
