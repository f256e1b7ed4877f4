/**
 * Optimizers as graphs: gradients and state in, new weights and state out. Everything that changes from step to step
 * (learning rates, step-dependent corrections) is an input, so nothing recompiles.
 */

import type { Value } from "../../compute/graph/ir.ts";
import {
  add,
  concat,
  div,
  matmul,
  max,
  min,
  mul,
  reshape,
  scalar,
  slice,
  sqrt,
  sub,
  sum,
  transposeLast,
} from "../../compute/graph/primitives.ts";

/** Added to the norm when clipping, as PyTorch's clip_grad_norm_ does, so that a zero gradient divides by no zero. */
const CLIP_EPSILON = 1e-6;

/** The norm of all gradients together: sqrt Σ‖g‖². */
export function globalNorm(gradients: readonly Value[]): Value {
  return sqrt(gradients.map((g) => sum(mul(g, g))).reduce((a, b) => add(a, b)));
}

/** The factor that brings `norm` down to `limit`, at most 1. */
export function clipFactor(norm: Value, limit: Value): Value {
  return min(div(limit, add(norm, CLIP_EPSILON)), 1);
}

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
}

export interface AdamWScalars {
  readonly learningRate: Value;
  readonly weightDecay: Value;
  /** 1/(1 − β₁ᵗ) and 1/(1 − β₂ᵗ), from the host, where t is known. */
  readonly correction1: Value;
  readonly correction2: Value;
}

/**
 * AdamW with decoupled decay (arXiv:1711.05101, algorithm 2), bias-corrected:
 * w ← w·(1 − η·λ) − η·m̂/(sqrt(v̂) + ε).
 */
export function adamW(
  weight: Value,
  gradient: Value,
  state: { readonly m: Value; readonly v: Value },
  scalars: AdamWScalars,
  { beta1, beta2, epsilon }: AdamWOptions,
): { weight: Value; m: Value; v: Value } {
  const m = add(mul(state.m, beta1), mul(gradient, 1 - beta1));
  const v = add(mul(state.v, beta2), mul(mul(gradient, gradient), 1 - beta2));
  const step = div(mul(m, scalars.correction1), add(sqrt(mul(v, scalars.correction2)), epsilon));
  const decayed = mul(weight, sub(1, mul(scalars.learningRate, scalars.weightDecay)));
  return { weight: sub(decayed, mul(step, scalars.learningRate)), m, v };
}

/** Coefficients of the quintic Newton–Schulz iteration (K. Jordan, "Muon", 2024), and its number of steps. */
const [A, B, C] = [3.4445, -4.775, 2.0315];
const NEWTON_SCHULZ_STEPS = 5;
const NORM_EPSILON = 1e-7;

/**
 * Brings the singular values of each matrix near 1 and keeps its singular vectors.
 * @param x [n, r, c]; the iteration runs on the side with r ≤ c
 */
export function orthogonalize(x: Value): Value {
  const [, rows, columns] = x.shape as readonly [number, number, number];
  if (rows > columns) return transposeLast(orthogonalize(transposeLast(x)));
  const norm = sqrt(sum(mul(x, x), [1, 2], { keepDims: true }));
  let y = div(x, max(norm, NORM_EPSILON));
  for (let step = 0; step < NEWTON_SCHULZ_STEPS; step++) {
    const gram = matmul(y, transposeLast(y));
    const polynomial = add(mul(gram, B), mul(matmul(gram, gram), C));
    y = add(mul(y, A), matmul(polynomial, y));
  }
  return y;
}

export interface MuonScalars {
  readonly learningRate: Value;
  readonly weightDecay: Value;
  /** Factor on the gradients, from clipping; 1 when absent. */
  readonly gradientScale?: Value;
}

/**
 * Muon with Nesterov momentum, as torch.optim.Muon defines it: m ← μ·m + (1 − μ)·g; the direction (1 − μ)·g + μ·m is
 * orthogonalised; w ← w·(1 − η·λ) − η·sqrt(max(1, r/c))·direction.
 *
 * Matrices of one shape are updated as one array: a few large operations instead of many small ones.
 * @param weights, gradients, momenta  each [r, c], r and c the same for all
 */
export function muon(
  weights: readonly Value[],
  gradients: readonly Value[],
  momenta: readonly Value[],
  scalars: MuonScalars,
  options: { readonly momentum: number },
): { weights: Value[]; momenta: Value[] } {
  const { momentum } = options;
  const [rows, columns] = weights[0]!.shape as readonly [number, number];
  const stack = (parts: readonly Value[]): Value =>
    concat(
      parts.map((x) => reshape(x, [1, rows, columns])),
      0,
    );
  const unstack = (x: Value): Value[] =>
    weights.map((_, i) => reshape(slice(x, 0, i, i + 1), [rows, columns]));
  const fresh = mul(stack(gradients), mul(scalars.gradientScale ?? scalar(gradients[0]!, 1), 1 - momentum));
  const next = add(mul(stack(momenta), momentum), fresh);
  const direction = orthogonalize(add(fresh, mul(next, momentum)));
  const scale = mul(scalars.learningRate, Math.sqrt(Math.max(1, rows / columns)));
  const keep = sub(1, mul(scalars.learningRate, scalars.weightDecay));
  const updated = sub(mul(stack(weights), keep), mul(direction, scale));
  return { weights: unstack(updated), momenta: unstack(next) };
}
