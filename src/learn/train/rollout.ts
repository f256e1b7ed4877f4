/**
 * Rollouts: prompts drawn, G completions of each sampled from the policy and judged. With dynamic sampling, a group whose
 * rewards are all equal, which teaches nothing, is replaced by a new prompt's, up to a number of times (DAPO eq. 11).
 */

import { Random } from "../../compute/tensor/random.ts";
import type { Engine } from "../../model/engine/engine.ts";
import { encodePrompt } from "../../model/engine/text.ts";
import type { Tokenizer } from "../../model/text/tokenizer.ts";
import { type Judgement, judge } from "../tasks/judge.ts";
import { asText, type PromptWriter } from "../tasks/prompts.ts";
import type { Example, Judged, Task } from "../tasks/task.ts";
import { STREAMS } from "./streams.ts";

export interface Sample extends Judgement {
  /** The tokens after the prompt, the end-of-sequence token included, and the log-probability of each. */
  readonly ids: readonly number[];
  readonly logp: readonly number[];
  readonly judged: Judged;
}

/** One prompt and its samples. */
export interface Group<Row> {
  readonly example: Example<Row>;
  readonly prompt: readonly number[];
  readonly samples: readonly Sample[];
}

export interface RolloutOptions<Row> {
  readonly engine: Engine;
  readonly tokenizer: Tokenizer;
  readonly task: Task<Row>;
  readonly seed: number;
  readonly step: number;
  readonly prompts: number;
  readonly samples: number;
  readonly maxNewTokens: number;
  readonly temperature: number;
  readonly resampleAttempts: number;
  /** How the model is given a prompt. @default as text */
  readonly write?: PromptWriter;
  /** Tokens that end a completion. @default the tokenizer's end */
  readonly stopIds?: readonly number[];
  readonly signal?: AbortSignal;
}

export interface Rollout<Row> {
  /** P groups to train on. */
  readonly groups: readonly Group<Row>[];
  /** Those and the groups that were replaced, in the order they were drawn. */
  readonly drawn: readonly Group<Row>[];
  /** Seconds spent sampling, and judging. */
  readonly seconds: { readonly generate: number; readonly judge: number };
}

/** Whether all samples that count got the same reward. */
export function isEqual({ samples }: Group<unknown>): boolean {
  const rewards = samples.map(({ reward }) => reward).filter((reward) => reward !== null);
  return rewards.every((reward) => reward === rewards[0]);
}

/**
 * The rollout of one step, with the weights the engine has adopted.
 * @throws TaskError when a reward breaks its contract
 */
export async function rollOut<Row>(options: RolloutOptions<Row>): Promise<Rollout<Row>> {
  const { engine, tokenizer, task, seed, step, signal, write = asText } = options;
  const seconds = { generate: 0, judge: 0 };
  const groups: Group<Row>[] = [];
  const drawn: Group<Row>[] = [];
  let wanted = Array.from({ length: options.prompts }, (_, p) => p);
  for (let attempt = 0; wanted.length > 0 && attempt <= options.resampleAttempts; attempt++) {
    const began = performance.now();
    const requests = wanted.map((p) => {
      const example = task.train.draw(new Random(seed, STREAMS.prompt, step, p, attempt));
      const path = [STREAMS.completion, step, p, attempt];
      return {
        example,
        prompt: encodePrompt(tokenizer, write(example)),
        samples: options.samples,
        seed,
        path,
      };
    });
    const completions = await engine.generate(requests, {
      maxNewTokens: options.maxNewTokens,
      temperature: options.temperature,
      stopIds: options.stopIds ?? [tokenizer.eosId],
      ...(signal === undefined ? {} : { signal }),
    });
    const generated = performance.now();
    const judgedGroups = await Promise.all(
      requests.map(async ({ example, prompt }, i) => {
        const samples = completions[i]!.map(async ({ ids, logp, finish }): Promise<Sample> => {
          const text = tokenizer.decode(ids, { skipSpecial: true });
          const judged = { text, tokens: ids.length, truncated: finish === "length" };
          return { ids, logp, judged, ...(await judge(task, judged, example)) };
        });
        return { example, prompt, samples: await Promise.all(samples) };
      }),
    );
    for (const [i, p] of wanted.entries()) groups[p] = judgedGroups[i]!;
    drawn.push(...judgedGroups);
    wanted = wanted.filter((p) => isEqual(groups[p]!));
    seconds.generate += (generated - began) / 1000;
    seconds.judge += (performance.now() - generated) / 1000;
  }
  return { groups, drawn, seconds };
}
