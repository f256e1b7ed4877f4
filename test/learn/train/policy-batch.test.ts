import { afterAll, describe, expect, it } from "vitest";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { policyLoss } from "../../../src/learn/losses/grpo.ts";
import { POLICY_LOSSES } from "../../../src/learn/losses/settings.ts";
import { packInto } from "../../../src/learn/optim/pack.ts";
import type { TrainingSequence } from "../../../src/learn/optim/rows.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import { miniBatches, type PolicyObjective, rowLengthsFor } from "../../../src/learn/train/policy-batch.ts";
import { initializeLlama } from "../../../src/model/arch/llama.ts";
import { POLICY_SCALARS } from "./batches.ts";
import { type MadeSample, madeGroup } from "./rollouts.ts";

const OBJECTIVE: PolicyObjective = {
  loss: "grpo",
  scaling: "none",
  maxNewTokens: 10,
  overlong: "keep",
  klBeta: 0,
  entropyBonus: 0,
  updatesPerRollout: 1,
};

const random = (): Random => new Random(1);

/** What a sequence says of itself: length of its completion, weight and advantage. */
const gist = ({ extra, weights }: TrainingSequence) => ({
  length: Array.from(extra!["counts"]!).filter((x) => x === 1).length,
  weight: Array.from(weights).at(-1)!,
  advantage: Array.from(extra!["advantage"]!).at(-1)!,
});

const rows = (...groups: MadeSample[][]) => groups.map((samples) => madeGroup(samples));

