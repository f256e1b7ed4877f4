/**
 * A task is data plus judges: prompts to answer, rewards that say how well a completion did, and optionally what a
 * base model has seen of the notation. The model sees only `prompt`; `row` is whatever the judges need.
 *
 * `defineTask` checks what a user wrote and changes nothing; `openTask` (open.ts) reads the prompts, sets some aside
 * for validation and gives the `Task` that training and evaluation take.
 */
import { z } from "zod";
import { expectKnown, TaskError } from "../../base/errors.ts";
import { valueAt } from "../../base/json.ts";
import type { Random } from "../../compute/tensor/random.ts";
import type { ChatMessage } from "../../model/text/chat-template.ts";

/** What a user's prompts yield: the text the model sees, and any other fields for the judges. */
export interface PromptRow {
  /** What the model is to go on from; as far as content goes, what the example is. */
  readonly prompt: string;
  /**
   * The same as a conversation, for models that were trained to take part in one and have a chat template.
   * @default one message of the user's, the prompt
   */
  readonly messages?: readonly ChatMessage[];
  /** Names the example in records and errors; derived from the prompt when absent. */
  readonly id?: string | number;
}

/** One prompt, ready to be answered and judged. */
export interface Example<Row> {
  readonly id: string;
  readonly prompt: string;
  /** As in {@link PromptRow}. */
  readonly messages?: readonly ChatMessage[];
  readonly row: Row;
}

/** A completion, as the judges see it. */
export interface Judged {
  /** As the model wrote it, without the prompt and without the end-of-sequence token. */
  readonly text: string;
  /** Length in tokens, the end-of-sequence token included. */
  readonly tokens: number;
  /** Whether it was cut at the length limit before it ended by itself. */
  readonly truncated: boolean;
}

/** How well a completion did: any finite number, or null where this reward has nothing to say; a sample of which none has is skipped. */
export type Reward<Row> = (
  completion: Judged,
  example: Example<Row>,
) => number | null | Promise<number | null>;

export interface WeightedReward<Row> {
  readonly weight: number;
  readonly reward: Reward<Row>;
  /** Whether it says nothing of a sample of which those before it say nothing, so that it is still skipped. @default false */
  readonly shaping?: boolean;
}

/** Whether a completion counts for pass@1. */
export type Correct<Row> = (completion: Judged, example: Example<Row>) => boolean | Promise<boolean>;

/** A prompt together with what to write after it: training text for a base model or a cold start. */
export interface Trace {
  readonly prompt: string;
  /** As in {@link PromptRow}. */
  readonly messages?: readonly ChatMessage[];
  readonly completion: string;
}

/** Training examples, addressable by a random stream: the same stream gives the same example, in any order of calls. */
export interface ExampleSource<Row> {
  /** How many examples there are to draw from; absent when they are made on demand. */
  readonly size?: number;
  draw(random: Random): Example<Row>;
}

/** What training and evaluation take. Validation and training prompts are disjoint by content. */
export interface Task<Row> {
  readonly name: string;
  readonly description?: string;
  /** Every character a from-scratch tokenizer needs; the think and answer tags are tokens of their own. */
  readonly alphabet: string;
  /** Longer texts that are one token each, numbers for instance; the longest that fits is taken. */
  readonly tokens?: readonly string[];
  readonly train: ExampleSource<Row>;
  readonly validation: readonly Example<Row>[];
  readonly rewards: Readonly<Record<string, WeightedReward<Row>>>;
  /** What pass@1 counts. Default: the reward named "accuracy", or the only reward, is at least 1. */
  readonly correct?: Correct<Row>;
  /** What a base model has seen: unselected exploration that knows the notation and mostly fails. */
  readonly explore?: (random: Random) => Trace;
  /** Good traces for a cold start. */
  readonly demonstrate?: (random: Random) => Trace;
  /** Whether a correct completion first tried what failed: a run keeps the first it sees. */
  readonly wentBack?: (completion: Judged, example: Example<Row>) => boolean;
  readonly maxPromptTokens?: number;
  readonly maxNewTokens?: number;
}

