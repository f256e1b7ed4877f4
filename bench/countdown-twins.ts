/**
 * What reinforcement learning and thoughts are worth: a run on Countdown beside twins of the same size that train for as many
 * minutes, all measured by the same code on the same test puzzles.
 *
 *     node --import jiti/register bench/countdown-twins.ts --seeds 1,2,3
 *     node --import jiti/register bench/countdown-twins.ts --preset r1
 *
 * Beside R1-Zero:
 *
 * - r1-zero: the run itself, a base from unselected exploration, then reinforcement learning;
 * - base-on: the same base, trained on with more of the same text for the time that reinforcement learning took;
 * - no-thought: a base from unselected answers without thoughts, then reinforcement learning with the same rewards;
 * - no-thought-sft: right answers from the solver without thoughts, for the whole time.
 *
 * Beside R1, which has a cold start:
 *
 * - r1: the run itself;
 * - sft-on: the same base and the same good traces, more of them for the time that reinforcement learning took.
 */

import { join } from "node:path";
import { Command, CommanderError, Option } from "commander";
import { describeMachine, type Machine, machineLine, measured } from "../src/app/bench/measure.ts";
import { numberIn, wholeNumber, wholeNumbers } from "../src/app/cli/arguments.ts";
import { colorsFor } from "../src/app/cli/io.ts";
import { newTokensFor, openModel } from "../src/app/cli/model.ts";
import { type Column, table } from "../src/app/cli/table.ts";
import { compact, percent } from "../src/app/format.ts";
import { ConfigError, invariant, PonderaError } from "../src/base/errors.ts";
import { mean } from "../src/base/numbers.ts";
import { evaluate } from "../src/learn/eval/evaluate.ts";
import { clusteredInterval } from "../src/learn/eval/statistics.ts";
import { findRun, readRun } from "../src/learn/runs/read-run.ts";
import type { EvalSummary, RunResult, StepMetrics } from "../src/learn/runs/records.ts";
import {
  type CountdownGame,
  type CountdownOptions,
  countdownTask,
} from "../src/learn/tasks/countdown/task.ts";
import type { Puzzle } from "../src/learn/tasks/countdown/types.ts";
import type { Task } from "../src/learn/tasks/task.ts";
import { countdownOptions, parseRunConfig, type RunConfig } from "../src/learn/train/config.ts";
import { PRESETS, type Preset, type PresetName } from "../src/learn/train/presets.ts";
import { loadStoredModel } from "../src/model/checkpoint/load.ts";
import { exploredOn, withoutThoughts } from "./no-thought.ts";
import { textStepSeconds, trainTimed, workSeconds } from "./timed-run.ts";
import { writeTwinsPage } from "./twins-page.ts";
import { isMain } from "./versus.ts";

export interface TwinsOptions {
  /** Finished runs to put the twins beside: their names or folders. */
  readonly run?: readonly string[];
  /** Of the runs; those that no given run has are trained here. @default those of the given runs, or 1 */
  readonly seeds?: readonly number[];
  /** Of the runs that are trained here. */
  readonly preset: PresetName;
  /** Folder of runs, for those that are named and those that are trained; one that is there is gone on with. */
  readonly out: string;
  /** Test puzzles to measure on. */
  readonly puzzles: number;
  /** Factor of all times; anything but 1 is for checking that all of this works. */
  readonly minutesScale: number;
  /** Told of the progress. */
  readonly onNote?: (line: string) => void;
}

const VARIANTS = ["r1-zero", "base-on", "no-thought", "no-thought-sft", "r1", "sft-on"] as const;
export type Variant = (typeof VARIANTS)[number];
/** A run that twins are put beside, without or with a cold start. */
export type Original = Extract<Variant, "r1-zero" | "r1">;

export interface TwinRow {
  readonly variant: Variant;
  readonly seed: number;
  /** On the test puzzles. */
  readonly final: EvalSummary;
  /** pass@1 before reinforcement learning, on validation puzzles, as the run itself measured it. */
  readonly before?: number;
  /** Minutes of training; measuring and checkpoints are not in them. */
  readonly minutes: number;
  readonly stages: RunResult["stages"];
  /** Written and trained on, over the whole run. */
  readonly tokens: number;
  /** Over reinforcement learning, one value for each tenth of its time that a step ended in. */
  readonly curve?: readonly { readonly pass1: number; readonly length: number }[];
  readonly path: string;
}

