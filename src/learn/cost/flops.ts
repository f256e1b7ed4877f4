/**
 * Floating-point operations of a decoder, counted by hand so that a utilization means the same on every machine. One
 * multiply and one add are two operations.
 *
 *   forward per token  = 2·N + 2·L·H·(D + Dv)·S
 *   backward per token = 2 × forward
 *
 * N counts the weights that multiply each token: per layer of llama C·H·D (query) + 2·C·Hk·D (key, value) + H·D·C (output)
 * + 3·C·F (SwiGLU), and C·V for the head, tied or not; of a mixture of experts, of all routed experts only as many as a
 * token goes to. Looking up an embedding costs nothing. S is the mean number of keys a query sees: scores are 2·H·D·S and
 * the weighted sum 2·H·Dv·S; Dv is D but in latent attention, which is counted in its naive form, however it is computed.
 * The head for the token after next is left out. Norms, rotary positions, softmax and sampling are
 * left out, as is the custom where utilizations are compared.
 */

import { sizeOf } from "../../compute/tensor/shape.ts";
import { type ModelConfig, modelParameters } from "../../model/arch/models.ts";

/** The sizes of a dense decoder that its cost depends on. */
export interface DenseSizes {
  readonly layers: number;
  /** C. */
  readonly width: number;
  /** H. */
  readonly heads: number;
  /** Hk. */
  readonly kvHeads: number;
  /** D. */
  readonly headWidth: number;
  /** F. */
  readonly hidden: number;
  /** V. */
  readonly vocab: number;
}

/** The sizes of a decoder whose weights have been counted. */
export interface CountedSizes {
  readonly layers: number;
  /** H. */
  readonly heads: number;
  /** D. */
  readonly keyWidth: number;
  /** Dv. */
  readonly valueWidth: number;
  /** N. */
  readonly active: number;
}

export type CostSizes = DenseSizes | CountedSizes;

/** Of a model of any architecture. */
export function costSizes(config: ModelConfig): CostSizes {
  const { layers, heads } = config;
  if (config.modelType !== "deepseek_v3") {
    const { hiddenSize: width, kvHeads, headDim: headWidth, intermediateSize: hidden, vocabSize } = config;
    return { layers, width, heads, kvHeads, headWidth, hidden, vocab: vocabSize };
  }
  const { nopeHeadDim, ropeHeadDim, valueHeadDim, expertsPerToken, routedExperts } = config;
  let active = 0;
  for (const { name, shape, kind } of modelParameters({ ...config, draftLayers: 0 })) {
    const multiplies = kind === "matrix" || kind === "head" || (kind === "embedding" && config.tieEmbeddings);
    const share = name.includes(".mlp.experts.") ? expertsPerToken / routedExperts : 1;
    if (multiplies) active += share * sizeOf(shape);
  }
  // Exact: as many experts of one size are counted as a token goes to, each a share of all.
  const exact = Math.round(active);
  return {
    layers,
    heads,
    keyWidth: nopeHeadDim + ropeHeadDim,
    valueWidth: valueHeadDim,
    active: exact,
  };
}

/** N: the weights each token is multiplied with. The embedding table counts once, as the head. */
export function matmulParameters(sizes: CostSizes): number {
  if ("active" in sizes) return sizes.active;
  const { layers: L, width: C, heads: H, kvHeads: Hk, headWidth: D, hidden: F, vocab: V } = sizes;
  return L * (2 * C * H * D + 2 * C * Hk * D + 3 * C * F) + C * V;
}

/**
 * Operations of one token's forward pass.
 * @param keys   mean number of keys a query attends to; {@link causalKeys} for a whole sequence, the number of cached
 *               positions plus one for a decoding step
 */
export function forwardFlops(sizes: CostSizes, keys: number): number {
  const widths = "active" in sizes ? sizes.keyWidth + sizes.valueWidth : 2 * sizes.headWidth;
  return 2 * matmulParameters(sizes) + 2 * sizes.layers * sizes.heads * widths * keys;
}

/** Operations of one token's forward and backward pass: each matmul comes back as two, so three times forward. */
export function trainFlops(sizes: CostSizes, keys: number): number {
  return 3 * forwardFlops(sizes, keys);
}

/** Mean number of keys under a causal mask over `length` positions: (1 + 2 + … + T) / T. */
export function causalKeys(length: number): number {
  return (length + 1) / 2;
}
