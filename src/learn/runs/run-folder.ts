/**
 * A run is a folder:
 *
 *   run.json              what was asked: task, preset, seed, configuration, versions, hashes of the data
 *   metrics.jsonl         one {@link StepMetrics} per line, in order
 *   samples.jsonl         one {@link SampleRecord} per line
 *   checkpoints/step-N/   state after N steps of the whole run: state.safetensors, state.json
 *   failure.json          after a step that was not finite, until the run goes on: a {@link RunFailure}
 *   result.json, report.html, model/
 *
 * A checkpoint knows how long the two logs were when it was taken. A resumed run first cuts them back to that length, so a
 * run killed at any moment, also in the middle of a line, goes on as if it had never been.
 */

import { mkdir, readdir } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { ConfigError, FileError, invariant } from "../../base/errors.ts";
import { exists, fileError, makeFolders, writeFileAtomic } from "../../base/files.ts";
import { jsonText } from "../../base/json.ts";
import {
  type Checkpoint,
  type CheckpointContent,
  clearLeftovers,
  listCheckpoints,
  readCheckpoint,
  removeCheckpoint,
  writeCheckpoint,
} from "./checkpoint.ts";
import { type RunFailure, readFailure, removeFailure, writeFailure } from "./failure.ts";
import { JsonLog } from "./json-log.ts";
import { FORMAT, type RunManifest, readManifest, writeManifest } from "./manifest.ts";
import type { RunResult, SampleRecord, StepMetrics } from "./records.ts";
import { LOCK, lockRun } from "./run-lock.ts";

/** The page that shows a run, in its folder. */
export const REPORT = "report.html";

export interface CreateRun {
  /** The folder that holds runs; made when absent. */
  readonly root: string;
  /** @default `TASK-PRESET-YYYY-MM-DD-N`, the smallest free N from 1 */
  readonly name?: string;
  readonly task: string;
  readonly preset: string;
  readonly seed: number;
  readonly config: Readonly<Record<string, unknown>>;
  readonly versions: Readonly<Record<string, string>>;
  readonly taskFile?: string;
  readonly model?: NonNullable<RunManifest["model"]>;
  readonly data?: Readonly<Record<string, string>>;
  /** @default now */
  readonly created?: Date;
  /** How many checkpoints to keep, the newest. @default 2 */
  readonly keep?: number;
}

/** A run's folder, held for writing: nobody else can open it until {@link close}. */
export class RunFolder {
  readonly path: string;
  #manifest: RunManifest;
  readonly #keep: number;
  readonly #release: () => Promise<void>;
  #logs: { readonly metrics: JsonLog; readonly samples: JsonLog } | undefined;

  private constructor(path: string, manifest: RunManifest, keep: number, release: () => Promise<void>) {
    this.path = path;
    this.#manifest = manifest;
    this.#keep = keep;
    this.#release = release;
  }

  get manifest(): RunManifest {
    return this.#manifest;
  }

  /**
   * Makes a new run, ready for its first step. Never touches a folder that exists, unless it is one that a killed process
   * was about to make a run of.
   * @throws FileError when the name is taken or the root may not be written to; RunLockedError while another process makes
   *   a run of that name; ConfigError when the name is none
   */
  static async create(options: CreateRun): Promise<RunFolder> {
    const created = options.created ?? new Date();
    const name = options.name === undefined ? undefined : checkedName(options.name);
    const path = await makeFolder(options.root, name, defaultStem(options.task, options.preset, created));
    const release = await lockRun(join(path, LOCK));
    try {
      // Somebody else may have taken over the same folder in the meantime, and be done.
      if (await exists(join(path, "run.json"))) throw nameTaken(path);
      const manifest: RunManifest = {
        format: FORMAT,
        name: basename(path),
        task: options.task,
        preset: options.preset,
        seed: options.seed,
        created: created.toISOString(),
        config: options.config,
        versions: options.versions,
        ...(options.taskFile === undefined ? {} : { taskFile: options.taskFile }),
        ...(options.model === undefined ? {} : { model: options.model }),
        data: options.data ?? {},
      };
      await writeManifest(path, manifest);
      const run = new RunFolder(path, manifest, options.keep ?? 2, release);
      await run.truncateAfter(undefined);
      return run;
    } catch (error) {
      await release();
      throw error;
    }
  }

  /**
   * Opens a run to go on with it, and removes what a killed writer left half done. Its logs cannot be appended to before
   * {@link truncateAfter} has said where to go on.
   * @throws FileError when it is no run; RunLockedError while another process holds it
   */
  static async open(path: string, options: { readonly keep?: number } = {}): Promise<RunFolder> {
    const manifest = await readManifest(path);
    const release = await lockRun(join(path, LOCK));
    try {
      await clearLeftovers(path);
      return new RunFolder(resolve(path), manifest, options.keep ?? 2, release);
    } catch (error) {
      await release();
      throw error;
    }
  }

  /**
   * Cuts both logs back to a checkpoint, or to nothing where there is none, removes checkpoints later than it, and forgets
   * what had stopped the run.
   * @throws FileError when a log is shorter than it was at the checkpoint
   */
  async truncateAfter(checkpoint: Checkpoint | undefined): Promise<void> {
    await this.#closeLogs();
    for (const step of await this.checkpoints()) {
      if (step > (checkpoint?.step ?? -1)) await removeCheckpoint(this.path, step);
    }
    const metrics = await JsonLog.open(join(this.path, "metrics.jsonl"), checkpoint?.metricsBytes ?? 0);
    try {
      const samples = await JsonLog.open(join(this.path, "samples.jsonl"), checkpoint?.samplesBytes ?? 0);
      this.#logs = { metrics, samples };
    } catch (error) {
      await metrics.close();
      throw error;
    }
    await removeFailure(this.path);
  }

