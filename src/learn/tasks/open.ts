/**
 * From a definition to a task: read its prompts and set some aside for validation, so that no prompt, seen as content,
 * is both trained on and validated.
 */
import { createHash } from "node:crypto";
import { PonderaError, TaskError } from "../../base/errors.ts";
import { Random } from "../../compute/tensor/random.ts";
import { jsonl } from "./jsonl.ts";
import {
  describe,
  type Example,
  type ExampleSource,
  isSequence,
  type PromptRow,
  type Prompts,
  type Sequence,
  type Task,
  type TaskDefinition,
  type Trace,
} from "./task.ts";

/** Prompts are read with this seed whatever the run's, so that all runs of a task validate on the same prompts. */
const PROMPT_SEED = 1;
/** Draws in a row that may all be held out before the prompts are called too few; at a share of 0.9 once in 10⁴⁵. */
const MOST_REDRAWS = 1_000;

/** Either rows that were read, or a function that makes one. */
type Origin<Row> =
  | { readonly kind: "rows"; readonly rows: readonly Row[] }
  | { readonly kind: "maker"; readonly make: (random: Random) => Row };

function contentHash(key: string): string {
  return createHash("sha256").update(key).digest("hex").slice(0, 12);
}

/** The hash as a number in [0, 1), for choosing a share of all content. */
const position = (hash: string): number => Number.parseInt(hash, 16) / 2 ** 48;

/** What a user's function threw, under the task's name; our own errors already say where they happened. */
function asTaskError(where: string, cause: unknown): PonderaError {
  if (cause instanceof PonderaError) return cause;
  const got = cause instanceof Error ? `${cause.name}: ${cause.message}` : describe(cause);
  return new TaskError({ where, rule: "must not throw", got, cause });
}

function guarded<T>(where: string, call: () => T): T {
  try {
    return call();
  } catch (cause) {
    throw asTaskError(where, cause);
  }
}

async function readSequence<Row>(where: string, sequence: Sequence<Row>, most: number): Promise<Origin<Row>> {
  const rows: Row[] = [];
  try {
    for await (const row of sequence) {
      rows.push(row);
      if (rows.length >= most) break;
    }
  } catch (cause) {
    throw asTaskError(where, cause);
  }
  return { kind: "rows", rows };
}

/**
 * @param field which of the task's two sources it is
 * @param most  how many rows to take from an iterable, which may be endless
 */
async function readPrompts<Row>(
  task: string,
  field: "prompts" | "validation",
  prompts: Prompts<Row>,
  most: number,
): Promise<Origin<Row>> {
  const where = `task ${task}: ${field}`;
  if (typeof prompts === "string" || prompts instanceof URL) {
    return readSequence(where, jsonl<Row>(prompts), Number.POSITIVE_INFINITY);
  }
  if (typeof prompts !== "function") {
    return Array.isArray(prompts) ? { kind: "rows", rows: prompts } : readSequence(where, prompts, most);
  }
  const stream = field === "prompts" ? 0 : 1;
  const made = guarded(where, () => prompts(new Random(PROMPT_SEED, stream)));
  if (Array.isArray(made)) return { kind: "rows", rows: made };
  if (isSequence(made)) return readSequence(where, made, most);
  // One call has shown that it makes single rows, and so will the next ones.
  return { kind: "maker", make: (random) => guarded(where, () => prompts(random) as Row) };
}

/** A row from a user's source as an example, checked. */
function toExample<Row extends PromptRow>(task: string, row: Row): Example<Row> {
  const prompt: unknown = (row as Row | null | undefined)?.prompt;
  if (typeof prompt !== "string" || prompt === "") {
    throw new TaskError({
      where: `task ${task}`,
      rule: "each row of prompts must have a text `prompt`",
      got: row instanceof Promise ? "a promise" : describe(row),
      remedy:
        row instanceof Promise
          ? "Make rows at once, or yield them from an async generator"
          : "Write { prompt: … }",
    });
  }
  const id = row.id === undefined ? contentHash(prompt) : String(row.id);
  const { messages } = row;
  if (messages === undefined) return { id, prompt, row };
  expectMessages(`task ${task}`, messages);
  return { id, prompt, messages, row };
}

