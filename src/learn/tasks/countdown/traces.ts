/**
 * What a model may have read about Countdown before it is taught: thoughts that walk through the game (walks.ts).
 *
 * `explore` is unselected: it goes on without looking at the target, leaves things out at random, stops at a random point
 * whatever its checks said, and answers any of its tries. Read often enough it teaches the notation, the sums and the
 * checks; it teaches neither to go on until a check says yes nor to answer what was checked. `demonstrate` does both.
 */

import { invariant } from "../../../base/errors.ts";
import type { Random } from "../../../compute/tensor/random.ts";
import type { Trace } from "../task.ts";
import { type GameOptions, type Puzzle, type Range, splitOf } from "./puzzle.ts";
import {
  gameOf,
  HIT,
  MISS,
  needsOf,
  stepsOf,
  type Term,
  type Thoughts,
  type Try,
  termOf,
  WALKS,
} from "./walks.ts";

/** Every character of prompts, thoughts and answers. */
export const COUNTDOWN_ALPHABET = `0123456789+-*/()=: \n${HIT}${MISS}`;

/** `83 18 75 = 10`. */
export function puzzlePrompt({ numbers, target }: Puzzle): string {
  return `${numbers.join(" ")} = ${target}\n`;
}

type Game = Required<Pick<GameOptions, "counts" | "numbers" | "target">>;

export interface ExploreOptions {
  /** The way that thoughts take. @default "forward" */
  readonly thoughts?: Thoughts;
  /** Largest result a step may have. */
  readonly largest?: number;
  /** Chance that a step is left out. */
  readonly skip?: number;
  /** Chance to stop after a try that failed, and after one that hit. */
  readonly stopAfterMiss?: number;
  readonly stopAfterHit?: number;
  /** Chance that the answer is the last try rather than any try of the thought. */
  readonly answerLast?: number;
  /** Share of the puzzles that have two numbers, where a check says yes far more often. */
  readonly pairs?: number;
  /** Share of the drills whose results are checked against a target, where thoughts go forward. */
  readonly checked?: number;
}

export const EXPLORE_DEFAULTS: Required<ExploreOptions> = {
  thoughts: "forward",
  largest: 198,
  skip: 0.03,
  stopAfterMiss: 0.18,
  stopAfterHit: 0.5,
  answerLast: 0.85,
  pairs: 0.3,
  checked: 0,
};

/** Walks through one puzzle, after the last of which exploration ends, or, with nothing to answer yet, leaves out nothing more. */
const MOST_PASSES = 2;

/**
 * Numbers from 10 up are one token each, as in the vocabularies of large models: sums become facts about tokens. So are
 * checks with the space or line end that follows, and the colon with its space: a third fewer tokens to think.
 */
export const COUNTDOWN_TOKENS: readonly string[] = [
  ...Array.from({ length: EXPLORE_DEFAULTS.largest - 9 }, (_, i) => `${i + 10}`),
  ...[HIT, MISS].flatMap((verdict) => [`${verdict} `, `${verdict}\n`]),
  ": ",
];

function writeThought(target: number, tries: readonly Try[]): string {
  let thought = "";
  let before: Try | undefined;
  for (const attempt of tries) {
    const { heading, start, last, made, finish } = attempt;
    const headed = heading !== before?.heading;
    if (before !== undefined && !headed && start === before.start) thought += " ";
    else
      thought += `${before === undefined ? "" : "\n"}${headed && heading !== undefined ? `${heading}\n` : ""}${start}`;
    before = attempt;
    thought += `${last}${made?.value === target ? HIT : MISS}${finish === undefined ? "" : ` ${finish}`}`;
  }
  return thought;
}

/** The thought and the answer as a model writes them. */
export function writeTrace(puzzle: Puzzle, tries: readonly Try[], answer: string): Trace {
  const thought = writeThought(puzzle.target, tries);
  return {
    prompt: puzzlePrompt(puzzle),
    completion: `<think>${thought}\n</think><answer>${answer}</answer>`,
  };
}

/** An exploration that was not selected for success; see the head of this file. */
export function explore(puzzle: Puzzle, random: Random, options: ExploreOptions = {}): Trace {
  const { thoughts, largest, skip, stopAfterMiss, stopAfterHit, answerLast } = {
    ...EXPLORE_DEFAULTS,
    ...options,
  };
  const tries: Try[] = [];
  const values: { expression: string; value: number }[] = [];
  for (let pass = 0, stopped = false; !stopped && (pass < MOST_PASSES || values.length === 0); pass++) {
    const keep = (): boolean => pass >= MOST_PASSES || random.uniform() >= skip;
    for (const attempt of WALKS[thoughts](gameOf(puzzle), largest, keep)) {
      tries.push(attempt);
      const { made } = attempt;
      if (made === undefined) continue;
      values.push(made);
      stopped = random.uniform() < (made.value === puzzle.target ? stopAfterHit : stopAfterMiss);
      if (stopped) break;
    }
  }
  const answer = random.uniform() < answerLast ? values.at(-1)! : random.pick(values);
  return writeTrace(puzzle, tries, answer.expression);
}

