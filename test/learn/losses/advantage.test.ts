import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/base/errors.ts";
import { advantages, lossWeights } from "../../../src/learn/losses/advantage.ts";
import type { RewardScaling } from "../../../src/learn/losses/settings.ts";
import { readFixture, type StoredArray } from "../../fixture.ts";

interface TrlCase {
  /** Per reward function, one number a sample; null where it skipped. */
  readonly rewards: readonly (readonly (number | null)[])[];
  readonly weights: readonly number[];
  readonly scale_rewards: RewardScaling;
  readonly advantage: StoredArray<"f32">;
}

const trl = readFixture<{ advantages: Record<string, TrlCase> }>("grpo.json").advantages;

/** Weighted sums without what was skipped, in groups of 4; null where everything was. */
function totals({ rewards, weights }: TrlCase): (number | null)[][] {
  const total = (sample: number): number | null => {
    const known = rewards.flatMap((named, i) => {
      const reward = named[sample]!;
      return reward === null ? [] : [reward * weights[i]!];
    });
    return known.length === 0 ? null : known.reduce((a, b) => a + b, 0);
  };
  return [0, 4, 8].map((first) => [0, 1, 2, 3].map((i) => total(first + i)));
}

describe("advantages", () => {
  it.each(Object.entries(trl))("are TRL's: %s", (_, row) => {
    const ours = advantages(totals(row), row.scale_rewards).flat();
    for (const [i, a] of ours.entries()) expect(a, `[${i}]`).toBeCloseTo(row.advantage.data[i]!, 5);
  });

  it("divide by the spread of the group, n − 1 in its denominator", () => {
    // Mean 1, spread √((1 + 0 + 1)/2) = 1.
    expect(advantages([[0, 1, 2]], "group")[0]).toEqual([-1 / 1.0001, 0, 1 / 1.0001]);
  });

  it("divide by the spread of all rewards of the batch", () => {
    // 0, 2, 4, 6: mean 3, spread √(20/3); each group keeps its own mean.
    const spread = Math.sqrt(20 / 3) + 1e-4;
    const rows = advantages(
      [
        [0, 2],
        [4, 6],
      ],
      "batch",
    );
    for (const row of rows) {
      expect(row[0]).toBeCloseTo(-1 / spread, 12);
      expect(row[1]).toBeCloseTo(1 / spread, 12);
    }
  });

  it("divide by nothing with none", () => {
    expect(advantages([[0, 1, 5]], "none")).toEqual([[-2, -1, 3]]);
  });

  it.each(["group", "batch", "none"] as const)(
    "are exactly 0 in a group of equal rewards, scaled by %s",
    (scaling) => {
      fc.assert(
        fc.property(
          fc.double({ min: -1e6, max: 1e6, noNaN: true }),
          fc.integer({ min: 2, max: 64 }),
          (reward, samples) => {
            const [equal] = advantages([new Array<number>(samples).fill(reward), [0, 1]], scaling);
            return equal!.every((a) => a === 0);
          },
        ),
      );
    },
  );

  it("of a skipped sample are 0, and it counts for nothing", () => {
    const [row] = advantages([[1, null, 3]], "none");
    expect(row).toEqual([-1, 0, 1]);
    expect(advantages([[1, null, 3]], "group")[0]![2]).toBe(advantages([[1, 3]], "group")[0]![1]);
    const batch = advantages(
      [
        [1, null, 3],
        [2, 4, null],
      ],
      "batch",
    );
    expect(batch[0]![2]).toBe(
      advantages(
        [
          [1, 3],
          [2, 4],
        ],
        "batch",
      )[0]![1],
    );
  });

  it.each(["group", "batch", "none"] as const)(
    "of a group that is skipped but for one sample are 0, scaled by %s",
    (s) => {
      expect(advantages([[null, 7, null]], s)).toEqual([[0, 0, 0]]);
      expect(advantages([[null, null]], s)).toEqual([[0, 0]]);
    },
  );

  it("need two samples a group", () => {
    expect(() => advantages([[1, 2], [3]], "group")).toThrow(ShapeError);
    expect(() => advantages([[1, 2], [3]], "group")).toThrow(
      "advantages: a group needs at least 2 samples: a lone one has no baseline; got 1. Raise the number of samples per prompt.",
    );
  });

  it("of no group at all are none", () => {
    expect(advantages([], "batch")).toEqual([]);
  });
});

describe("lossWeights", () => {
  const lengths = [4, 1, 0, 5]; // the third is masked out
  it.each([
    ["grpo", [1 / 16, 1 / 4, 0, 1 / 20]],
    ["gspo", [1 / 16, 1 / 4, 0, 1 / 20]],
    ["dapo", [1 / 10, 1 / 10, 0, 1 / 10]],
    ["cispo", [1 / 10, 1 / 10, 0, 1 / 10]],
    ["dr_grpo", [1 / 32, 1 / 32, 0, 1 / 32]],
  ] as const)("of %s, as its formula", (loss, weights) => {
    expect(lossWeights(loss, lengths, 8)).toEqual(weights);
  });

  it("give every completion the same say in grpo, every token in dapo", () => {
    const total = (weights: number[]) => weights.map((w, i) => w * lengths[i]!);
    expect(total(lossWeights("grpo", lengths, 8))).toEqual([1 / 4, 1 / 4, 0, 1 / 4]);
    expect(total(lossWeights("dapo", lengths, 8)).reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
  });

  it.each(["grpo", "gspo", "dapo", "cispo", "dr_grpo"] as const)(
    "of %s are 0 when all are masked out",
    (loss) => {
      expect(lossWeights(loss, [0, 0], 8)).toEqual([0, 0]);
    },
  );
});
