/**
 * What a loss is to the trainer: the inputs that it asks of a batch, and a graph over predictions.
 *
 * Every loss is Σ weight·ℓ over tokens; the host puts the whole normalisation (1/|o_i|, 1/Σ|o_i|, 1/(G·L_max)) into
 * the weights, where it can be checked by hand, and sums over micro-batches are then exact.
 */

import type { Value } from "../../compute/graph/ir.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";
import type { Predictions } from "./predictions.ts";

/** What a loss graph yields: `loss` is differentiated; sums and maxima are statistics that combine over micro-batches. */
export interface LossOutputs {
  readonly loss: Value;
  readonly sums: Readonly<Record<string, Value>>;
  readonly maxima: Readonly<Record<string, Value>>;
}

/** A loss: the inputs it needs beside ids, positions and segments, and its graph. */
export interface Loss {
  /** Names the graph in the program cache: equal keys, equal graphs. */
  readonly key: string;
  /** Per-token float inputs [B, T], `weights` among them. */
  readonly tokenInputs: readonly string[];
  /** Scalars that may change from step to step. */
  readonly scalars: readonly string[];
  /** Whether the head for the token after next, where the model has one, learns beside it. @default false */
  readonly draft?: boolean;
  /**
   * @param tokens  f32[B, T] each, by the names above
   * @param batch   targets and segments, i32[B, T]
   */
  build(
    predictions: Predictions,
    tokens: Readonly<Record<string, Value>>,
    batch: { readonly targets: Value; readonly segments: Value },
    scalars: Readonly<Record<string, Value>>,
  ): LossOutputs;
}

/** Graph-input specs of a batch for a loss. @param shared  whether sequences of a row may have a prefix in common */
export function batchSpecs(loss: Loss, B: number, T: number, shared: boolean): Record<string, TensorSpec> {
  const integers = ["ids", "positions", "segments", ...(shared ? ["prefixes"] : []), "targets"].map(
    (name) => [name, { dtype: "i32", shape: [B, T] }],
  );
  const floats = loss.tokenInputs.map((name) => [name, { dtype: "f32", shape: [B, T] }]);
  return Object.fromEntries([...integers, ...floats]) as Record<string, TensorSpec>;
}
