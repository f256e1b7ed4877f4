import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, FileError, NumericError, TaskError } from "../../../src/base/errors.ts";
import { shellPath } from "../../../src/base/shell.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import type { Schedule } from "../../../src/learn/optim/schedule.ts";
import { readCheckpoint } from "../../../src/learn/runs/checkpoint.ts";
import { diagnose } from "../../../src/learn/runs/doctor.ts";
import { readMetrics, readRun } from "../../../src/learn/runs/read-run.ts";
import type { RunResult, StepMetrics } from "../../../src/learn/runs/records.ts";
import type { Reward, Task } from "../../../src/learn/tasks/task.ts";
import type { RunConfig } from "../../../src/learn/train/config.ts";
import { matrixRate, ratesAt } from "../../../src/learn/train/language-stage.ts";
import { resumeRun, startRun } from "../../../src/learn/train/run.ts";
import type { RunObserver, RunOutcome } from "../../../src/learn/train/training.ts";
import { loadModelFolder } from "../../../src/model/checkpoint/folder.ts";
import { unprivileged } from "../../base/unprivileged.ts";
import { TINY, tinyTask } from "./tiny.ts";

const child = fileURLToPath(new URL("./children/train-tiny.ts", import.meta.url));

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-train-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

const silent: RunObserver = { start() {}, step() {}, sample() {}, note() {} };
const peak = 1e11;

function start(name: string, config: RunConfig = TINY, options: object = {}): Promise<RunOutcome> {
  return startRun({ root, name, task: tinyTask(), preset: "tiny", config, peak, ...options });
}

const hashOf = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** Everything a run leaves that does not depend on a clock. */
async function remains(name: string) {
  const folder = join(root, name);
  const steps = (await readMetrics(folder)).map(({ timing: _, ...rest }) => rest);
  const {
    minutes,
    cpuHours,
    dollars,
    stages,
    name: own,
    ...result
  } = JSON.parse(await readFile(join(folder, "result.json"), "utf8")) as RunResult;
  return {
    steps,
    result,
    stages: stages.map(({ stage, steps }) => ({ stage, steps })),
    samples: await readFile(join(folder, "samples.jsonl"), "utf8"),
    weights: hashOf(await readFile(join(folder, "model", "model.safetensors"))),
  };
}

