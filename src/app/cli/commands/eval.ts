/** `pondera eval`: how often a model is right, with an interval that says how sure that is. */

import { writeFile } from "node:fs/promises";
import { basename } from "node:path";
import { type Command, Option } from "commander";
import { z } from "zod";
import { ConfigError, FormatError } from "../../../base/errors.ts";
import { fileError } from "../../../base/files.ts";
import { type Evaluation, evaluate } from "../../../learn/eval/evaluate.ts";
import type { EvalSummary } from "../../../learn/runs/records.ts";
import { LARGEST_NUMBER } from "../../../learn/tasks/countdown/expression.ts";
import { splitOf } from "../../../learn/tasks/countdown/puzzle.ts";
import {
  COUNTDOWN_GAMES,
  type CountdownGame,
  puzzleExample,
  USE_IN_WORDS,
} from "../../../learn/tasks/countdown/task.ts";
import type { NumberUse, Puzzle } from "../../../learn/tasks/countdown/types.ts";
import { jsonl } from "../../../learn/tasks/jsonl.ts";
import { asChat, asText } from "../../../learn/tasks/prompts.ts";
import type { Example, Task } from "../../../learn/tasks/task.ts";
import { cachedNumbers } from "../../../model/arch/models.ts";
import { closing, loadStoredModel, type StoredModel } from "../../../model/checkpoint/load.ts";
import { encodePrompt } from "../../../model/engine/text.ts";
import { compact, percent, sampledAt } from "../../format.ts";
import { numberIn, threadsOption, wholeNumber } from "../arguments.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { INTERRUPTED, interruptible } from "../interrupt.ts";
import { type Context, colorsFor, isInteractive, write, writeJson } from "../io.ts";
import {
  type FoundModel,
  findModel,
  greedyFor,
  guessesLine,
  guessesReport,
  newTokensFor,
  openModel,
  SPECULATE_OPTION,
  samplingFor,
} from "../model.ts";
import { countTokens, progressOn } from "../progress.ts";
import { countdownOf } from "../prompts.ts";
import { openNamedTask } from "../task.ts";
import { printable } from "../text.ts";

interface EvalOptions {
  readonly task?: string;
  readonly game?: CountdownGame;
  readonly exactlyOnce?: true;
  readonly data?: string;
  readonly samples: number;
  readonly temperature?: number;
  readonly topP?: number;
  readonly maxNewTokens?: number;
  readonly limit?: number;
  readonly seed: number;
  readonly records?: string;
  readonly speculate?: true;
  readonly runs: string;
  readonly threads: number;
  readonly json?: true;
}

/** Held-out prompts where neither data nor a limit say how many. */
const HELD_OUT = 1000;
const MOST_SLOTS = 256;
/** Memory that the caches of keys and values may take. */
const CACHE_BYTES = 2 ** 30;

const PuzzleRow = z.looseObject({
  id: z.union([z.string(), z.number()]).optional(),
  numbers: z.array(z.int().nonnegative().max(LARGEST_NUMBER)).min(1),
  target: z.int().min(-LARGEST_NUMBER).max(LARGEST_NUMBER),
});
const PromptRow = z.looseObject({
  id: z.union([z.string(), z.number()]).optional(),
  prompt: z.string().min(1),
  messages: z
    .array(z.looseObject({ role: z.string(), content: z.unknown() }))
    .min(1)
    .optional(),
});

/** Rows as they may be, for whoever has written others. */
const PUZZLE_EXAMPLE = '{"numbers": [20, 6, 33], "target": 87}';
const PROMPT_EXAMPLE = '{"prompt": "2+2="}';

/** A row of a data file, checked. @throws FormatError naming the line and the field, with a row as it may be */
function checked<T>(schema: z.ZodType<T>, example: string, where: string, value: unknown): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const field = issue.path.length === 0 ? "" : `: ${issue.path.join(".")}`;
  throw new FormatError({
    where: `${where}${field}`,
    rule: "must be as the task's rows are",
    got: issue.message,
    remedy: `For example ${example}`,
  });
}

