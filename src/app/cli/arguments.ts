/** Numbers typed as options, held to their rules; and the options that several commands share. */

import { availableParallelism } from "node:os";
import { type Command, InvalidArgumentError, Option } from "commander";

interface Range {
  readonly min?: number;
  /** Excludes the lower end itself. */
  readonly above?: number;
  readonly max?: number;
}

function rule(what: string, { min, above, max }: Range): string {
  const lower = min !== undefined ? ` from ${min}` : above !== undefined ? ` above ${above}` : "";
  const upper = max !== undefined ? ` up to ${max}` : "";
  return `It must be ${what}${lower}${upper}.`;
}

function parser(what: string, isKind: (value: number) => boolean, range: Range): (text: string) => number {
  const { min = -Infinity, above = -Infinity, max = Infinity } = range;
  return (text) => {
    const value = text.trim() === "" ? Number.NaN : Number(text);
    if (isKind(value) && value >= min && value > above && value <= max) return value;
    throw new InvalidArgumentError(rule(what, range));
  };
}

/** Parses a whole number within a range. */
export const wholeNumber = (range: Range = {}): ((text: string) => number) =>
  parser("a whole number", Number.isSafeInteger, range);

/** Parses a finite number within a range. */
export const numberIn = (range: Range = {}): ((text: string) => number) =>
  parser("a number", Number.isFinite, range);

/** Parses whole numbers with commas between them. */
export function wholeNumbers(range: Range = {}): (text: string) => number[] {
  const one = wholeNumber(range);
  return (text) => text.split(",").map(one);
}

export interface SamplingArguments {
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly minP?: number;
  readonly maxNewTokens?: number;
}

/** How tokens are chosen, and how many; what is left out comes from the model's generation_config.json. */
export function withSampling(command: Command): Command {
  return command
    .option("--temperature <t>", "0 takes the likeliest token, 1 samples as trained", numberIn({ min: 0 }))
    .option(
      "--top-p <p>",
      "sample from the likeliest tokens that together reach p",
      numberIn({ above: 0, max: 1 }),
    )
    .option("--top-k <k>", "sample from the k likeliest tokens", wholeNumber({ min: 0 }))
    .option(
      "--min-p <p>",
      "sample from tokens at least p as likely as the likeliest",
      numberIn({ min: 0, max: 1 }),
    )
    .option("--max-new-tokens <n>", "longest completion", wholeNumber({ min: 1 }));
}

/** Cores the work may use. */
export function threadsOption(): Option {
  return new Option("--threads <n>", "threads to compute with")
    .argParser(wholeNumber({ min: 1 }))
    .default(availableParallelism(), "every core this process may use");
}
