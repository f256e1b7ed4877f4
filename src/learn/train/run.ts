/** Starting a run, and going on with one. What a run does is in training.ts. */

import { cpus } from "node:os";
import { basename, join } from "node:path";
import { ConfigError, FileError, TaskError } from "../../base/errors.ts";
import { exists } from "../../base/files.ts";
import { packageVersion } from "../../base/version.ts";
import { Runtime } from "../../compute/runtime/runtime.ts";
import type { RunManifest } from "../runs/manifest.ts";
import { readResult } from "../runs/read-run.ts";
import { REPORT, RunFolder } from "../runs/run-folder.ts";
import { parseRunState, type RunState } from "../runs/run-state.ts";
import type { Task } from "../tasks/task.ts";
import { type BasePlace, openBaseModel, reopenBaseModel } from "./base-model.ts";
import { changedConfig, parseRunConfig, type RunConfig, stagesOf } from "./config.ts";
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
    const parts = { runtime, task: options.task, config };
    const training = new Training(base === undefined ? parts : { ...parts, base }, options);
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
      return await training.run(folder, undefined);
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
  /** Whether to go on with a task that is not what it was; run.json records it. @default false */
  readonly acceptChanges?: boolean;
}

/** A run's task, opened again. */
export interface ReopenedTask {
  readonly task: Task<unknown>;
  /** SHA-256 of what it is made of now, to be compared with run.json's. */
  readonly data?: Readonly<Record<string, string>>;
}

/**
 * Goes on with a run from its last checkpoint, or, where numbers were not finite, from the last whose weights differ from
 * those that gave them. Unless something is set anew, what comes out is what would have come out without the pause. A
 * finished run is left as it is, and takes no settings. Nothing of a run is changed before it is known that it can go on.
 * @param openTask  gives the run's task again
 * @throws as {@link startRun}; RunLockedError while another process trains the run
 */
export async function resumeRun(
  path: string,
  openTask: (manifest: RunManifest, config: RunConfig) => Promise<ReopenedTask>,
  options: ResumeOptions = {},
): Promise<RunOutcome> {
  const { set = [] } = options;
  const result = await readResult(path);
  if (result !== undefined) {
    if (set.length > 0) {
      throw new ConfigError({
        where: "--set",
        rule: "is for a run that has steps to go",
        got: `${set.join(", ")} for one that has finished`,
        remedy: "Leave it out, or start a new run with it",
      });
    }
    // One that was killed right after its result was written has no report yet.
    if (!(await exists(join(path, REPORT)))) await options.report?.(path);
    return { kind: "finished", path, result };
  }
  const folder = await RunFolder.open(path);
  try {
    const { manifest } = folder;
    const before = parseRunConfig(manifest.config);
    const config = changedConfig(before, set);
    const { task, data = {} } = await openTask(manifest, config);
    const changed = Object.keys(manifest.data).filter(
      (name) => name in data && data[name] !== manifest.data[name],
    );
    if (changed.length > 0 && options.acceptChanges !== true) throw changedSince(changed, manifest);
    checkTask(task, config);
    const failure = await folder.failure();
    const checkpoint = await folder.latestCheckpoint(failure?.from);
    const step = checkpoint?.step ?? 0;
    if (checkpoint !== undefined) checkSteps(parseRunState(path, checkpoint.state), before, config);
    const runtime = await Runtime.create({ threads: config.threads });
    try {
      const { model } = manifest;
      if (model !== undefined) options.observer?.note(`Reading ${model.name}…`);
      const base = model && (await reopenBaseModel(model));
      if (base !== undefined) checkBase(base, task, config);
      const parts = { runtime, task, config };
      const training = new Training(base === undefined ? parts : { ...parts, base }, options);
      if (set.length > 0 || changed.length > 0) {
        const now = changed.length > 0 ? { data: { ...manifest.data, ...data } } : {};
        await folder.change(config, { step, set, ...now });
      }
      await folder.truncateAfter(checkpoint);
      const others = otherVersions(manifest.versions, versions(runtime));
      if (others !== "") options.observer?.note(`Last bits of numbers may differ from here on: ${others}.`);
      return await training.run(folder, checkpoint);
    } finally {
      runtime.dispose();
    }
  } finally {
    await folder.close();
  }
}

function changedSince(changed: readonly string[], { taskFile, data }: RunManifest): FileError {
  const [first] = changed;
  const isTask = taskFile !== undefined && first === basename(taskFile);
  return new FileError({
    where: isTask ? taskFile : first!,
    rule: "must be the file the run began with",
    got: `another content (SHA-256 was ${data[first!]!.slice(0, 12)}…)`,
    remedy: "Put the old file back, start a new run, or go on with the new one by --accept-changes",
  });
}

/** @throws ConfigError when steps that are done would be more than there are, or a stage that is over would have more */
function checkSteps(state: RunState, before: RunConfig, now: RunConfig): void {
  const stages = stagesOf(before);
  const isOver = state.stage >= stages.length && before.rl.steps > 0;
  const done = isOver ? before.rl.steps : stages[state.stage]?.stage === "rl" ? state.step : 0;
  if (isOver ? now.rl.steps === done : now.rl.steps >= done) return;
  throw new ConfigError({
    where: "config.rl.steps",
    rule: isOver ? `must stay ${done}: all are done` : `must be at least the ${done} that are done`,
    got: `${now.rl.steps}`,
    remedy: "Start a new run with it",
  });
}

/** What a run's numbers depend on that is not what it was, `node 22.1.0, was 20.20.0`. */
function otherVersions(
  before: Readonly<Record<string, string>>,
  now: Readonly<Record<string, string>>,
): string {
  return Object.entries(now)
    .filter(([name, version]) => before[name] !== undefined && before[name] !== version)
    .map(([name, version]) => `${name} ${version}, was ${before[name]}`)
    .join("; ");
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