export interface TwinsReport {
  readonly benchmark: "countdown-twins";
  readonly game: CountdownGame;
  readonly original: Original;
  readonly puzzles: number;
  readonly minutesScale: number;
  readonly machine: Machine;
  readonly rows: readonly TwinRow[];
  /** Over all seeds. The intervals are of puzzles: how much a seed matters is for the rows to show. */
  readonly pooled: readonly {
    readonly variant: Variant;
    readonly pass1: number;
    readonly interval: readonly [number, number];
  }[];
  /** How much more often the original is right than each twin, puzzle by puzzle. */
  readonly margins: readonly {
    readonly over: Variant;
    readonly difference: number;
    readonly interval: readonly [number, number];
  }[];
  /** By run: how many times as long a step of its pre-training takes now as when it was trained. */
  readonly slowdown: readonly { readonly seed: number; readonly factor: number }[];
}

/** The run that its twins are made after. */
interface Reference {
  /** What its twins' names begin with. */
  readonly name: string;
  readonly path: string;
  readonly preset: string;
  readonly config: RunConfig;
  readonly original: Original;
  /** Time its twins get for each stage. */
  readonly seconds: { readonly pretrain: number; readonly sft: number; readonly rl: number };
  /** The usual time of a step of its pre-training. */
  readonly textStep: number;
}

const scaled = (steps: number, scale: number): number => Math.max(1, Math.round(scale * steps));

/** A configuration for other times; what a run measures on the way shrinks with them. */
const scaledConfig = (config: RunConfig, scale: number): RunConfig => ({
  ...config,
  pretrain: { ...config.pretrain, steps: scaled(config.pretrain.steps, scale) },
  sft: { ...config.sft, steps: config.sft.steps === 0 ? 0 : scaled(config.sft.steps, scale) },
  rl: { ...config.rl, steps: scaled(config.rl.steps, scale) },
  evaluation: { ...config.evaluation, count: scaled(config.evaluation.count, Math.min(1, scale)) },
});

const scaleSuffix = (scale: number): string => (scale === 1 ? "" : `-x${scale}`);

/** By the stages of a run. */
const ORIGINALS: Readonly<Record<string, Original>> = {
  "pretrain, rl": "r1-zero",
  "pretrain, sft, rl": "r1",
};

/** A finished run as the measure of its twins. @throws ConfigError when it has no twins to be put beside */
async function referenceAt(path: string, scale: number): Promise<Reference> {
  const { manifest, metrics, result } = await readRun(path);
  const minutesOf = (stage: string): number =>
    result?.stages.find((one) => one.stage === stage)?.minutes ?? 0;
  const stages = result?.stages.map(({ stage }) => stage).join(", ");
  const original = stages === undefined ? undefined : ORIGINALS[stages];
  if (result === undefined || manifest.task !== "countdown" || original === undefined) {
    throw new ConfigError({
      where: `--run ${path}`,
      rule: "must be a finished run of countdown that made its own base and then learned by reinforcement",
      got: result === undefined ? "an unfinished one" : `${manifest.task} with the stages ${stages}`,
    });
  }
  const text = metrics.filter(({ stage }) => stage === "pretrain").map(workSeconds);
  return {
    name: `${manifest.name}${scaleSuffix(scale)}`,
    path,
    preset: manifest.preset,
    config: scaledConfig(parseRunConfig(manifest.config), scale),
    original,
    seconds: {
      pretrain: 60 * scale * minutesOf("pretrain"),
      sft: 60 * scale * minutesOf("sft"),
      rl: 60 * scale * minutesOf("rl"),
    },
    textStep: measured(text).median,
  };
}

