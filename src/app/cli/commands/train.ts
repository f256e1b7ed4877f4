/** `pondera train`: a base, perhaps a cold start, and reinforcement learning on a task whose answers can be checked. */

import { availableParallelism } from "node:os";
import { type Command, Option } from "commander";
import { ConfigError } from "../../../base/errors.ts";
import { shellPath } from "../../../base/shell.ts";
import { LOSS_SETTINGS, POLICY_LOSSES, type PolicyLossName } from "../../../learn/losses/settings.ts";
import { findRun } from "../../../learn/runs/read-run.ts";
import type { CountdownOptions } from "../../../learn/tasks/countdown/task.ts";
import {
  countdownOptions,
  parseRunConfig,
  type RunConfig,
  setOptions,
  sets,
  withDepth,
  withLora,
  withLoss,
  withTaskLimits,
} from "../../../learn/train/config.ts";
import { PRESETS, type PresetName, TUNE_PRESET } from "../../../learn/train/presets.ts";
import { resumeRun, startRun } from "../../../learn/train/run.ts";
import type { RunOptions, RunOutcome } from "../../../learn/train/training.ts";
import { writeReport } from "../../report/report.ts";
import { wholeNumber } from "../arguments.ts";
import { DEFAULT_RUNS, withExamples } from "../help.ts";
import { INTERRUPTED, interruptible } from "../interrupt.ts";
import { type Context, commandName, isInteractive, writeJson } from "../io.ts";
import { createTrainingView, type TrainingView } from "../live-view.ts";
import { findModel } from "../model.ts";
import { openNamedTask, reopenTask } from "../task.ts";
import { chat } from "./chat.ts";

/** Longest answer in the chat that follows a run. */
const CHAT_TOKENS = 1024;

interface TrainOptions {
  /** @default quick, or tune with a model */
  readonly preset?: PresetName;
  readonly model?: string;
  readonly loraRank?: number;
  readonly out: string;
  readonly set?: readonly string[];
  readonly depth?: number;
  readonly loss?: PolicyLossName;
  readonly seed?: number;
  readonly steps?: number;
  readonly threads?: number;
  readonly name?: string;
  readonly resume?: string;
  readonly acceptChanges?: true;
  readonly chat: boolean;
  readonly json?: true;
}

/** A preset with what was asked on top of it, before the task is known. */
export function configFor(preset: PresetName, options: Partial<TrainOptions>): RunConfig {
  let config: RunConfig = PRESETS[preset].config;
  if (options.depth !== undefined) config = withDepth(config, options.depth);
  if (options.loraRank !== undefined) config = withLora(config, options.loraRank);
  if (options.loss !== undefined) config = withLoss(config, options.loss);
  const { seed, steps, threads } = options;
  config = {
    ...config,
    ...(seed === undefined ? {} : { seed }),
    ...(threads === undefined ? {} : { threads }),
    rl: {
      ...config.rl,
      ...(steps === undefined ? {} : { steps }),
    },
  };
  return parseRunConfig(setOptions(config, options.set ?? []));
}

/** Its game, with enough held-out puzzles for what it measures. */
function gameOf(config: RunConfig): CountdownOptions {
  const { evaluation, validation } = config;
  return { ...countdownOptions(config), heldOutCount: Math.max(evaluation.count, validation.count) };
}

async function begin(name: string, options: TrainOptions, run: RunOptions, io: Context): Promise<RunOutcome> {
  const preset = presetOf(options);
  const config = configFor(preset, options);
  const found = options.model === undefined ? undefined : await findModel(options.model, options.out, io);
  const { task, file, data } = await openNamedTask(name, gameOf(config));
  return startRun({
    ...run,
    root: options.out,
    ...(options.name === undefined ? {} : { name: options.name }),
    task,
    ...(file === undefined ? {} : { taskFile: file }),
    data,
    preset,
    ...(found === undefined ? {} : { model: { name: found.name, path: found.folder } }),
    config: sets(options.set ?? [], "rl.maxNewTokens") ? config : withTaskLimits(config, task),
  });
}

