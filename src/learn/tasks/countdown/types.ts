/** What the rooms of Countdown share: the puzzle, and how its numbers may be used. */

export interface Puzzle {
  /** Whole numbers from 0 up. */
  readonly numbers: readonly number[];
  readonly target: number;
}

/** How often each number is to be used. */
export type NumberUse = "at-most-once" | "exactly-once";