describe("a run", () => {
  let outcome: RunOutcome;
  let metrics: readonly StepMetrics[];
  const reports: string[] = [];
  beforeAll(async () => {
    outcome = await start("calm", TINY, { report: async (path: string) => reports.push(path) });
    metrics = await readMetrics(join(root, "calm"));
  }, 60_000);

  it("takes every stage's steps and records each", () => {
    expect(metrics.map(({ stage, step }) => `${stage} ${step}`)).toEqual([
      ...Array.from({ length: 12 }, (_, i) => `pretrain ${i + 1}`),
      ...Array.from({ length: 5 }, (_, i) => `sft ${i + 1}`),
      ...Array.from({ length: 16 }, (_, i) => `rl ${i + 1}`),
    ]);
    const rl = metrics.filter((m) => m.stage === "rl");
    expect(rl.every((m) => m.rl !== undefined && m.tokens.rollout > 0)).toBe(true);
    expect(rl.map((m) => m.validation !== undefined)).toEqual(rl.map((m) => m.step % 3 === 0));
    expect(rl.map((m) => m.rl!.referenceAge)).toEqual(rl.map((m) => (m.step - 1) % 3));
    expect(metrics.at(-1)!.tokens.total).toBe(
      metrics.reduce((sum, m) => sum + m.tokens.rollout + m.tokens.train, 0),
    );
    // Rewards differ inside some groups, or the tests below would prove little.
    expect(rl.some((m) => m.rl!.equalGroups < 1)).toBe(true);
    expect(rl.some((m) => m.rl!.resampledGroups > 0)).toBe(true);
  });

  it("says how long each step took, on what, and at what rates", () => {
    const phases = {
      pretrain: ["pack", "train"],
      sft: ["pack", "train"],
      rl: ["rollout", "reward", "pack", "train"],
    };
    for (const [i, { stage, step, tokens, flops, timing, learningRate, ...rest }] of metrics.entries()) {
      const { validate, checkpoint, ...own } = timing.phases;
      expect(Object.keys(own).sort()).toEqual([...phases[stage]].sort());
      expect(validate !== undefined).toBe(rest.validation !== undefined);
      expect(Object.values(timing.phases).every((seconds) => seconds >= 0)).toBe(true);
      expect(timing.elapsed).toBeGreaterThan(i === 0 ? 0 : metrics[i - 1]!.timing.elapsed);
      expect(timing.trainTokensPerSecond).toBeCloseTo(
        own["train"]! > 0 ? tokens.train / own["train"]! : 0,
        6,
      );
      const rollout = stage === "rl" ? tokens.rollout / own["rollout"]! : undefined;
      expect(timing.rolloutTokensPerSecond).toBe(rollout);
      // The step took at least as long as its phases together, and not much longer.
      const seconds = flops / (timing.utilization! * peak);
      const together = Object.values(own).reduce((sum, part) => sum + part, 0);
      expect(seconds).toBeGreaterThanOrEqual(together * (1 - 1e-9));
      expect(seconds).toBeLessThan(together + 1);
      expect(timing.rssBytes).toBeGreaterThan(2 ** 25);
      expect(timing.rssBytes).toBeLessThan(2 ** 33);
      expect(learningRate).toBe(matrixRate(TINY[stage], ratesAt(TINY[stage], step)));
    }
    // What a checkpoint takes is counted with the step after it.
    expect(
      metrics.filter(({ timing }) => timing.phases["checkpoint"] !== undefined).map(({ step }) => step)[0],
    ).toBe(4);
    const rates = metrics.filter(({ stage }) => stage === "rl").map(({ learningRate }) => learningRate);
    expect(rates[0]).toBeLessThan(rates[5]!);
    expect(rates.at(-1)).toBeLessThan(rates[5]!);
  });

  it("starts each reinforcement step at the sampler's own policy", () => {
    // At the first of the two updates every ratio is 1; the second may move a little.
    for (const { rl } of metrics)
      if (rl !== undefined) expect(Math.abs(rl.ratio.mean - 1)).toBeLessThan(0.01);
  });

  it("leaves a result, a report and a model that loads", async () => {
    expect(outcome.kind).toBe("finished");
    const { result, status } = await readRun(join(root, "calm"));
    expect(status).toBe("finished");
    expect(result).toMatchObject({
      task: "countdown",
      preset: "tiny",
      base: { count: 4 },
      sft: { count: 4 },
    });
    expect(result!.final.samplesPerPrompt).toBe(2);
    expect(result!.flops).toBeCloseTo(
      metrics.reduce((sum, m) => sum + m.flops, 0),
      0,
    );
    expect(result!.firstBacktrack!.correct).toBe(true);
    expect(reports).toEqual([join(root, "calm")]);
    const model = await loadModelFolder(join(root, "calm", "model"));
    expect(model.config.layers).toBe(1);
    expect(model.tokenizer.decode(model.tokenizer.encode("12 = 3\n"))).toBe("12 = 3\n");
  });

  it("is the same to the bit with the same seed, and another with another", async () => {
    await start("again");
    expect(await remains("again")).toEqual(await remains("calm"));
    await start("other", { ...TINY, seed: 2 });
    expect((await remains("other")).weights).not.toBe((await remains("calm")).weights);
  });

  it("is the same to the bit when several threads share the work", async () => {
    const config = { ...TINY, threads: 2 };
    await start("two-threads-1", config);
    await start("two-threads-2", config);
    expect(await remains("two-threads-1")).toEqual(await remains("two-threads-2"));
  });

  it("is left as it is when it has finished", async () => {
    const again = await resumeRun(join(root, "calm"), () => Promise.reject(new Error("not opened")));
    expect(again).toEqual({ ...outcome });
    const before = await readFile(join(root, "calm", "run.json"), "utf8");
    const changed = resumeRun(join(root, "calm"), async () => ({ task: tinyTask() }), {
      set: ["rl.steps=99"],
    });
    await expect(changed).rejects.toThrow(ConfigError);
    await expect(changed).rejects.toThrow(
      /--set: is for a run that has steps to go; got rl\.steps=99 for one that has finished\. Leave it out, or start/,
    );
    expect(await readFile(join(root, "calm", "run.json"), "utf8")).toBe(before);
  });

  it("gets its report where it was killed before there was one", async () => {
    const written: string[] = [];
    const report = async (path: string) => written.push(path);
    const path = join(root, "calm");
    await resumeRun(path, () => Promise.reject(new Error("not opened")), { report });
    expect(written).toEqual([path]);
    await writeFile(join(path, "report.html"), "<!doctype html>");
    await resumeRun(path, () => Promise.reject(new Error("not opened")), { report });
    expect(written).toEqual([path]);
    await rm(join(path, "report.html"));
  });

  it("leaves no folder behind where its task cannot be written in its alphabet", async () => {
    const task = tinyTask();
    const prompt = "z = 1\n";
    const strange = { ...task, validation: [{ id: "1", prompt, row: {} }] };
    await expect(start("strange", TINY, { task: strange })).rejects.toThrow(
      /^task countdown: prompt "z = 1\\n": must be written in the characters of its alphabet and tokens; got .*"z".*\. Add them to the task's alphabet\.$/,
    );
    const explore = () => ({ prompt: "1 2 = 3\n", completion: "<think>x" });
    await expect(start("strange", TINY, { task: { ...task, explore } })).rejects.toThrow(
      /^task countdown: explore "<think>x": must be written in the characters of its alphabet and tokens; got /,
    );
    expect(existsSync(join(root, "strange"))).toBe(false);
  });
});

