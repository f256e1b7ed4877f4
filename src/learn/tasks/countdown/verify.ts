/**
 * Countdown: make a target from given numbers with + − × ÷ and brackets. The verdict on a completion is exact; nothing
 * a model can write makes it slow or throw.
 */
import { type FormatOptions, hasFormat, readAnswer } from "../answer.ts";
import type { WeightedReward } from "../task.ts";
import { evaluatePostfix, parseExpression } from "./expression.ts";
import { equals, format as formatRational, whole } from "./rational.ts";
import type { NumberUse, Puzzle } from "./types.ts";

export type { NumberUse } from "./types.ts";

export interface Verdict {
  /** accuracy and format, each times its weight. */
  readonly reward: number;
  /** 1 when the answer makes the target by the rules, else 0. */
  readonly accuracy: 0 | 1;
  /** 1 when the completion is written as thought, then answer, else 0. */
  readonly format: 0 | 1;
  /** Why accuracy is what it is. */
  readonly reason: string;
}

export interface CountdownRules {
  /** @default "at-most-once" */
  readonly use?: NumberUse;
  /** What the format reward asks for. @default one thought, then one answer, nothing else */
  readonly format?: FormatOptions;
  /** @default { accuracy: 1, format: 1 }: R1-Zero weighs both the same (Nature 645:633, eq 4) */
  readonly weights?: { readonly accuracy: number; readonly format: number };
}

/** The numbers of `used` that `given` does not have (any more). */
function missingFrom(given: readonly number[], used: readonly number[]): number | undefined {
  const left = [...given];
  for (const number of used) {
    const at = left.indexOf(number);
    if (at < 0) return number;
    left.splice(at, 1);
  }
  return undefined;
}

/** Whether an answer, without its tags, solves the puzzle; `reason` says why not. */
export function checkAnswer(
  { numbers, target }: Puzzle,
  answer: string,
  use: NumberUse = "at-most-once",
): { readonly correct: boolean; readonly reason: string } {
  const wrong = (reason: string) => ({ correct: false, reason });
  const parsed = parseExpression(answer, { maxNumbers: numbers.length });
  if (!parsed.ok) return wrong(parsed.reason);
  // The numbers come before the value: what they leave to work out is as small as the puzzle.
  const foreign = missingFrom(numbers, parsed.numbers);
  if (foreign !== undefined) {
    return wrong(`${foreign} is ${numbers.includes(foreign) ? "used too often" : "not among the numbers"}`);
  }
  if (use === "exactly-once" && parsed.numbers.length < numbers.length) {
    return wrong(`${missingFrom(parsed.numbers, numbers)} is not used`);
  }
  const value = evaluatePostfix(parsed.postfix);
  if (value === undefined) return wrong("division by zero");
  if (!equals(value, whole(target))) return wrong(`makes ${formatRational(value)}, not ${target}`);
  return { correct: true, reason: "correct" };
}

/**
 * The verdict on a completion.
 * @param puzzle whole numbers; a target of any sign
 */
export function verifyCountdown(puzzle: Puzzle, completion: string, rules: CountdownRules = {}): Verdict {
  const { use, weights = { accuracy: 1, format: 1 } } = rules;
  const format = hasFormat(completion, rules.format) ? 1 : 0;
  const answer = readAnswer(completion);
  const { correct, reason } =
    answer === undefined ? { correct: false, reason: "no answer" } : checkAnswer(puzzle, answer, use);
  const accuracy = correct ? 1 : 0;
  return { reward: weights.accuracy * accuracy + weights.format * format, accuracy, format, reason };
}

/** The two rule rewards of R1-Zero for tasks whose rows are puzzles. */
export function countdownRewards<Row extends Puzzle>(
  rules: CountdownRules = {},
): { readonly accuracy: WeightedReward<Row>; readonly format: WeightedReward<Row> } {
  const { weights = { accuracy: 1, format: 1 } } = rules;
  return {
    accuracy: {
      weight: weights.accuracy,
      reward: ({ text }, { row }) => verifyCountdown(row, text, rules).accuracy,
    },
    format: { weight: weights.format, reward: ({ text }) => (hasFormat(text, rules.format) ? 1 : 0) },
  };
}