/** Trains the run of a preset and a seed. */
async function trainReference(seed: number, options: TwinsOptions): Promise<Reference> {
  const { preset, out, minutesScale } = options;
  const config = scaledConfig({ ...PRESETS[preset].config, seed }, minutesScale);
  const name = `${preset}-seed-${seed}${scaleSuffix(minutesScale)}`;
  const task = countdownTask({ ...countdownOptions(config), heldOutCount: config.evaluation.count });
  const path = await trainTimed({ root: out, name, task, preset, config: async () => config });
  return referenceAt(path, 1);
}

/** The runs to put twins beside, given ones first; each is trained only when it is its turn. */
async function* references(options: TwinsOptions): AsyncGenerator<Reference> {
  const { run: names = [], minutesScale, onNote } = options;
  const given: number[] = [];
  for (const name of names) {
    const reference = await referenceAt(await findRun(options.out, name), minutesScale);
    given.push(reference.config.seed);
    yield reference;
  }
  for (const seed of options.seeds ?? (given.length > 0 ? [] : [1])) {
    if (given.includes(seed)) continue;
    onNote?.(`seed ${seed}: training ${options.preset}`);
    yield await trainReference(seed, options);
  }
}

/** What a twin does with the time. */
interface Twin {
  readonly variant: Exclude<Variant, Original>;
  readonly of: Original;
  readonly task: (options: CountdownOptions) => Task<Puzzle>;
  /** The stage of text that a time is given to. */
  readonly timed: "pretrain" | "sft";
  readonly textSeconds: (seconds: Reference["seconds"]) => number;
  /** Whether the base of the run itself is made first, by as many steps. */
  readonly onBase: boolean;
  readonly rl: boolean;
}

const TWINS: readonly Twin[] = [
  {
    variant: "base-on",
    of: "r1-zero",
    task: exploredOn,
    timed: "sft",
    textSeconds: ({ rl }) => rl,
    onBase: true,
    rl: false,
  },
  {
    variant: "no-thought",
    of: "r1-zero",
    task: withoutThoughts,
    timed: "pretrain",
    textSeconds: ({ pretrain }) => pretrain,
    onBase: false,
    rl: true,
  },
  {
    variant: "no-thought-sft",
    of: "r1-zero",
    task: withoutThoughts,
    timed: "sft",
    textSeconds: ({ pretrain, rl }) => pretrain + rl,
    onBase: false,
    rl: false,
  },
  {
    variant: "sft-on",
    of: "r1",
    task: countdownTask,
    timed: "sft",
    textSeconds: ({ sft, rl }) => sft + rl,
    onBase: true,
    rl: false,
  },
];

/**
 * A twin's configuration. R1-Zero has one stage of text, and its twins train all of theirs as it does.
 * @param steps  of the timed stage
 */
function twinConfig({ config }: Reference, twin: Twin, task: Task<Puzzle>, steps: number): RunConfig {
  const { timed, onBase } = twin;
  const text = (stage: RunConfig["pretrain"], count: number): RunConfig["pretrain"] => ({
    ...stage,
    steps: count,
  });
  const maxNewTokens = task.maxNewTokens ?? config.rl.maxNewTokens;
  return {
    ...config,
    pretrain: text(config.pretrain, timed === "pretrain" ? steps : onBase ? config.pretrain.steps : 0),
    sft: text(twin.of === "r1" ? config.sft : config.pretrain, timed === "sft" ? steps : 0),
    rl: {
      ...config.rl,
      steps: twin.rl ? config.rl.steps : 0,
      maxNewTokens,
      overlongSlope: Math.min(config.rl.overlongSlope, maxNewTokens),
    },
    validation: { ...config.validation, every: 0 },
  };
}

const seconds = (value: number): string => `${value < 1 ? value.toFixed(3) : value.toFixed(1)} s`;

/**
 * Trains a twin for the time its run took.
 * @param onTextStep  told how long a step on text takes now, where it was measured
 * @returns the folder of the twin's run
 */
