/** Training steps, timed: forward, backward, clipping and the optimizer's update on full rows. */

import type { Runtime } from "../../compute/runtime/runtime.ts";
import { causalKeys, trainFlops } from "../../learn/cost/flops.ts";
import { CROSS_ENTROPY } from "../../learn/losses/cross-entropy.ts";
import { packAll } from "../../learn/optim/pack.ts";
import { Trainer } from "../../learn/optim/trainer.ts";
import { benchModel, type ModelShape, randomIds } from "./model.ts";

export interface TrainBenchOptions {
  readonly shape: ModelShape;
  /** Rows, and tokens in each. */
  readonly batch: number;
  readonly tokens: number;
  /** Parts that the batch is worked on in, their gradients added up. */
  readonly parts: number;
  /** Of the matrices. */
  readonly optimizer: "adamw" | "muon";
}

export interface TrainBench {
  readonly parameters: number;
  readonly tokensPerStep: number;
  /** By the count of learn/cost/flops.ts: attention to the tokens before alone, norms and the optimizer not counted. */
  readonly flopsPerStep: number;
  /** Takes a step. @returns seconds */
  step(): Promise<number>;
  dispose(): Promise<void>;
}

/** Rates that a model of random tokens takes no harm from. */
const RATES = { adamW: 3e-4, muon: 2e-3 };

export async function prepareTraining(runtime: Runtime, options: TrainBenchOptions): Promise<TrainBench> {
  const { shape, batch, tokens, parts, optimizer } = options;
  const { config, tensors, sizes, shape: full } = benchModel(shape, tokens);
  const trainer = Trainer.create(runtime, config, tensors, { matrices: optimizer, weightDecay: 0.1 });
  const weight = 1 / (batch * (tokens - 1));
  const sequences = randomIds(shape.vocab, batch, tokens).map((ids) => ({
    ids,
    weights: ids.map(() => weight),
  }));
  const batches = packAll(sequences, { batch: batch / parts, rowLength: tokens, padId: 0 });
  const tokensPerStep = batch * tokens;
  return {
    parameters: full.parameters,
    tokensPerStep,
    flopsPerStep: tokensPerStep * trainFlops(sizes, causalKeys(tokens)),
    async step() {
      const began = performance.now();
      for (const part of batches) await trainer.accumulate(CROSS_ENTROPY, part);
      await trainer.apply(RATES);
      return (performance.now() - began) / 1000;
    },
    dispose: () => trainer.dispose(),
  };
}