/**
 * The examples of a data file: puzzles of countdown, or rows that the task's judges know.
 * @param use  of the numbers of countdown's puzzles; absent for other tasks
 */
async function readExamples(
  file: string,
  use: NumberUse | undefined,
  limit = Infinity,
): Promise<Example<unknown>[]> {
  const toExample = (value: unknown, line: number): Example<unknown> => {
    const where = `${file}:${line}`;
    if (use !== undefined) {
      const row = checked(PuzzleRow, PUZZLE_EXAMPLE, where, value);
      return puzzleExample(row, { id: row.id, use });
    }
    const row = checked(PromptRow, PROMPT_EXAMPLE, where, value);
    const { id = line, prompt, messages } = row;
    return { id: `${id}`, prompt, ...(messages === undefined ? {} : { messages }), row };
  };
  const examples: Example<unknown>[] = [];
  for await (const example of jsonl(file, toExample)) if (examples.push(example) >= limit) break;
  return examples;
}

interface Measured {
  readonly task: Task<unknown>;
  readonly examples: readonly Example<unknown>[];
  /** What the prompts are, for people: `1,000 held-out puzzles of the game quick`. */
  readonly what: string;
  /** The game they were drawn from. */
  readonly game?: CountdownGame;
  /** How often an answer is to use each number, where the task is countdown. */
  readonly use?: NumberUse;
  /** How many of them are puzzles that training may draw. */
  readonly trainable: number;
}

async function openPrompts(options: EvalOptions, found: FoundModel): Promise<Measured> {
  const manifest = found.run?.manifest;
  const name = options.task ?? manifest?.taskFile ?? manifest?.task;
  if (name === undefined) {
    throw new ConfigError({
      where: "--task",
      rule: "must name a task: no run says what this model was trained on",
      got: "nothing",
      remedy: "For example --task countdown",
    });
  }
  const isCountdown = name === "countdown";
  for (const [flag, given] of [
    ["--game", options.game],
    ["--exactly-once", options.exactlyOnce],
  ]) {
    if (given === undefined || isCountdown) continue;
    throw new ConfigError({
      where: `${flag}`,
      rule: "is for the task countdown",
      got: `the task ${name}`,
      remedy: "Leave it out",
    });
  }
  const own = countdownOf(manifest?.config);
  const game = options.game ?? own.game;
  const use = options.exactlyOnce ? "exactly-once" : own.use;
  const { data, limit } = options;
  const heldOutCount = data === undefined ? (limit ?? HELD_OUT) : 1;
  const { task } = await openNamedTask(name, { game, use, heldOut: "test", heldOutCount });
  const examples =
    data === undefined
      ? task.validation.slice(0, limit ?? HELD_OUT)
      : await readExamples(data, isCountdown ? use : undefined, limit);
  const count = examples.length.toLocaleString("en");
  if (!isCountdown) {
    const what =
      data === undefined
        ? `${count} held-out prompts of ${task.name}`
        : `${count} prompts of ${basename(data)}`;
    return { task, examples, what, trainable: 0 };
  }
  const rule = use === "at-most-once" ? "" : `, numbers ${USE_IN_WORDS[use]}`;
  if (data !== undefined) {
    const trainable = examples.filter(({ row }) => splitOf(row as Puzzle) === "train").length;
    return { task, examples, what: `${count} prompts of ${basename(data)}${rule}`, use, trainable };
  }
  const what = `${count} held-out puzzles of the game ${game}${rule}`;
  return { task, examples, what, game, use, trainable: 0 };
}

/** Sequences side by side: as many as there are, and as fit the memory set aside for their caches. */
function slotsFor(model: Pick<StoredModel, "config">, sequences: number, positions: number): number {
  const { config } = model;
  const longest = Math.min(positions, config.maxPositions);
  const bytes = longest * cachedNumbers(config) * Float32Array.BYTES_PER_ELEMENT;
  return Math.max(1, Math.min(sequences, MOST_SLOTS, Math.floor(CACHE_BYTES / bytes)));
}

