/**
 * The random streams of a run: each draw is named by the run's seed, one of these, and the step, prompt and sample it is
 * for, so that any of them can be drawn again without what came before.
 */
export const STREAMS = {
  /** [step, index of the text]. */
  pretrain: 1,
  sft: 2,
  /** [step, prompt, attempt]. */
  prompt: 3,
  /** [step, prompt, attempt, sample]. */
  completion: 4,
  /** [step]: which samples go into which mini-batch, and which of them are trained on. */
  order: 5,
} as const;
