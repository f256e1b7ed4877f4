/**
 * A mixture of experts as DeepSeek-V3 has it (arXiv:2412.19437 §2.1.2, eqs. 12–20): a sigmoid gate whose choice, but not
 * whose weights, a correction moves; choice limited to groups of experts; no token is dropped, and an expert computes the
 * rows that chose it and no others.
 */

import type { Value } from "../../compute/graph/ir.ts";
import {
  add,
  cast,
  constant,
  div,
  equal,
  full,
  gatherRows,
  greater,
  groupedMatmul,
  matmul,
  mul,
  neg,
  reshape,
  scalar,
  scatterAddLast,
  sigmoid,
  stopGradient,
  sum,
  takeAlongLast,
  topK,
  where,
  withGradient,
} from "../../compute/graph/primitives.ts";
import { gatedSilu } from "../../compute/ops/stable.ts";
import { f32, i32 } from "../../compute/tensor/host.ts";
import { linear } from "./layers.ts";

export interface GateOptions {
  /** Experts that a token goes to. */
  readonly chosen: number;
  /** Groups that the experts are in, side by side. */
  readonly groups: number;
  /** Groups that a token's experts may be in. */
  readonly chosenGroups: number;
  /** Whether a token's weights are made to add up to 1 before they are scaled. */
  readonly normalized: boolean;
  readonly scale: number;
}

/** What a gate decides for N tokens. */
export interface Gated {
  /** Affinities, without the correction, [N, E]. */
  readonly scores: Value;
  /** i32[N, k] */
  readonly chosen: Value;
  /** Of the chosen, [N, k]. */
  readonly weights: Value;
}

/** Best experts of a group whose sum is the group's score. */
const BEST_OF_GROUP = 2;

/** Keeps a sum of affinities from being zero, as transformers does. */
const TINY = 1e-20;

const range = (n: number) =>
  i32(
    [n],
    Array.from({ length: n }, (_, i) => i),
  );

/** f32[N, E]: 1 where a token chose an expert. @param chosen i32[N, k] */
function choiceMask(chosen: Value, experts: number): Value {
  const [N, k] = chosen.shape as readonly [number, number];
  const ids = reshape(constant(chosen, range(experts)), [1, 1, experts]);
  return sum(cast(equal(reshape(chosen, [N, k, 1]), ids), "f32"), [1]);
}

/**
 * The gate.
 * @param x           [N, C]
 * @param weight      [E, C]
 * @param correction  [E], added for the choice alone
 */
export function gate(x: Value, weight: Value, correction: Value, options: GateOptions): Gated {
  const { chosen: k, groups: G, chosenGroups, normalized, scale } = options;
  const [N, E] = [x.shape[0]!, weight.shape[0]!];
  const scores = sigmoid(linear(x, weight));
  let candidates = add(stopGradient(scores), stopGradient(correction));
  if (chosenGroups < G) {
    const byGroup = reshape(candidates, [N, G, E / G]);
    const best = takeAlongLast(byGroup, topK(byGroup, Math.min(BEST_OF_GROUP, E / G)));
    const groups = topK(sum(best, [2]), chosenGroups);
    const allowed = greater(choiceMask(groups, G), 0.5);
    // Not 0, as some have it: an affinity with its correction may be negative, and would lose to what is excluded.
    const excluded = scalar(candidates, Number.NEGATIVE_INFINITY);
    candidates = reshape(where(reshape(allowed, [N, G, 1]), byGroup, excluded), [N, E]);
  }
  const chosen = topK(candidates, k);
  const affinities = takeAlongLast(scores, chosen);
  const weights = normalized
    ? div(affinities, add(sum(affinities, [1], { keepDims: true }), TINY))
    : affinities;
  return { scores, chosen, weights: mul(weights, scale) };
}

/** Matrices of each expert's SwiGLU: gate and up [F, C], down [C, F]. */
export interface Experts {
  readonly gate: readonly Value[];
  readonly up: readonly Value[];
  readonly down: readonly Value[];
}

/**
 * Σ weight · expert(x) over the experts that each token chose. Rows are sorted by expert, so that each expert is one
 * product of the rows it got, however many those are.
 * @param x  [N, C]
 * @returns  [N, C]
 */
export function mixture(x: Value, { chosen, weights }: Gated, experts: Experts): Value {
  const [N, C] = x.shape as readonly [number, number];
  const k = chosen.shape[1]!;
  const M = N * k;
  const E = experts.gate.length;
  // The sort is stable, and of no consequence for the result: only for the order in which products are added up.
  const order = topK(neg(cast(reshape(chosen, [M]), "f32")), M);
  const places = f32(
    [M],
    Array.from({ length: M }, (_, m) => m),
  );
  const inverse = cast(scatterAddLast(order, constant(order, places), M), "i32");
  const tokens = i32(
    [M],
    Array.from({ length: M }, (_, m) => Math.floor(m / k)),
  );
  const token = gatherRows(constant(order, tokens), order);
  const counts = cast(sum(choiceMask(chosen, E), [0]), "i32");
  // Both gathers only move rows: the gradient moves them back, where the general rule would scatter.
  const rows = withGradient(gatherRows(x, token), [x], (g) => [
    sum(reshape(gatherRows(g, inverse), [N, k, C]), [1]),
  ]);
  const hidden = gatedSilu(
    groupedMatmul(rows, counts, experts.gate),
    groupedMatmul(rows, counts, experts.up),
  );
  const outputs = groupedMatmul(hidden, counts, experts.down);
  const byToken = withGradient(gatherRows(outputs, inverse), [outputs], (g) => [gatherRows(g, order)]);
  return sum(mul(reshape(byToken, [N, k, C]), reshape(weights, [N, k, 1])), [1]);
}

/** How many tokens chose each expert, f32[E]. @param counted f32[N], 0 for tokens that do not count */
export function expertLoad(chosen: Value, counted: Value, experts: number): Value {
  const [N] = chosen.shape as readonly [number];
  return sum(mul(choiceMask(chosen, experts), reshape(counted, [N, 1])), [0]);
}

/**
 * The sequence-wise balance loss without its factor α: Σ f·P over the experts, with f = E/(k·T)·(tokens of the sequence
 * among whose k largest affinities the expert is) and P its mean share of a token's affinities (eqs. 17–20).
 * @param scores    [B·T, E]
 * @param segments  i32[B, T], which sequence a token belongs to
 * @returns f32[B, T], at every token that of its sequence
 */
export function sequenceBalance(scores: Value, segments: Value, chosen: number): Value {
  const [B, T] = segments.shape as readonly [number, number];
  const E = scores.shape[1]!;
  const together = cast(equal(reshape(segments, [B, T, 1]), reshape(segments, [B, 1, T])), "f32");
  const average = div(together, sum(together, [2], { keepDims: true }));
  const counts = mul(choiceMask(topK(stopGradient(scores), chosen), E), E / chosen);
  const shares = div(scores, sum(scores, [1], { keepDims: true }));
  const [f, P] = [counts, shares].map((x) => matmul(average, reshape(x, [B, T, E]))) as [Value, Value];
  return sum(mul(f, P), [2]);
}

/** 1 for tokens, 0 for padding, f32[B·T]. @param segments i32[B, T], 0 for padding */
export function countedTokens(segments: Value): Value {
  const [B, T] = segments.shape as readonly [number, number];
  const padding = equal(segments, 0);
  return reshape(where(padding, full(segments, [], 0, "f32"), full(segments, [], 1, "f32")), [B * T]);
}
