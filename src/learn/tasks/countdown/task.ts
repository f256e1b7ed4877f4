/** Countdown as a task: puzzles to draw, rule rewards, and what a base model reads about the game. */
import { ConfigError, expectKnown } from "../../../base/errors.ts";
import { Random } from "../../../compute/tensor/random.ts";
import type { ChatMessage } from "../../../model/text/chat-template.ts";
import { cosineLength, repetitionPenalty } from "../rewards.ts";
import type { Example, Task, WeightedReward } from "../task.ts";
import { contentKey, type GameOptions, puzzleSource } from "./puzzle.ts";
import {
  COUNTDOWN_ALPHABET,
  COUNTDOWN_TOKENS,
  demonstrate,
  drill,
  EXPLORE_DEFAULTS,
  type ExploreOptions,
  explorationPuzzle,
  explore,
  giveUp,
  puzzlePrompt,
} from "./traces.ts";
import type { NumberUse, Puzzle } from "./types.ts";
import { type CountdownRules, countdownRewards, verifyCountdown } from "./verify.ts";
import { HIT, MISS } from "./walks.ts";

/**
 * The games by name.
 *
 * - `quick`: three numbers of which sums and differences alone do not make the target, so that guessing does not get far;
 * - `long`: three and four numbers, as in TinyZero's game (Jiayi-Pan/Countdown-Tasks-3to4);
 * - `cd3`: what the 256 published 3-number puzzles were drawn from.
 */
export const COUNTDOWN_GAMES = {
  quick: {
    counts: [3],
    numbers: { min: 1, max: 40 },
    target: { min: 10, max: 99 },
    needs: "times-or-divide",
    largest: EXPLORE_DEFAULTS.largest,
  },
  long: { counts: [3, 4], numbers: { min: 1, max: 99 }, target: { min: 10, max: 99 } },
  cd3: { counts: [3], numbers: { min: 1, max: 100 }, target: { min: 1, max: 100 } },
} as const satisfies Readonly<Record<string, GameOptions>>;

export type CountdownGame = keyof typeof COUNTDOWN_GAMES;

export interface CountdownOptions {
  /** @default "quick" */
  readonly game?: CountdownGame;
  /** Weight of the format reward; a right answer weighs 1. @default 0.1 */
  readonly formatWeight?: number;
  /** How often each number is to be used. @default "at-most-once" */
  readonly use?: CountdownRules["use"];
  /** Weight of {@link repetitionPenalty}, by characters of ten in a row. @default 0 */
  readonly repetitionWeight?: number;
  /** Weight of {@link cosineLength}, and the length at which its curves end. @default none */
  readonly length?: { readonly weight: number; readonly maxTokens: number };
  /** Where the prompts to evaluate on come from. @default "validation" */
  readonly heldOut?: "validation" | "test";
  /** How many of them. @default 1000 */
  readonly heldOutCount?: number;
  /** How what a base model reads is written. */
  readonly explore?: ExploreOptions;
}

/** Characters that are written again: shorter runs, of sums and their results, come back in any search. */
const REPEATED = 10;

/** What shapes completions beside being right and well-formed: what has a weight. */
function shaping(
  rules: CountdownRules,
  { repetitionWeight = 0, length }: CountdownOptions,
): Readonly<Record<string, WeightedReward<Puzzle>>> {
  const rewards: Record<string, WeightedReward<Puzzle>> = {};
  if (repetitionWeight !== 0) {
    const reward = repetitionPenalty({ unit: "characters", size: REPEATED });
    rewards["repetition"] = { weight: repetitionWeight, reward };
  }
  if (length !== undefined && length.weight !== 0) {
    const reward = cosineLength<Puzzle>({
      isCorrect: ({ text }, { row }) => verifyCountdown(row, text, rules).accuracy === 1,
      maxTokens: length.maxTokens,
    });
    rewards["length"] = { weight: length.weight, reward };
  }
  return rewards;
}

/** Held-out puzzles are drawn with this seed whatever the run's, so that all runs are measured on the same. */
const HELD_OUT_SEED = 3;

/** How often each number is to be used, in words. */
export const USE_IN_WORDS: Readonly<Record<NumberUse, string>> = {
  "at-most-once": "each at most once",
  "exactly-once": "each exactly once",
};

/** A puzzle in words, for a model that was not brought up on the notation. */
function asked({ numbers, target }: Puzzle, use: NumberUse): ChatMessage[] {
  const content =
    `Use the numbers ${numbers.join(", ")}, ${USE_IN_WORDS[use]}, with + - * / and brackets, to make ${target}. ` +
    "Think step by step between <think> and </think>. Then write the expression alone between <answer> and </answer>, " +
    "for example <answer>(1 + 2) * 3</answer>.";
  return [{ role: "user", content }];
}

/**
 * @param options.id   @default the puzzle's content
 * @param options.use  what its words ask for. @default "at-most-once"
 */
