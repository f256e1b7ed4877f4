/**
 * What a model may have read about Countdown before it is taught: thoughts that go through the game as a tree, each value
 * worked out step by step and checked against the target. A line takes some steps and then tries every way to finish
 * from there; the next line has gone back. Results that would be too large are not tried. Division always is, and fails
 * without a result where that would not be whole: whether two numbers divide is decided where both have been read.
 *
 * ```
 * <think>27+15=42: 42+12=54✗ 42-12=30✗ 42/12✗
 * 27-15=12: 12+12=24✗ 12-12=0✗ 12*12=144✗ 12/12=1✗
 * 27/15✗
 * 27+12=39: 39+15=54✗ 39-15=24✗ 39/15✗
 * 27-12=15: 15+15=30✗ 15-15=0✗ 15/15=1✗
 * 27/12✗
 * 15+12=27: 27+27=54✗ 27-27=0✗ 27/27=1✗
 * 15-12=3: 27+3=30✗ 27-3=24✗ 27*3=81✓
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
  skip: 0.03,
  stopAfterMiss: 0.17,
  stopAfterHit: 0.5,
  answerLast: 0.85,
};

/** Walks through one puzzle, after the last of which exploration ends in any case. */
const MOST_PASSES = 2;

/** Share of two-number puzzles in what is explored. */
const SMALL_SHARE = 0.3;

/**
 * Numbers from 10 up are one token each, as in the vocabularies of large models: sums become facts about tokens. So are
 * checks with the space or line end that follows, and the colon with its space: a third fewer tokens to think.
 */
export const COUNTDOWN_TOKENS: readonly string[] = [
  ...Array.from({ length: EXPLORE_DEFAULTS.largest - 9 }, (_, i) => `${i + 10}`),
  ...[HIT, MISS].flatMap((verdict) => [`${verdict} `, `${verdict}\n`]),
  ": ",
];

/** One way to use all numbers, or a step that fails: the steps that lead to it, and itself. */
export interface Try {
  readonly path: readonly string[];
  readonly last: string;
  /** What it makes, where it is the last step and does not fail. */
  readonly made?: { readonly expression: string; readonly value: number };
}

interface Term {
  readonly value: number;
  readonly text: string;
  /** 0: a number, 1: product or quotient, 2: sum or difference. */
  readonly level: 0 | 1 | 2;
}

interface Step {
  readonly line: string;
  /** Undefined for one that fails. */
  readonly term: Term | undefined;
}

const bracket = ({ text, level }: Term, most: number): string => (level > most ? `(${text})` : text);

/**
 * What joins two terms, the larger first, in the order + − × ÷: non-negative results up to `largest`, and quotients that are
 * not whole, which fail.
 */
function stepsOf(x: Term, y: Term, largest: number): Step[] {
  const [a, b] = x.value >= y.value ? [x, y] : [y, x];
  const made = (operator: string, value: number, level: 1 | 2, left: string, right: string): Step => ({
    line: `${a.value}${operator}${b.value}=${value}`,
    term: { value, text: `${left}${operator}${right}`, level },
  });
  const quotient = a.value / b.value;
  return [
    made("+", a.value + b.value, 2, a.text, b.text),
    made("-", a.value - b.value, 2, a.text, bracket(b, 1)),
    made("*", a.value * b.value, 1, bracket(a, 1), bracket(b, 1)),
    Number.isInteger(quotient)
      ? made("/", quotient, 1, bracket(a, 1), bracket(b, 0))
      : { line: `${a.value}/${b.value}`, term: undefined },
  ].filter(({ term }) => term === undefined || term.value <= largest);
}

/**
 * All tries of some numbers, depth first: pairs in the order of the numbers, operators in the order + − × ÷.
 * @param keep  decides of each step whether it is taken
 */
function* walk(
  terms: readonly Term[],
  largest: number,
  keep: () => boolean,
  path: readonly string[] = [],
): Generator<Try> {
  const pairs = terms.flatMap((_, i) => terms.slice(i + 1).map((_, k) => [i, i + 1 + k] as const));
  for (const [i, j] of pairs) {
    const rest = terms.filter((_, k) => k !== i && k !== j);
    for (const { line, term } of stepsOf(terms[i]!, terms[j]!, largest)) {
      if (!keep()) continue;
      if (term === undefined) yield { path, last: line };
      else if (rest.length > 0) yield* walk([...rest, term], largest, keep, [...path, line]);
      else yield { path, last: line, made: { expression: term.text, value: term.value } };
    }
  }
}

const number = (value: number): Term => ({ value, text: `${value}`, level: 0 });
const termsOf = (numbers: readonly number[]): Term[] => numbers.map(number);

/** The thought and the answer as a model writes them: tries with the same path share a line. */
export function writeTrace(puzzle: Puzzle, tries: readonly Try[], answer: string): Trace {
  let thought = "";
  let line: string | undefined;
  for (const { path, last, made } of tries) {
    const start = path.length === 0 ? "" : `${path.join(" ")}: `;
    if (line !== start) thought += line === undefined ? start : `\n${start}`;
    else thought += " ";
    line = start;
    thought += `${last}${made?.value === puzzle.target ? HIT : MISS}`;
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
  const values: { expression: string; value: number }[] = [];
  const terms = termsOf(puzzle.numbers);
  for (let pass = 0, stopped = false; !stopped && (pass < MOST_PASSES || values.length === 0); pass++) {
    for (const attempt of walk(terms, largest, () => random.uniform() >= skip)) {
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
 * A good trace: the same walk, which goes on until a check says yes and answers what was checked.
 * @returns undefined when no try within `largest` makes the target
 */
export function demonstrate(puzzle: Puzzle, options: ExploreOptions = {}): Trace | undefined {
  const { largest } = { ...EXPLORE_DEFAULTS, ...options };
  const tries: Try[] = [];
  for (const attempt of walk(termsOf(puzzle.numbers), largest, () => true)) {
    tries.push(attempt);
    const { made } = attempt;
    if (made?.value === puzzle.target) return writeTrace(puzzle, tries, made.expression);
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
    const tries = [...walk(termsOf(numbers), largest, () => true)];
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

/** Sums of a drill. */
const DRILL_LENGTH = 16;

/**
 * Sums apart from any puzzle, those that walks seldom meet as often as the rest: half are divisions, of which half have no
 * remainder and a quarter nearly none. Numbers as the puzzles have them come as often as those on the way.
 */
export function drill(random: Random, range: Range, options: ExploreOptions = {}): Trace {
  const { largest } = { ...EXPLORE_DEFAULTS, ...options };
  const one = (): string => {
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
    const step = stepsOf(number(Math.min(left, most)), number(right), largest).find(({ line }) =>
      line.includes(operator),
    );
    return step === undefined ? one() : step.term === undefined ? `${step.line}${MISS}` : step.line;
  };
  return { prompt: "", completion: Array.from({ length: DRILL_LENGTH }, one).join(" ") };
}
