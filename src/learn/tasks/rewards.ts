/** Rewards that any task can add to its own: written in the asked form, of a fair length, not repeating itself. */
import { ConfigError } from "../../base/errors.ts";
import { type FormatOptions, hasFormat } from "./answer.ts";
import type { Example, Judged, Reward } from "./task.ts";

/**
 * 1 for `<think>…</think><answer>…</answer>`, else 0.
 * @source arXiv:2501.12948 §2.2, where format and accuracy weigh the same
 */
export function formatReward(options: FormatOptions = {}): Reward<unknown> {
  return ({ text }) => (hasFormat(text, options) ? 1 : 0);
}

export interface OverlongOptions {
  /** Length from which the full punishment applies (L). */
  readonly maxTokens: number;
  /** Width of the slope below it (C). */
  readonly slopeTokens: number;
}

/**
 * Soft overlong punishment: 0 up to L − C tokens, then falling in a straight line to −1 at L, and −1 past it.
 * @source DAPO, arXiv:2503.14476 eq 13 (there L = 20,480 and C = 4,096)
 * @throws ConfigError unless 0 < C ≤ L
 */
export function softOverlong({ maxTokens, slopeTokens }: OverlongOptions): Reward<unknown> {
  if (!(slopeTokens > 0 && slopeTokens <= maxTokens)) {
    throw new ConfigError({
      where: "softOverlong",
      rule: "needs 0 < slopeTokens ≤ maxTokens",
      got: `slopeTokens ${slopeTokens}, maxTokens ${maxTokens}`,
    });
  }
  const free = maxTokens - slopeTokens;
  return ({ tokens }) => {
    if (tokens <= free) return 0;
    return tokens <= maxTokens ? (free - tokens) / slopeTokens : -1;
  };
}

export interface CosineLengthOptions<Row> {
  readonly isCorrect: (completion: Judged, example: Example<Row>) => boolean;
  /** Length at which the curves end; longer completions get the end value. */
  readonly maxTokens: number;
  /** Reward of a correct completion of length 0 and of maxTokens. @default { shortest: 1, longest: 0.5 } */
  readonly correct?: { readonly shortest: number; readonly longest: number };
  /** The same for a wrong one, which should rather think longer. @default { shortest: -1, longest: -0.5 } */
  readonly wrong?: { readonly shortest: number; readonly longest: number };
}

/**
 * Length shaping along half a cosine: right answers should be short, wrong ones should have been thought about longer.
 * @source arXiv:2502.03373 §4; completions past maxTokens stay at the end value instead of a separate penalty
 * @throws ConfigError when maxTokens is not positive
 */
export function cosineLength<Row>(options: CosineLengthOptions<Row>): Reward<Row> {
  const { isCorrect, maxTokens } = options;
  const { correct = { shortest: 1, longest: 0.5 }, wrong = { shortest: -1, longest: -0.5 } } = options;
  if (!(maxTokens > 0)) {
    throw new ConfigError({ where: "cosineLength", rule: "maxTokens must be above 0", got: `${maxTokens}` });
  }
  return (completion, example) => {
    const { shortest, longest } = isCorrect(completion, example) ? correct : wrong;
    const progress = Math.min(completion.tokens / maxTokens, 1);
    return longest + ((shortest - longest) * (1 + Math.cos(Math.PI * progress))) / 2;
  };
}

export interface RepetitionOptions {
  /** How many units in a row make one n-gram. @default 3 */
  readonly size?: number;
  /** @default "words": runs of anything but white space, upper and lower case alike */
  readonly unit?: "words" | "characters";
  /** Reward as all n-grams become one. @default -1 */
  readonly worst?: number;
}

/**
 * Repetition: `worst` times the share of n-grams that were written before, 1 − distinct / all; 0 for a text too short
 * to have two.
 * @source arXiv:2502.03373 §4, as a penalty on the whole completion
 * @throws ConfigError when size is not a positive whole number
 */
export function repetitionPenalty(options: RepetitionOptions = {}): Reward<unknown> {
  const { size = 3, unit = "words", worst = -1 } = options;
  if (!Number.isInteger(size) || size < 1) {
    throw new ConfigError({
      where: "repetitionPenalty",
      rule: "size must be a whole number from 1",
      got: `${size}`,
    });
  }
  return ({ text }) => {
    const units = unit === "words" ? text.toLowerCase().split(/\s+/).filter(Boolean) : [...text];
    const all = units.length - size + 1;
    if (all < 2) return 0;
    const distinct = new Set<string>();
    // The separator is no unit, so that two different n-grams never join to one text.
    for (let start = 0; start < all; start++) distinct.add(units.slice(start, start + size).join("\u0000 "));
    return worst * (1 - distinct.size / all);
  };
}