async function trainTwin(
  reference: Reference,
  twin: Twin,
  options: TwinsOptions,
  onTextStep: (seconds: number) => void,
): Promise<string> {
  const { config, preset } = reference;
  const { out, onNote } = options;
  const { variant, timed } = twin;
  const task = twin.task({ ...countdownOptions(config), heldOutCount: config.evaluation.count });
  const note = (line: string): void => onNote?.(`seed ${config.seed}, ${variant}: ${line}`);
  return trainTimed({
    root: out,
    name: `${reference.name}-${variant}`,
    ...{ task, preset },
    async config() {
      const step = await textStepSeconds(task, twinConfig(reference, twin, task, 1), timed);
      onTextStep(step);
      const time = twin.textSeconds(reference.seconds);
      const steps = Math.max(1, Math.round(time / step));
      note(`${steps} steps on text, ${seconds(step)} each, in ${seconds(time)}`);
      return twinConfig(reference, twin, task, steps);
    },
    ...(twin.rl ? { rlSeconds: reference.seconds.rl } : {}),
    onSteps: (steps, step) =>
      note(
        `${steps} steps of reinforcement learning, ${seconds(step)} each, in ${seconds(reference.seconds.rl)}`,
      ),
  });
}

/** Names the random numbers of the measurement, the same for all. */
const EVALUATION_SEED = 0;

interface Measurement {
  readonly summary: EvalSummary;
  /** By puzzle, 1 where the answer is right. */
  readonly scores: readonly number[];
  readonly machine: Machine;
}

/** How often the model of a run is right on test puzzles: one sample each, drawn as trained. */
async function measure(path: string, config: RunConfig, puzzles: number): Promise<Measurement> {
  const model = await loadStoredModel(join(path, "model"));
  const task = countdownTask({ ...countdownOptions(config), heldOut: "test", heldOutCount: puzzles });
  const { threads } = config;
  const positions = model.config.maxPositions;
  const open = await openModel(model, { threads, slots: config.rl.slots, positions });
  try {
    const { summary, records } = await evaluate(open.engine, model.tokenizer, task, task.validation, {
      maxNewTokens: newTokensFor(model, undefined),
      seed: EVALUATION_SEED,
      stopIds: model.stopIds,
    });
    const scores = records.map(([record]) => (record?.correct ? 1 : 0));
    return { summary, scores, machine: describeMachine(open.runtime) };
  } finally {
    await open.dispose();
  }
}

const PARTS = 10;

/** Accuracy and length in each part of the time of reinforcement learning, on the prompts it drew. */
function curveOf(metrics: readonly StepMetrics[]): NonNullable<TwinRow["curve"]> {
  const steps = metrics.flatMap((one) =>
    one.rl === undefined ? [] : [{ ...one.rl, seconds: workSeconds(one) }],
  );
  const all = steps.reduce((sum, step) => sum + step.seconds, 0);
  const parts = Array.from({ length: PARTS }, (): { pass1: number; length: number }[] => []);
  let spent = 0;
  for (const { pass1, length, seconds } of steps) {
    spent += seconds;
    parts[Math.min(PARTS - 1, Math.floor((PARTS * spent) / all))]!.push({ pass1, length: length.all });
  }
  return parts
    .filter((part) => part.length > 0)
    .map((part) => ({
      pass1: mean(part.map(({ pass1 }) => pass1)),
      length: mean(part.map(({ length }) => length)),
    }));
}

async function rowOf(
  variant: Variant,
  path: string,
  config: RunConfig,
  final: EvalSummary,
): Promise<TwinRow> {
  const { metrics, result } = await readRun(path);
  invariant(result !== undefined, "a trained run has a result");
  const { stages, tokens, base } = result;
  const curve = curveOf(metrics);
  return {
    variant,
    seed: config.seed,
    final,
    ...(curve.length === 0 ? {} : { before: base.pass1 }),
    minutes: stages.reduce((sum, { minutes }) => sum + minutes, 0),
    ...{ stages, tokens },
    ...(curve.length === 0 ? {} : { curve }),
    path,
  };
}

/** The 97.5th percentile of the standard normal. */
const Z95 = 1.96;

/**
 * The mean of paired differences and its 95 % interval, puzzles being the independent units.
 * @param a, b  by puzzle, the scores of one seed after another
 */
