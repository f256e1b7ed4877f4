/**
 * What a model may have read about Countdown before it is taught: thoughts written as tries, one a line, each worked out
 * step by step and checked against the target.
 *
 * ```
 * <think>83-18=65 75-65=10✓
 * </think><answer>75-(83-18)</answer>
 * ```
 *
 * `explore` is unselected: tries are drawn without looking at the target, a thought stops at a random point whatever
 * its checks said, and the answer is any of its tries. Read often enough it teaches the notation, the sums and the
 * checks; it teaches neither to go on until a check says yes nor to answer what was checked. `demonstrate` does both.
 */

import type { Random } from "../../../compute/tensor/random.ts";
import type { Trace } from "../task.ts";
import type { Puzzle } from "./puzzle.ts";
import { type Range, splitOf } from "./puzzle.ts";

export const HIT = "✓";
export const MISS = "✗";

/** Every character of prompts, thoughts and answers. */
export const COUNTDOWN_ALPHABET = `0123456789+-*/()= \n${HIT}${MISS}`;

/** `83 18 75 = 10`. */
export function puzzlePrompt({ numbers, target }: Puzzle): string {
  return `${numbers.join(" ")} = ${target}\n`;
}

export interface ExploreOptions {
  /** Largest result a try may hold. */
  readonly largest?: number;
  /** Chance to stop after a try that failed, and after one that hit. */
  readonly stopAfterMiss?: number;
  readonly stopAfterHit?: number;
  /** Chance that the answer is the last try rather than any try of the thought. */
  readonly answerLast?: number;
  /** Tries a thought has at most. */
  readonly mostTries?: number;
}

const EXPLORE_DEFAULTS: Required<ExploreOptions> = {
  largest: 200,
  stopAfterMiss: 0.25,
  stopAfterHit: 0.5,
  answerLast: 0.6,
  mostTries: 10,
};

/** Share of two-number puzzles in what is explored. */
const SMALL_SHARE = 0.4;

/** Numbers from 10 up are one token each, as in the vocabularies of large models: sums become facts about tokens. */
export const COUNTDOWN_TOKENS: readonly string[] = Array.from(
  { length: EXPLORE_DEFAULTS.largest - 9 },
  (_, i) => `${i + 10}`,
);

/** One try: the steps as written, the expression they make, and its value. */
export interface Try {
  readonly steps: string;
  readonly expression: string;
  readonly value: number;
}

interface Term {
  readonly value: number;
  readonly text: string;
  /** 0: a number, 1: product or quotient, 2: sum or difference. */
  readonly level: 0 | 1 | 2;
}

type Operator = "+" | "-" | "*" | "/";

interface Step {
  readonly line: string;
  readonly term: Term;
}

const bracket = ({ text, level }: Term, most: number): string => (level > most ? `(${text})` : text);

/** What joins two terms, the larger first: whole, non-negative results up to `largest`, by operator. */
function stepsOf(x: Term, y: Term, largest: number): Partial<Record<Operator, Step>> {
  const [a, b] = x.value >= y.value ? [x, y] : [y, x];
  const step = (operator: Operator, value: number, level: 1 | 2, left: string, right: string): Step => ({
    line: `${a.value}${operator}${b.value}=${value}`,
    term: { value, text: `${left}${operator}${right}`, level },
  });
  const [sum, product] = [a.value + b.value, a.value * b.value];
  return {
    ...(sum <= largest ? { "+": step("+", sum, 2, a.text, b.text) } : {}),
    "-": step("-", a.value - b.value, 2, a.text, bracket(b, 1)),
    ...(product <= largest ? { "*": step("*", product, 1, bracket(a, 1), bracket(b, 1)) } : {}),
    ...(b.value > 0 && a.value % b.value === 0
      ? { "/": step("/", a.value / b.value, 1, bracket(a, 1), bracket(b, 0)) }
      : {}),
  };
}

/**
 * A try at random: an operator that some two of the terms allow, then two such terms, until one term is left. The
 * operator comes first, so that the rarer ones, × and above all ÷, are tried as often as + and −.
 */
export function randomTry(numbers: readonly number[], random: Random, largest: number): Try {
  let terms: Term[] = numbers.map((value) => ({ value, text: `${value}`, level: 0 }));
  const lines: string[] = [];
  while (terms.length > 1) {
    const choices: { readonly [O in Operator]: { readonly step: Step; readonly rest: Term[] }[] } = {
      "+": [],
      "-": [],
      "*": [],
      "/": [],
    };
    for (let i = 0; i < terms.length; i++) {
      for (let j = i + 1; j < terms.length; j++) {
        const rest = terms.filter((_, k) => k !== i && k !== j);
        for (const [operator, step] of Object.entries(stepsOf(terms[i]!, terms[j]!, largest))) {
          choices[operator as Operator].push({ step, rest });
        }
      }
    }
    const { step, rest } = random.pick(random.pick(Object.values(choices).filter((list) => list.length > 0)));
    lines.push(step.line);
    terms = [...rest, step.term];
  }
  return { steps: lines.join(" "), expression: terms[0]!.text, value: terms[0]!.value };
}

/** The thought and the answer as a model writes them. */
export function writeTrace(puzzle: Puzzle, tries: readonly Try[], answer: string): Trace {
  const lines = tries.map(({ steps, value }) => `${steps}${value === puzzle.target ? HIT : MISS}\n`);
  return {
    prompt: puzzlePrompt(puzzle),
    completion: `<think>${lines.join("")}</think><answer>${answer}</answer>`,
  };
}

/** Draws in a row that may repeat a try before a thought counts as having run out of tries. */
const MOST_REPEATS = 20;

/** An exploration that was not selected for success; see the head of this file. No thought makes a try twice. */
export function explore(puzzle: Puzzle, random: Random, options: ExploreOptions = {}): Trace {
  const { largest, stopAfterMiss, stopAfterHit, answerLast, mostTries } = { ...EXPLORE_DEFAULTS, ...options };
  const tries = new Map<string, Try>();
  for (let repeats = 0; tries.size < mostTries && repeats < MOST_REPEATS; ) {
    const attempt = randomTry(puzzle.numbers, random, largest);
    if (tries.has(attempt.steps)) {
      repeats++;
      continue;
    }
    tries.set(attempt.steps, attempt);
    if (random.uniform() < (attempt.value === puzzle.target ? stopAfterHit : stopAfterMiss)) break;
  }
  const made = [...tries.values()];
  const answer = random.uniform() < answerLast ? made.at(-1)! : random.pick(made);
  return writeTrace(puzzle, made, answer.expression);
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
    const count = random.uniform() < SMALL_SHARE ? 2 : random.pick(game.counts);
    const numbers = Array.from(
      { length: count },
      () => range.min + random.integer(range.max - range.min + 1),
    );
    const target = randomTry(numbers, random, largest).value;
    const puzzle = { numbers, target };
    if (target >= goal.min && target <= goal.max && splitOf(puzzle) === "train") return puzzle;
  }
}
