/** From judged groups to packed batches: advantages, normalisation, mini-batches. Pure host functions. */

import type { Random } from "../../compute/tensor/random.ts";
import { advantages, lossWeights } from "../losses/advantage.ts";
import type { BucketShape } from "../optim/pack.ts";
import type { TrainingSequence } from "../optim/rows.ts";
import type { PolicyStageConfig } from "./config.ts";
import type { Group, Sample } from "./rollout.ts";

/** What the normalisation and the loss depend on. */
export type PolicyObjective = Pick<
  PolicyStageConfig,
  | "loss"
  | "scaling"
  | "maxNewTokens"
  | "overlong"
  | "klBeta"
  | "entropyBonus"
  | "updatesPerRollout"
  | "thinBelow"
>;

interface Scored {
  /** Of the rollout's groups, which. */
  readonly group: number;
  readonly prompt: readonly number[];
  readonly sample: Sample;
  readonly advantage: number;
}

/** Of samples whose advantage is far below `thinBelow`, at least one in so many is trained on: KL and entropy speak of it, too. */
const SELDOMEST = 4;

/** Every item with a probability of its own, in as even a spread as they have: about as many as the probabilities add up to. */
function drawEach<T>(items: readonly T[], probability: (item: T) => number, random: Random): T[] {
  let total = random.uniform();
  return items.filter((item) => {
    const before = Math.floor(total);
    total += probability(item);
    return Math.floor(total) > before;
  });
}

/**
 * Splits the samples of a rollout into mini-batches, one update each, and makes training sequences of them. A sample that no gradient
 * flows through, because its advantage is 0 and neither KL nor entropy speaks of it, is left out of the sequences; it counts in the
 * normalisation as if it were there. Samples that every reward skipped count for nothing. With `thinBelow` a sample of an advantage a is
 * trained on with the probability |a| / thinBelow, 1/4 at least and 1 at most, and weighs as much more as it is rarer: the same gradient on average, most of it from
 * samples that say most.
 */
export function miniBatches<Row>(
  groups: readonly Group<Row>[],
  objective: PolicyObjective,
  random: Random,
): TrainingSequence[][] {
  const { updatesPerRollout: updates, klBeta, entropyBonus, overlong, loss, maxNewTokens } = objective;
  const { thinBelow = 0 } = objective;
  const chance = ({ advantage }: Scored): number =>
    thinBelow === 0 ? 1 : Math.min(1, Math.max(Math.abs(advantage) / thinBelow, 1 / SELDOMEST));
  const table = advantages(
    groups.map(({ samples }) => samples.map(({ reward }) => reward)),
    objective.scaling,
  );
  const scored: Scored[] = groups
    .flatMap(({ prompt, samples }, g) =>
      samples.map((sample, s) => ({ group: g, prompt, sample, advantage: table[g]![s]! })),
    )
    .filter(({ sample }) => sample.reward !== null);
  if (updates > 1) random.shuffle(scored);
  return Array.from({ length: updates }, (_, update) => {
    const part = scored.filter((_, i) => i % updates === update);
    const lengths = part.map(({ sample }) =>
      overlong === "mask" && sample.judged.truncated ? 0 : sample.ids.length,
    );
    const weights = lossWeights(loss, lengths, maxNewTokens);
    const learnt = part
      .map((one, i) => ({ one, weight: weights[i]! }))
      .filter(({ one, weight }) => weight > 0 && (one.advantage !== 0 || klBeta > 0 || entropyBonus > 0));
    return drawEach(learnt, ({ one }) => chance(one), random).map(({ one, weight }) =>
      policySequence(one, weight / chance(one)),
    );
  });
}

function policySequence({ group, prompt, sample, advantage }: Scored, weight: number): TrainingSequence {
  const length = sample.ids.length;
  const overPrompt = prompt.map(() => 0);
  const constant = (value: number): number[] => [...overPrompt, ...sample.ids.map(() => value)];
  return {
    ids: [...prompt, ...sample.ids],
    weights: constant(weight),
    // The last token of a prompt predicts the first of a completion, which is another in each.
    prefix: { key: group, length: prompt.length - 1 },
    extra: {
      counts: constant(1),
      advantage: constant(advantage),
      sampledLogp: [...overPrompt, ...sample.logp],
      sequenceShare: constant(1 / length),
    },
  };
}

/** Rows of a multiple of 8 are worked on as fast as of 16; of 4, or of any number, they are slower by more than they save. */
const ROW_STEP = 8;

/**
 * The row lengths for sequences of up to `longest` tokens, of which `maxNewTokens` at most are completion. Most sequences are far
 * shorter than the longest, and attention costs rows their square. Rows for two of the longest that share their prompt are shared.
 */
export function rowLengthsFor(
  longest: number,
  maxNewTokens: number,
): Required<Pick<BucketShape, "rowLengths" | "sharedRowLengths">> {
  const rounded = (length: number): number => ROW_STEP * Math.ceil(length / ROW_STEP);
  const [half, long] = [rounded(longest / 2), rounded(longest)];
  return {
    rowLengths: half < long ? [half, long] : [long],
    sharedRowLengths: [long, rounded(longest + maxNewTokens + 1)],
  };
}