export type Sequence<Row> = Iterable<Row> | AsyncIterable<Row>;

/**
 * Where prompts come from:
 * - `(random) => row` makes one on demand, and must depend on `random` alone;
 * - an array, an iterable, an async iterable, or a (generator) function that returns one, is read once;
 * - a path (from the working directory) or a file URL names a JSONL file of rows `{"prompt": …, …}`;
 *   for other rows use `jsonl(path, toRow)`.
 */
export type Prompts<Row> = string | URL | Sequence<Row> | ((random: Random) => Row | Sequence<Row>);

/** What a user writes. */
export interface TaskOptions<Row extends PromptRow> {
  /** Letters, digits, `-` and `_`; names the runs. */
  readonly name: string;
  readonly description?: string;
  /** @default printable ASCII and the line feed */
  readonly alphabet?: string;
  /** Longer texts that are one token each, numbers for instance; the longest that fits is taken. @default none */
  readonly tokens?: readonly string[];
  readonly prompts: Prompts<Row>;
  /** One reward, or several by name, each with its weight. */
  readonly reward: Reward<Row> | Readonly<Record<string, WeightedReward<Row>>>;
  readonly correct?: Correct<Row>;
  readonly explore?: (random: Random) => Trace;
  readonly demonstrate?: (random: Random) => Trace;
  /** Whether a correct completion first tried what failed: a run keeps the first it sees. */
  readonly wentBack?: (completion: Judged, example: Example<Row>) => boolean;
  /** Prompts to validate on. @default a share of `prompts`, set aside by a hash of their content */
  readonly validation?: Prompts<Row>;
  /** Share of the prompts to set aside when `validation` is absent, above 0 and below 1. @default 0.1 */
  readonly validationShare?: number;
  /** Most validation prompts to keep. @default 256 */
  readonly validationCount?: number;
  /** What makes two prompts the same puzzle, so that one is not trained on and the other validated. @default the prompt */
  readonly contentKey?: (prompt: string) => string;
  /** Most rows to read from a generator or iterable, which may be endless; files and arrays are read whole. @default 20,000 */
  readonly take?: number;
  readonly maxPromptTokens?: number;
  readonly maxNewTokens?: number;
}

/** Marks what `defineTask` made, also across two copies of this package in one process. */
const definedTask = Symbol.for("pondera.definedTask");

/** A checked definition with its defaults filled in. */
export interface TaskDefinition<Row extends PromptRow> {
  readonly [definedTask]: true;
  readonly name: string;
  readonly description?: string;
  readonly alphabet: string;
  readonly tokens?: readonly string[];
  readonly prompts: Prompts<Row>;
  readonly rewards: Readonly<Record<string, WeightedReward<Row>>>;
  readonly correct?: Correct<Row>;
  readonly explore?: (random: Random) => Trace;
  readonly demonstrate?: (random: Random) => Trace;
  readonly wentBack?: (completion: Judged, example: Example<Row>) => boolean;
  readonly validation?: Prompts<Row>;
  readonly validationShare: number;
  readonly validationCount: number;
  readonly contentKey: (prompt: string) => string;
  readonly take: number;
  readonly maxPromptTokens?: number;
  readonly maxNewTokens?: number;
}

const PRINTABLE_ASCII = `\n${String.fromCharCode(...Array.from({ length: 95 }, (_, i) => 32 + i))}`;

const isFunction = (value: unknown): boolean => typeof value === "function";

export function isSequence<Row>(value: Row | Sequence<Row>): value is Sequence<Row> {
  return (
    typeof value === "object" && value !== null && (Symbol.iterator in value || Symbol.asyncIterator in value)
  );
}

const isPrompts = (value: unknown): boolean =>
  (typeof value === "string" && value !== "") ||
  value instanceof URL ||
  isFunction(value) ||
  isSequence(value);