export function pairedDifference(
  a: readonly (readonly number[])[],
  b: readonly (readonly number[])[],
): { difference: number; interval: [number, number] } {
  const differences = a.map((scores, i) => mean(scores) - mean(b[i]!));
  const difference = mean(differences);
  const variance =
    differences.reduce((sum, d) => sum + (d - difference) ** 2, 0) / Math.max(1, differences.length - 1);
  const half = Z95 * Math.sqrt(variance / differences.length);
  return { difference, interval: [difference - half, difference + half] };
}

/** Trains what is not there yet, and measures all of it. */
export async function countdownTwins(options: TwinsOptions): Promise<TwinsReport> {
  const { puzzles, minutesScale, onNote } = options;
  const rows: TwinRow[] = [];
  const slowdown: { seed: number; factor: number }[] = [];
  /** By variant and puzzle, one score for each seed. */
  const scores = Object.fromEntries(
    VARIANTS.map((variant) => [variant, Array.from({ length: puzzles }, (): number[] => [])]),
  ) as Record<Variant, number[][]>;
  let machine: Machine | undefined;
  let game: CountdownGame | undefined;
  let original: Original | undefined;
  for await (const reference of references(options)) {
    const { config } = reference;
    const { seed } = config;
    if (game !== undefined && game !== config.countdown.game) {
      throw new ConfigError({
        where: `--run ${reference.path}`,
        rule: "must be of the same game as the others",
        got: `${config.countdown.game} beside ${game}`,
      });
    }
    if (original !== undefined && original !== reference.original) {
      throw new ConfigError({
        where: `--run ${reference.path}`,
        rule: "must have a cold start where the others have one",
        got: `${reference.original} beside ${original}`,
      });
    }
    game = config.countdown.game;
    original = reference.original;
    const add = async (variant: Variant, path: string): Promise<void> => {
      const { summary, scores: own, machine: here } = await measure(path, config, puzzles);
      machine = here;
      for (const [i, score] of own.entries()) scores[variant][i]!.push(score);
      rows.push(await rowOf(variant, path, config, summary));
      onNote?.(`seed ${seed}, ${variant}: ${percent(summary.pass1)} right on ${puzzles} test puzzles`);
    };
    await add(original, reference.path);
    for (const twin of TWINS.filter(({ of }) => of === original)) {
      const path = await trainTwin(reference, twin, options, (step) => {
        if (twin.variant === "base-on") slowdown.push({ seed, factor: step / reference.textStep });
      });
      await add(twin.variant, path);
    }
  }
  invariant(machine && game && original, "there is at least one run");
  const ours = original;
  const twins = TWINS.filter(({ of }) => of === ours).map(({ variant }) => variant);
  return {
    benchmark: "countdown-twins",
    ...{ game, original, puzzles, minutesScale, machine, rows },
    pooled: [ours, ...twins].map((variant) => {
      const { mean: pass1, interval } = clusteredInterval(scores[variant]);
      return { variant, pass1, interval };
    }),
    margins: twins.map((over) => ({ over, ...pairedDifference(scores[ours], scores[over]) })),
    slowdown,
  };
}

/** Times that differ by more than this share do not compare. */
const TOLERANCE = 0.1;

const differs = (factor: number): boolean => Math.abs(factor - 1) > TOLERANCE;

/** What is wrong with the times of a report, a line each. */
function timeWarnings({ rows, slowdown, minutesScale, original }: TwinsReport): string[] {
  if (minutesScale !== 1) return [`times ${minutesScale} of what they should be: a check, not a result`];
  const minutes = new Map(
    rows.filter(({ variant }) => variant === original).map((row) => [row.seed, row.minutes]),
  );
  return [
    ...slowdown
      .filter(({ factor }) => differs(factor))
      .map(
        ({ seed, factor }) =>
          `seed ${seed}: a step takes ${factor.toFixed(2)} times as long as when ${original} was trained; minutes do not compare`,
      ),
    ...rows
      .map((row) => ({ ...row, factor: row.minutes / minutes.get(row.seed)! }))
      .filter(({ factor }) => differs(factor))
      .map(
        ({ seed, variant, factor }) =>
          `seed ${seed}: ${variant} took ${factor.toFixed(2)} times the minutes of ${original}; keep the machine to itself`,
      ),
  ];
}

const points = (fraction: number): string => (100 * fraction).toFixed(1);

