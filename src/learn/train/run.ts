/** Starting a run, and going on with one. What a run does is in training.ts. */

import { cpus } from "node:os";
import { ConfigError, TaskError } from "../../base/errors.ts";
import { packageVersion } from "../../base/version.ts";
import { Runtime } from "../../compute/runtime/runtime.ts";
import type { RunManifest } from "../runs/manifest.ts";
import { readRun } from "../runs/read-run.ts";
import { RunFolder } from "../runs/run-folder.ts";
import type { Task } from "../tasks/task.ts";
import { type BasePlace, openBaseModel, reopenBaseModel } from "./base-model.ts";
import { changedConfig, parseRunConfig, type RunConfig } from "./config.ts";
import { checkBase } from "./prompt-room.ts";
import { type RunOptions, type RunOutcome, Training } from "./training.ts";

export interface StartOptions<Row> extends RunOptions {
  /** The folder that holds runs. */
  readonly root: string;
  readonly name?: string;
  readonly task: Task<Row>;
  /** Path of the file that defines the task, and a hash of each data file; kept for resuming. */
  readonly taskFile?: string;
  readonly data?: Readonly<Record<string, string>>;
  readonly preset: string;
  /** The model to train; the configuration then has no `model`. @default one made from nothing, as the configuration says */
  readonly model?: BasePlace;
  readonly config: RunConfig;
}

/**
 * Starts a new run and trains it to the end, or until the signal.
 * @throws ConfigError, TaskError before anything is written; FileError when the folder cannot be written to; NumericError
 *   when a number is not finite; the run's folder then says why, and from where it may go better
 */
export async function startRun<Row>(options: StartOptions<Row>): Promise<RunOutcome> {
  const config = parseRunConfig(options.config);
  checkModel(options.model, config);
  checkTask(options.task, config);
  const runtime = await Runtime.create({ threads: config.threads });
  try {
    if (options.model !== undefined) options.observer?.note(`Reading ${options.model.name}…`);
    const base = options.model && (await openBaseModel(options.model, config.lora !== undefined));
    if (base !== undefined) checkBase(base, options.task, config);
    const folder = await RunFolder.create({
      root: options.root,
      ...(options.name === undefined ? {} : { name: options.name }),
      task: options.task.name,
      ...(options.taskFile === undefined ? {} : { taskFile: options.taskFile }),
      preset: options.preset,
      seed: config.seed,
      config,
      versions: versions(runtime),
      ...(base === undefined ? {} : { model: base.identity }),
      data: options.data ?? {},
    });
    try {
      const parts = { folder, runtime, task: options.task, config };
      const training = new Training(base === undefined ? parts : { ...parts, base }, options);
      return await training.run(undefined);
    } finally {
      await folder.close();
    }
  } finally {
    runtime.dispose();
  }
}

export interface ResumeOptions extends RunOptions {
  /** Fields of the configuration to set anew from here on, as `field=value`; run.json records it. */
  readonly set?: readonly string[];
}

/**
 * Goes on with a run from its last checkpoint, or, where numbers were not finite, from the last whose weights differ from
 * those that gave them. Unless something is set anew, what comes out is what would have come out without the pause. A
 * finished run is left as it is, and takes no settings.
 * @param openTask  gives the run's task again
 * @throws as {@link startRun}; RunLockedError while another process trains the run
 */
export async function resumeRun(
  path: string,
  openTask: (manifest: RunManifest, config: RunConfig) => Promise<Task<unknown>>,
  options: ResumeOptions = {},
): Promise<RunOutcome> {
  const { set = [] } = options;
  const { result } = await readRun(path);
  if (result !== undefined) {
    if (set.length === 0) return { kind: "finished", path, result };
    throw new ConfigError({
      where: "--set",
      rule: "is for a run that has steps to go",
      got: `${set.join(", ")} for one that has finished`,
      remedy: "Leave it out, or start a new run with it",
    });
  }
  const folder = await RunFolder.open(path);
  try {
    const config = changedConfig(parseRunConfig(folder.manifest.config), set);
    const task = await openTask(folder.manifest, config);
    checkTask(task, config);
    const failure = await folder.failure();
    const checkpoint = await folder.latestCheckpoint(failure?.from);
    if (set.length > 0) await folder.changeConfig(config, { step: checkpoint?.step ?? 0, set });
    await folder.truncateAfter(checkpoint);
    const runtime = await Runtime.create({ threads: config.threads });
    try {
      const { model } = folder.manifest;
      if (model !== undefined) options.observer?.note(`Reading ${model.name}…`);
      const base = model && (await reopenBaseModel(model));
      if (base !== undefined) checkBase(base, task, config);
      const parts = { folder, runtime, task, config };
      const training = new Training(base === undefined ? parts : { ...parts, base }, options);
      return await training.run(checkpoint);
    } finally {
      runtime.dispose();
    }
  } finally {
    await folder.close();
  }
}

/** What made a run's numbers, besides its configuration. */
function versions(runtime: Runtime): Record<string, string> {
  return {
    pondera: packageVersion(),
    node: process.versions.node,
    onnxruntime: `${runtime.version} (${runtime.backend})`,
    platform: `${process.platform} ${process.arch}`,
    cpu: cpus()[0]?.model ?? "unknown",
  };
}

/** Whether the run makes a model or loads one, and not both. */
function checkModel(base: BasePlace | undefined, config: RunConfig): void {
  if ((base === undefined) === (config.model !== undefined)) {
    if (base === undefined || config.pretrain.steps === 0) return;
    throw new ConfigError({
      where: "config.pretrain.steps",
      rule: "must be 0 for a model that is loaded: its base is made",
      got: `${config.pretrain.steps}`,
      remedy: "Set sft.steps for a cold start on the task's good traces",
    });
  }
  throw new ConfigError({
    where: "config.model",
    rule: "must be given for a model made from nothing, and absent for one that is loaded",
    got: base === undefined ? "neither sizes nor a model" : "both sizes and a model",
    remedy: base === undefined ? "Name a model with --model" : "Use the preset tune",
  });
}

/** Whether the task has what the stages need, before anything is written. */
function checkTask<Row>(task: Task<Row>, config: RunConfig): void {
  const needs = (stage: "pretrain" | "sft", source: "explore" | "demonstrate", what: string): void => {
    if (config[stage].steps === 0 || task[source] !== undefined) return;
    throw new TaskError({
      where: `task ${task.name}`,
      rule: `needs ${source}(random) for the stage ${stage}: ${what}`,
      got: "none",
      remedy: `Write it, or leave the stage out with --set ${stage}.steps=0`,
    });
  };
  needs("pretrain", "explore", "the text a base model has read");
  needs("sft", "demonstrate", "good traces to start from");
  if (config.rl.overlong === "penalty" && "overlong" in task.rewards) {
    throw new ConfigError({
      where: "config.rl.overlong",
      rule: "must not be penalty for a task with a reward of its own named overlong",
      got: "penalty",
    });
  }
}