/** Every completion as a line: its record, its number among its prompt's, and what else the prompt's row holds. */
function recordLines({ records }: Evaluation, examples: readonly Example<unknown>[]): string {
  const lines = records.flatMap((group, i) =>
    group.map((record, sample) => {
      const row = examples[i]!.row;
      const fields = typeof row === "object" ? row : {};
      return `${JSON.stringify({ ...fields, ...record, sample })}\n`;
    }),
  );
  return lines.join("");
}

function summaryLines(summary: EvalSummary, seconds: number, tokens: number): string[] {
  const { pass1, interval, passK, meanLength, truncatedFraction } = summary;
  const row = (name: string, text: string): string => `  ${name.padEnd(8)} ${text}`;
  const others = Object.entries(passK).filter(([k]) => k !== "1");
  return [
    row("pass@1", `${percent(pass1).padStart(7)}  95 % [${percent(interval[0])}, ${percent(interval[1])}]`),
    ...others.map(([k, share]) => row(`pass@${k}`, percent(share).padStart(7))),
    row("length", `${meanLength.toFixed(1)} tokens, ${percent(truncatedFraction)} cut off`),
    row("took", `${seconds.toFixed(1)} s, ${compact(Math.round(tokens / seconds))} tokens/s`),
  ];
}

async function evaluateModel(name: string | undefined, asked: EvalOptions, io: Context): Promise<void> {
  const options = asked.speculate ? greedyFor(asked) : asked;
  const found = await findModel(name, options.runs, io);
  const progress = progressOn(io);
  progress.say(`loading ${printable(found.name)}…`);
  const model = await loadStoredModel(found.folder).finally(() => progress.done());
  await using _ = closing(model);
  const { task, examples, what, game, use, trainable } = await openPrompts(options, found);
  const { samples, seed, threads } = options;
  // As the model was measured when it was trained, so that measuring again gives the same number.
  const { temperature, topP } = samplingFor(model, options);
  // A run may have been told another limit than its task names, and its model says it; a task that is not the run's has its own.
  const limit = options.maxNewTokens ?? (options.task === undefined ? undefined : task.maxNewTokens);
  const maxNewTokens = newTokensFor(model, limit, task.maxNewTokens);
  const ask = found.run?.manifest.config["prompts"] === "text" ? asText : asChat(model.chatTemplate);
  const longest = examples.reduce(
    (n, example) => Math.max(n, encodePrompt(model.tokenizer, ask(example)).length),
    0,
  );
  const positions = longest + maxNewTokens;
  const slots = slotsFor(model, examples.length * samples, positions);
  const heading = `${found.name} on ${what}, ${samples} sample${samples === 1 ? "" : "s"} each${sampledAt({ temperature, topP })}`;
  if (isInteractive(io.stderr, io.env)) {
    io.stderr.write(`${colorsFor(io.stderr, io.env).dim(`measuring ${printable(heading)}…`)}\n`);
  }
  const open = await openModel(model, { threads, slots, positions, speculate: options.speculate === true });
  const written = progressOn(io);
  const began = performance.now();
  let evaluation: Evaluation | undefined;
  try {
    evaluation = await interruptible({ onFirst() {} }, async (signal) => {
      try {
        const limits = { samples, temperature, topP, maxNewTokens, seed };
        const how = { ...limits, write: ask, stopIds: model.stopIds, onToken: countTokens(written), signal };
        return await evaluate(open.engine, model.tokenizer, task, examples, how);
      } catch (error) {
        if (signal.aborted && error === signal.reason) return undefined;
        throw error;
      }
    });
  } finally {
    written.done();
    await open.dispose();
  }
  if (evaluation === undefined) return io.exitWith(INTERRUPTED);
  const seconds = (performance.now() - began) / 1000;
  const { summary, records } = evaluation;
  const tokens = records.flat().reduce((sum, record) => sum + record.tokens, 0);
  const guesses = open.guesses?.();
  if (options.records !== undefined) {
    const path = options.records;
    await writeFile(path, recordLines(evaluation, examples)).catch((error: unknown) => {
      throw fileError(path, "writable", error);
    });
  }
  if (options.json) {
    const { data } = options;
    await writeJson(io.stdout, {
      model: found.folder,
      task: task.name,
      ...(game === undefined ? {} : { game }),
      ...(use === undefined ? {} : { use }),
      ...(data === undefined ? {} : { data, trainable }),
      ...summary,
      temperature,
      topP,
      maxNewTokens,
      seed,
      threads,
      seconds,
      tokensPerSecond: tokens / seconds,
      ...(guesses === undefined ? {} : { speculation: guessesReport(guesses, tokens) }),
    });
    return;
  }
  const [title, ...rest] = [printable(heading), ...summaryLines(summary, seconds, tokens)];
  if (guesses !== undefined) rest.push(`  ${"guessed".padEnd(8)} ${guessesLine(guesses, tokens)}`);
  if (trainable > 0) {
    const belong = trainable === 1 ? "belongs" : "belong";
    rest.push(`  ${trainable} of them ${belong} to the training split: the model may know the answers`);
  }
  await write(io.stdout, `${[colorsFor(io.stdout, io.env).bold(title), ...rest].join("\n")}\n`);
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("eval")
    .summary("measure how often a model is right")
    .description(
      "Samples answers to prompts that were never trained on and checks them: pass@1 with a 95 % interval, pass@k, the " +
        "length of answers. Prompts are independent, samples of one prompt are not, and the interval knows.",
    )
    .argument("[model]", "a run's name or folder, or a model's folder; the newest run if left out")
    .option("--task <task>", "countdown, or a file that exports defineTask({ … }); the run's own if left out")
    .addOption(
      new Option("--game <name>", "countdown game to draw from; the run's own if left out").choices(
        Object.keys(COUNTDOWN_GAMES),
      ),
    )
    .option("--exactly-once", "an answer must use every number of the puzzle; as in training if left out")
    .option("--data <file>", "JSONL rows to measure on instead: {numbers, target}, or a task's {prompt, …}")
    .option(
      "--limit <n>",
      `most prompts; ${HELD_OUT} held-out ones or the whole file if left out`,
      wholeNumber({ min: 1 }),
    )
    .option("--samples <k>", "answers to each prompt", wholeNumber({ min: 1 }), 1)
    .option(
      "--temperature <t>",
      "0 takes the likeliest token, 1 samples as trained; as the model says if left out",
      numberIn({ min: 0 }),
    )
    .option(
      "--top-p <p>",
      "sample from the likeliest tokens that together reach p; as the model says if left out",
      numberIn({ above: 0, max: 1 }),
    )
    .option("--max-new-tokens <n>", "longest answer; as in training if left out", wholeNumber({ min: 1 }))
    .option("--seed <n>", "names the random numbers", wholeNumber(), 0)
    .option(...SPECULATE_OPTION)
    .option("--records <file>", "also write every answer with its verdict, as JSONL")
    .option(...RUNS_OPTION)
    .addOption(threadsOption())
    .option("--json", "everything as one object")
    .action((name: string | undefined, options: EvalOptions) => evaluateModel(name, options, io));
  withExamples(command, [
    ["pondera eval", "the newest run on held-out prompts of its own task"],
    ["pondera eval my-run --samples 8 --json", "pass@1 to pass@8, for a program"],
    [
      "pondera eval my-run --task countdown --data puzzles.jsonl --temperature 0",
      "greedy, on puzzles of your own",
    ],
    [
      "pondera eval ./my-model --task ./my-task.ts --records answers.jsonl",
      "any model, and every answer kept",
    ],
  ]);
}
