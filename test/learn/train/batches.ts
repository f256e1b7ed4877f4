/** A model and batches for tests of training, from a seed. */

import { Random } from "../../../src/compute/tensor/random.ts";
import type { PolicyLossName } from "../../../src/learn/losses/settings.ts";
import { layOut, type PackedBatch, type TrainingSequence } from "../../../src/learn/optim/rows.ts";
import type { LlamaConfig } from "../../../src/model/arch/llama.ts";

/** Small enough that every weight can be moved by itself. */
export const SMALL: LlamaConfig = {
  vocabSize: 7,
  hiddenSize: 8,
  intermediateSize: 6,
  layers: 1,
  heads: 2,
  kvHeads: 1,
  headDim: 4,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 1e4,
  maxPositions: 32,
  tieEmbeddings: false,
};

/** Random tokens, each weighing 1/total so that the loss is their mean. */
export function randomSequences(
  seed: number,
  lengths: readonly number[],
  vocabSize: number,
): TrainingSequence[] {
  const random = new Random(seed);
  const predicted = lengths.reduce((total, n) => total + n - 1, 0);
  return lengths.map((n) => ({
    ids: Array.from({ length: n }, () => random.integer(vocabSize)),
    weights: Array.from({ length: n }, () => 1 / predicted),
  }));
}

/** Everything in one batch of the given rows, each a list of sequence numbers. */
export function batchOf(
  sequences: readonly TrainingSequence[],
  rows: readonly (readonly number[])[],
  rowLength: number,
  extraNames: readonly string[] = [],
): PackedBatch {
  return layOut(sequences, rows, { batch: rows.length, rowLength, padId: 0 }, extraNames);
}

/** Scalars that every policy loss finds what it needs in. */
export const POLICY_SCALARS: Readonly<Record<string, number>> = {
  temperature: 1,
  clipLow: 0.2,
  clipHigh: 0.28,
  entropyBonus: 0.01,
  ratioCap: 3,
  klBeta: 0.05,
};

/** Random completions with advantages and log-probabilities for a policy loss; the first token is the prompt. */
export function policySequences(
  seed: number,
  lengths: readonly number[],
  vocabSize: number,
  loss: PolicyLossName,
): { readonly sequences: TrainingSequence[]; readonly extraNames: string[] } {
  const random = new Random(seed, 1);
  const tokens = lengths.reduce((total, n) => total + n - 1, 0);
  const sequences = randomSequences(seed, lengths, vocabSize).map(({ ids }, i) => {
    const each = (value: () => number): number[] => Array.from({ length: ids.length }, value);
    const advantage = random.normal();
    const length = lengths[i]! - 1;
    return {
      ids,
      weights: each(() => (loss === "dapo" || loss === "cispo" ? 1 / tokens : 1 / (lengths.length * length))),
      extra: {
        counts: each(() => 1),
        advantage: each(() => advantage),
        sampledLogp: each(() => -Math.log(vocabSize) + 0.3 * random.normal()),
        referenceLogp: each(() => -Math.log(vocabSize) + 0.3 * random.normal()),
        sequenceShare: each(() => 1 / length),
      },
    };
  });
  return { sequences, extraNames: Object.keys(sequences[0]!.extra) };
}
