/** From rewards to per-token training signals: pure host arithmetic, checked by hand in the tests. */

import { ShapeError } from "../../base/errors.ts";
import { mean } from "../../base/numbers.ts";
import type { PolicyLossName, RewardScaling } from "./settings.ts";

/** Added to a spread before dividing by it, as TRL does; large enough that equal rewards give 0 and not noise. */
const SPREAD_EPSILON = 1e-4;

/** Sample standard deviation, n − 1 in the denominator, as TRL and verl take it (the papers do not say). */
function spread(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const center = mean(values);
  return Math.sqrt(values.reduce((total, x) => total + (x - center) ** 2, 0) / (values.length - 1));
}

/**
 * How much better each sample did than its siblings: r − mean, divided by the spread of its group (arXiv:2402.03300),
 * of the whole batch (2508.08221) or by nothing (2503.20783).
 * @param rewards  one row per prompt; null where every reward skipped the sample: it gets 0 and counts for nothing
 * @returns the same shape; with "none" each row sums to zero
 * @throws ShapeError when a group has a single sample, which has no baseline
 */
export function advantages(
  rewards: readonly (readonly (number | null)[])[],
  scaling: RewardScaling,
): number[][] {
  const known = rewards.map((group) => group.filter((reward) => reward !== null));
  const batchSpread = scaling === "batch" ? spread(known.flat()) : 0;
  return rewards.map((group, prompt) => {
    if (group.length < 2) {
      throw new ShapeError({
        where: "advantages",
        rule: "a group needs at least 2 samples: a lone one has no baseline",
        got: `${group.length}`,
        remedy: "Raise the number of samples per prompt",
      });
    }
    const values = known[prompt]!;
    // Exactly 0, where the mean of equal numbers might be off by a rounding: such a group needs no backward pass.
    if (values.every((value) => value === values[0])) return group.map(() => 0);
    const center = mean(values);
    const divisor =
      scaling === "none" ? 1 : (scaling === "group" ? spread(values) : batchSpread) + SPREAD_EPSILON;
    return group.map((reward) => (reward === null ? 0 : (reward - center) / divisor));
  });
}

/**
 * The weight of each completion's tokens in the loss: its whole normalisation.
 *
 * - grpo, gspo: 1/(N·|o_i|), the mean over samples of the mean over tokens (DeepSeekMath eq. 3)
 * - dapo, cispo: 1/Σ|o_i|, the mean over all tokens (DAPO eq. 12)
 * - dr_grpo: 1/(N·L_max), a constant, so that length is not rewarded (2503.20783)
 *
 * @param lengths    tokens of each completion that counts; 0 for one that is masked out
 * @param maxLength  L_max, the most tokens a completion may have
 * @returns one weight per completion
 */
export function lossWeights(loss: PolicyLossName, lengths: readonly number[], maxLength: number): number[] {
  const samples = lengths.length;
  const tokens = lengths.reduce((a, b) => a + b, 0);
  return lengths.map((length) => {
    if (length === 0) return 0;
    if (loss === "dr_grpo") return 1 / (samples * maxLength);
    return loss === "dapo" || loss === "cispo" ? 1 / tokens : 1 / (samples * length);
  });
}
