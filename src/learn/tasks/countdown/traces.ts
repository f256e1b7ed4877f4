/**
 * What a model may have read about Countdown before it is taught: thoughts that go through the game as a tree, each value
 * worked out step by step and checked against the target. A line takes some steps and then tries every way to finish
 * from there; the next line has gone back.
 *
 * ```
 * <think>27+15=42: 42+12=54✗ 42-12=30✗
 * 15-12=3: 27+3=30✗ 27*3=81✓
 * </think><answer>27*(15-12)</answer>
 * ```
 *
 * `explore` is unselected: it walks the tree without looking at the target, leaves things out at random, stops at a random
 * point whatever its checks said, and answers any of its tries. Read often enough it teaches the notation, the sums and
 * the checks; it teaches neither to go on until a check says yes nor to answer what was checked. `demonstrate` does both.
 */

import type { Random } from "../../../compute/tensor/random.ts";
import type { Trace } from "../task.ts";
import type { Puzzle } from "./puzzle.ts";
import { type Range, splitOf } from "./puzzle.ts";

export const HIT = "✓";
export const MISS = "✗";

/** Every character of prompts, thoughts and answers. */
export const COUNTDOWN_ALPHABET = `0123456789+-*/()=: \n${HIT}${MISS}`;

/** `83 18 75 = 10`. */
export function puzzlePrompt({ numbers, target }: Puzzle): string {
  return `${numbers.join(" ")} = ${target}\n`;
}

export interface ExploreOptions {
  /** Largest result a step may have. */
  readonly largest?: number;
  /** Chance that a step is left out. */
  readonly skip?: number;
  /** Chance to stop after a try that failed, and after one that hit. */
  readonly stopAfterMiss?: number;
  readonly stopAfterHit?: number;
  /** Chance that the answer is the last try rather than any try of the thought. */
  readonly answerLast?: number;
}

export const EXPLORE_DEFAULTS: Required<ExploreOptions> = {
  largest: 198,
  skip: 0.1,
  stopAfterMiss: 0.12,
  stopAfterHit: 0.5,
  answerLast: 0.6,
};

/** Walks through one puzzle, after the last of which exploration ends in any case. */
const MOST_PASSES = 2;

/** Share of two-number puzzles in what is explored. */
const SMALL_SHARE = 0.5;

/**
 * Numbers from 10 up are one token each, as in the vocabularies of large models: sums become facts about tokens. So are
 * checks with the space or line end that follows, and the colon with its space: a third fewer tokens to think.
 */
export const COUNTDOWN_TOKENS: readonly string[] = [
  ...Array.from({ length: EXPLORE_DEFAULTS.largest - 9 }, (_, i) => `${i + 10}`),
  ...[HIT, MISS].flatMap((verdict) => [`${verdict} `, `${verdict}\n`]),
  ": ",
];

/** One way to use all numbers: the steps that lead to it, the last step, the expression they make, and its value. */
export interface Try {
  readonly path: readonly string[];
  readonly last: string;
  readonly expression: string;
  readonly value: number;
}

interface Term {
  readonly value: number;
  readonly text: string;
  /** 0: a number, 1: product or quotient, 2: sum or difference. */
  readonly level: 0 | 1 | 2;
}

interface Step {
  readonly line: string;
  readonly term: Term;
}

const bracket = ({ text, level }: Term, most: number): string => (level > most ? `(${text})` : text);

/** What joins two terms, the larger first: whole, non-negative results up to `largest`. */
function stepsOf(x: Term, y: Term, largest: number): Step[] {
  const [a, b] = x.value >= y.value ? [x, y] : [y, x];
  const step = (operator: string, value: number, level: 1 | 2, left: string, right: string): Step => ({
    line: `${a.value}${operator}${b.value}=${value}`,
    term: { value, text: `${left}${operator}${right}`, level },
  });
  const steps = [
    step("+", a.value + b.value, 2, a.text, b.text),
    step("-", a.value - b.value, 2, a.text, bracket(b, 1)),
    step("*", a.value * b.value, 1, bracket(a, 1), bracket(b, 1)),
  ].filter(({ term }) => term.value <= largest);
  if (b.value > 0 && a.value % b.value === 0) {
    steps.push(step("/", a.value / b.value, 1, bracket(a, 1), bracket(b, 0)));
  }
  return steps;
}