describe("a run whose task throws", () => {
  /** The task, whose reward throws from some call on. */
  function faulty(calls: number): Task<unknown> {
    const { rewards, ...task } = tinyTask();
    let left = calls;
    const reward: Reward<unknown> = (completion, example) => {
      if (left-- <= 0) throw new Error("no such key");
      return rewards["digits"]!.reward(completion, example);
    };
    return { ...task, rewards: { digits: { weight: 0.1, reward } } };
  }

  it("keeps the steps before, and goes on with a task that is mended", async () => {
    // Evaluations of the base and after the cold start take 8 each, a step 6 or, with groups drawn again, more.
    const error = await start(
      "faulty",
      { ...TINY, checkpointEvery: 100 },
      { task: faulty(70), data: { "task.ts": "a1" } },
    ).catch((cause: unknown) => cause);
    expect(error).toBeInstanceOf(TaskError);
    const path = join(root, "faulty");
    const done = (await readMetrics(path)).length;
    expect(done).toBeGreaterThan(17);
    expect(await readdir(join(path, "checkpoints"))).toContain(`step-${done}`);
    const before = await readFile(join(path, "run.json"), "utf8");
    const mended = async () => ({ task: tinyTask(), data: { "task.ts": "b2" } });
    await expect(resumeRun(path, mended, { peak })).rejects.toThrow(
      /^task\.ts: must be the file the run began with; got another content \(SHA-256 was a1…\)\. .* --accept-changes\.$/,
    );
    expect(await readFile(join(path, "run.json"), "utf8")).toBe(before);
    expect((await resumeRun(path, mended, { peak, acceptChanges: true })).kind).toBe("finished");
    const { manifest } = await readRun(path);
    expect(manifest.changes).toEqual([{ step: done, set: [], data: { "task.ts": "a1" } }]);
    expect(manifest.data).toEqual({ "task.ts": "b2" });
    expect(await remains("faulty")).toEqual(await remains("calm"));
  });
});

