/** How often a model is right on given prompts. */

import type { TokenEngine } from "../../model/engine/engine.ts";
import { encodePrompt } from "../../model/engine/text.ts";
import type { Tokenizer } from "../../model/text/tokenizer.ts";
import type { CompletionRecord, EvalSummary } from "../runs/records.ts";
import { type Judgement, judge } from "../tasks/judge.ts";
import { asText, type PromptWriter } from "../tasks/prompts.ts";
import type { Example, Judged, Task } from "../tasks/task.ts";
import { summarize } from "./statistics.ts";

export interface EvaluateOptions {
  /** Completions per prompt. @default 1 */
  readonly samples?: number;
  /** 0 is greedy. @default 1 */
  readonly temperature?: number;
  readonly topP?: number;
  readonly maxNewTokens: number;
  readonly seed: number;
  /** Tokens that end a completion. @default the tokenizer's end */
  readonly stopIds?: readonly number[];
  /** How the model is given a prompt. @default as text */
  readonly write?: PromptWriter;
  /** Told of every token as it is chosen. */
  readonly onToken?: () => void;
  readonly signal?: AbortSignal;
}

export interface Evaluation {
  readonly summary: EvalSummary;
  /** `records[p][s]` is sample s of prompt p. */
  readonly records: readonly (readonly CompletionRecord[])[];
}

/** Names the random streams of evaluations, apart from those of training with the same seed. */
const EVALUATION_STREAM = 0xe7a1;

/** A completion with its verdict, as records keep it. A sample that every reward skipped has the reward 0. */
export function completionRecord(
  example: Pick<Example<unknown>, "id" | "prompt">,
  judged: Judged,
  { rewards, reward, correct }: Judgement,
): CompletionRecord {
  return {
    id: example.id,
    prompt: example.prompt,
    completion: judged.text,
    rewards,
    reward: reward ?? 0,
    correct,
    tokens: judged.tokens,
    truncated: judged.truncated,
  };
}

/** Judges a completion by its task. @throws TaskError when a reward breaks its contract */
export async function recordOf<Row>(
  task: Task<Row>,
  example: Example<Row>,
  judged: Judged,
): Promise<CompletionRecord> {
  return completionRecord(example, judged, await judge(task, judged, example));
}

/**
 * Samples completions of every example with the weights the engine has adopted, and judges them. The random streams are
 * named by the seed and the example's index: two models evaluated alike draw the same random numbers.
 * @throws ConfigError when there is no example; TaskError when a reward breaks its contract
 */
export async function evaluate<Row>(
  engine: TokenEngine,
  tokenizer: Tokenizer,
  task: Task<Row>,
  examples: readonly Example<Row>[],
  options: EvaluateOptions,
): Promise<Evaluation> {
  const { samples = 1, temperature = 1, topP = 1, maxNewTokens, seed, onToken, signal } = options;
  const { write = asText } = options;
  const requests = examples.map((example, index) => ({
    prompt: encodePrompt(tokenizer, write(example)),
    samples,
    seed,
    path: [EVALUATION_STREAM, index],
  }));
  const completions = await engine.generate(requests, {
    maxNewTokens,
    temperature,
    topP,
    stopIds: options.stopIds ?? [tokenizer.eosId],
    ...(onToken === undefined ? {} : { onToken }),
    ...(signal === undefined ? {} : { signal }),
  });
  const records = await Promise.all(
    examples.map((example, index) =>
      Promise.all(
        completions[index]!.map(({ ids, finish }) => {
          const text = tokenizer.decode(ids, { skipSpecial: true });
          return recordOf(task, example, { text, tokens: ids.length, truncated: finish === "length" });
        }),
      ),
    ),
  );
  return { summary: summarize(records), records };
}
