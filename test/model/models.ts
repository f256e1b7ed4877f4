/** Small models for tests. */

import type { HostArray } from "../../src/compute/tensor/host.ts";
import { initializeLlama, type LlamaConfig } from "../../src/model/arch/llama.ts";

/** A model that the interpreter can run and the engine can decode. */
export const TINY: LlamaConfig = {
  vocabSize: 11,
  hiddenSize: 16,
  intermediateSize: 24,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  headDim: 16,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 1e4,
  maxPositions: 64,
  tieEmbeddings: false,
};

/** Fresh weights, matrices and head scaled so that logits differ by whole nats: a model with opinions. */
export function opinionatedWeights(config: LlamaConfig, seed: number): Record<string, HostArray<"f32">> {
  const weights = initializeLlama(config, seed);
  for (const [name, { shape, data }] of Object.entries(weights)) {
    if (shape.length < 2) continue;
    const scale = name.startsWith("lm_head") ? 15 : name.includes("embed") ? 4 : 1.5;
    for (const i of data.keys()) data[i]! *= scale;
  }
  return weights;
}
