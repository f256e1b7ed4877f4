/**
 * The GRPO family as graphs over predictions.
 *
 * Formulas: DeepSeekMath (arXiv:2402.03300) eq. 3–4, DAPO (2503.14476) eq. 10–13, Dr. GRPO (2503.20783), GSPO (2507.18071),
 * CISPO (2506.13585), two-sided clipping (2505.07291). Normalisation is in the weights: `advantage.ts`.
 */

import type { Value } from "../../compute/graph/ir.ts";
import {
  add,
  and,
  cast,
  equal,
  exp,
  greater,
  less,
  matmul,
  max,
  min,
  mul,
  neg,
  reduceMax,
  reshape,
  scalar,
  stopGradient,
  sub,
  sum,
} from "../../compute/graph/primitives.ts";
import type { Loss } from "./loss.ts";
import type { PolicyLossName } from "./settings.ts";

export interface PolicyLossOptions {
  readonly loss: PolicyLossName;
  /** Adds β·k3 against `referenceLogp`. */
  readonly kl: boolean;
  /** Two-sided clipping: the unclipped ratio is capped at the scalar `ratioCap`. */
  readonly dualClip: boolean;
}

/**
 * The GRPO family. Token inputs: `weights` (normalisation; 0 outside completions), `counts` (1 on completion tokens),
 * `advantage`, `sampledLogp` (log-probability when sampled), `sequenceShare` (1/|o_i| on completion tokens; gspo), and
 * `referenceLogp` with KL. Log-probabilities are those of logits/temperature.
 *
 * Statistics, each a sum over completion tokens: entropy, kl, ratio, clipLow and clipHigh (tokens whose clipped branch
 * was active: ratio below 1 − ε_low with a negative advantage, above 1 + ε_high with a positive one); maximum: ratio.
 */
export function policyLoss({ loss: name, kl, dualClip }: PolicyLossOptions): Loss {
  const gspo = name === "gspo";
  return {
    key: `policy:${name}:${kl}:${dualClip}`,
    tokenInputs: [
      "weights",
      "counts",
      "advantage",
      "sampledLogp",
      ...(gspo ? ["sequenceShare"] : []),
      ...(kl ? ["referenceLogp"] : []),
    ],
    scalars: [
      "temperature",
      "clipLow",
      "clipHigh",
      "entropyBonus",
      ...(dualClip ? ["ratioCap"] : []),
      ...(kl ? ["klBeta"] : []),
    ],
    build(predictions, tokens, { targets, segments }, scalars) {
      const { weights, counts, advantage, sampledLogp, sequenceShare, referenceLogp } = tokens as Record<
        string,
        Value
      >;
      const { temperature, clipLow, clipHigh, entropyBonus, ratioCap, klBeta } = scalars as Record<
        string,
        Value
      >;
      const { logp: policy, entropy } = predictions.logpAndEntropy(targets, temperature!);
      // Outside completions both are meaningless numbers; their difference is set to 0 so that no exp overflows.
      const logRatio = mul(sub(policy, sampledLogp!), counts!);
      const ratio = exp(gspo ? sequenceMean(logRatio, sequenceShare!, segments) : logRatio);
      const floor = sub(1, clipLow!);
      const ceiling = add(1, clipHigh!);

      let surrogate: Value;
      if (name === "cispo") {
        surrogate = mul(mul(stopGradient(min(ratio, ceiling)), advantage!), policy);
      } else {
        const free = dualClip ? min(ratio, ratioCap!) : ratio;
        const clipped = max(min(ratio, ceiling), floor);
        surrogate = min(mul(free, advantage!), mul(clipped, advantage!));
      }
      let perToken = neg(surrogate);

      const sums: Record<string, Value> = {};
      if (kl) {
        const difference = mul(sub(referenceLogp!, policy), counts!);
        const k3 = sub(sub(exp(difference), difference), 1);
        perToken = add(perToken, mul(klBeta!, k3));
        sums["kl"] = sum(mul(k3, counts!));
      }
      perToken = sub(perToken, mul(entropyBonus!, entropy));

      const counted = (condition: Value): Value => sum(mul(cast(condition, "f32"), counts!));
      const zero = scalar(ratio, 0);
      sums["tokens"] = sum(counts!);
      sums["entropy"] = sum(mul(entropy, counts!));
      sums["ratio"] = sum(mul(ratio, counts!));
      const high = greater(ratio, ceiling);
      sums["clipHigh"] = counted(and(high, greater(advantage!, zero)));
      sums["clipLow"] = name === "cispo" ? zero : counted(and(less(ratio, floor), less(advantage!, zero)));
      return {
        loss: sum(mul(weights!, perToken)),
        sums,
        maxima: { ratio: reduceMax(mul(ratio, counts!), [0, 1]) },
      };
    },
  };
}

/**
 * The mean of x over each packed sequence, at every position of it: GSPO's length-normalised log ratio.
 * @param x      f32[B, T]; @param share f32[B, T], 1/|o_i| on completion tokens and 0 elsewhere
 */
function sequenceMean(x: Value, share: Value, segments: Value): Value {
  const [B, T] = x.shape as readonly [number, number];
  const together = cast(equal(reshape(segments, [B, T, 1]), reshape(segments, [B, 1, T])), "f32");
  return reshape(matmul(together, reshape(mul(x, share), [B, T, 1])), [B, T]);
}
