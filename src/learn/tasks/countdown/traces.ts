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

export const HIT = "✓";
export const MISS = "✗";

/** Every character of prompts, thoughts and answers. */
export const COUNTDOWN_ALPHABET = `0123456789+-*/()= \n${HIT}${MISS}`;

/** `83 18 75 = 10`. */
export function puzzlePrompt({ numbers, target }: Puzzle): string {
  return `${numbers.join(" ")} = ${target}\n`;
}

export interface ExploreOptions {
  /** Largest product a try may hold. @default 999 */
  readonly largest?: number;
  /** Chance to stop after a try that failed, and after one that hit. */
  readonly stopAfterMiss?: number;
  readonly stopAfterHit?: number;
  /** Chance that the answer is the last try rather than any try of the thought. */
  readonly answerLast?: number;
  /** Tries a thought has at most. */
  readonly mostTries?: number;
}

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

interface Step {
  readonly line: string;
  readonly term: Term;
}

const bracket = ({ text, level }: Term, most: number): string => (level > most ? `(${text})` : text);

/** Whole, non-negative results of one operation on two terms, the larger first. */
export function stepsOf(x: Term, y: Term, largest: number): Step[] {
  const [a, b] = x.value >= y.value ? [x, y] : [y, x];
  const step = (operator: string, value: number, level: 1 | 2, left: string, right: string): Step => ({
    line: `${a.value}${operator}${b.value}=${value}`,
    term: { value, text: `${left}${operator}${right}`, level },
  });
  const steps = [
    step("+", a.value + b.value, 2, a.text, b.text),
    step("-", a.value - b.value, 2, a.text, bracket(b, 1)),
  ];
  if (a.value * b.value <= largest) steps.push(step("*", a.value * b.value, 1, bracket(a, 1), bracket(b, 1)));
  if (b.value > 0 && a.value % b.value === 0) {
    steps.push(step("/", a.value / b.value, 1, bracket(a, 1), bracket(b, 0)));
  }
  return steps;
}

/** A try at random: two of the terms are joined by a random operation until one is left. */
export function randomTry(numbers: readonly number[], random: Random, largest: number): Try {
  let terms: Term[] = numbers.map((value) => ({ value, text: `${value}`, level: 0 }));
  const lines: string[] = [];
  while (terms.length > 1) {
    const shuffled = random.shuffle([...terms]);
    const [x, y] = shuffled as [Term, Term, ...Term[]];
    const { line, term } = random.pick(stepsOf(x, y, largest));
    lines.push(line);
    terms = [...shuffled.slice(2), term];
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

/** An exploration that was not selected for success; see the head of this file. */
export function explore(puzzle: Puzzle, random: Random, options: ExploreOptions = {}): Trace {
  const {
    largest = 999,
    stopAfterMiss = 0.3,
    stopAfterHit = 0.5,
    answerLast = 0.6,
    mostTries = 12,
  } = options;
  const tries: Try[] = [];
  for (;;) {
    const attempt = randomTry(puzzle.numbers, random, largest);
    tries.push(attempt);
    const stop = attempt.value === puzzle.target ? stopAfterHit : stopAfterMiss;
    if (tries.length >= mostTries || random.uniform() < stop) break;
  }
  const answer = random.uniform() < answerLast ? tries.at(-1)! : random.pick(tries);
  return writeTrace(puzzle, tries, answer.expression);
}
