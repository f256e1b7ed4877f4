/** What is learnt beside the loss where a model has experts and a head for the token after next. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, i32 } from "../../../src/compute/tensor/host.ts";
import { CROSS_ENTROPY, draftLoss } from "../../../src/learn/losses/cross-entropy.ts";
import { policyLoss } from "../../../src/learn/losses/grpo.ts";
import { fromLogits } from "../../../src/learn/losses/predictions.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import { parseRunConfig } from "../../../src/learn/train/config.ts";
import { expertMetrics } from "../../../src/learn/train/expert-metrics.ts";
import { PRESETS } from "../../../src/learn/train/presets.ts";
import { type DeepseekV3Config, deepseekV3Parameters } from "../../../src/model/arch/deepseek-v3.ts";
import { initializeModel } from "../../../src/model/arch/models.ts";
import { createEngine, specsOf } from "../../compute/harness.ts";
import { DRAFTING } from "../../model/models.ts";
import { batchOf, POLICY_SCALARS, policySequences, randomSequences } from "./batches.ts";

const SMALL: DeepseekV3Config = {
  ...DRAFTING,
  hiddenSize: 16,
  intermediateSize: 12,
  expertSize: 8,
  kvRank: 8,
  nopeHeadDim: 4,
  valueHeadDim: 4,
  routedExperts: 8,
  expertGroups: 2,
  maxPositions: 32,
};
const RATES = { adamW: 0.003, muon: 0.01 };
const LENGTHS = [9, 5, 12, 7, 11];
const TOKENS = LENGTHS.reduce((a, b) => a + b, 0);
const CORRECTIONS = deepseekV3Parameters(SMALL).flatMap(({ name, kind }) =>
  kind === "correction" ? [name] : [],
);
/** Two rows, the second with padding at its end. */
const batch = batchOf(
  randomSequences(3, LENGTHS, SMALL.vocabSize),
  [
    [0, 1, 3],
    [2, 4],
  ],
  24,
);

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

const fresh = (auxiliary = {}, config = SMALL): Trainer =>
  Trainer.create(engine, config, initializeModel(config, 1), {}, auxiliary);

describe("a step", () => {
  it("sends every token, and no padding, to as many experts as it should", async () => {
    const trainer = fresh();
    await trainer.accumulate(CROSS_ENTROPY, batch);
    await trainer.accumulate(CROSS_ENTROPY, batch);
    const { loads } = await trainer.apply(RATES);
    expect(Object.keys(loads)).toEqual(CORRECTIONS);
    expect(CORRECTIONS).toHaveLength(2);
    for (const load of Object.values(loads)) expect(load.reduce((a, b) => a + b, 0)).toBe(2 * 2 * TOKENS);
    await trainer.dispose();
  });

  it("moves a correction down where an expert got too many tokens and up where too few, by γ", async () => {
    const trainer = fresh({ correctionRate: 0.25 });
    await trainer.accumulate(CROSS_ENTROPY, batch);
    const { loads } = await trainer.apply(RATES);
    const weights = trainer.weights();
    for (const name of CORRECTIONS) {
      const load = loads[name]!;
      const mean = (2 * TOKENS) / load.length;
      expect(new Set([...load].map((n) => Math.sign(mean - n))).size).toBeGreaterThan(1);
      expect([...weights[name]!.data]).toEqual([...load].map((n) => 0.25 * Math.sign(mean - n)));
    }
    await trainer.dispose();
  });

  it("leaves corrections without a gradient and without optimizer state, and keeps them in a snapshot", async () => {
    const trainer = fresh({ correctionRate: 0.25 });
    await trainer.accumulate(CROSS_ENTROPY, batch);
    expect(Object.keys(trainer.gradients())).not.toContain(CORRECTIONS[0]);
    await trainer.apply(RATES);
    const snapshot = trainer.snapshot();
    expect(Object.keys(snapshot)).not.toContain(`m/${CORRECTIONS[0]}`);
    const other = fresh();
    other.restore(snapshot, 1);
    expect(other.snapshot()).toEqual(snapshot);
    await trainer.dispose();
    await other.dispose();
  });

  it("weighs the balance loss by α and the token after next by λ", async () => {
    const gradientOf = async (auxiliary: object) => {
      const trainer = fresh({ balance: 0, draft: 0, ...auxiliary });
      const { loss, sums } = await trainer.accumulate(CROSS_ENTROPY, batch);
      const gradients = trainer.gradients();
      await trainer.dispose();
      return { loss, sums, gradients };
    };
    const [plain, balance, draft] = [
      await gradientOf({}),
      await gradientOf({ balance: 0.5 }),
      await gradientOf({ draft: 0.5 }),
    ];
    expect([balance.loss, draft.loss]).toEqual([plain.loss, plain.loss]);
    // An even gate has a balance of 1 a layer, and random tokens cost ln V.
    expect(plain.sums["balance"]).toBeGreaterThan(1);
    expect(plain.sums["balance"]).toBeLessThan(4);
    expect(Math.abs(plain.sums["draft"]! - 0.8 * Math.log(SMALL.vocabSize))).toBeLessThan(0.5);
    const gate = "model.layers.1.mlp.gate.weight";
    const module = `model.layers.${SMALL.layers}.eh_proj.weight`;
    expect(plain.gradients[module]!.data.every((g) => g === 0)).toBe(true);
    expect(draft.gradients[module]!.data.some((g) => g !== 0)).toBe(true);
    expect(balance.gradients[gate]).not.toEqual(plain.gradients[gate]);
  });

  it("trains the module by the loss of the next token alone, not by a policy's", async () => {
    const trainer = fresh();
    const { sequences, extraNames } = policySequences(1, LENGTHS, SMALL.vocabSize, "grpo");
    const packed = batchOf(
      sequences,
      [
        [0, 1, 3],
        [2, 4],
      ],
      24,
      extraNames,
    );
    const loss = policyLoss({ loss: "grpo", kl: true, dualClip: false });
    const { sums } = await trainer.accumulate(loss, packed, POLICY_SCALARS);
    expect(sums).not.toHaveProperty("draft");
    expect(sums).toHaveProperty("balance");
    const { loads } = await trainer.apply(RATES);
    expect([...loads[CORRECTIONS[1]!]!]).toEqual(new Array(8).fill(0));
    await trainer.dispose();
  });

  it("learns: the loss falls, that of the token after next too, and loads even out", async () => {
    const trainer = fresh({ correctionRate: 0.02 });
    const course: { loss: number; draft: number; violation: number }[] = [];
    for (let step = 0; step < 60; step++) {
      const { loss, sums } = await trainer.accumulate(CROSS_ENTROPY, batch);
      const { loads } = await trainer.apply(RATES);
      course.push({ loss, draft: sums["draft"]!, violation: expertMetrics([loads])!.violation });
    }
    const [first, last] = [course[0]!, course.at(-1)!];
    expect(last.loss).toBeLessThan(0.5 * first.loss);
    expect(last.draft).toBeLessThan(0.7 * first.draft);
    const mean = (part: typeof course) =>
      part.reduce((sum, { violation }) => sum + violation, 0) / part.length;
    expect(mean(course.slice(-10))).toBeLessThan(mean(course.slice(0, 3)));
    await trainer.dispose();
  });
});

