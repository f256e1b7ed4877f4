/** The smallest run that goes through everything that a checkpoint must carry over. */

import { countdownTask } from "../../../src/learn/tasks/countdown/task.ts";
import type { Task } from "../../../src/learn/tasks/task.ts";
import { parseRunConfig, type RunConfig, sizesOf } from "../../../src/learn/train/config.ts";
import { PRESETS } from "../../../src/learn/train/presets.ts";

const { config } = PRESETS.smoke;

/** Two optimizers, several updates a rollout, a reference that is refreshed, groups drawn again, a cold start. */
export const tinyConfig: RunConfig = parseRunConfig({
  ...config,
  threads: 1,
  model: { ...sizesOf(1), width: 32, heads: 2, kvHeads: 1, headWidth: 16, hidden: 48 },
  pretrain: { ...config.pretrain, steps: 6, rows: 2, rowLength: 96 },
  sft: { ...config.sft, steps: 3, rows: 2, rowLength: 96 },
  rl: {
    ...config.rl,
    steps: 7,
    prompts: 3,
    samples: 2,
    maxNewTokens: 12,
    slots: 4,
    klBeta: 0.01,
    referenceEvery: 3,
    updatesPerRollout: 2,
    resampleAttempts: 1,
    entropyBonus: 0.001,
    optimizer: { ...config.rl.optimizer, matrices: "adamw" },
    batchTokens: 64,
  },
  evaluation: { count: 4, samples: 1, temperature: 1 },
  validation: { every: 3, count: 2, temperature: 1 },
  checkpointEvery: 2,
  samplesPerStep: 2,
});

/** Countdown with few held-out prompts, whose good traces are its exploration: enough for a cold start. */
export function tinyTask(): Task<unknown> {
  const task = countdownTask({ heldOutCount: 4 });
  return { ...task, demonstrate: task.explore! } as unknown as Task<unknown>;
}
