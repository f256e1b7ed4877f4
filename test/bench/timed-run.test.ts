/** Runs of a given time: what becomes of one that is new, was stopped, or is finished. Times themselves are not tested. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { textStepSeconds, trainTimed, UNSET, workSeconds } from "../../bench/timed-run.ts";
import { invariant } from "../../src/base/errors.ts";
import { readRun } from "../../src/learn/runs/read-run.ts";
import { parseRunConfig } from "../../src/learn/train/config.ts";
import { startRun } from "../../src/learn/train/run.ts";
import { TINY, tinyTask } from "../learn/train/tiny.ts";

const config = parseRunConfig({
  ...TINY,
  pretrain: { ...TINY.pretrain, steps: 2 },
  sft: { ...TINY.sft, steps: 0 },
  rl: { ...TINY.rl, steps: 3 },
});
const neverAsked = () => Promise.reject(new Error("asked for a configuration"));

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-timed-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

const timed = (name: string) => ({ root, name, task: tinyTask(), preset: "tiny" });

async function stagesOf(name: string) {
  const { result } = await readRun(join(root, name));
  invariant(result !== undefined, "the run is finished");
  return result.stages.map(({ stage, steps }) => ({ stage, steps }));
}

/** A run that stopped after some steps of reinforcement learning, whose number was not set. */
async function stoppedRun(name: string, steps: number): Promise<void> {
  const aborter = new AbortController();
  await startRun({
    ...timed(name),
    config: { ...config, rl: { ...config.rl, steps: UNSET } },
    signal: aborter.signal,
    observer: {
      start() {},
      step: ({ stage, step }) => stage === "rl" && step === steps && aborter.abort(),
      sample() {},
      note() {},
    },
  });
}

describe("a timed run", () => {
  it("takes the configured steps where no time is given, and is left as it is once finished", async () => {
    const path = await trainTimed({ ...timed("plain"), config: async () => config });
    expect(path).toBe(join(root, "plain"));
    const stages = [
      { stage: "pretrain", steps: 2 },
      { stage: "rl", steps: 3 },
    ];
    expect(await stagesOf("plain")).toEqual(stages);
    expect(await trainTimed({ ...timed("plain"), config: neverAsked, rlSeconds: 100 })).toBe(path);
    expect(await stagesOf("plain")).toEqual(stages);
  });

  it("sets its steps after two fifths of its time and says so", async () => {
    const said: number[] = [];
    // The first step takes longer than this, so that the second is the last.
    const options = { rlSeconds: 1e-6, onSteps: (steps: number) => said.push(steps) };
    await trainTimed({ ...timed("short"), ...options, config: async () => config });
    expect(said).toEqual([2]);
    expect((await stagesOf("short")).at(-1)).toEqual({ stage: "rl", steps: 2 });
  });

  it("is still given its steps when it was stopped before they were set", async () => {
    await stoppedRun("stopped", 2);
    await trainTimed({ ...timed("stopped"), config: neverAsked, rlSeconds: 1e-6 });
    // One more shows the pace, and one is the least that is left to do.
    expect((await stagesOf("stopped")).at(-1)).toEqual({ stage: "rl", steps: 4 });
  });
});

describe("the seconds of a step", () => {
  it("leave out what is not training", () => {
    const phases = { rollout: 2, reward: 0.5, pack: 0.25, train: 1, validate: 8, checkpoint: 4 };
    const timing = { elapsed: 100, phases, trainTokensPerSecond: 1, rssBytes: 1 };
    expect(workSeconds({ timing })).toBe(3.75);
  });

  it("on text are measured on the asked stage, without the run's others", async () => {
    const seconds = await textStepSeconds({ ...tinyTask(), explore: neverDrawn }, config, "sft");
    expect(seconds).toBeGreaterThan(0);
  });
});

function neverDrawn(): never {
  throw new Error("drew a text of another stage");
}
