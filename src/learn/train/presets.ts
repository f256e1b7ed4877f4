/**
 * Ready-made configurations, as data. Those that make a model fit a depth of 4 and are carried to others by `withDepth`; `tune`
 * is for one that is loaded.
 */

import { availableParallelism } from "node:os";
import { expectKnown } from "../../base/errors.ts";
import { OPTIMIZER_DEFAULTS } from "../optim/trainer.ts";
import { type FreshRunConfig, type PolicyStageConfig, type RunConfig, sizesOf } from "./config.ts";

export interface Preset {
  /** One line, for help. */
  readonly summary: string;
  readonly config: RunConfig;
}

/** What reinforcement learning has in common: all samples are trained on. */
const RL: Omit<PolicyStageConfig, "steps"> = {
  prompts: 32,
  samples: 8,
  maxNewTokens: 240,
  temperature: 1,
  slots: 256,
  loss: "dr_grpo",
  scaling: "none",
  clipLow: 0.2,
  clipHigh: 0.28,
  // Without it sums that are rarely rewarded are unlearned: + went from 3 % wrong to 35 %, with it to 7 %.
  klBeta: 0.02,
  referenceEvery: 400,
  updatesPerRollout: 1,
  epochs: 1,
  entropyBonus: 0,
  resampleAttempts: 0,
  overlong: "keep",
  overlongSlope: 30,
  rates: { adamW: 0.0008, muon: 0.005 },
  schedule: { warmup: 5, decay: 0.6, final: 0.2 },
  // Muon makes all directions of a gradient equal, and most of a policy gradient is noise: sums were unlearned.
  optimizer: { ...OPTIMIZER_DEFAULTS, matrices: "adamw" },
  batchTokens: 4096,
};

const QUICK: FreshRunConfig = {
  seed: 1,
  threads: availableParallelism(),
  model: sizesOf(4),
  pretrain: {
    // With 1,200 one seed in three copied numbers badly, and came to 72.6 % instead of 76.7.
    steps: 1400,
    rows: 14,
    rowLength: 224,
    rates: { adamW: 0.008, muon: 0.02 },
    schedule: { warmup: 50, decay: 0.5, final: 0.05 },
    optimizer: OPTIMIZER_DEFAULTS,
  },
  sft: {
    steps: 0,
    rows: 24,
    rowLength: 160,
    rates: { adamW: 0.001, muon: 0.01 },
    schedule: { warmup: 20, decay: 0.3, final: 0.05 },
    optimizer: OPTIMIZER_DEFAULTS,
  },
  rl: {
    ...RL,
    steps: 80,
    // Training then takes half as long, for a fifth more noise.
    thinBelow: 0.5,
    // Twice the usual norm: the KL term's tail, a token that the base finds likely and the policy hardly ever writes, makes ten times that. Where
    // completions are limited to fewer tokens norms are as much larger, and each step is held; AdamW makes up for what is the same in all.
    optimizer: { ...RL.optimizer, clipNorm: 0.02 },
  },
  // As DeepSeek samples when it measures (arXiv:2501.12948, section 3).
  evaluation: { count: 1000, samples: 1, temperature: 0.6, topP: 0.95 },
  validation: { every: 20, count: 128, temperature: 0.6, topP: 0.95 },
  checkpointEvery: 25,
  samplesPerStep: 4,
  // Without checked drills some seeds' bases say yes to one wrong result in twenty, and reinforcement does not mend it.
  countdown: { game: "quick", formatWeight: 0.1, explore: { checked: 0.25 } },
};

