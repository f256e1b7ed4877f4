/** The model that is benchmarked: random weights of given sizes. How fast a model is does not depend on what it knows. */

import type { HostArray } from "../../compute/tensor/host.ts";
import { Random } from "../../compute/tensor/random.ts";
import type { DenseSizes } from "../../learn/cost/flops.ts";
import { initializeLlama, type LlamaConfig } from "../../model/arch/llama.ts";
import { parameterCount } from "../../model/arch/models.ts";

export interface ModelShape {
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** F. */
  readonly hidden: number;
  readonly vocab: number;
}

/** The shape that the published figures are for: depth 6, width 256. */
export const BENCH_SHAPE: ModelShape = {
  layers: 6,
  width: 256,
  heads: 8,
  kvHeads: 8,
  hidden: 688,
  vocab: 64,
};

export interface BenchModel {
  readonly shape: ModelShape & { readonly parameters: number };
  readonly config: LlamaConfig;
  readonly sizes: DenseSizes;
  readonly tensors: Readonly<Record<string, HostArray<"f32">>>;
}

/** @throws ConfigError when the sizes do not fit together */
export function benchModel(shape: ModelShape, maxPositions: number): BenchModel {
  const { layers, width, heads, kvHeads, hidden, vocab } = shape;
  const config: LlamaConfig = {
    vocabSize: vocab,
    hiddenSize: width,
    intermediateSize: hidden,
    layers,
    heads,
    kvHeads,
    headDim: width / heads,
    rmsNormEpsilon: 1e-6,
    ropeTheta: 10_000,
    maxPositions,
    tieEmbeddings: false,
  };
  const tensors = initializeLlama(config, 0);
  const sizes = { layers, width, heads, kvHeads, headWidth: config.headDim, hidden, vocab };
  return { shape: { ...shape, parameters: parameterCount(config) }, config, sizes, tensors };
}

/** `rows` sequences of uniformly random ids. */
export function randomIds(vocab: number, rows: number, length: number): number[][] {
  return Array.from({ length: rows }, (_, row) => {
    const random = new Random(0, row);
    return Array.from({ length }, () => random.integer(vocab));
  });
}
