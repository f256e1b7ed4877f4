/**
 * Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434 §2.1; DeepSeek-V3, arXiv:2412.19437 eqs. 1–11).
 *
 * Keys and values of all heads come from one latent vector c a position, and positions are told by a further key that all
 * heads share. Training computes keys and values of every head (the naive form); decoding folds their matrices into queries
 * and outputs (the absorbed form), so that only [c; rotated key] is cached: K + R numbers a position. The two are equal.
 */

import type { Value } from "../../compute/graph/ir.ts";
import {
  broadcast,
  cachedAttention,
  concat,
  matmul,
  reshape,
  rmsNorm,
  rotary,
  slice,
  transpose,
  transposeLast,
} from "../../compute/graph/primitives.ts";
import { attention } from "../../compute/ops/attention.ts";
import { linear } from "./layers.ts";

/**
 * Of the norms of latents, whatever the model's other norms have.
 * @source transformers 5.23, modeling_deepseek_v3.py: DeepseekV3RMSNorm's own default
 */
const LATENT_EPSILON = 1e-6;

export interface LatentSizes {
  readonly heads: number;
  /** Width N of a head's query and key that know no position. */
  readonly nope: number;
  /** Width R of those that do. */
  readonly rope: number;
  /** Width V of a head's value. */
  readonly value: number;
  /** Width K of the latent. */
  readonly latent: number;
  /** Of the scores. */
  readonly scale: number;
}

export interface LatentWeights {
  /** [H·(N + R), C], or of queries that come from a latent of their own: down, norm, up. */
  readonly query: Value | { readonly down: Value; readonly norm: Value; readonly up: Value };
  /** [K + R, C] */
  readonly kvDown: Value;
  readonly kvNorm: Value;
  /** [H·(N + V), K]: for each head the rows of its key, then those of its value. */
  readonly kvUp: Value;
  /** [C, H·V] */
  readonly output: Value;
}

/** Rotation of positions i32[B, T] by tables [S, R/2]. */
export interface Rotation {
  readonly positions: Value;
  readonly cos: Value;
  readonly sin: Value;
}

interface Projected {
  /** [B·T, H, N] */
  readonly qNope: Value;
  /** Rotated, [B·T, H, R] */
  readonly qRope: Value;
  /** Normed, [B·T, K] */
  readonly latent: Value;
  /** Rotated, [B·T, R] */
  readonly kRope: Value;
}

/** What both forms begin with. @param x [B·T, C] */
function project(x: Value, weights: LatentWeights, sizes: LatentSizes, rotation: Rotation): Projected {
  const { heads: H, nope: N, rope: R, latent: K } = sizes;
  const { query } = weights;
  const [B, T] = rotation.positions.shape as readonly [number, number];
  const rows = B * T;
  const turn = (y: Value): Value =>
    rotary(y, rotation.positions, rotation.cos, rotation.sin, { interleaved: true });
  const q = reshape(
    "trace" in query
      ? linear(x, query)
      : linear(rmsNorm(linear(x, query.down), query.norm, { epsilon: LATENT_EPSILON }), query.up),
    [rows, H, N + R],
  );
  const kv = linear(x, weights.kvDown);
  return {
    qNope: slice(q, 2, 0, N),
    qRope: reshape(turn(reshape(slice(q, 2, N, N + R), [B, T, H * R])), [rows, H, R]),
    latent: rmsNorm(slice(kv, 1, 0, K), weights.kvNorm, { epsilon: LATENT_EPSILON }),
    kRope: reshape(turn(reshape(slice(kv, 1, K, K + R), [B, T, R])), [rows, R]),
  };
}

/**
 * The naive form, differentiable.
 * @param x     [B·T, C]
 * @param mask  as that of `attention`
 * @returns     [B·T, C]
 */
export function latentAttention(
  x: Value,
  weights: LatentWeights,
  mask: Value,
  sizes: LatentSizes,
  rotation: Rotation,
): Value {
  const { heads: H, nope: N, rope: R, value: V, scale } = sizes;
  const [B, T] = rotation.positions.shape as readonly [number, number];
  const rows = B * T;
  const { qNope, qRope, latent, kRope } = project(x, weights, sizes, rotation);
  const kv = reshape(linear(latent, weights.kvUp), [rows, H, N + V]);
  const shared = broadcast(reshape(kRope, [rows, 1, R]), [rows, H, R]);
  const q = reshape(concat([qNope, qRope], 2), [B, T, H * (N + R)]);
  const k = reshape(concat([slice(kv, 2, 0, N), shared], 2), [B, T, H * (N + R)]);
  const v = reshape(slice(kv, 2, N, N + V), [B, T, H * V]);
  const attended = attention(q, k, v, mask, { heads: H, kvHeads: H, scale, causal: true });
  return linear(reshape(attended, [rows, H * V]), weights.output);
}

/**
 * The absorbed form over a cache [B, 1, S, K + R], updated in place: with U and W the key and value rows of a head,
 * scores are (Uᵀ·q_nope)·c + q_rope·k_rope, and its output is W·Σ p·c.
 * @param x       [B·T, C]
 * @param lengths, total  as those of `cachedAttention`
 * @returns attended [B·T, C], and the extended cache twice, as keys and as values
 */
export function absorbedAttention(
  x: Value,
  weights: LatentWeights,
  cache: { readonly past: Value; readonly lengths: Value; readonly total: Value },
  sizes: LatentSizes,
  rotation: Rotation,
): { attended: Value; keys: Value; values: Value } {
  const { heads: H, nope: N, rope: R, value: V, latent: K, scale } = sizes;
  const [B, T] = rotation.positions.shape as readonly [number, number];
  const rows = B * T;
  const { qNope, qRope, latent, kRope } = project(x, weights, sizes, rotation);
  const up = reshape(weights.kvUp, [H, N + V, K]);
  /** [B·T, H, W] by head, and back. */
  const byHead = (y: Value): Value => transpose(y, [1, 0, 2]);
  const qLatent = byHead(matmul(byHead(qNope), slice(up, 1, 0, N))); // [B·T, H, K]
  const key = reshape(concat([latent, kRope], 1), [B, T, K + R]);
  const { past, lengths, total } = cache;
  const next = cachedAttention(
    {
      q: reshape(concat([qLatent, qRope], 2), [B, T, H * (K + R)]),
      k: key,
      v: key,
      pastKeys: past,
      pastValues: past,
      lengths,
      total,
    },
    { heads: H, kvHeads: 1, scale },
  );
  // The kernel has values as wide as keys; the last R numbers of what it gives are of no use.
  const mixed = slice(reshape(next.attended, [rows, H, K + R]), 2, 0, K);
  const perHead = byHead(matmul(byHead(mixed), transposeLast(slice(up, 1, N, N + V)))); // [B·T, H, V]
  const attended = linear(reshape(perHead, [rows, H * V]), weights.output);
  return { attended, keys: next.keys, values: next.values };
}