describe("a run that is interrupted", () => {
  it("keeps what it did and goes on as if it had not been, from whatever stage", async () => {
    let aborter = new AbortController();
    let left = 0;
    const observer: RunObserver = { ...silent, step: () => --left === 0 && aborter.abort() };
    const next = (steps: number) => {
      left = steps;
      aborter = new AbortController();
      return { observer, signal: aborter.signal, peak };
    };
    let outcome = await start("interrupted", TINY, next(4));
    let sessions = 1;
    for (; outcome.kind === "interrupted"; sessions++) {
      expect((await readRun(join(root, "interrupted"))).status).toBe("stopped");
      outcome = await resumeRun(join(root, "interrupted"), async () => ({ task: tinyTask() }), next(7));
    }
    expect(sessions).toBe(6);
    expect(await remains("interrupted")).toEqual(await remains("calm"));
  });

  it("before its first step, starts anew", async () => {
    const signal = AbortSignal.abort();
    const outcome = await start("at-once", { ...TINY, rl: { ...TINY.rl, steps: 1 } }, { signal });
    expect(outcome.kind).toBe("interrupted");
    expect(await readMetrics(join(root, "at-once"))).toEqual([]);
    expect((await resumeRun(join(root, "at-once"), async () => ({ task: tinyTask() }), { peak })).kind).toBe(
      "finished",
    );
  });

  it("in the middle of a rollout, redoes the step", async () => {
    const aborter = new AbortController();
    const task = tinyTask();
    const { draw } = task.train;
    let drawn = 0;
    // The rollout of the second step has begun when its prompts are drawn.
    const train = {
      draw: (random: Random) => {
        if (++drawn > 2 * TINY.rl.prompts + TINY.rl.prompts) aborter.abort();
        return draw(random);
      },
    };
    const outcome = await start("mid-rollout", TINY, { task: { ...task, train }, signal: aborter.signal });
    expect(outcome.kind).toBe("interrupted");
    const path = join(root, "mid-rollout");
    expect((await resumeRun(path, async () => ({ task: tinyTask() }), { peak })).kind).toBe("finished");
    expect(await remains("mid-rollout")).toEqual(await remains("calm"));
  });
});

describe("a run that is interrupted right after an evaluation", () => {
  it("does not measure again", async () => {
    const aborter = new AbortController();
    const notes: string[] = [];
    let earlier: readonly StepMetrics[] = [];
    let tokens = 0;
    const observer: RunObserver = {
      ...silent,
      start: (facts) => {
        ({ earlier } = facts);
      },
      note: (text) => {
        notes.push(text);
        if (text.startsWith("cold start: ")) aborter.abort();
      },
      measuring: (written) => {
        tokens = written;
      },
    };
    expect((await start("measured", TINY, { observer, signal: aborter.signal })).kind).toBe("interrupted");
    expect(notes.map((note) => note.replace(/[\d.]+ %.*/, "…"))).toEqual([
      "Measuring the base on 4 held-out prompts…",
      "base: …",
      "Measuring the cold start on 4 held-out prompts…",
      "cold start: …",
    ]);
    expect(tokens).toBeGreaterThan(0);
    expect(earlier).toEqual([]);
    notes.length = 0;
    const path = join(root, "measured");
    await resumeRun(path, async () => ({ task: tinyTask() }), { peak, observer });
    expect(notes).toEqual(["Going on after step 17.", "Measuring what came of it on 4 held-out prompts…"]);
    expect(earlier.map(({ stage, step }) => `${stage} ${step}`).at(-1)).toBe("sft 5");
    expect(await remains("measured")).toEqual(await remains("calm"));
  });
});

describe("a run that is interrupted after it has moved the weights", () => {
  it("finishes the step first, its validation included", async () => {
    const aborter = new AbortController();
    let done = 0;
    const observer: RunObserver = { ...silent, step: ({ stage }) => stage === "rl" && done++ };
    // Asked between the updates of a step and its validation, as long as none has gone back.
    const wentBack = (): boolean => {
      if (done === 2) aborter.abort();
      return false;
    };
    const task = { ...tinyTask(), wentBack };
    const outcome = await start("validating", TINY, { task, observer, signal: aborter.signal });
    expect(outcome.kind).toBe("interrupted");
    const path = join(root, "validating");
    expect((await readMetrics(path)).at(-1)).toMatchObject({
      stage: "rl",
      step: 3,
      validation: { count: 2 },
    });
    await resumeRun(path, async () => ({ task: tinyTask() }), { peak });
    const { result: _, ...rest } = await remains("validating");
    expect(await remains("calm")).toMatchObject(rest);
  });
});

