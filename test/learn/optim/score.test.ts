import { afterAll, beforeAll, expect, it } from "vitest";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import { layOut, type PackedBatch } from "../../../src/learn/optim/rows.ts";
import { Scorer } from "../../../src/learn/optim/score.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import { initializeModel } from "../../../src/model/arch/models.ts";
import { createEngine } from "../../compute/harness.ts";
import { DRAFTING, opinionatedWeights, TINY } from "../../model/models.ts";
import { batchOf, randomSequences } from "../train/batches.ts";

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

it("a score is minus the token's cross-entropy, in every shape of batch and after every update", async () => {
  const trainer = Trainer.create(runtime, TINY, opinionatedWeights(TINY, 2));
  const scorer = new Scorer(runtime, TINY);
  const sequences = randomSequences(1, [9, 4, 7], TINY.vocabSize);
  for (const batch of [batchOf(sequences, [[0], [1], [2]], 9), batchOf(sequences, [[0, 2, 1]], 24)]) {
    const scores = await scorer.score(trainer.weights(), batch, 1);
    const { loss } = await trainer.accumulate(CROSS_ENTROPY, batch);
    const expected = batch.weights.data.reduce((total, w, i) => total - w * scores[i]!, 0);
    expect(expected).toBeCloseTo(loss, 5);
    // The weights move between two buffers; a score is of those given.
    await trainer.apply({ adamW: 0.01, muon: 0.02 });
  }
  await scorer.dispose();
  await trainer.dispose();
});

it("a score at another temperature is of the logits divided by it", async () => {
  const weights = opinionatedWeights(TINY, 2);
  const scorer = new Scorer(runtime, TINY);
  const batch = batchOf(randomSequences(1, [6], TINY.vocabSize), [[0]], 6);
  const halved = { ...weights, "lm_head.weight": structuredClone(weights["lm_head.weight"]!) };
  for (const i of halved["lm_head.weight"].data.keys()) halved["lm_head.weight"].data[i]! /= 2;
  const [warm, cool] = [Trainer.create(runtime, TINY, halved), Trainer.create(runtime, TINY, weights)];
  const expected = await scorer.score(warm.weights(), batch, 1);
  for (const [i, score] of (await scorer.score(cool.weights(), batch, 2)).entries()) {
    expect(score).toBeCloseTo(expected[i]!, 4);
  }
  await scorer.dispose();
});

it.each([
  ["llama", TINY],
  ["deepseek_v3", DRAFTING],
])("scores are the same where a row holds a prefix once: %s", async (_, config) => {
  const trainer = Trainer.create(runtime, config, initializeModel(config, 3));
  const scorer = new Scorer(runtime, config);
  const common = 5;
  const [first, ...others] = randomSequences(4, [9, 11, 8], config.vocabSize);
  const family = [first!, ...others].map(({ ids }) => ({
    ids: [...Array.from(first!.ids).slice(0, common), ...Array.from(ids).slice(common)],
    weights: Array.from(ids, (_, t) => (t > common ? 1 : 0)),
    prefix: { key: 0, length: common },
  }));
  const rows = [[0, 1, 2]];
  const shape = { batch: 1, rowLength: 24, padId: 0 };
  const apart = batchOf(family, [[0], [1], [2]], 12);
  const together = layOut(family, rows, shape, [], true);
  expect(together.tokens).toBe(common + 4 + 6 + 3);
  const [each, once] = [
    await scorer.score(trainer.weights(), apart, 1),
    await scorer.score(trainer.weights(), together, 1),
  ];
  const predicted = (scores: Float32Array, { weights }: PackedBatch) =>
    [...scores].filter((_, at) => weights.data[at]! > 0);
  const expected = predicted(each, apart);
  expect(expected).toHaveLength(3 + 5 + 2);
  for (const [i, score] of predicted(once, together).entries()) expect(score).toBeCloseTo(expected[i]!, 5);
  await scorer.dispose();
  await trainer.dispose();
});
