/** What a step's record says of its rollout. Pure arithmetic over judged groups and the trainer's sums. */

import { mean } from "../../base/numbers.ts";
import type { Statistics } from "../optim/trainer.ts";
import type { RolloutMetrics, Spread } from "../runs/records.ts";
import { type Group, isEqual, type Sample } from "./rollout.ts";

function spread(values: readonly number[]): Spread {
  const center = mean(values);
  return { mean: center, std: Math.sqrt(mean(values.map((x) => (x - center) ** 2))) };
}

const numbers = (values: readonly (number | null)[]): number[] => values.filter((value) => value !== null);

export interface RolloutFacts {
  /** Every group that was sampled, also those that dynamic sampling replaced. */
  readonly drawn: readonly Group<unknown>[];
  /** How many of them were replacements. */
  readonly resampled: number;
  /** Sums over the tokens that went through the backward pass; of none, where nothing was trained on. */
  readonly statistics: Statistics;
  readonly referenceAge?: number;
}

/**
 * Rewards, accuracy and lengths over all that was sampled. Entropy is estimated from the same samples, as the mean of
 * −log π of each token: without bias, and over all of them. Ratio, clipping and KL are over the tokens trained on.
 */
export function rolloutMetrics(facts: RolloutFacts): RolloutMetrics {
  const { drawn, statistics, referenceAge } = facts;
  const samples: Sample[] = drawn.flatMap((group) => group.samples);
  const lengthOf = (part: readonly Sample[]): number => mean(part.map(({ ids }) => ids.length));
  const cut = samples.filter(({ judged }) => judged.truncated);
  const ended = samples.filter(({ judged }) => !judged.truncated);
  const known = numbers(samples.map(({ reward }) => reward));
  const names = Object.keys(samples[0]?.rewards ?? {});
  const perName = names
    .map((name) => [name, numbers(samples.map(({ rewards }) => rewards[name] ?? null))] as const)
    .filter(([, values]) => values.length > 0);
  const logps = samples.flatMap(({ logp }) => logp);
  const { sums, maxima } = statistics;
  const trained = sums["tokens"] ?? 0;
  const share = (name: string): number => (trained === 0 ? 0 : (sums[name] ?? 0) / trained);
  return {
    reward: known.length === 0 ? { mean: 0, std: 0 } : spread(known),
    rewards: Object.fromEntries(perName.map(([name, values]) => [name, spread(values)])),
    equalGroups: mean(drawn.map((group) => (isEqual(group) ? 1 : 0))),
    resampledGroups: facts.resampled,
    pass1: mean(samples.map(({ correct }) => (correct ? 1 : 0))),
    passG: mean(drawn.map((group) => (group.samples.some(({ correct }) => correct) ? 1 : 0))),
    length: {
      all: lengthOf(samples),
      ...(ended.length === 0 ? {} : { terminated: lengthOf(ended) }),
      ...(cut.length === 0 ? {} : { truncated: lengthOf(cut) }),
    },
    truncatedFraction: cut.length / samples.length,
    entropy: -mean(logps),
    ...(sums["kl"] === undefined ? {} : { kl: share("kl") }),
    ...(referenceAge === undefined ? {} : { referenceAge }),
    clipLow: share("clipLow"),
    clipHigh: share("clipHigh"),
    ratio: trained === 0 ? { mean: 1, max: 1 } : { mean: share("ratio"), max: maxima["ratio"]! },
  };
}