/**
 * A good trace: the same walk, which goes on until a check says yes and answers what was checked. Where no try within
 * `largest` makes the target it goes to the end, and answers the last.
 */
export function demonstrate(
  puzzle: Puzzle,
  options: ExploreOptions = {},
): Trace & { readonly solved: boolean } {
  const { thoughts, largest } = { ...EXPLORE_DEFAULTS, ...options };
  const tries: Try[] = [];
  let answer: string | undefined;
  for (const attempt of WALKS[thoughts](gameOf(puzzle), largest, () => true)) {
    tries.push(attempt);
    const { made } = attempt;
    answer = made?.expression ?? answer;
    if (made?.value === puzzle.target) return { ...writeTrace(puzzle, tries, made.expression), solved: true };
  }
  invariant(answer !== undefined, "some sum is within the largest result");
  return { ...writeTrace(puzzle, tries, answer), solved: false };
}

/** The whole walk through a training puzzle as the game has them, but for that no try makes its target. */
export function giveUp(
  random: Random,
  game: Game,
  options: ExploreOptions = {},
): Trace & { readonly puzzle: Puzzle } {
  for (;;) {
    const numbers = Array.from({ length: random.pick(game.counts) }, () => within(game.numbers, random));
    const puzzle = { numbers, target: within(game.target, random) };
    if (splitOf(puzzle) !== "train") continue;
    const { solved, ...trace } = demonstrate(puzzle, options);
    if (!solved) return { ...trace, puzzle };
  }
}

/**
 * A puzzle to explore: its target is what a random try of its numbers makes. With two numbers as well as with the game's
 * own counts, since it is in the small puzzles that a check sometimes says yes.
 */
export function explorationPuzzle(random: Random, game: Game, options: ExploreOptions = {}): Puzzle {
  const { largest, pairs } = { ...EXPLORE_DEFAULTS, ...options };
  const { numbers: range, target: goal } = game;
  for (;;) {
    const numbers =
      random.uniform() < pairs
        ? pairToExplore(random, range, largest)
        : Array.from({ length: random.pick(game.counts) }, () => within(range, random));
    const tries = [...WALKS.forward(gameOf({ numbers, target: 0 }), largest, () => true)];
    const values = tries.flatMap(({ made }) => (made === undefined ? [] : [made.value]));
    const puzzle = { numbers, target: random.pick(values) };
    if (puzzle.target >= goal.min && puzzle.target <= goal.max && splitOf(puzzle) === "train") return puzzle;
  }
}

const within = ({ min, max }: Range, random: Random): number => min + random.integer(max - min + 1);

/**
 * Two numbers as they meet on the last step: any two, or, as often, two that × or ÷ joins within `largest`. Of numbers
 * drawn evenly few products are small enough and few quotients whole, and what is hardly ever read is not learned.
 */
function pairToExplore(random: Random, range: Range, largest: number): number[] {
  const pair = (): number[] => {
    const small = within({ min: 2, max: Math.floor(Math.sqrt(largest)) }, random);
    const other = within({ min: small, max: Math.floor(largest / small) }, random);
    return random.uniform() < 0.5 ? [small, other] : [small * other, random.pick([small, other])];
  };
  const numbers = random.uniform() < 0.5 ? [within(range, random), within(range, random)] : pair();
  return random.shuffle(numbers);
}

/** Entries of a drill; those of thoughts that go backward are twice as long. */
const DRILL_LENGTHS: Readonly<Record<Thoughts, number>> = { forward: 16, backward: 8 };

/**
 * Sums apart from any puzzle, those that walks seldom meet as often as the rest: half are divisions, of which half have no
 * remainder and a quarter nearly none. Numbers as the puzzles have them come as often as those on the way. Where thoughts go
 * backward, as much is what they would need of a number, and as much again lines that end one; and lines that nearly do.
 */