describe("a run that goes on with something changed", () => {
  it("records what was changed and when, and refuses what its tensors depend on", async () => {
    const aborter = new AbortController();
    const observer: RunObserver = { ...silent, step: () => aborter.abort() };
    await start("changed", TINY, { observer, signal: aborter.signal });
    const path = join(root, "changed");
    const reopen = async () => ({ task: tinyTask() });
    await expect(resumeRun(path, reopen, { peak, set: ["model.layers=2"] })).rejects.toThrow(
      /--set model\.layers: must stay as it is once a run has begun/,
    );
    await expect(resumeRun(path, reopen, { peak, set: ["seed=2"] })).rejects.toThrow(ConfigError);
    const set = ["rl.steps=2", "pretrain.rates.muon=0.001"];
    expect((await resumeRun(path, reopen, { peak, set })).kind).toBe("finished");
    const { manifest, metrics } = await readRun(path);
    expect(manifest.changes).toEqual([{ step: 1, set }]);
    expect(manifest.config).toMatchObject({ rl: { steps: 2 }, pretrain: { rates: { muon: 0.001 } } });
    expect(metrics.filter(({ stage }) => stage === "rl")).toHaveLength(2);
  });
});

describe("a run that goes on with other steps or another reference", () => {
  /** Stops after so many steps of reinforcement learning. */
  async function stopAfter(name: string, steps: number, config: RunConfig): Promise<string> {
    const aborter = new AbortController();
    const observer: RunObserver = {
      ...silent,
      step: ({ stage, step }) => stage === "rl" && step === steps && aborter.abort(),
    };
    await start(name, config, { observer, signal: aborter.signal });
    return join(root, name);
  }
  const reopen = async () => ({ task: tinyTask() });

  it("refuses fewer steps than are done, before it changes anything", async () => {
    const path = await stopAfter("fewer", 4, TINY);
    const before = await readFile(join(path, "run.json"), "utf8");
    await expect(resumeRun(path, reopen, { peak, set: ["rl.steps=3"] })).rejects.toThrow(
      /^config\.rl\.steps: must be at least the 4 that are done; got 3\./,
    );
    expect(await readFile(join(path, "run.json"), "utf8")).toBe(before);
    await resumeRun(path, reopen, { peak, set: ["rl.steps=4"] });
    expect((await readRun(path)).result!.stages.at(-1)).toMatchObject({ stage: "rl", steps: 4 });
  });

  it("counts the age of a reference from when it was made", async () => {
    const { referenceEvery } = TINY.rl;
    const path = await stopAfter("late", 2, { ...TINY, rl: { ...TINY.rl, klBeta: 0, steps: 7 } });
    await resumeRun(path, reopen, { peak, set: ["rl.klBeta=0.01"] });
    const ages = (await readMetrics(path)).flatMap(({ rl }) => (rl === undefined ? [] : [rl.referenceAge]));
    expect(referenceEvery).toBe(3);
    expect(ages).toEqual([undefined, undefined, 0, 1, 2, 0, 1]);
  });

  it("says what it is run by now, where that is something else", async () => {
    const path = await stopAfter("elsewhere", 1, { ...TINY, rl: { ...TINY.rl, steps: 2 } });
    const file = join(path, "run.json");
    const manifest = JSON.parse(await readFile(file, "utf8"));
    const versions = { ...manifest.versions, node: "1.2.3" };
    await writeFile(file, JSON.stringify({ ...manifest, versions }));
    const notes: string[] = [];
    const observer: RunObserver = { ...silent, note: (text) => notes.push(text) };
    await resumeRun(path, reopen, { peak, observer });
    expect(notes[0]).toBe(
      `Last bits of numbers may differ from here on: node ${process.versions.node}, was 1.2.3.`,
    );
  });
});

const CONSTANT: Schedule = { warmup: 0, decay: 0, final: 1 };