export function puzzleExample(
  puzzle: Puzzle,
  options: { readonly id?: string | number | undefined; readonly use?: NumberUse | undefined } = {},
): Example<Puzzle> {
  const { id = contentKey(puzzle), use = "at-most-once" } = options;
  return { id: String(id), prompt: puzzlePrompt(puzzle), messages: asked(puzzle, use), row: puzzle };
}

/** Share of what a base reads that is sums apart from puzzles. */
const DRILL_SHARE = 0.3;

/**
 * Of what a cold start shows, the shares that are no solution of a puzzle of the game: sums, which are else unlearned; and
 * puzzles that have none, since whoever has only read thoughts that succeed sees success where there is none.
 */
const GOOD_SHARES = { drills: 0.2, hopeless: 0.15 };

/** Of the puzzles to train on, those drawn among the ones that need × or ÷, which else are few in most games. */
const HARDER_SHARE = 0.4;

/** Draws in a row that may all repeat a puzzle before a split counts as exhausted. */
const MOST_REPEATS = 2_000;

/**
 * Different puzzles of a split, in a fixed order.
 * @throws ConfigError when the split has fewer
 */
function heldOutExamples(
  game: GameOptions,
  split: "validation" | "test",
  count: number,
  use: NumberUse,
): Example<Puzzle>[] {
  const draw = puzzleSource({ ...game, split });
  const byKey = new Map<string, Example<Puzzle>>();
  for (let i = 0, repeats = 0; byKey.size < count; i++) {
    const example = puzzleExample(draw(new Random(HELD_OUT_SEED, i)), { use });
    repeats = byKey.has(example.id) ? repeats + 1 : 0;
    if (repeats === 0) byKey.set(example.id, example);
    if (repeats > MOST_REPEATS) {
      throw new ConfigError({
        where: "countdown: heldOutCount",
        rule: `the game's ${split} puzzles must suffice`,
        got: `${count} asked for, about ${byKey.size} there`,
        remedy: "Ask for fewer, or choose a larger game",
      });
    }
  }
  return [...byKey.values()];
}

/** Length of the longest prompt of a game in characters, which no tokenization exceeds. */
function longestPrompt(game: GameOptions): number {
  const puzzle = {
    numbers: Array.from({ length: Math.max(...game.counts!) }, () => game.numbers!.max),
    target: game.target!.max,
  };
  return puzzlePrompt(puzzle).length;
}

/**
 * Countdown, with training, validation and test puzzles disjoint by content, from each other and from the published 256.
 * @throws ConfigError for a game that does not exist
 */
export function countdownTask(options: CountdownOptions = {}): Task<Puzzle> {
  const {
    game: name = "quick",
    formatWeight = 0.1,
    use = "at-most-once",
    heldOut = "validation",
    heldOutCount = 1000,
  } = options;
  expectKnown("countdown: game", name, Object.keys(COUNTDOWN_GAMES));
  const game = COUNTDOWN_GAMES[name];
  const drawAny = puzzleSource(game);
  const drawHarder = puzzleSource({ ...game, needs: "times-or-divide" });
  const rules: CountdownRules = { weights: { accuracy: 1, format: formatWeight }, use };
  const allHard = "needs" in game && game.needs === "times-or-divide";
  const draw = (random: Random): Puzzle =>
    (!allHard && random.uniform() < HARDER_SHARE ? drawHarder : drawAny)(random);
  return {
    name: "countdown",
    description: "Make the target from the numbers with + − × ÷ and brackets",
    alphabet: COUNTDOWN_ALPHABET,
    tokens: COUNTDOWN_TOKENS,
    train: { draw: (random) => puzzleExample(draw(random), { use }) },
    validation: heldOutExamples(game, heldOut, heldOutCount, use),
    rewards: { ...countdownRewards(rules), ...shaping(rules, options) },
    explore: (random) =>
      random.uniform() < DRILL_SHARE
        ? drill(random, game, options.explore)
        : explore(explorationPuzzle(random, game, options.explore), random, options.explore),
    demonstrate: (random) => {
      const kind = random.uniform();
      if (kind < GOOD_SHARES.drills) return drill(random, game, options.explore);
      if (kind < GOOD_SHARES.drills + GOOD_SHARES.hopeless) {
        const { puzzle, ...trace } = giveUp(random, game, options.explore);
        return { ...trace, messages: asked(puzzle, use) };
      }
      for (;;) {
        const puzzle = draw(random);
        const { solved, ...trace } = demonstrate(puzzle, options.explore);
        if (solved) return { ...trace, messages: asked(puzzle, use) };
      }
    },
    wentBack: ({ text }) => {
      const miss = text.indexOf(MISS);
      return miss >= 0 && miss < text.lastIndexOf(HIT);
    },
    maxPromptTokens: longestPrompt(game),
  };
}
