/** How prompts are written for a model, and how much room they take in its positions. */

import { ConfigError, FormatError, TaskError } from "../../base/errors.ts";
import { Random } from "../../compute/tensor/random.ts";
import { encodePrompt } from "../../model/engine/text.ts";
import type { Tokenizer } from "../../model/text/tokenizer.ts";
import { asChat, asText, type PromptWriter } from "../tasks/prompts.ts";
import { describe, type Example, type Task } from "../tasks/task.ts";
import { type BaseModel, trainedConfig } from "./base-model.ts";
import type { RunConfig } from "./config.ts";

/** As the configuration asks: as a conversation where the model has a template for one, or as text. */
export function writerFor(
  { prompts }: RunConfig,
  base: Pick<BaseModel, "chatTemplate"> | undefined,
): PromptWriter {
  return prompts === "text" ? asText : asChat(base?.chatTemplate);
}

/** Training prompts that are looked at to guess the longest, where the task does not say. */
const PROMPTS_SEEN = 256;
/** Room for longer prompts where those seen have a template in common, most of which never changes. */
const PROMPT_MARGIN = 8;

/**
 * Most tokens a prompt may have, the begin token included.
 * @throws TaskError for a prompt that the tokenizer cannot write
 * @param known  whether what the task says of it holds: it counts in tokens of a model made for it, and knows no chat template
 */
export function longestPrompt<Row>(
  task: Task<Row>,
  tokenizer: Tokenizer,
  write: PromptWriter,
  known: boolean,
): number {
  const begin = encodePrompt(tokenizer, "").length;
  const length = (example: Example<Row>): number =>
    lengthOf(`task ${task.name}: prompt`, tokenizer, write(example));
  const heldOut = task.validation.map(length);
  if (known && task.maxPromptTokens !== undefined) return begin + task.maxPromptTokens;
  const drawn = Array.from({ length: PROMPTS_SEEN }, (_, i) => length(task.train.draw(new Random(0, i))));
  const seen = [...heldOut, ...drawn];
  // Some that were not seen may be longer; half as much again, of what is not the same in all, is room for them.
  const [least, longest] = [Math.min(...seen), Math.max(...seen)];
  if (known) return begin + Math.ceil(1.5 * (longest - begin));
  return longest + Math.ceil(0.5 * (longest - least)) + PROMPT_MARGIN;
}

/** Texts of each kind that are looked at before the first step. */
const TRACES_SEEN = 64;

/**
 * Whether what the stages before reinforcement learning read can be written, as far as some of it tells.
 * @throws TaskError naming a text that the tokenizer cannot write
 */
export function checkTraces<Row>(task: Task<Row>, tokenizer: Tokenizer, config: RunConfig): void {
  for (const [stage, source] of [
    ["pretrain", "explore"],
    ["sft", "demonstrate"],
  ] as const) {
    const draw = config[stage].steps > 0 ? task[source] : undefined;
    if (draw === undefined) continue;
    for (let i = 0; i < TRACES_SEEN; i++) {
      const { prompt, completion } = draw(new Random(0, i));
      for (const text of [prompt, completion]) lengthOf(`task ${task.name}: ${source}`, tokenizer, text);
    }
  }
}

/** @throws TaskError naming the text that the tokenizer cannot write */
function lengthOf(where: string, tokenizer: Tokenizer, text: string): number {
  try {
    return encodePrompt(tokenizer, text).length;
  } catch (cause) {
    if (!(cause instanceof FormatError)) throw cause;
    throw new TaskError({
      where: `${where} ${describe(text)}`,
      rule: "must be written in the characters of its alphabet and tokens",
      got: cause.got ?? "others",
      remedy: "Add them to the task's alphabet",
      cause,
    });
  }
}

/**
 * Whether a model can be trained on a task as the configuration asks.
 * @throws ConfigError when its positions do not suffice for prompt and completion, or it cannot have the adapters asked for
 */
export function checkBase<Row>(base: BaseModel, task: Task<Row>, config: RunConfig): void {
  const { maxPositions } = trainedConfig(base.config, config.lora);
  const { maxNewTokens } = config.rl;
  const prompt = longestPrompt(task, base.tokenizer, writerFor(config, base), false);
  if (prompt + maxNewTokens <= maxPositions) return;
  const where = `${maxPositions} positions of ${base.identity.name}`;
  throw new ConfigError({
    where: "config.rl.maxNewTokens",
    rule: `must leave room for prompts of ${prompt} tokens in the ${where}`,
    got: `${maxNewTokens}`,
    remedy: "Lower it with --set, or shorten the task's prompts",
  });
}
