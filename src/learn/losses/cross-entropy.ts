/** Cross-entropy of the next token, and of the one after it. */

import type { Value } from "../../compute/graph/ir.ts";
import { cast, concat, equal, full, mul, neg, slice, sum } from "../../compute/graph/primitives.ts";
import type { Loss } from "./loss.ts";
import type { Predictions } from "./predictions.ts";

/** Cross-entropy: Σ weight · −log π(target). */
export const CROSS_ENTROPY: Loss = {
  key: "cross-entropy",
  tokenInputs: ["weights"],
  scalars: [],
  draft: true,
  build(predictions, { weights }, { targets }) {
    const loss = neg(sum(mul(weights!, predictions.logp(targets))));
    return { loss, sums: {}, maxima: {} };
  },
};

/**
 * Multi-token prediction (arXiv:2412.19437 eqs. 24–25): the cross-entropy of the token after next, with the weight that this
 * token has in the loss of the next. The first of a sequence's tokens is nobody's token after next but that of another.
 * @param predictions  of the drafting head
 * @param batch        segments, targets i32[B, T] and weights f32[B, T] of the next token; T at least 2
 */
export function draftLoss(
  predictions: Predictions,
  batch: { readonly segments: Value; readonly targets: Value; readonly weights: Value },
): Value {
  const [B, T] = batch.targets.shape as readonly [number, number];
  /** What stands one position further on; 0 past the end. */
  const ahead = (x: Value): Value => concat([slice(x, 1, 1, T), full(x, [B, 1], 0)], 1);
  const together = cast(equal(batch.segments, ahead(batch.segments)), "f32");
  const logp = predictions.logp(ahead(batch.targets));
  return neg(sum(mul(mul(ahead(batch.weights), together), logp)));
}