/** @throws TaskError unless they are a conversation that a chat template can write */
function expectMessages(where: string, messages: unknown): void {
  const good =
    Array.isArray(messages) &&
    messages.length > 0 &&
    messages.every(
      (message: unknown) =>
        typeof message === "object" &&
        message !== null &&
        typeof (message as { role?: unknown }).role === "string" &&
        "content" in message,
    );
  if (good) return;
  throw new TaskError({
    where: `${where}: messages`,
    rule: "must be a list of { role, content }, with one at least",
    got: describe(messages),
  });
}

interface Split<Row> {
  readonly train: ExampleSource<Row>;
  readonly validation: readonly Example<Row>[];
  /** Whether a prompt must not be trained on. */
  readonly isHeldOut: (prompt: string) => boolean;
}

/**
 * Makes things until one's prompt is not held out.
 * @throws TaskError when all of many are
 */
function redraw<T extends { readonly prompt: string }>(
  task: string,
  what: string,
  make: () => T,
  isHeldOut: (prompt: string) => boolean,
): T {
  for (let tries = 0; tries < MOST_REDRAWS; tries++) {
    const made = make();
    if (!isHeldOut(made.prompt)) return made;
  }
  throw new TaskError({
    where: `task ${task}`,
    rule: `${what} must also make prompts that are not held out for validation`,
    got: `${MOST_REDRAWS} held-out prompts in a row`,
    remedy: "Draw from more prompts, or set validationShare lower",
  });
}

function makerSource<Row extends PromptRow>(
  name: string,
  make: (random: Random) => Row,
  isHeldOut: (prompt: string) => boolean,
): ExampleSource<Row> {
  return { draw: (random) => redraw(name, "prompts", () => toExample(name, make(random)), isHeldOut) };
}

function rowSource<Row>(name: string, examples: readonly Example<Row>[]): ExampleSource<Row> {
  if (examples.length === 0) {
    throw new TaskError({
      where: `task ${name}`,
      rule: "needs prompts to train on, besides those held out for validation",
      got: "none",
      remedy: "Give more prompts, or set validationShare lower",
    });
  }
  return { size: examples.length, draw: (random) => random.pick(examples) };
}

/** At most `count` examples with different content, from examples that may repeat. */
function distinct<Row>(
  examples: Iterable<Example<Row>>,
  count: number,
  key: (prompt: string) => string,
): Example<Row>[] {
  const byKey = new Map<string, Example<Row>>();
  for (const example of examples) {
    const content = key(example.prompt);
    if (!byKey.has(content)) byKey.set(content, example);
    if (byKey.size === count) break;
  }
  return [...byKey.values()];
}

function* madeExamples<Row extends PromptRow>(
  name: string,
  make: (random: Random) => Row,
  tries: number,
): Generator<Example<Row>> {
  const random = new Random(PROMPT_SEED, 2);
  for (let i = 0; i < tries; i++) yield toExample(name, make(random));
}

/** The user named the validation prompts: training leaves out whatever equals one of them in content. */
function splitByGiven<Row extends PromptRow>(
  definition: TaskDefinition<Row>,
  origin: Origin<Row>,
  given: Origin<Row>,
): Split<Row> {
  const { name, validationCount: count, contentKey } = definition;
  const candidates =
    given.kind === "rows"
      ? given.rows.map((row) => toExample(name, row))
      : madeExamples(name, given.make, 10 * count);
  const validation = distinct(candidates, count, contentKey);
  const keys = new Set(validation.map((example) => contentKey(example.prompt)));
  const isHeldOut = (prompt: string): boolean => keys.has(contentKey(prompt));
  const train =
    origin.kind === "maker"
      ? makerSource(name, origin.make, isHeldOut)
      : rowSource(
          name,
          origin.rows.map((row) => toExample(name, row)).filter((x) => !isHeldOut(x.prompt)),
        );
  return { train, validation, isHeldOut };
}

