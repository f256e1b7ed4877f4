/** The smallest run that goes through everything that a checkpoint must carry over. */

import { countdownTask } from "../../../src/learn/tasks/countdown/task.ts";
import type { Task } from "../../../src/learn/tasks/task.ts";
import { parseRunConfig, type RunConfig } from "../../../src/learn/train/config.ts";
import { PRESETS } from "../../../src/learn/train/presets.ts";

const { config } = PRESETS.smoke;

/** Both optimizers, a cold start, several updates a rollout, a reference that is refreshed, groups drawn again, samples left out. */
export const TINY: RunConfig = parseRunConfig({
  ...config,
  threads: 1,
  model: { layers: 1, width: 32, heads: 2, kvHeads: 1, headWidth: 16, hidden: 48 },
  pretrain: { ...config.pretrain, steps: 12, rows: 2, rowLength: 96 },
  sft: { ...config.sft, steps: 5, rows: 2, rowLength: 96 },
  rl: {
    ...config.rl,
    steps: 16,
    prompts: 3,
    samples: 2,
    maxNewTokens: 12,
    slots: 4,
    klBeta: 0.01,
    referenceEvery: 3,
    updatesPerRollout: 2,
    resampleAttempts: 1,
    thinBelow: 0.05,
    optimizer: { ...config.rl.optimizer, matrices: "adamw" },
    batchTokens: 64,
  },
  evaluation: { count: 4, samples: 2, temperature: 1 },
  validation: { every: 3, count: 2, temperature: 1 },
  checkpointEvery: 3,
  samplesPerStep: 2,
});

/**
 * Countdown with a reward that even a model of a few thousand weights earns now and then: digits. It counts as correct to
 * write five, and as having gone back to write two in a row.
 */
export function tinyTask(): Task<unknown> {
  // Without tokens of their own for numbers: a smaller vocabulary is a smaller model.
  const { tokens: _, ...task } = countdownTask({ heldOutCount: 4 });
  const digits = (text: string): number => text.replaceAll(/\D/g, "").length;
  return {
    ...task,
    demonstrate: task.explore!,
    rewards: { digits: { weight: 0.1, reward: ({ text }) => digits(text) } },
    correct: ({ text }) => digits(text) >= 5,
    wentBack: ({ text }) => /\d\d/.test(text),
  } as Task<unknown>;
}
