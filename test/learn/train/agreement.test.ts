/** Sampler and trainer are one engine: what was sampled has the same probability when it is trained on. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { lossWeights } from "../../../src/learn/losses/advantage.ts";
import { policyLoss } from "../../../src/learn/losses/grpo.ts";
import { packAll } from "../../../src/learn/optim/pack.ts";
import type { PackedBatch, TrainingSequence } from "../../../src/learn/optim/rows.ts";
import { Scorer } from "../../../src/learn/optim/score.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import type { LlamaConfig } from "../../../src/model/arch/llama.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { createEngine } from "../../compute/harness.ts";
import { opinionatedWeights, TINY } from "../../model/models.ts";

const CONFIG: LlamaConfig = { ...TINY, vocabSize: 24, hiddenSize: 32, heads: 4, kvHeads: 2 };
const [PROMPTS, SAMPLES, NEW_TOKENS, STOP] = [72, 8, 30, 0];
const SHAPE = { batch: 32, rowLength: 64, padId: 0 };

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

/** A rollout as packed batches; `sampledLogp` is what the sampler said. */
async function rollout(
  trainer: Trainer,
  options: { readonly temperature: number; readonly topP?: number },
): Promise<PackedBatch[]> {
  const random = new Random(3);
  const engine = new Engine(runtime, CONFIG, { slots: 64 });
  engine.adopt(trainer.weights());
  const requests = Array.from({ length: PROMPTS }, (_, i) => ({
    prompt: Array.from({ length: 1 + random.integer(24) }, () => 1 + random.integer(CONFIG.vocabSize - 1)),
    samples: SAMPLES,
    seed: 1,
    path: [i],
  }));
  const completions = await engine.generate(requests, {
    ...options,
    maxNewTokens: NEW_TOKENS,
    stopIds: [STOP],
  });
  await engine.dispose();
  const lengths = completions.flat().map(({ ids }) => ids.length);
  const weights = lossWeights("grpo", lengths, NEW_TOKENS);
  const sequences = requests.flatMap(({ prompt }, i) =>
    completions[i]!.map(({ ids, logp }, sample): TrainingSequence => {
      const over = (values: ArrayLike<number> | number): number[] => [
        ...prompt.map(() => 0),
        ...ids.map((_, t) => (typeof values === "number" ? values : values[t]!)),
      ];
      return {
        ids: [...prompt, ...ids],
        weights: over(weights[i * SAMPLES + sample]!),
        extra: { counts: over(1), advantage: over(sample % 2 === 0 ? 1 : -1), sampledLogp: over(logp) },
      };
    }),
  );
  return packAll(sequences, SHAPE, ["counts", "advantage", "sampledLogp"]);
}

describe.each([{ temperature: 1 }, { temperature: 0.7, topP: 0.9 }])("sampled with %o", (options) => {
  let trainer: Trainer;
  let batches: PackedBatch[];
  beforeAll(async () => {
    trainer = Trainer.create(runtime, CONFIG, opinionatedWeights(CONFIG, 11));
    batches = await rollout(trainer, options);
  });
  afterAll(() => trainer.dispose());

  it("every token has the log-probability that training finds, within 1e-4", async () => {
    const scorer = new Scorer(runtime, CONFIG);
    let compared = 0;
    let worst = 0;
    let least = 0;
    for (const batch of batches) {
      const scored = await scorer.score(trainer.weights(), batch, options.temperature);
      const { counts, sampledLogp } = batch.extra;
      for (const [i, count] of counts!.data.entries()) {
        if (count === 0) continue;
        compared++;
        worst = Math.max(worst, Math.abs(scored[i]! - sampledLogp!.data[i]!));
        least = Math.min(least, sampledLogp!.data[i]!);
      }
    }
    expect(worst).toBeLessThanOrEqual(1e-4);
    expect(compared).toBeGreaterThan(10_000);
    // Unlikely tokens are among them, not only near-certain ones.
    expect(least).toBeLessThan(-4);
    await scorer.dispose();
  });

  it("the first update's ratios are 1 within 1e-4, nothing is clipped, and the loss is minus the mean advantage", async () => {
    const loss = policyLoss({ loss: "grpo", kl: false, dualClip: false });
    const scalars = { temperature: options.temperature, clipLow: 0.2, clipHigh: 0.2, entropyBonus: 0 };
    const totals = { loss: 0, tokens: 0, ratio: 0, clipped: 0 };
    let largest = 0;
    for (const batch of batches) {
      const { loss: part, sums, maxima } = await trainer.accumulate(loss, batch, scalars);
      totals.loss += part;
      totals.tokens += sums["tokens"]!;
      totals.ratio += sums["ratio"]!;
      totals.clipped += sums["clipLow"]! + sums["clipHigh"]!;
      largest = Math.max(largest, maxima["ratio"]!);
    }
    expect(Math.abs(totals.ratio / totals.tokens - 1)).toBeLessThan(1e-4);
    expect(Math.abs(largest - 1)).toBeLessThan(1e-4);
    expect(totals.clipped).toBe(0);
    // As many samples with advantage 1 as with −1.
    expect(Math.abs(totals.loss)).toBeLessThan(1e-4);
  });
});
