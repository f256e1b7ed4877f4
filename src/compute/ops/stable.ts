/** Composites in their numerically stable forms, and the unfused twins of fused primitives. */

import type { Value } from "../graph/ir.ts";
import {
  add,
  concat,
  div,
  exp,
  gatherRows,
  log,
  mean,
  mul,
  reduceMax,
  reshape,
  sigmoid,
  slice,
  sqrt,
  sub,
  sum,
  transpose,
  withGradient,
} from "../graph/primitives.ts";

/** log Σ exp x along the last axis, kept with size 1. */
export function logSumExp(x: Value): Value {
  const largest = reduceMax(x, [-1], { keepDims: true });
  return add(log(sum(exp(sub(x, largest)), [-1], { keepDims: true })), largest);
}

/** log softmax along the last axis; never the log of a softmax, which loses small probabilities. */
export function logSoftmax(x: Value): Value {
  const shifted = sub(x, reduceMax(x, [-1], { keepDims: true }));
  return sub(shifted, log(sum(exp(shifted), [-1], { keepDims: true })));
}

/** The slow twin of the `softmax` primitive. */
export function softmaxUnfused(x: Value): Value {
  const e = exp(sub(x, reduceMax(x, [-1], { keepDims: true })));
  return div(e, sum(e, [-1], { keepDims: true }));
}

/** The slow twin of the `rmsNorm` primitive: x / sqrt(mean(x²) + ε) · weight. */
export function rmsNormUnfused(x: Value, weight: Value, options: { readonly epsilon: number }): Value {
  const meanSquare = mean(mul(x, x), [-1], { keepDims: true });
  return mul(div(x, sqrt(add(meanSquare, options.epsilon))), weight);
}

/** x · sigmoid(x) (Swish with β = 1, arXiv:1710.05941). */
export function silu(x: Value): Value {
  return mul(x, sigmoid(x));
}

/**
 * The slow twin of the `rotary` primitive.
 * @param x          [B, T, H·D]
 * @param positions  i32[B, T], below S
 * @param cos, sin   [S, D/2]
 */
export function rotaryUnfused(
  x: Value,
  positions: Value,
  cos: Value,
  sin: Value,
  options: { readonly interleaved?: boolean } = {},
): Value {
  const [B, T, width] = x.shape as readonly [number, number, number];
  const half = cos.shape[1]!;
  const H = width / (2 * half);
  /** Interleaved pairs side by side become halves, and back. */
  const swapped = (y: Value, from: readonly [number, number]): Value =>
    options.interleaved
      ? reshape(transpose(reshape(y, [B, T, H, ...from]), [0, 1, 2, 4, 3]), [B, T, H, 2 * half])
      : reshape(y, [B, T, H, 2 * half]);
  const heads = swapped(x, [half, 2]);
  const [a, b] = [slice(heads, -1, 0, half), slice(heads, -1, half, 2 * half)];
  const [c, s] = [cos, sin].map((table) => reshape(gatherRows(table, positions), [B, T, 1, half])) as [
    Value,
    Value,
  ];
  const turned = concat([sub(mul(a, c), mul(b, s)), add(mul(b, c), mul(a, s))], -1);
  return reshape(swapped(turned, [2, half]), x.shape);
}

/**
 * silu(gate) · up, the middle of SwiGLU, with its gradient written out: with s = sigmoid(gate), y = gate·s and h = y·up, the derivative
 * by the gate, up·(s + y·(1 − s)), is h + s·(up − h), three passes over memory less than the chain rule takes. `silu` and `mul` are
 * its oracle.
 */
export function gatedSilu(gate: Value, up: Value): Value {
  const s = sigmoid(gate);
  const y = mul(gate, s);
  const h = mul(y, up);
  return withGradient(h, [gate, up], (g) => [mul(g, add(h, mul(s, sub(up, h)))), mul(g, y)]);
}