/** A prompt made on demand belongs to validation when the hash of its content falls below the share. */
function splitMade<Row extends PromptRow>(
  definition: TaskDefinition<Row>,
  make: (random: Random) => Row,
): Split<Row> {
  const { name, validationCount: count, validationShare: share, contentKey } = definition;
  const isHeldOut = (prompt: string): boolean => position(contentHash(contentKey(prompt))) < share;
  function* heldOut(): Generator<Example<Row>> {
    // Four times the draws that enough distinct prompts would take; a small game simply has fewer to give.
    const tries = Math.ceil((4 * count) / share);
    for (const example of madeExamples(name, make, tries)) if (isHeldOut(example.prompt)) yield example;
  }
  return {
    train: makerSource(name, make, isHeldOut),
    validation: distinct(heldOut(), count, contentKey),
    isHeldOut,
  };
}

/** Of rows that were read, those whose content hashes lowest are set aside: a fixed number, independent of their order. */
function splitRows<Row extends PromptRow>(definition: TaskDefinition<Row>, rows: readonly Row[]): Split<Row> {
  const { name, validationCount: count, validationShare: share, contentKey } = definition;
  const examples = rows.map((row) => toExample(name, row));
  const hashOf = (prompt: string): string => contentHash(contentKey(prompt));
  const hashes = [...new Set(examples.map((example) => hashOf(example.prompt)))].sort();
  const held = new Set(hashes.slice(0, Math.min(count, Math.ceil(share * hashes.length))));
  const isHeldOut = (prompt: string): boolean => held.has(hashOf(prompt));
  return {
    train: rowSource(
      name,
      examples.filter((example) => !isHeldOut(example.prompt)),
    ),
    validation: distinct(
      examples.filter((example) => isHeldOut(example.prompt)),
      count,
      contentKey,
    ),
    isHeldOut,
  };
}

/** A user's trace function, checked, which never shows a held-out prompt. */
function guardTraces(
  name: string,
  what: "explore" | "demonstrate",
  make: (random: Random) => Trace,
  isHeldOut: (prompt: string) => boolean,
): (random: Random) => Trace {
  const checked = (random: Random): Trace => {
    const trace = guarded(`task ${name}: ${what}`, () => make(random));
    if (typeof trace?.prompt !== "string" || typeof trace.completion !== "string") {
      throw new TaskError({
        where: `task ${name}: ${what}`,
        rule: "must return { prompt, completion }, both text",
        got: describe(trace),
      });
    }
    if (trace.messages !== undefined) expectMessages(`task ${name}: ${what}`, trace.messages);
    return trace;
  };
  return (random) => redraw(name, what, () => checked(random), isHeldOut);
}

/**
 * Reads a task's prompts and sets some aside.
 * @throws TaskError for rows without a prompt or too few of them; FileError, FormatError for a JSONL file
 */
export async function openTask<Row extends PromptRow>(definition: TaskDefinition<Row>): Promise<Task<Row>> {
  const { name, alphabet, rewards, prompts, validation, take, explore, demonstrate, wentBack } = definition;
  const origin = await readPrompts(name, "prompts", prompts, take);
  let split: Split<Row>;
  if (validation !== undefined) {
    split = splitByGiven(definition, origin, await readPrompts(name, "validation", validation, take));
  } else {
    split = origin.kind === "maker" ? splitMade(definition, origin.make) : splitRows(definition, origin.rows);
  }
  if (split.validation.length === 0) {
    throw new TaskError({
      where: `task ${name}`,
      rule: "needs prompts to validate on",
      got: "none",
      remedy: "Give more prompts, a higher validationShare, or validation prompts of their own",
    });
  }
  const { description, tokens, correct, maxPromptTokens, maxNewTokens } = definition;
  return {
    name,
    ...(description === undefined ? {} : { description }),
    alphabet,
    ...(tokens === undefined ? {} : { tokens }),
    train: split.train,
    validation: split.validation,
    rewards,
    ...(correct === undefined ? {} : { correct }),
    ...(explore === undefined ? {} : { explore: guardTraces(name, "explore", explore, split.isHeldOut) }),
    ...(demonstrate === undefined
      ? {}
      : { demonstrate: guardTraces(name, "demonstrate", demonstrate, split.isHeldOut) }),
    ...(wentBack === undefined ? {} : { wentBack }),
    ...(maxPromptTokens === undefined ? {} : { maxPromptTokens }),
    ...(maxNewTokens === undefined ? {} : { maxNewTokens }),
  };
}
