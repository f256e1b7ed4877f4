/** Attention in the differentiable form that training graphs use. */

import type { Value } from "../graph/ir.ts";
import {
  add,
  matmul,
  mul,
  reshape,
  softmax,
  sub,
  sum,
  transpose,
  transposeLast,
  withGradient,
} from "../graph/primitives.ts";

/**
 * Grouped-query attention (arXiv:2305.13245) with an additive mask.
 *
 * The R = H/Hk query heads that share a key head are folded into the rows of one product, `[R·T, D]·[D, S]`: larger
 * products, and no copy of keys or values.
 *
 * @param q     [B, T, H·D], rotated
 * @param k     [B, S, Hk·D], rotated
 * @param v     [B, S, Hk·Dv]; often Dv = D
 * @param mask  broadcastable to [B, 1, 1, T, S]: 0 where attention is allowed, a large negative number elsewhere
 * @param options.scale  of the scores. @default 1/√D
 * @returns     [B, T, H·Dv]
 */
export function attention(
  q: Value,
  k: Value,
  v: Value,
  mask: Value,
  options: { readonly heads: number; readonly kvHeads: number; readonly scale?: number },
): Value {
  const { heads: H, kvHeads: Hk } = options;
  const [B, T, width] = q.shape as readonly [number, number, number];
  const S = k.shape[1]!;
  const D = width / H;
  const Dv = v.shape[2]! / Hk;
  const R = H / Hk;
  // Scaling the queries is cheaper than scaling the scores: D numbers a row instead of S.
  const scaled = mul(q, options.scale ?? 1 / Math.sqrt(D));
  const rows = reshape(transpose(reshape(scaled, [B, T, Hk, R, D]), [0, 2, 3, 1, 4]), [B, Hk, R * T, D]);
  const [keys, values] = [reshape(k, [B, S, Hk, D]), reshape(v, [B, S, Hk, Dv])].map((x) =>
    transpose(x, [0, 2, 1, 3]),
  ) as [Value, Value];
  const probabilities = reshape(
    softmax(add(reshape(matmul(rows, transposeLast(keys)), [B, Hk, R, T, S]), mask)),
    [B, Hk, R * T, S],
  );
  // The chain rule would go over the [T, S] arrays four times for the softmax alone. Its row sums Σ p·dp are also the
  // row sums of output · cotangent, D numbers a row instead of S (FlashAttention, arXiv:2205.14135, appendix B.2).
  const output = matmul(probabilities, values);
  const attended = withGradient(output, [rows, keys, values], (g) => {
    const dValues = matmul(transposeLast(probabilities), g);
    const rowSums = sum(mul(g, output), [-1], { keepDims: true });
    const dScores = mul(sub(matmul(g, transposeLast(values)), rowSums), probabilities);
    return [matmul(dScores, keys), matmul(transposeLast(dScores), rows), dValues];
  });
  const heads = transpose(reshape(attended, [B, Hk, R, T, Dv]), [0, 3, 1, 2, 4]); // [B, T, Hk, R, Dv]
  return reshape(heads, [B, T, H * Dv]);
}