const R1: FreshRunConfig = {
  ...QUICK,
  pretrain: { ...QUICK.pretrain, steps: 200 },
  // As many as leave reinforcement something to add: after 1,450 it added nothing, and ended no higher.
  sft: { ...QUICK.sft, steps: 1100, rates: { adamW: 0.004, muon: 0.015 } },
  // After a cold start few prompts are answered now right and now wrong, and only those teach: more are drawn until there are enough. What
  // it can do is soon undone: at the rate that R1-Zero learns with, accuracy fell from 90 to 86 %.
  rl: {
    ...RL,
    steps: 80,
    thinBelow: 0.5,
    maxNewTokens: 160,
    klBeta: 0,
    resampleAttempts: 4,
    rates: { ...RL.rates, adamW: 0.0004 },
  },
  // What it adds is a point or two, less than one sample each can tell from chance.
  evaluation: { ...QUICK.evaluation, samples: 4 },
  // From the target back a thought is a third as long, and what it needs of a number it says.
  countdown: { game: "cd3", formatWeight: 0.1, explore: { thoughts: "backward" } },
};

const LONG: FreshRunConfig = {
  ...R1,
  pretrain: { ...R1.pretrain, steps: 600, rows: 6, rowLength: 512 },
  // With 5,000 steps the same run came to 85.6 %: false ✓ and answers copied wrongly become half as many.
  sft: { ...R1.sft, steps: 9000, rows: 7, rowLength: 704 },
  rl: { ...R1.rl, steps: 40, maxNewTokens: 704 },
  evaluation: QUICK.evaluation,
  checkpointEvery: 50,
  countdown: { ...R1.countdown, game: "long" },
};

const SMOKE: FreshRunConfig = {
  ...QUICK,
  model: sizesOf(2),
  pretrain: {
    ...QUICK.pretrain,
    steps: 150,
    rows: 8,
    rowLength: 128,
    schedule: { ...QUICK.pretrain.schedule, warmup: 5 },
  },
  sft: { ...QUICK.sft, rows: 8, rowLength: 128 },
  rl: { ...QUICK.rl, steps: 8, prompts: 8, samples: 4, maxNewTokens: 96, slots: 32, batchTokens: 1024 },
  evaluation: { count: 64, samples: 1, temperature: 1, topP: 1 },
  validation: { every: 4, count: 16, temperature: 1, topP: 1 },
  checkpointEvery: 25,
};

const { model: _, ...REST } = QUICK;

/** Reinforcement learning on a pretrained model: few prompts and small steps, since every token costs a hundred times as much. */
const TUNE: RunConfig = {
  ...REST,
  pretrain: { ...QUICK.pretrain, steps: 0 },
  sft: {
    ...QUICK.sft,
    rows: 4,
    rowLength: 256,
    rates: { adamW: 1e-5, muon: 0 },
    optimizer: { ...OPTIMIZER_DEFAULTS, matrices: "adamw" },
  },
  rl: {
    ...RL,
    steps: 20,
    prompts: 8,
    samples: 8,
    maxNewTokens: 128,
    slots: 32,
    klBeta: 0.01,
    rates: { adamW: 5e-6, muon: 0 },
    schedule: { warmup: 2, decay: 0.3, final: 0.2 },
    batchTokens: 1024,
  },
  evaluation: { count: 64, samples: 1, temperature: 0.6, topP: 0.95 },
  validation: { every: 0, count: 32, temperature: 0.6, topP: 0.95 },
  checkpointEvery: 10,
};

/** The preset of a run that loads a model. */
export const TUNE_PRESET = "tune";

export const PRESETS = {
  quick: {
    summary: "R1-Zero: a base, then reinforcement learning alone",
    config: QUICK,
  },
  r1: { summary: "R1: a cold start on good traces in between", config: R1 },
  long: { summary: "the bigger game, in about an hour", config: LONG },
  smoke: { summary: "the smallest run, in seconds", config: SMOKE },
  tune: { summary: "a pretrained model, named by --model", config: TUNE },
} as const satisfies Readonly<Record<string, Preset>>;

export type PresetName = keyof typeof PRESETS;

/** @throws ConfigError suggesting the nearest name */
export function presetNamed(name: string): Preset {
  expectKnown("--preset", name, Object.keys(PRESETS));
  return PRESETS[name as PresetName];
}