/**
 * All tries of some numbers, depth first: pairs in random order, operators in the order + − × ÷.
 * @param keep  decides of each step whether it is taken
 */
function* walk(
  terms: readonly Term[],
  random: Random,
  largest: number,
  keep: () => boolean,
  path: readonly string[] = [],
): Generator<Try> {
  const pairs = terms.flatMap((_, i) => terms.slice(i + 1).map((_, k) => [i, i + 1 + k] as const));
  for (const [i, j] of random.shuffle(pairs)) {
    const rest = terms.filter((_, k) => k !== i && k !== j);
    for (const { line, term } of stepsOf(terms[i]!, terms[j]!, largest)) {
      if (!keep()) continue;
      if (rest.length > 0) yield* walk([...rest, term], random, largest, keep, [...path, line]);
      else yield { path, last: line, expression: term.text, value: term.value };
    }
  }
}

const termsOf = (numbers: readonly number[]): Term[] =>
  numbers.map((value) => ({ value, text: `${value}`, level: 0 }));

/** The thought and the answer as a model writes them: tries with the same path share a line. */
export function writeTrace(puzzle: Puzzle, tries: readonly Try[], answer: string): Trace {
  let thought = "";
  let line: string | undefined;
  for (const { path, last, value } of tries) {
    const start = path.length === 0 ? "" : `${path.join(" ")}: `;
    if (line !== start) thought += line === undefined ? start : `\n${start}`;
    else thought += " ";
    line = start;
    thought += `${last}${value === puzzle.target ? HIT : MISS}`;
  }
  return {
    prompt: puzzlePrompt(puzzle),
    completion: `<think>${thought}\n</think><answer>${answer}</answer>`,
  };
}

/** An exploration that was not selected for success; see the head of this file. */
export function explore(puzzle: Puzzle, random: Random, options: ExploreOptions = {}): Trace {
  const { largest, skip, stopAfterMiss, stopAfterHit, answerLast } = { ...EXPLORE_DEFAULTS, ...options };
  const tries: Try[] = [];
  const terms = termsOf(puzzle.numbers);
  for (let pass = 0, stopped = false; !stopped && (pass < MOST_PASSES || tries.length === 0); pass++) {
    for (const attempt of walk(terms, random, largest, () => random.uniform() >= skip)) {
      tries.push(attempt);
      stopped = random.uniform() < (attempt.value === puzzle.target ? stopAfterHit : stopAfterMiss);
      if (stopped) break;
    }
  }
  const answer = random.uniform() < answerLast ? tries.at(-1)! : random.pick(tries);
  return writeTrace(puzzle, tries, answer.expression);
}

/**
 * A good trace: the same walk, which goes on until a check says yes and answers what was checked.
 * @returns undefined when no try within `largest` makes the target
 */
export function demonstrate(puzzle: Puzzle, random: Random, options: ExploreOptions = {}): Trace | undefined {
  const { largest } = { ...EXPLORE_DEFAULTS, ...options };
  const tries: Try[] = [];
  for (const attempt of walk(termsOf(puzzle.numbers), random, largest, () => true)) {
    tries.push(attempt);
    if (attempt.value === puzzle.target) return writeTrace(puzzle, tries, attempt.expression);
  }
  return undefined;
}

/**
 * A puzzle to explore: its target is what a random try of its numbers makes. With two numbers as well as with the game's
 * own counts, since it is in the small puzzles that a check sometimes says yes.
 */
export function explorationPuzzle(
  random: Random,
  game: { readonly counts: readonly number[]; readonly numbers: Range; readonly target: Range },
  options: ExploreOptions = {},
): Puzzle {
  const { largest } = { ...EXPLORE_DEFAULTS, ...options };
  const { numbers: range, target: goal } = game;
  for (;;) {
    const numbers =
      random.uniform() < SMALL_SHARE
        ? pairToExplore(random, range, largest)
        : Array.from({ length: random.pick(game.counts) }, () => within(range, random));
    const values = [...walk(termsOf(numbers), random, largest, () => true)].map(({ value }) => value);
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