const functionSchema = z.custom<unknown>(isFunction, "must be a function");
const promptsSchema = z.custom<unknown>(
  isPrompts,
  "must be a function, an iterable of rows, or the path of a JSONL file",
);
const countSchema = z.int("must be a whole number").positive("must be at least 1");
const weightedSchema = z.strictObject({
  weight: z.number("must be a finite number"),
  shaping: z.boolean("must be true or false").optional(),
  reward: functionSchema,
});

const optionsSchema = z.object({
  name: z.string("must be text").regex(/^[A-Za-z0-9][\w-]*$/, "must be letters, digits, - and _"),
  description: z.string("must be text").optional(),
  alphabet: z.string("must be text").min(1, "must not be empty").optional(),
  tokens: z.array(z.string("must be text").min(2, "must be longer than a character")).optional(),
  prompts: promptsSchema,
  reward: z.union(
    [
      functionSchema,
      z
        .record(z.string(), weightedSchema)
        .refine((rewards) => Object.keys(rewards).length > 0, "needs at least one reward"),
    ],
    "must be a function, or named rewards { name: { weight, reward } }",
  ),
  correct: functionSchema.optional(),
  explore: functionSchema.optional(),
  demonstrate: functionSchema.optional(),
  wentBack: functionSchema.optional(),
  validation: promptsSchema.optional(),
  validationShare: z.number("must be a number").gt(0, "must be above 0").lt(1, "must be below 1").optional(),
  validationCount: countSchema.optional(),
  contentKey: functionSchema.optional(),
  take: countSchema.optional(),
  maxPromptTokens: countSchema.optional(),
  maxNewTokens: countSchema.optional(),
});

/** A short text for any value, for error messages. */
export function describe(value: unknown): string {
  if (typeof value === "function") return "a function";
  if (typeof value === "bigint") return `${value}n`;
  if (value === undefined || typeof value === "number" || typeof value === "symbol") return String(value);
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch {
    // A cyclic value has no JSON text; its class still says what it is.
  }
  text ??= Object.prototype.toString.call(value);
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}

/**
 * A task of your own, checked.
 * @throws TaskError naming the field that breaks its rule; ConfigError for an unknown field, with the nearest known one
 */
export function defineTask<Row extends PromptRow>(options: TaskOptions<Row>): TaskDefinition<Row> {
  if (typeof options !== "object" || options === null) {
    throw new TaskError({ where: "defineTask", rule: "takes one object", got: describe(options) });
  }
  const where = typeof options.name === "string" ? `task ${options.name}` : "defineTask";
  for (const key of Object.keys(options)) expectKnown(where, key, Object.keys(optionsSchema.shape));
  const parsed = optionsSchema.safeParse(options);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    throw new TaskError({
      where: `${where}: ${issue.path.join(".")}`,
      rule: issue.message,
      got: describe(valueAt(options, issue.path)),
    });
  }
  const { reward, ...rest } = options;
  const rewards = typeof reward === "function" ? { reward: { weight: 1, reward } } : reward;
  if (options.correct === undefined && Object.keys(rewards).length > 1 && !("accuracy" in rewards)) {
    throw new TaskError({
      where,
      rule: "must say which completions are correct",
      got: `rewards ${Object.keys(rewards).join(", ")}`,
      remedy: 'Name one reward "accuracy" (1 is correct), or give correct: (completion, example) => boolean',
    });
  }
  return {
    alphabet: PRINTABLE_ASCII,
    validationShare: 0.1,
    validationCount: 256,
    take: 20_000,
    contentKey: (prompt) => prompt,
    ...rest,
    rewards,
    [definedTask]: true,
  };
}

/** Whether a value came from `defineTask`. */
export function isTaskDefinition(value: unknown): value is TaskDefinition<PromptRow> {
  return typeof value === "object" && value !== null && definedTask in value;
}