async function goOn(name: string, options: TrainOptions, run: RunOptions): Promise<RunOutcome> {
  const path = await findRun(options.out, name);
  return resumeRun(path, (manifest, config) => reopenTask(manifest, gameOf(config)), {
    ...run,
    set: options.set ?? [],
    acceptChanges: options.acceptChanges === true,
  });
}

/** Options that say how a new run is to be, by the flag that sets each. */
const NEW_RUN = ["preset", "model", "loraRank", "depth", "loss", "seed", "steps", "threads", "name"] as const;

/** An option as it is typed: `--lora-rank`. */
const flagOf = (name: string): string =>
  `--${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

/** The preset that was asked for, or the one that goes with what was. @throws ConfigError for one that does not */
function presetOf({ preset, model, loraRank }: TrainOptions): PresetName {
  const chosen = preset ?? (model === undefined ? "quick" : TUNE_PRESET);
  const refuse = (where: string, rule: string, remedy: string): never => {
    throw new ConfigError({ where, rule, got: `the preset ${chosen}, ${model ?? "no model"}`, remedy });
  };
  if (model !== undefined && chosen !== TUNE_PRESET) {
    refuse(
      "--preset",
      "must be tune for a model that is loaded",
      "Leave it out; change single fields with --set",
    );
  }
  if (model === undefined && chosen === TUNE_PRESET) {
    refuse("--preset tune", "needs the model to train", "Name it: --model ./my-model");
  }
  if (model === undefined && loraRank !== undefined) {
    refuse("--lora-rank", "needs the model that the adapters belong to", "Name it: --model ./my-model");
  }
  return chosen;
}

/** What does not go together, before anything is done. */
function checkArguments(task: string | undefined, options: TrainOptions, command: Command): void {
  if ((task === undefined) === (options.resume === undefined)) {
    throw new ConfigError({
      where: "pondera train",
      rule: "takes either a task or --resume RUN",
      got: task === undefined ? "neither" : "both",
      remedy: "For example: pondera train countdown",
    });
  }
  if (options.resume === undefined) {
    if (options.acceptChanges) {
      throw new ConfigError({
        where: "--accept-changes",
        rule: "is for a run that goes on",
        got: "it without --resume",
        remedy: "Leave it out",
      });
    }
    presetOf(options);
    return;
  }
  const given = NEW_RUN.find((name) => command.getOptionValueSource(name) === "cli");
  if (given === undefined) return;
  throw new ConfigError({
    where: flagOf(given),
    rule: "is for new runs; one that goes on keeps its configuration",
    got: "it beside --resume",
    remedy: "Change single fields with --set",
  });
}

async function train(
  task: string | undefined,
  options: TrainOptions,
  self: Command,
  io: Context,
): Promise<void> {
  checkArguments(task, options, self);
  // The view goes to standard error where standard output is to hold the result as JSON.
  const stream = options.json ? io.stderr : io.stdout;
  const command = commandName(io.env);
  const view: TrainingView = createTrainingView({
    stream,
    isTTY: isInteractive(stream, io.env),
    command,
    ...(options.out === DEFAULT_RUNS ? {} : { runs: options.out }),
  });
  const onFirst = (): void => view.note("Stopping after this step; once more to stop at once.");
  let outcome: RunOutcome;
  try {
    outcome = await interruptible({ onFirst }, (signal) => {
      const run: RunOptions = { observer: view, signal, command, report: writeReport };
      return task === undefined ? goOn(options.resume!, options, run) : begin(task, options, run, io);
    });
    if (outcome.kind === "finished") view.finish(outcome.result);
    else view.note(`Stopped. Go on with: ${command} train --resume ${shellPath(outcome.path)}`);
  } finally {
    view.stop();
  }
  if (options.json) {
    await writeJson(io.stdout, outcome.kind === "finished" ? outcome.result : { interrupted: outcome.path });
  }
  if (outcome.kind === "interrupted") return io.exitWith(INTERRUPTED);
  const person = !options.json && isInteractive(io.stdout, io.env) && io.stdin.isTTY === true;
  if (!person || !options.chat) return;
  const threads = options.threads ?? availableParallelism();
  await chat(outcome.path, { runs: options.out, maxNewTokens: CHAT_TOKENS, seed: 0, threads }, io);
}

export function register(program: Command, io: Context): void {
  const presets = Object.entries(PRESETS).map(([name, { summary }]) => `  ${name.padEnd(7)} ${summary}`);
  const bounds = POLICY_LOSSES.map((loss) => {
    const { clipLow, clipHigh } = LOSS_SETTINGS[loss];
    return `${loss} ${clipLow >= 1 ? `up to ${1 + clipHigh}` : `${clipLow}/${clipHigh}`}`;
  }).join(", ");
  const command = program
    .command("train")
    .summary("teach a model to reason on a task whose answers can be checked")
    .description(
      "Makes a base model from a task's exploration, then teaches it by reinforcement learning on rewards alone. With " +
        "--model, a pretrained model is the base: all of its weights are trained, or small adapters beside them (LoRA).\n\n" +
        `Presets:\n${presets.join("\n")}`,
    )
    .argument("[task]", "countdown, or a file that exports defineTask({ … })")
    .addOption(
      new Option("--preset <name>", "ready-made configuration")
        .choices(Object.keys(PRESETS))
        .default(undefined, "quick, or tune with --model"),
    )
    .option(
      "--model <model>",
      "pretrained model to train: a folder, a .gguf file, a run, or the name it was pulled under",
    )
    .option(
      "--lora-rank <r>",
      "train adapters of this rank on all matrices instead of the weights: a fraction of the memory",
      wholeNumber({ min: 1 }),
    )
    .option("--depth <n>", "layers; sets width, heads, rates and batch with it", wholeNumber({ min: 1 }))
    .addOption(
      new Option(
        "--loss <name>",
        `policy loss, with the clip bounds of its paper (${bounds}) and advantages divided by the spread of their group, but for dr_grpo`,
      ).choices([...POLICY_LOSSES]),
    )
    .option("--seed <n>", "names every random number of the run", wholeNumber())
    .option("--steps <n>", "steps of reinforcement learning", wholeNumber({ min: 0 }))
    .option("--threads <n>", "threads to compute with", wholeNumber({ min: 1 }))
    .option(
      "--set <field=value>",
      "any field of the configuration, as in run.json; may be repeated",
      (assignment: string, all: readonly string[] = []) => [...all, assignment],
    )
    .option("--name <name>", "the run's name")
    .option("--out <folder>", "folder that holds the runs", DEFAULT_RUNS)
    .option("--resume <run>", "go on with a run that was stopped or killed: its name or folder")
    .option(
      "--accept-changes",
      "with --resume: go on although the task's file, or the prompts it names, have changed; run.json records it",
    )
    .option("--no-chat", "do not open a chat with the new model at the end")
    .option("--json", "the result as one object on standard output, progress on standard error")
    .action((task: string | undefined, options: TrainOptions, self: Command) =>
      train(task, options, self, io),
    );
  withExamples(command, [
    ["pondera train countdown", "R1-Zero on a number game, in about ten minutes"],
    ["pondera train countdown --preset r1 --seed 2", "with a cold start"],
    ["pondera train ./my-task.ts --depth 6", "a task of your own, a larger model"],
    ["pondera train countdown --set rl.samples=16 --set rl.temperature=1.1", "other settings"],
    [
      "pondera train ./my-task.ts --model ./SmolLM2-135M-Instruct --lora-rank 16",
      "a pretrained model, by adapters",
    ],
    ["pondera train countdown --model ./my-model --set rl.rates.adamW=1e-6", "all of its weights"],
    ["pondera train --resume countdown-quick-2026-11-23-1", "go on where it was stopped"],
  ]);
}
