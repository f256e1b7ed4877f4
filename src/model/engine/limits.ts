/** What may be asked of whatever runs a model: sequences as long as it takes, of tokens that it has. */

import { ConfigError } from "../../base/errors.ts";
import type { ModelConfig } from "../arch/models.ts";

/** @throws ConfigError unless sequences of so many positions are within the model's */
export function expectPositions(where: string, maxPositions: number, config: ModelConfig): void {
  if (Number.isSafeInteger(maxPositions) && maxPositions >= 1 && maxPositions <= config.maxPositions) return;
  throw new ConfigError({
    where: `${where}: maxPositions`,
    rule: `must be from 1 to the model's ${config.maxPositions}`,
    got: String(maxPositions),
  });
}

/** @throws ConfigError unless a prompt leaves room for a new token and holds none that is not the model's */
export function expectPrompt(
  where: string,
  prompt: readonly number[],
  { maxPositions, vocabSize }: { readonly maxPositions: number; readonly vocabSize: number },
): void {
  if (prompt.length === 0 || prompt.length >= maxPositions) {
    throw new ConfigError({
      where: `${where}: prompt`,
      rule: `must have from 1 to ${maxPositions - 1} tokens`,
      got: `${prompt.length}`,
      remedy:
        "Shorten it, load the model with more positions, or, where a task trains a model of its own, give the task maxPromptTokens",
    });
  }
  const stranger = prompt.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
  if (stranger === undefined) return;
  throw new ConfigError({
    where: `${where}: prompt`,
    rule: `token ids must be whole numbers below the vocabulary's ${vocabSize}`,
    got: String(stranger),
    remedy: "Encode the prompt with the model's own tokenizer",
  });
}

/** How many ids may be written. @throws ConfigError unless the model has so many, and there is one at least */
export function tokensOf(where: string, tokens: number | undefined, { vocabSize }: ModelConfig): number {
  if (tokens === undefined) return vocabSize;
  if (Number.isSafeInteger(tokens) && tokens >= 1 && tokens <= vocabSize) return tokens;
  throw new ConfigError({
    where: `${where}: tokens`,
    rule: `must be from 1 to the vocabulary's ${vocabSize}`,
    got: String(tokens),
  });
}

/** @throws ConfigError unless there is something to generate */
export function expectCount(where: string, count: number): void {
  if (Number.isSafeInteger(count) && count >= 1) return;
  throw new ConfigError({ where, rule: "must be a positive integer", got: String(count) });
}
