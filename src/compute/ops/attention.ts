/** Attention in the differentiable form that training graphs use. */

import type { Value } from "../graph/ir.ts";
import {
  add,
  concat,
  matmul,
  mul,
  reshape,
  slice,
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
 * @param options.causal whether the mask, [..., T, S], forbids all keys after a query's own place (S = T): those are then left out of the
 *   products, block of queries by block, instead of being worked out and forgotten. @default false
 * @returns     [B, T, H·Dv]
 */
export function attention(
  q: Value,
  k: Value,
  v: Value,
  mask: Value,
  options: {
    readonly heads: number;
    readonly kvHeads: number;
    readonly scale?: number;
    readonly causal?: boolean;
  },
): Value {
  const { heads: H, kvHeads: Hk, causal = false } = options;
  const [B, T, width] = q.shape as readonly [number, number, number];
  const S = k.shape[1]!;
  const D = width / H;
  const Dv = v.shape[2]! / Hk;
  const R = H / Hk;
  // Scaling the queries is cheaper than scaling the scores: D numbers a row instead of S.
  const scaled = mul(q, options.scale ?? 1 / Math.sqrt(D));
  const queries = transpose(reshape(scaled, [B, T, Hk, R, D]), [0, 2, 3, 1, 4]);
  const [keys, values] = [reshape(k, [B, S, Hk, D]), reshape(v, [B, S, Hk, Dv])].map((x) =>
    transpose(x, [0, 2, 1, 3]),
  ) as [Value, Value];
  const blocks = (causal ? causalBlocks(T) : [[0, T] as const]).map(([start, end]) => {
    const seen = causal ? end : S;
    const rows = reshape(slice(queries, 3, start, end), [B, Hk, R * (end - start), D]);
    const masked = causal ? slice(slice(mask, -2, start, end), -1, 0, seen) : mask;
    const attended = attend(rows, slice(keys, 2, 0, seen), slice(values, 2, 0, seen), masked, R);
    return reshape(attended, [B, Hk, R, end - start, Dv]);
  });
  const heads = transpose(concat(blocks, 3), [0, 3, 1, 2, 4]); // [B, T, Hk, R, Dv]
  return reshape(heads, [B, T, H * Dv]);
}

/** Queries that are worked out together: fewer waste less on keys they may not see, more make larger products. */
const BLOCK = 96;

function causalBlocks(T: number): (readonly [number, number])[] {
  const count = Math.ceil(T / BLOCK);
  const size = Math.ceil(T / count);
  return Array.from({ length: count }, (_, i) => [i * size, Math.min(T, (i + 1) * size)] as const);
}

/** @param rows [B, Hk, R·T, D]; keys [B, Hk, S, D]; values [B, Hk, S, Dv]; mask as above @returns [B, Hk, R·T, Dv] */
function attend(rows: Value, keys: Value, values: Value, mask: Value, R: number): Value {
  const [B, Hk, RT] = rows.shape as readonly [number, number, number];
  const S = keys.shape[2]!;
  const scores = reshape(matmul(rows, transposeLast(keys)), [B, Hk, R, RT / R, S]);
  const probabilities = reshape(softmax(add(scores, mask)), [B, Hk, RT, S]);
  // The chain rule would go over the [T, S] arrays four times for the softmax alone. Its row sums Σ p·dp are also the
  // row sums of output · cotangent, D numbers a row instead of S (FlashAttention, arXiv:2205.14135, appendix B.2).
  const output = matmul(probabilities, values);
  return withGradient(output, [rows, keys, values], (g) => {
    const dValues = matmul(transposeLast(probabilities), g);
    const rowSums = sum(mul(g, output), [-1], { keepDims: true });
    const dScores = mul(sub(matmul(g, transposeLast(values)), rowSums), probabilities);
    return [matmul(dScores, keys), matmul(transposeLast(dScores), rows), dValues];
  });
}
