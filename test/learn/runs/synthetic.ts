/** Records of a made-up run that goes well, for tests of what reads them. */

import type {
  RolloutMetrics,
  RunResult,
  SampleRecord,
  StepMetrics,
} from "../../../src/learn/runs/records.ts";

/** Step `index` of `steps` of reinforcement learning: accuracy and length rise together. */
export function step(
  index: number,
  steps: number,
  change: Partial<StepMetrics> = {},
  rl: Partial<RolloutMetrics> = {},
): StepMetrics {
  const progress = index / steps;
  const pass1 = 0.2 + 0.5 * progress;
  return {
    stage: "rl",
    step: index + 1,
    steps,
    loss: 0.01,
    gradientNorm: 0.5,
    learningRate: 1e-3,
    tokens: { rollout: 1000, train: 1000, total: 1000 * (index + 1) },
    flops: 1e9,
    rl: {
      reward: { mean: pass1, std: 0.4 },
      rewards: { accuracy: { mean: pass1, std: 0.4 }, format: { mean: 0.9, std: 0.1 } },
      equalGroups: 0.3,
      resampledGroups: 0,
      pass1,
      passG: 0.8,
      length: { all: 40 + 40 * progress },
      truncatedFraction: 0.05,
      entropy: 0.3,
      clipLow: 0.01,
      clipHigh: 0.01,
      ratio: { mean: 1.001, max: 1.5 },
      ...rl,
    },
    timing: {
      elapsed: index,
      phases: {},
      trainTokensPerSecond: 1000,
      rolloutTokensPerSecond: 2000,
      rssBytes: 1e8,
    },
    ...change,
  };
}

/** A step before reinforcement learning. */
export function pretrainStep(index: number, steps: number): StepMetrics {
  const { rl: _, ...rest } = step(index, steps);
  return { ...rest, stage: "pretrain", loss: 3 / (1 + index / 10) };
}

export function sample(step: number, change: Partial<SampleRecord> = {}): SampleRecord {
  return {
    stage: "rl",
    step,
    id: `countdown-${step}`,
    prompt: "83 18 75:10",
    completion: "<think>83-18=64 no;83-18=65;75-65=10 yes</think><answer>75-(83-18)</answer>",
    rewards: { accuracy: 1, format: 1 },
    reward: 1.1,
    correct: true,
    tokens: 62,
    truncated: false,
    ...change,
  };
}

export function result(change: Partial<RunResult> = {}): RunResult {
  const summary = { count: 1000, samplesPerPrompt: 1, passK: { "1": 0.2 }, truncatedFraction: 0.02 };
  return {
    name: "countdown-quick-2026-11-23-1",
    task: "countdown",
    preset: "quick",
    seed: 1,
    parameters: 796_000,
    minutes: 9.4,
    stages: [
      { stage: "pretrain", steps: 300, minutes: 3.1 },
      { stage: "rl", steps: 150, minutes: 5.8 },
    ],
    base: { ...summary, pass1: 0.231, interval: [0.206, 0.258], meanLength: 41.2 },
    final: {
      ...summary,
      pass1: 0.784,
      interval: [0.757, 0.808],
      meanLength: 78.5,
      passK: { "1": 0.784, "8": 0.93 },
    },
    sampling: { temperature: 0.6, topP: 0.95 },
    tokens: 12_400_000,
    flops: 7.1e13,
    cpuHours: 0.313,
    dollars: 0.015,
    solved: [sample(150), sample(149)],
    firstBacktrack: sample(12),
    model: "runs/countdown-quick-2026-11-23-1/model",
    ...change,
  };
}