export function drill(
  random: Random,
  { numbers: range, target }: Omit<Game, "counts">,
  options: ExploreOptions = {},
): Trace {
  const { thoughts, largest, checked } = { ...EXPLORE_DEFAULTS, ...options };
  const sum = (): string => {
    const most = random.uniform() < 0.5 ? largest : Math.min(range.max, largest);
    const small = within({ min: 2, max: Math.floor(Math.sqrt(most)) }, random);
    const other = within({ min: small, max: Math.floor(most / small) }, random);
    const product = small * other;
    const divisor = random.pick([small, other]);
    const kind = random.uniform();
    const [operator, left, right] =
      kind < 0.25
        ? [random.pick(["+", "-"]), within({ min: 1, max: most }, random), within(range, random)]
        : kind < 0.5
          ? ["*", small, other]
          : kind < 0.75
            ? ["/", product, divisor]
            : kind < 0.875
              ? ["/", product + within({ min: 1, max: divisor - 1 }, random), divisor]
              : ["/", within({ min: 1, max: most }, random), within(range, random)];
    const step = stepsOf(termOf(Math.min(left, most)), termOf(right), largest).find(
      (each) => each.operator === operator,
    );
    return step === undefined ? sum() : step.term === undefined ? `${step.line}${MISS}` : step.line;
  };
  const need = (): string => {
    const kept = within(random.uniform() < 0.5 ? range : { min: 1, max: largest }, random);
    return needsOf(kept, within(target, random), largest);
  };
  const entry = (): string => {
    if (thoughts === "forward") return sum();
    const kind = random.uniform();
    const game = { numbers: range, target };
    return kind < 0.3
      ? sum()
      : kind < 0.55
        ? need()
        : kind < 0.8
          ? lastLine(random, game, largest)
          : nearMiss(random, game, largest);
  };
  const entries = Array.from({ length: DRILL_LENGTHS[thoughts] }, entry);
  const isChecked = thoughts === "forward" && checked > 0 && random.uniform() < checked;
  return isChecked ? checkedDrill(entries, target, random) : { prompt: "", completion: entries.join(" ") };
}

/** A drill under a target, one of its own results where one can be, with a check behind each. */
function checkedDrill(entries: readonly string[], target: Range, random: Random): Trace {
  const results = entries.map((line) => /=(\d+)$/.exec(line)?.[1]);
  const possible = results.filter(
    (result) => result !== undefined && Number(result) >= target.min && Number(result) <= target.max,
  );
  const goal = possible.length === 0 ? `${within(target, random)}` : random.pick(possible)!;
  const lines = entries.map((line, i) =>
    results[i] === undefined ? line : `${line}${results[i] === goal ? HIT : MISS}`,
  );
  return { prompt: `= ${goal}\n`, completion: lines.join(" ") };
}

const OPERATORS = ["+", "-", "*", "/"] as const;

function three(range: Range, random: Random): [number[], [Term, Term, Term]] {
  const numbers = Array.from({ length: 3 }, () => within(range, random));
  return [numbers, numbers.map(termOf) as [Term, Term, Term]];
}

/** The line that ends a thought backward, each operator as often the last: among puzzles some are rare, and were written wrongly. */
function lastLine(
  random: Random,
  { numbers: range, target: goal }: Omit<Game, "counts">,
  largest: number,
): string {
  const operator = random.pick(OPERATORS);
  for (;;) {
    const [numbers, [kept, a, b]] = three(range, random);
    const { term } = random.pick(stepsOf(a, b, largest));
    if (term === undefined) continue;
    const last = stepsOf(term, kept, largest).find((step) => step.operator === operator)?.term;
    if (last === undefined || last.value < goal.min || last.value > goal.max) continue;
    // Such a line solves a puzzle.
    if (splitOf({ numbers, target: last.value }) !== "train") continue;
    const tries: Try[] = [];
    for (const attempt of WALKS.backward(gameOf({ numbers, target: last.value }), largest, () => true)) {
      tries.push(attempt);
      if (attempt.finish !== undefined) return writeThought(last.value, tries);
    }
  }
}

/** How far a result is from what was needed: numbers that are written nearly alike were taken for each other. */
const NEARLY = [1, 2, 3, 4, 5, 10];

/** A line of a thought backward whose tries all fail, one of them narrowly. */
function nearMiss(
  random: Random,
  { numbers: range, target: goal }: Omit<Game, "counts">,
  largest: number,
): string {
  for (;;) {
    const [numbers, [kept, a, b]] = three(range, random);
    const made = random.pick(stepsOf(a, b, largest)).term?.value;
    if (made === undefined) continue;
    const needed = made + random.pick(NEARLY) * random.pick([-1, 1]);
    if (needed < 1 || needed > largest) continue;
    const target = random.pick(stepsOf(termOf(needed), kept, largest)).term?.value;
    if (target === undefined || target < goal.min || target > goal.max) continue;
    const tries: Try[] = [];
    for (const attempt of WALKS.backward(gameOf({ numbers, target }), largest, () => true)) {
      if (tries.length > 0 && attempt.start !== tries[0]!.start) break;
      tries.push(attempt);
    }
    if (tries.every(({ finish }) => finish === undefined)) return writeThought(target, tries);
  }
}