const intervalText = ([low, high]: readonly [number, number]): string => `${points(low)} to ${points(high)}`;

const COLUMNS: readonly Column<TwinRow>[] = [
  { title: "seed", value: ({ seed }) => `${seed}`, align: "right" },
  { title: "", value: ({ variant }) => variant },
  { title: "pass@1", value: ({ final }) => percent(final.pass1), align: "right" },
  { title: "95 % interval", value: ({ final }) => intervalText(final.interval) },
  { title: "tokens each", value: ({ final }) => final.meanLength.toFixed(1), align: "right" },
  {
    title: "before RL",
    value: ({ before }) => (before === undefined ? "" : percent(before)),
    align: "right",
  },
  { title: "minutes", value: ({ minutes }) => minutes.toFixed(2), align: "right" },
  { title: "tokens", value: ({ tokens }) => compact(tokens), align: "right" },
  {
    title: "steps",
    value: ({ stages }) => stages.map(({ stage, steps }) => `${stage} ${steps}`).join(", "),
  },
];

/** The report for people. */
export function twinsLines(report: TwinsReport): string[] {
  const { game, original, puzzles, rows, pooled, margins, machine } = report;
  const seeds = new Set(rows.map(({ seed }) => seed)).size;
  return [
    `Countdown, the game ${game}: ${puzzles.toLocaleString("en")} test puzzles, one sample each at temperature 1`,
    ...timeWarnings(report),
    "",
    ...table(rows, COLUMNS, Infinity, colorsFor(process.stdout, process.env)),
    "",
    ...(seeds === 1
      ? []
      : pooled.map(
          ({ variant, pass1, interval }) =>
            `${variant}: ${percent(pass1)} over ${seeds} seeds (${intervalText(interval)})`,
        )),
    ...margins.map(
      ({ over, difference, interval }) =>
        `${original} over ${over}: ${points(difference)} points (${intervalText(interval)}), puzzle by puzzle`,
    ),
    "",
    "pass@1 and tokens in each tenth of the time of reinforcement learning, on the puzzles it drew",
    ...rows.flatMap(({ variant, seed, curve = [] }) =>
      curve.length === 0
        ? []
        : [
            `  seed ${seed}, ${variant}`,
            `    % right ${curve.map(({ pass1 }) => points(pass1).padStart(6)).join("")}`,
            `    tokens  ${curve.map(({ length }) => length.toFixed(1).padStart(6)).join("")}`,
          ],
    ),
    "",
    machineLine(machine),
  ];
}

async function main(): Promise<void> {
  const fresh = Object.entries<Preset>(PRESETS).filter(([, { config }]) => config.pretrain.steps > 0);
  const command = new Command("countdown-twins")
    .description(
      "A run on Countdown beside twins of the same size and minutes: without RL, without thoughts.",
    )
    .option("--run <run...>", "finished runs to put the twins beside: names or folders")
    .option("--seeds <list>", "of runs to train where no given one has them", wholeNumbers())
    .addOption(
      new Option("--preset <name>", "of runs to train").choices(fresh.map(([name]) => name)).default("quick"),
    )
    .option("--out <folder>", "that holds the runs; a twin already there is gone on with", "runs")
    .option("--puzzles <n>", "test puzzles to measure on", wholeNumber({ min: 1 }), 1000)
    .option("--minutes-scale <f>", "factor of all times, for a quick check", numberIn({ above: 0 }), 1)
    .option("--json", "everything as one object")
    .exitOverride();
  try {
    command.parse();
    const options = command.opts<TwinsOptions & { readonly json?: true }>();
    const report = await countdownTwins({ ...options, onNote: (line) => console.error(line) });
    console.log(options.json ? JSON.stringify(report, undefined, 2) : twinsLines(report).join("\n"));
    console.error(`page: ${await writeTwinsPage(report, timeWarnings(report), options.out)}`);
  } catch (error) {
    process.exitCode = error instanceof CommanderError ? error.exitCode : 1;
    if (error instanceof CommanderError) return;
    console.error(error instanceof PonderaError ? `error: ${error.message}` : error);
  }
}

if (isMain(import.meta.url)) await main();