describe("training sequences of a rollout", () => {
  it("hold prompt and completion, with nothing to learn on the prompt", () => {
    const [[one]] = miniBatches(
      rows([
        { reward: 1, length: 2, logp: -0.25 },
        { reward: 0, length: 4 },
      ]),
      OBJECTIVE,
      random(),
    ) as [[TrainingSequence]];
    expect(one).toEqual({
      ids: [1, 3, 3, 4],
      weights: [0, 0, 0.25, 0.25],
      extra: {
        counts: [0, 0, 1, 1],
        advantage: [0, 0, 0.5, 0.5],
        sampledLogp: [0, 0, -0.25, -0.25],
        sequenceShare: [0, 0, 0.5, 0.5],
      },
      // The last token of the prompt predicts the first of the completion.
      prefix: { key: 0, length: 1 },
    });
  });

  const mixed = rows(
    [
      { reward: 1, length: 2 },
      { reward: 0, length: 4 },
    ],
    // Rewards whose mean is not exact in binary: their group must still count as equal.
    [
      { reward: 0.1, length: 5 },
      { reward: 0.1, length: 9 },
    ],
  );

  it.each([
    // 1/(N·|o|), N = 4.
    ["grpo", [1 / 8, 1 / 16]],
    ["gspo", [1 / 8, 1 / 16]],
    // 1/Σ|o|, Σ = 20.
    ["dapo", [1 / 20, 1 / 20]],
    ["cispo", [1 / 20, 1 / 20]],
    // 1/(N·L), L = 10.
    ["dr_grpo", [1 / 40, 1 / 40]],
  ] as const)("leave equal groups out but count them: %s", (loss, weights) => {
    const [part] = miniBatches(mixed, { ...OBJECTIVE, loss }, random());
    expect(part!.map(gist)).toEqual([
      { length: 2, weight: weights[0], advantage: 0.5 },
      { length: 4, weight: weights[1], advantage: -0.5 },
    ]);
  });

  it("keep them where KL or entropy speaks of them", () => {
    for (const speaks of [{ klBeta: 0.01 }, { entropyBonus: 0.01 }]) {
      expect(miniBatches(mixed, { ...OBJECTIVE, ...speaks }, random())[0]).toHaveLength(4);
    }
  });

  describe("with a bound below which advantages are thinned", () => {
    // Seven of eight right: 1/8 seven times and -7/8; all right; four of eight.
    const right = (n: number): MadeSample[] =>
      Array.from({ length: 8 }, (_, i) => ({ reward: i < n ? 1 : 0, length: i + 1 }));
    const groups = rows(right(7), right(8), right(4));
    const thinned = { ...OBJECTIVE, klBeta: 0.01, thinBelow: 0.5 };
    const whole = miniBatches(groups, { ...OBJECTIVE, klBeta: 0.01 }, random())[0]!;
    const chanceOf = (advantage: number): number => (Math.abs(advantage) < 0.5 ? 1 / 4 : 1);

    it("train on each as often as its advantage is of the bound, at least one time in four, and weigh it as much more", () => {
      const draws = 2000;
      const seen = new Map<string, number>();
      const nameOf = ({ ids, prefix }: TrainingSequence): string => `${prefix!.key}:${ids.length}`;
      for (let seed = 0; seed < draws; seed++) {
        const [part] = miniBatches(groups, thinned, new Random(seed));
        // 7/4 + 1, 8/4 and 8.
        expect([12, 13]).toContain(part!.length);
        for (const one of part!) {
          seen.set(nameOf(one), (seen.get(nameOf(one)) ?? 0) + 1);
          const { weight, advantage } = gist(one);
          const same = gist(whole.find((other) => nameOf(other) === nameOf(one))!);
          expect(advantage).toBe(same.advantage);
          expect(weight).toBe(same.weight / chanceOf(advantage));
        }
      }
      expect(whole).toHaveLength(24);
      for (const one of whole) {
        const chance = chanceOf(gist(one).advantage);
        expect(Math.abs(seen.get(nameOf(one))! / draws - chance), nameOf(one)).toBeLessThan(0.04);
      }
    });

    it("keep a share between a quarter and all", () => {
      // 2 of 8 right: 3/4 and, six times, -1/4, half of the bound.
      const counts = Array.from({ length: 50 }, (_, seed) => {
        const [part] = miniBatches(rows(right(2)), thinned, new Random(seed));
        expect(new Set(part!.map((one) => gist(one).weight * gist(one).length * 8))).toEqual(new Set([1, 2]));
        return part!.length;
      });
      expect(new Set(counts)).toEqual(new Set([5]));
    });

    it("leave out what nothing speaks of", () => {
      const parts = miniBatches(rows(right(8)), { ...thinned, klBeta: 0 }, random());
      expect(parts).toEqual([[]]);
    });
  });

  it("mask truncated samples, which still count in the mean over samples", () => {
    const groups = rows([
      { reward: 1, length: 2 },
      { reward: 0, length: 10, truncated: true },
    ]);
    const masked = miniBatches(groups, { ...OBJECTIVE, overlong: "mask" }, random());
    expect(masked[0]!.map(gist)).toEqual([{ length: 2, weight: 1 / 4, advantage: 0.5 }]);
    expect(miniBatches(groups, { ...OBJECTIVE, overlong: "keep" }, random())[0]).toHaveLength(2);
    const dapo = miniBatches(groups, { ...OBJECTIVE, overlong: "mask", loss: "dapo" }, random());
    expect(gist(dapo[0]![0]!).weight).toBe(1 / 2);
  });

  it("forget samples that every reward skipped", () => {
    const groups = rows([
      { reward: 1, length: 2 },
      { reward: null, length: 6 },
      { reward: 0, length: 4 },
    ]);
    expect(miniBatches(groups, OBJECTIVE, random())[0]!.map(gist)).toEqual([
      { length: 2, weight: 1 / 4, advantage: 0.5 },
      { length: 4, weight: 1 / 8, advantage: -0.5 },
    ]);
  });

  it("fall into mini-batches at random, each once, each mini-batch with a mean of its own", () => {
    const groups = rows(
      ...Array.from({ length: 6 }, (_, g) => [
        { reward: 1, length: 2 * g + 1 },
        { reward: 0, length: 2 * g + 2 },
      ]),
    );
    const objective = { ...OBJECTIVE, updatesPerRollout: 3 };
    const parts = miniBatches(groups, objective, random()).map((part) => part.map(gist));
    expect(parts.map((part) => part.length)).toEqual([4, 4, 4]);
    const lengths = parts.flat().map(({ length }) => length);
    expect(lengths).not.toEqual(lengths.toSorted((a, b) => a - b));
    expect(lengths.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
    for (const { length, weight } of parts.flat()) expect(weight).toBeCloseTo(1 / (4 * length), 12);
    expect(miniBatches(groups, objective, random())).toEqual(miniBatches(groups, objective, random()));
  });

  it("may leave a mini-batch without anything to learn", () => {
    const groups = rows([
      { reward: 1, length: 1 },
      { reward: 1, length: 2 },
    ]);
    expect(miniBatches(groups, { ...OBJECTIVE, updatesPerRollout: 2 }, random())).toEqual([[], []]);
  });
});

describe("row lengths", () => {
  it.each([
    [160, [80, 160]],
    [150, [80, 152]],
    [129, [72, 136]],
    [16, [8, 16]],
    [8, [8]],
    [5, [8]],
  ])("for sequences up to %i tokens are multiples of 8: the longest and half of it", (longest, lengths) => {
    expect(rowLengthsFor(longest, 4).rowLengths).toEqual(lengths);
    // The longest alone, and two of them with one prompt: its last token is with each.
    expect(rowLengthsFor(longest, 4).sharedRowLengths[0]).toBe(lengths.at(-1));
  });

  it("hold two of the longest completions with one prompt where they share it", () => {
    // A prompt of 33 and 96 new tokens: 32 once, and 97 twice.
    expect(rowLengthsFor(129, 96).sharedRowLengths).toEqual([136, 232]);
  });
});

describe("leaving out samples without a gradient", () => {
  const config = {
    vocabSize: 12,
    hiddenSize: 32,
    intermediateSize: 48,
    layers: 1,
    heads: 2,
    kvHeads: 1,
    headDim: 16,
    rmsNormEpsilon: 1e-6,
    ropeTheta: 10_000,
    maxPositions: 32,
    tieEmbeddings: false,
  };
  let runtime: Runtime | undefined;
  afterAll(() => runtime?.dispose());

  it.each(POLICY_LOSSES)("does not change what is learnt: %s", async (name) => {
    runtime ??= await Runtime.create({ threads: 1 });
    const groups = rows(
      [
        { reward: 1, length: 3 },
        { reward: 0, length: 7 },
      ],
      [
        { reward: 0.1, length: 9 },
        { reward: 0.1, length: 5 },
      ],
    );
    const loss = policyLoss({ loss: name, kl: false, dualClip: false });
    const inputs = loss.tokenInputs.filter((input) => input !== "weights");
    const gradientsOf = async (sequences: readonly TrainingSequence[]) => {
      const trainer = Trainer.create(runtime!, config, initializeLlama(config, 3));
      for (const batch of packInto(sequences, { rowLengths: [16], batchTokens: 32, padId: 0 }, inputs)) {
        await trainer.accumulate(loss, batch, { ...POLICY_SCALARS, entropyBonus: 0 });
      }
      const gradients = trainer.gradients();
      await trainer.dispose();
      return gradients;
    };
    const objective = { ...OBJECTIVE, loss: name };
    const [without] = miniBatches(groups, objective, random());
    // An entropy bonus, too small to be felt, keeps every sample in.
    const [whole] = miniBatches(groups, { ...objective, entropyBonus: 1e-30 }, random());
    expect([without!.length, whole!.length]).toEqual([2, 4]);
    const [expected, got] = [await gradientsOf(whole!), await gradientsOf(without!)];
    for (const [weight, { data }] of Object.entries(expected)) {
      const scale = Math.max(...data.map(Math.abs));
      const worst = Math.max(...data.map((x, i) => Math.abs(x - got[weight]!.data[i]!)));
      expect(worst, weight).toBeLessThanOrEqual(1e-5 * scale);
    }
  });
});