describe("a run that cannot go well", () => {
  /** Few steps after pre-training, at one rate, which adds the more to the weights the longer it goes on. */
  const short: RunConfig = {
    ...TINY,
    pretrain: { ...TINY.pretrain, schedule: CONSTANT },
    sft: { ...TINY.sft, steps: 0 },
    rl: { ...TINY.rl, steps: 1 },
  };
  const withRate = (muon: number, config = short): RunConfig => ({
    ...config,
    pretrain: { ...config.pretrain, rates: { ...config.pretrain.rates, muon } },
  });
  /** Of matrices, with which products of two of them overflow after some steps, and not at a fraction of it. */
  const HIGH = 2e18;

  /** The error that ends a session. */
  async function failureOf(session: Promise<RunOutcome>): Promise<NumericError> {
    const error = await session.then(() => undefined).catch((error: unknown) => error);
    expect(error).toBeInstanceOf(NumericError);
    return error as NumericError;
  }

  /** Takes the steps up to `step` with a rate that does no harm, and then those that `set` says. */
  async function harmlessUntil(step: number, name: string, set: readonly string[], config = short) {
    const aborter = new AbortController();
    let done = 0;
    const observer: RunObserver = { ...silent, step: () => ++done === step && aborter.abort() };
    await start(name, config, { observer, signal: aborter.signal });
    return () => resumeRun(join(root, name), async () => ({ task: tinyTask() }), { peak, set });
  }

  /** Types what the error says, and again where that fails, until the run finishes. @param most  times */
  async function follow(error: NumericError, most = 4): Promise<void> {
    expect(most).toBeGreaterThan(0);
    const [, path] = /pondera train --resume (\S+)/.exec(error.message)!;
    const set = Array.from(error.message.matchAll(/ --set (\S+)/g), ([, assignment]) => assignment!);
    const session = resumeRun(resolve(path!), async () => ({ task: tinyTask() }), { peak, set });
    return session.then(
      (outcome) => {
        expect(outcome.kind).toBe("finished");
      },
      (next: NumericError) => follow(next, most - 1),
    );
  }

  it("with numbers that are not finite says what to type, and that works: from the start", async () => {
    const path = join(root, "diverged");
    const error = await failureOf(start("diverged", withRate(HIGH, { ...short, checkpointEvery: 100 })));
    expect(error.message).toMatch(
      /^update \d+: the loss must be finite; got NaN\. For example, pondera train --resume \S*diverged --set pretrain\.rates\.muon=1000000000000000000 --set pretrain\.rates\.adamW=0\.004 begins again with lower rates\.$/,
    );
    // The steps that led there stay written down until the run goes on, and so does why it stopped.
    const failed = await readRun(path, { samples: true });
    expect(failed.metrics.length).toBeGreaterThan(1);
    expect(failed.failure).toMatchObject({ step: failed.metrics.length, from: 0 });
    expect(await readdir(path)).not.toContain("checkpoints");
    const [finding] = diagnose(failed);
    expect(finding).toMatchObject({ rule: "not-finite", level: "problem" });
    expect(finding!.evidence).toMatch(/^after step \d+: update \d+: the loss must be finite; got NaN$/);
    expect(finding!.remedy).toContain(`pondera train --resume ${shellPath(path)} --set pretrain.rates.muon=`);

    await follow(error);
    const { failure, manifest, status } = await readRun(path);
    expect(failure).toBeUndefined();
    expect(status).toBe("finished");
    expect(manifest.changes![0]).toMatchObject({ step: 0 });
  });

  it("with numbers that are not finite says what to type, and that works: from a checkpoint", async () => {
    const goOn = await harmlessUntil(4, "diverged-later", [`pretrain.rates.muon=${HIGH}`], {
      ...short,
      checkpointEvery: 100,
    });
    const error = await failureOf(goOn());
    expect(error.message).toContain(" goes on after step 4 with lower rates;");
    const path = join(root, "diverged-later");
    const { tensors } = await readCheckpoint(path, 4);
    expect(Object.values(tensors).every(({ data }) => data.every(Number.isFinite))).toBe(true);
    await follow(error);
    expect((await readRun(path)).manifest.changes!.slice(1).every(({ step }) => step === 4)).toBe(true);
  });

  it("goes on before the checkpoint that holds the weights it failed with", async () => {
    const error = await failureOf(start("poisoned", withRate(HIGH, { ...short, checkpointEvery: 1 })));
    const path = join(root, "poisoned");
    const { failure, metrics } = await readRun(path);
    const done = metrics.length;
    expect(await readdir(join(path, "checkpoints"))).toContain(`step-${done}`);
    expect(failure).toMatchObject({ step: done, from: done - 1 });
    expect(error.message).toContain(` goes on after step ${done - 1} with lower rates`);
    // Without any change it takes the same step, and fails again.
    const again = await failureOf(resumeRun(path, async () => ({ task: tinyTask() }), { peak }));
    expect(again.message).toBe(error.message);
    expect((await readMetrics(path)).length).toBe(done);
  });

  it("that an evaluation finds out goes on before the step that did it", async () => {
    const goOn = await harmlessUntil(11, "seen-late", ["pretrain.rates.muon=1e25"]);
    const error = await failureOf(goOn());
    expect(error.message).toMatch(
      /^generate: logits must be finite\. .* --set pretrain\.rates\.muon=5e\+24 .* after step 11 /,
    );
    const path = join(root, "seen-late");
    expect((await readRun(path)).failure).toMatchObject({ step: 12, from: 11 });
    const set = ["pretrain.rates.muon=0.01"];
    expect((await resumeRun(path, async () => ({ task: tinyTask() }), { peak, set })).kind).toBe("finished");
  });

  it("where an update is refused goes on from right before it", async () => {
    const config = { ...short, sft: { ...TINY.sft, schedule: CONSTANT }, checkpointEvery: 100 };
    const goOn = await harmlessUntil(14, "refused", ["sft.rates.muon=1e39"], config);
    const error = await failureOf(goOn());
    expect(error.message).toMatch(/^update 3: new weights must be finite; got .* goes on after step 14 with/);
    const path = join(root, "refused");
    const set = ["sft.rates.muon=0.01"];
    expect((await resumeRun(path, async () => ({ task: tinyTask() }), { peak, set })).kind).toBe("finished");
  });

  it("before any step has moved the weights blames no rate", async () => {
    const none = { ...short, pretrain: { ...TINY.pretrain, steps: 0 } };
    const rewards = { digits: { weight: 1, reward: ({ text }: { text: string }) => 1e41 * text.length } };
    const error = await failureOf(start("broken-reward", none, { task: { ...tinyTask(), rewards } }));
    expect(error.message).toMatch(
      /No step has moved the weights, so no rate helps: check the rewards and the/,
    );
    expect(error.message).not.toContain("--set");
    const path = join(root, "broken-reward");
    expect((await resumeRun(path, async () => ({ task: tinyTask() }), { peak })).kind).toBe("finished");
  });

  const froms = new Set<number>();
  it.each([0, 1, 2])("undoes the updates a failed step has taken: group %i", async (bad) => {
    // In the second step one group's rewards overflow, which fails the first or the second of its two updates.
    let done = 0;
    const observer: RunObserver = { ...silent, step: ({ stage }) => stage === "rl" && done++ };
    const task = tinyTask();
    const { reward } = task.rewards["digits"]!;
    const met = new Map<string, number>();
    const poisoned: typeof reward = (completion, example) => {
      const calls = met.get(example.id) ?? 0;
      if (done === 1) met.set(example.id, calls + 1);
      return done === 1 && calls === 0 && [...met.keys()].indexOf(example.id) === bad
        ? 1e41
        : reward(completion, example);
    };
    const rewards = { digits: { weight: 0.1, reward: poisoned } };
    const name = `half-way-${bad}`;
    const config = { ...TINY, checkpointEvery: 100 };
    await expect(start(name, config, { task: { ...task, rewards }, observer })).rejects.toThrow(NumericError);
    const path = join(root, name);
    expect((await readMetrics(path)).at(-1)).toMatchObject({ stage: "rl", step: 1 });
    froms.add((await readRun(path)).failure!.from);
    expect((await resumeRun(path, async () => ({ task: tinyTask() }), { peak })).kind).toBe("finished");
    expect(await remains(name)).toEqual(await remains("calm"));
    // Where the first update fails, the step before it has to be taken anew; where the second does, the step alone.
    if (bad === 2) expect([...froms].sort()).toEqual([17, 18]);
  });

  it("says what the task lacks for a stage before anything is written", async () => {
    const { demonstrate: _, ...task } = tinyTask();
    await expect(start("lacking", TINY, { task })).rejects.toThrow(
      /task countdown: needs demonstrate\(random\) for the stage sft.*--set sft\.steps=0/,
    );
    await expect(start("lacking", TINY, { task })).rejects.toThrow(TaskError);
    expect(existsSync(join(root, "lacking"))).toBe(false);
  });

  it("in a folder that is a file says so", async () => {
    await writeFile(join(root, "file"), "");
    await expect(start("in-file", TINY, { root: join(root, "file") })).rejects.toThrow(FileError);
  });

  it.skipIf(process.platform === "win32")("in a folder that may not be written to says so", async () => {
    const locked = join(root, "locked");
    await mkdir(locked);
    await unprivileged([root, locked], async () => {
      await expect(start("x", TINY, { root: locked })).rejects.toThrow(
        /Give this user the right to the folder/,
      );
    });
    expect(await readdir(locked)).toEqual([]);
  });
});

