import { describe, expect, it } from "vitest";
import type { Statistics } from "../../../src/learn/optim/trainer.ts";
import { addStatistics } from "../../../src/learn/optim/trainer.ts";
import { rolloutMetrics } from "../../../src/learn/train/rollout-metrics.ts";
import { madeGroup } from "./rollouts.ts";

const none = (): Statistics => ({ loss: 0, sums: {}, maxima: {} });

const drawn = [
  madeGroup([
    { reward: 1, length: 10, logp: -0.1 },
    { reward: 0, length: 30, logp: -0.3, truncated: true },
  ]),
  madeGroup([
    { reward: 0, length: 20, logp: -0.2 },
    { reward: 0, length: 20, logp: -0.2 },
  ]),
];

describe("the record of a rollout", () => {
  it("is the arithmetic of its samples", () => {
    const statistics: Statistics = {
      loss: 1,
      sums: { tokens: 40, ratio: 44, clipLow: 4, clipHigh: 2, kl: 8, entropy: 99 },
      maxima: { ratio: 1.75 },
    };
    const metrics = rolloutMetrics({ drawn, resampled: 1, statistics, referenceAge: 7 });
    expect(metrics).toEqual({
      reward: { mean: 0.25, std: Math.sqrt(3) / 4 },
      rewards: { accuracy: { mean: 0.25, std: Math.sqrt(3) / 4 } },
      equalGroups: 0.5,
      resampledGroups: 1,
      pass1: 0.25,
      passG: 0.5,
      length: { all: 20, terminated: 50 / 3, truncated: 30 },
      truncatedFraction: 0.25,
      // (10·0.1 + 30·0.3 + 40·0.2) / 80
      entropy: expect.closeTo(18 / 80, 12),
      kl: 0.2,
      referenceAge: 7,
      clipLow: 0.1,
      clipHigh: 0.05,
      ratio: { mean: 1.1, max: 1.75 },
    });
  });

  it("says that nothing moved when nothing was trained on, and leaves out what was not measured", () => {
    const metrics = rolloutMetrics({
      drawn: [madeGroup([{ reward: null, length: 4, truncated: true, correct: false }])],
      resampled: 0,
      statistics: none(),
    });
    expect(metrics).toMatchObject({
      reward: { mean: 0, std: 0 },
      rewards: {},
      clipLow: 0,
      clipHigh: 0,
      ratio: { mean: 1, max: 1 },
    });
    expect(metrics.length).toEqual({ all: 4, truncated: 4 });
    expect(Object.keys(metrics)).not.toContain("kl");
    expect(JSON.stringify(metrics)).not.toContain("null");
  });

  it("survives JSON unchanged", () => {
    const metrics = rolloutMetrics({ drawn, resampled: 0, statistics: none() });
    expect(JSON.parse(JSON.stringify(metrics))).toEqual(metrics);
  });
});

describe("statistics of micro-batches", () => {
  it("add up, and take the larger maximum", () => {
    const total = none();
    addStatistics(total, { loss: 1, sums: { tokens: 2 }, maxima: { ratio: 1.5 } });
    addStatistics(total, { loss: 2, sums: { tokens: 3, kl: 1 }, maxima: { ratio: 1.25 } });
    expect(total).toEqual({ loss: 3, sums: { tokens: 5, kl: 1 }, maxima: { ratio: 1.5 } });
  });
});
