/**
 * Floating-point operations of a dense decoder (llama), counted by hand so that a utilization means the same on every
 * machine. One multiply and one add are two operations.
 *
 *   forward per token  = 2·N + 4·L·H·D·S
 *   backward per token = 2 × forward
 *
 * N counts the weights that multiply each token: per layer C·H·D (query) + 2·C·Hk·D (key, value) + H·D·C (output) +
 * 3·C·F (SwiGLU), and C·V for the head, tied or not. Looking up an embedding costs nothing. S is the mean number of
 * keys a query sees: scores and the weighted sum are 2·H·D·S each. Norms, rotary positions, softmax and sampling are
 * left out, as is the custom where utilizations are compared.
 */

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

/** N: the weights each token is multiplied with. The embedding table counts once, as the head. */
export function matmulParameters(sizes: DenseSizes): number {
  const { layers: L, width: C, heads: H, kvHeads: Hk, headWidth: D, hidden: F, vocab: V } = sizes;
  return L * (2 * C * H * D + 2 * C * Hk * D + 3 * C * F) + C * V;
}

/**
 * Operations of one token's forward pass.
 * @param keys   mean number of keys a query attends to; {@link causalKeys} for a whole sequence, the number of cached
 *               positions plus one for a decoding step
 */
export function forwardFlops(sizes: DenseSizes, keys: number): number {
  return 2 * matmulParameters(sizes) + 4 * sizes.layers * sizes.heads * sizes.headWidth * keys;
}

/** Operations of one token's forward and backward pass: each matmul comes back as two, so three times forward. */
export function trainFlops(sizes: DenseSizes, keys: number): number {
  return 3 * forwardFlops(sizes, keys);
}

/** Mean number of keys under a causal mask over `length` positions: (1 + 2 + … + T) / T. */
export function causalKeys(length: number): number {
  return (length + 1) / 2;
}
