/** A whole run of a model with experts and a head for the token after next. */

import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readMetrics } from "../../../src/learn/runs/read-run.ts";
import { parseRunConfig } from "../../../src/learn/train/config.ts";
import { resumeRun, startRun } from "../../../src/learn/train/run.ts";
import type { RunObserver } from "../../../src/learn/train/training.ts";
import { loadModelFolder } from "../../../src/model/checkpoint/folder.ts";
import { TINY, tinyTask } from "./tiny.ts";

const MIXTURE = parseRunConfig({
  ...TINY,
  model: {
    ...TINY.model,
    layers: 2,
    mixture: {
      denseLayers: 1,
      experts: 4,
      expertsPerToken: 2,
      sharedExperts: 1,
      expertHidden: 16,
      groups: 2,
      groupsPerToken: 1,
      expertScale: 1,
      kvRank: 16,
      queryRank: 16,
      ropeWidth: 8,
      valueWidth: 16,
      draftLayers: 1,
      auxiliary: { correctionRate: 0.01, balance: 1e-3, draft: 0.3 },
    },
  },
  pretrain: { ...TINY.pretrain, steps: 6 },
  sft: { ...TINY.sft, steps: 3 },
  rl: { ...TINY.rl, steps: 5 },
});
const peak = 1e11;

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-mixture-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

const start = (name: string, options: object = {}) =>
  startRun({ root, name, task: tinyTask(), preset: "tiny", config: MIXTURE, peak, ...options });

/** What a run leaves that does not depend on a clock. */
async function remains(name: string) {
  const steps = (await readMetrics(join(root, name))).map(({ timing: _, ...rest }) => rest);
  return { steps, weights: await readFile(join(root, name, "model", "model.safetensors")) };
}

describe("a run of a model with experts", () => {
  it("goes through every stage, records how the experts were used, and leaves a deepseek_v3 that loads", async () => {
    expect((await start("calm")).kind).toBe("finished");
    const { steps } = await remains("calm");
    expect(steps.map(({ stage }) => stage)).toEqual([
      ...new Array(6).fill("pretrain"),
      ...new Array(3).fill("sft"),
      ...new Array(5).fill("rl"),
    ]);
    for (const { stage, experts, loss } of steps) {
      if (stage === "rl" && loss === 0 && experts === undefined) continue; // every group was equal: no update
      // The layer with experts, and the module's, which learns from the loss of the next token alone.
      expect(experts!.violations).toHaveLength(2);
      expect(experts!.violations[0]).toBeGreaterThanOrEqual(0);
    }
    const folder = join(root, "calm", "model");
    expect(JSON.parse(await readFile(join(folder, "config.json"), "utf8"))).toMatchObject({
      model_type: "deepseek_v3",
      n_routed_experts: 4,
      num_nextn_predict_layers: 1,
    });
    const { tensors } = await loadModelFolder(folder);
    const correction = tensors["model.layers.1.mlp.gate.e_score_correction_bias"]!;
    expect(correction.data.some((b) => b !== 0)).toBe(true);
  }, 120_000);

  it("goes on after a pause as if there had been none", async () => {
    const stopAfter = (count: number) => {
      const aborter = new AbortController();
      let seen = 0;
      const observer: RunObserver = {
        start() {},
        step() {
          if (++seen === count) aborter.abort();
        },
        sample() {},
        note() {},
      };
      return { observer, signal: aborter.signal };
    };
    // In the middle of pre-training, and of reinforcement learning.
    let outcome = await start("paused", stopAfter(4));
    expect(outcome.kind).toBe("interrupted");
    outcome = await resumeRun(join(root, "paused"), async () => ({ task: tinyTask() }), {
      peak,
      ...stopAfter(7),
    });
    expect(outcome.kind).toBe("interrupted");
    outcome = await resumeRun(join(root, "paused"), async () => ({ task: tinyTask() }), { peak });
    expect(outcome.kind).toBe("finished");
    expect(await remains("paused")).toEqual(await remains("calm"));
  }, 120_000);
});
