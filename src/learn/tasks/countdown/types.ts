/** What the rooms of Countdown share: the puzzle, and how its numbers may be used. */

export interface Puzzle {
  /** Whole numbers from 0 up. */
  readonly numbers: readonly number[];
  readonly target: number;
}

/** How often each number is to be used. */
export const NUMBER_USES = ["at-most-once", "exactly-once"] as const;
export type NumberUse = (typeof NUMBER_USES)[number];