  /**
   * Writes another configuration, or other data, into run.json, and what was changed after which step.
   * @param change.data  as it is now, where it has changed
   * @throws FileError when it cannot be written
   */
  async change(
    config: Readonly<Record<string, unknown>>,
    change: {
      readonly step: number;
      readonly set: readonly string[];
      readonly data?: Readonly<Record<string, string>>;
    },
  ): Promise<void> {
    const { data } = this.#manifest;
    const made = { step: change.step, set: [...change.set], ...(change.data === undefined ? {} : { data }) };
    const changes = [...(this.#manifest.changes ?? []), made];
    const manifest = { ...this.#manifest, config, changes, data: change.data ?? data };
    await writeManifest(this.path, manifest);
    this.#manifest = manifest;
  }

  /**
   * Appends a step's record. The line reaches the system at once, so a killed process loses none; it is forced to the disk
   * by the next checkpoint, before which a loss of power costs nothing that resuming would not redo.
   * @throws FileError when the disk is full
   */
  async appendMetrics(record: StepMetrics): Promise<void> {
    await this.#open().metrics.append([record]);
  }

  /** Appends a step's samples, as {@link appendMetrics}. */
  async appendSamples(records: readonly SampleRecord[]): Promise<void> {
    await this.#open().samples.append(records);
  }

  /**
   * Writes the state after `step` steps of the whole run, then removes all but the newest checkpoints.
   * @throws FileError when the disk is full; the checkpoints before it stay whole
   */
  async saveCheckpoint(step: number, content: CheckpointContent): Promise<void> {
    const { metrics, samples } = this.#open();
    await metrics.sync();
    await samples.sync();
    await writeCheckpoint(this.path, {
      ...content,
      step,
      metricsBytes: metrics.bytes,
      samplesBytes: samples.bytes,
    });
    for (const old of (await this.checkpoints()).slice(0, -this.#keep))
      await removeCheckpoint(this.path, old);
  }

  /** The steps of the checkpoints there are, ascending. */
  checkpoints(): Promise<number[]> {
    return listCheckpoints(this.path);
  }

  /**
   * The newest checkpoint, read back; undefined when the run has none.
   * @param most  steps that it may cover. @default any number
   */
  async latestCheckpoint(most = Number.POSITIVE_INFINITY): Promise<Checkpoint | undefined> {
    const step = (await this.checkpoints()).findLast((step) => step <= most);
    return step === undefined ? undefined : readCheckpoint(this.path, step);
  }

  /** Writes down what stops the run. */
  async recordFailure(failure: RunFailure): Promise<void> {
    await writeFailure(this.path, failure);
  }

  /** What stopped the run; undefined where nothing did, or {@link truncateAfter} has been called since. */
  failure(): Promise<RunFailure | undefined> {
    return readFailure(this.path);
  }

  /** Writes `result.json`. */
  async writeResult(result: RunResult): Promise<void> {
    await writeFileAtomic(join(this.path, "result.json"), jsonText(result));
  }

  /** Closes the logs and lets others open the run. Calling it again does nothing. */
  async close(): Promise<void> {
    await this.#closeLogs();
    await this.#release();
  }

  #open(): { readonly metrics: JsonLog; readonly samples: JsonLog } {
    invariant(this.#logs !== undefined, "a run's logs are open after create or truncateAfter, until close");
    return this.#logs;
  }

  async #closeLogs(): Promise<void> {
    const logs = this.#logs;
    this.#logs = undefined;
    await logs?.metrics.close();
    await logs?.samples.close();
  }
}

/** Task and preset as one file name: letters, digits and hyphens. */
function defaultStem(task: string, preset: string, date: Date): string {
  const plain = (text: string) =>
    text
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, "-")
      .replace(/^-|-$/g, "") || "task";
  const two = (n: number) => String(n).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${plain(task)}-${plain(preset)}-${day}`;
}

function checkedName(name: string): string {
  if (/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) return name;
  throw new ConfigError({
    where: "name of the run",
    rule: "must begin with a letter or digit and hold only letters, digits, dots, hyphens and underscores",
    got: JSON.stringify(name),
  });
}

/** Makes `root/name`, or the first free of `root/stem-1`, `root/stem-2`, …; `mkdir` itself is the test for free. */
async function makeFolder(root: string, name: string | undefined, stem: string): Promise<string> {
  await makeFolders(root);
  for (let n = 1; ; n++) {
    const path = resolve(root, name ?? `${stem}-${n}`);
    try {
      await mkdir(path);
      return path;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw fileError(path, "writable", error);
      if (name === undefined) continue;
      if (await isStillborn(path)) return path;
      throw nameTaken(path);
    }
  }
}

function nameTaken(path: string): FileError {
  return new FileError({
    where: path,
    rule: "a new run needs a new folder",
    got: "one that exists",
    remedy: "Choose another name, or go on with it by --resume",
  });
}

/**
 * Whether a folder holds nothing but what is there before the first run.json is whole: the lock, and files half written.
 * Nothing can be lost with it, and no run can be resumed from it; whether its maker lives, the lock says.
 */
async function isStillborn(path: string): Promise<boolean> {
  try {
    const entries = await readdir(path);
    return entries.every((entry) => entry.startsWith(LOCK) || /^\.run\.json\..*\.partial$/.test(entry));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOTDIR") return false;
    throw fileError(path, "readable", error);
  }
}