describe("the loss of the token after next", () => {
  it("asks position t for the target of t + 1, with its weight, inside one sequence", () => {
    const arrays = {
      // Log-probabilities are those of logits: each row gives 3/4 to one of two tokens.
      logits: f32(
        [5, 2],
        [1, 0, 0, 1, 1, 0, 0, 1, 1, 0].map((x) => x * Math.log(3)),
      ),
      segments: i32([1, 5], [1, 1, 1, 2, 2]),
      targets: i32([1, 5], [1, 0, 1, 1, 0]),
      weights: f32([1, 5], [16, 8, 4, 2, 1]),
    };
    const graph = trace(specsOf(arrays), (x: Record<string, Value>) => ({
      loss: draftLoss(fromLogits(x["logits"]!), {
        segments: x["segments"]!,
        targets: x["targets"]!,
        weights: x["weights"]!,
      }),
    }));
    // Position 0: target 0, weight 8, likely. 1: target 1, weight 4, likely. 2 is the end. 3: target 0, weight 1, unlikely.
    const expected = 12 * Math.log(4 / 3) + Math.log(4);
    expect(interpret(graph, arrays)["loss"]!.data[0]).toBeCloseTo(expected, 5);
  });
});

describe("the record of a step", () => {
  it("is of all updates together: the largest load over the mean, and who had none", () => {
    const updates = [
      { a: Float64Array.of(4, 0, 0, 0), b: Float64Array.of(1, 1, 1, 1) },
      { a: Float64Array.of(0, 4, 0, 0), b: Float64Array.of(1, 1, 1, 1) },
    ];
    expect(expertMetrics(updates)).toEqual({ violation: 0.5, violations: [1, 0], idle: 2 });
    expect(expertMetrics([])).toBeUndefined();
    expect(expertMetrics([{}])).toBeUndefined();
  });
});

describe("a run's configuration", () => {
  const mixture = {
    denseLayers: 1,
    experts: 8,
    expertsPerToken: 2,
    sharedExperts: 1,
    expertHidden: 32,
    groups: 2,
    groupsPerToken: 1,
    expertScale: 2.5,
    kvRank: 32,
    ropeWidth: 16,
    valueWidth: 16,
    draftLayers: 1,
    auxiliary: { correctionRate: 0.001, balance: 1e-4, draft: 0.3 },
  };
  const { config } = PRESETS.smoke;
  const withMixture = (change: object) =>
    parseRunConfig({ ...config, model: { ...config.model, mixture: { ...mixture, ...change } } });

  it("may ask for experts, and is held to what they and the decoding kernel want", () => {
    expect(withMixture({}).model?.mixture).toEqual(mixture);
    expect(() => withMixture({ groups: 3 })).toThrow("expertGroups: must divide routedExperts (8); got 3");
    expect(() => withMixture({ expertsPerToken: 5 })).toThrow(
      "expertsPerToken: must be at most the 4 experts",
    );
    expect(() => withMixture({ kvRank: 30 })).toThrow("must add up to a multiple of 8");
    expect(() => withMixture({ ropeWidth: 3 })).toThrow("ropeHeadDim: must be even");
    expect(() => withMixture({ draftLayers: 2 })).toThrow("draftLayers: must be 0 or 1");
  });
});