/**
 * Lets a run live in a process of its own until it has done `steps` steps and then `delayMs` more, and kills it.
 * @returns whether it finished before
 */
async function live(name: string, threads: number, steps: number, delayMs: number): Promise<boolean> {
  const life = spawn(process.execPath, ["--import", "jiti/register", child, root, name, `${threads}`], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const kill = () => setTimeout(() => life.kill("SIGKILL"), delayMs);
  let left = steps;
  if (left === 0) kill();
  createInterface({ input: life.stdout }).on("line", () => --left === 0 && kill());
  const [code, signal] = (await once(life, "exit")) as [number | null, string | null];
  if (signal === null) expect(code).toBe(0);
  return signal === null;
}

describe("a run on a full disk", () => {
  it.skipIf(process.platform === "win32")(
    "says so, and goes on as if it had not been once there is room",
    async () => {
      // A limit on file sizes (in blocks of 512 bytes) stands for a full disk: past it, writing fails with EFBIG.
      // Checkpoints fit until the last stage, whose optimizer and reference hold more.
      const limited = `trap '' XFSZ; ulimit -f 220; exec "$@"`;
      const command = [process.execPath, "--import", "jiti/register", child, root, "full"];
      const full = spawnSync("sh", ["-c", limited, "sh", ...command], { encoding: "utf8" });
      expect(full.status).toBe(1);
      expect(full.stderr).toMatch(/FileError: .*: must be writable; got EFBIG/);
      const { status, metrics } = await readRun(join(root, "full"));
      expect(status).toBe("stopped");
      expect(metrics.at(-1)!.stage).toBe("rl");
      await resumeRun(join(root, "full"), async () => ({ task: tinyTask() }), { peak });
      expect(await remains("full")).toEqual(await remains("calm"));
    },
  );
});

describe("a run whose process is killed", () => {
  // From the first stage into the last.
  it.each([
    [1, "calm", { least: 20, most: 4 }],
    [2, "two-threads-1", { least: 10, most: 10 }],
  ])(
    "again and again at random moments ends as the run that never was, threads: %i",
    { timeout: 600_000 },
    async (threads, calm, { least, most }) => {
      const name = `killed-${threads}`;
      const folder = join(root, name);
      const random = new Random(12, threads);
      const stages = new Set<string>();
      let kills = 0;
      for (;;) {
        // Every fifth dies while it starts; the others anywhere in or between steps, evaluations and checkpoints.
        const early = kills % 5 === 4;
        const steps = kills > least ? Number.POSITIVE_INFINITY : early ? 0 : 1 + random.integer(most);
        if (await live(name, threads, steps, random.uniform() * (early ? 700 : 12))) break;
        kills++;
        stages.add((await readMetrics(folder)).at(-1)!.stage);
      }
      expect(kills).toBeGreaterThanOrEqual(least);
      expect([...stages]).toEqual(expect.arrayContaining(["pretrain", "rl"]));
      expect(await remains(name)).toEqual(await remains(calm));
      expect(existsSync(join(folder, "run.lock"))).toBe(false);
    },
  );
});
