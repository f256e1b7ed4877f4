/** Batched generation, timed: every row a prompt of its own, every prompt and answer of the same length. */

import type { Runtime } from "../../compute/runtime/runtime.ts";
import { causalKeys, forwardFlops } from "../../learn/cost/flops.ts";
import { Engine } from "../../model/engine/engine.ts";
import { deviceWeights } from "../../model/engine/weights.ts";
import { type BenchModel, randomIds } from "./model.ts";

export interface GenerateBenchOptions {
  readonly batch: number;
  readonly promptTokens: number;
  readonly newTokens: number;
}

export interface GenerateBench {
  readonly newTokens: number;
  /** Of prompts and answers, by the count of learn/cost/flops.ts. */
  readonly flops: number;
  /** Generates for every row. @returns seconds */
  generate(): Promise<number>;
  dispose(): Promise<void>;
}

export async function prepareGeneration(
  runtime: Runtime,
  { config, sizes, tensors }: BenchModel,
  { batch, promptTokens, newTokens }: GenerateBenchOptions,
): Promise<GenerateBench> {
  const engine = new Engine(runtime, config, { slots: batch, maxPositions: promptTokens + newTokens });
  engine.adopt(deviceWeights(runtime, tensors));
  const prompts = randomIds(config.vocabSize, batch, promptTokens);
  const requests = prompts.map((prompt, row) => ({ prompt, samples: 1, seed: 0, path: [row] }));
  // The first token comes from the prompt's own pass, and the last is not run.
  const decoded = newTokens - 1;
  const flops =
    promptTokens * forwardFlops(sizes, causalKeys(promptTokens)) +
    decoded * forwardFlops(sizes, promptTokens + causalKeys(decoded));
  return {
    newTokens: batch * newTokens,
    flops: batch * flops,
    async generate() {
      const began = performance.now();
      await engine.generate(requests, { maxNewTokens: newTokens, stopIds: [], temperature: 1 });
      return (performance.now() - began) / 1000;
    },
    dispose: () => engine.dispose(),
  };
}
