/**
 * Countdown puzzles, drawn at random and always solvable, with training, validation and test puzzles disjoint by
 * content: the same numbers in another order with the same target are the same puzzle.
 *
 * The rules for results on the way, whole and not below zero, are those of the generator behind the 3- and 4-number
 * game of TinyZero and stream-of-search (kanishkg/stream-of-search, src/countdown_utils.py at d17cce8); the ranges are
 * those of the 256 published 3-number test puzzles.
 */
import { ConfigError } from "../../../base/errors.ts";
import { Random } from "../../../compute/tensor/random.ts";
import { publishedHashes } from "./published.ts";
import { makeable, sumsMake } from "./solve.ts";
import type { Puzzle } from "./types.ts";

export type { Puzzle } from "./types.ts";

/** `published`: the 256 test puzzles that others report on, in no other split. */
export type Split = "train" | "validation" | "test" | "published";

/** Inclusive bounds. */
export interface Range {
  readonly min: number;
  readonly max: number;
}

export interface GameOptions {
  /** How many numbers a puzzle has; each count with the same chance. 2 to 6. @default [3, 4] */
  readonly counts?: readonly number[];
  /** @default 1 to 100 */
  readonly numbers?: Range;
  /** @default 1 to 100 */
  readonly target?: Range;
  /**
   * `any`: all numbers together make the target. `times-or-divide`: and no sums and differences of some of the numbers
   * do, so that × or ÷ is needed. @default "any"
   */
  readonly needs?: "any" | "times-or-divide";
  /** What no result on the way need exceed. @default none */
  readonly largest?: number;
  /** @default "train" */
  readonly split?: Exclude<Split, "published">;
}

/** Never change it: it decides which puzzles are held out. */
const CONTENT_SEED = 2501_12948;
/** Shares of all puzzles, by hash of their content. */
const VALIDATION_SHARE = 0.1;
const TEST_SHARE = 0.1;
/** Draws in a row that may all fail before a game counts as having no puzzles. */
const MOST_TRIES = 1_000_000;

/** What makes two puzzles the same: `18,75,83:10`. */
export function contentKey({ numbers, target }: Puzzle): string {
  return `${numbers.toSorted((a, b) => a - b).join(",")}:${target}`;
}

/** 53 bits that depend on a puzzle's content alone. */
export function contentHash({ numbers, target }: Puzzle): number {
  const stream = new Random(CONTENT_SEED, target, ...numbers.toSorted((a, b) => a - b));
  return stream.uniform() * 2 ** 53;
}

/** The split a puzzle belongs to, in every game and on every machine. */
export function splitOf(puzzle: Puzzle): Split {
  const hash = contentHash(puzzle);
  if (publishedHashes.has(hash)) return "published";
  const position = hash / 2 ** 53;
  if (position < VALIDATION_SHARE) return "validation";
  return position < VALIDATION_SHARE + TEST_SHARE ? "test" : "train";
}

function checkRange(field: string, { min, max }: Range): void {
  if (Number.isSafeInteger(min) && Number.isSafeInteger(max) && min >= 1 && min <= max) return;
  throw new ConfigError({
    where: `countdown: ${field}`,
    rule: "needs whole numbers with 1 ≤ min ≤ max",
    got: `min ${min}, max ${max}`,
  });
}

/**
 * A source of puzzles: numbers are drawn uniformly until they make some target of the game, then one of those targets.
 * Uniform numbers and targets together would draw some thirty times as often for the same number of puzzles.
 * @throws ConfigError for options outside their rules; from the source, when the game has no puzzle
 */
export function puzzleSource(options: GameOptions = {}): (random: Random) => Puzzle {
  const {
    counts = [3, 4],
    numbers: range = { min: 1, max: 100 },
    target: goal = { min: 1, max: 100 },
  } = options;
  const { needs = "any", largest, split = "train" } = options;
  checkRange("numbers", range);
  checkRange("target", goal);
  if (counts.length === 0 || !counts.every((count) => Number.isInteger(count) && count >= 2 && count <= 6)) {
    throw new ConfigError({
      where: "countdown: counts",
      rule: "must be from 2 to 6",
      got: `[${counts.join(", ")}]`,
    });
  }
  if (range.max ** Math.max(...counts) > Number.MAX_SAFE_INTEGER) {
    throw new ConfigError({
      where: "countdown: numbers",
      rule: "must have exact products",
      got: `${Math.max(...counts)} numbers up to ${range.max}`,
      remedy: "Lower max or counts",
    });
  }
  const within = ({ min, max }: Range, random: Random): number => min + random.integer(max - min + 1);
  return (random) => {
    const count = random.pick(counts);
    for (let tries = 0; tries < MOST_TRIES; tries++) {
      const numbers = Array.from({ length: count }, () => within(range, random));
      const targets = [...makeable(numbers, largest)].filter(
        (target) =>
          target >= goal.min && target <= goal.max && (needs === "any" || !sumsMake(numbers, target)),
      );
      if (targets.length === 0) continue;
      const puzzle = { numbers, target: random.pick(targets) };
      if (splitOf(puzzle) === split) return puzzle;
    }
    throw new ConfigError({
      where: "countdown",
      rule: "the game must have puzzles",
      got: `none in ${MOST_TRIES} draws of ${count} numbers from ${range.min} to ${range.max}`,
      remedy: "Widen numbers or target, or drop needs",
    });
  };
}
