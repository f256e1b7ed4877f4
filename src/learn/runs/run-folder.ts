/**
 * A run is a folder:
 *
 *   run.json              what was asked: task, preset, seed, configuration, versions, hashes of the data
 *   metrics.jsonl         one {@link StepMetrics} per line, in order
 *   samples.jsonl         one {@link SampleRecord} per line
 *   checkpoints/step-N/   state after N steps of the whole run: state.safetensors, state.json
 *   result.json, report.html, model/
 *
 * A checkpoint knows how long the two logs were when it was taken. A resumed run first cuts them back to that length, so a
 * run killed at any moment, also in the middle of a line, goes on as if it had never been.
 */

import { constants, createReadStream } from "node:fs";
import { type FileHandle, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { z } from "zod";
import { ConfigError, expectKnown, FileError, FormatError, invariant } from "../../base/errors.ts";
import {
  exists,
  fileError,
  makeFolders,
  readJson,
  recoverFolder,
  writeFileAtomic,
  writeFolderAtomic,
} from "../../base/files.ts";
import { jsonText } from "../../base/json.ts";
import { isLocked } from "../../base/lock.ts";
import { BYTES, typedArray } from "../../compute/tensor/dtype.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { readSafetensors, type StoredTensor, writeSafetensors } from "../../model/checkpoint/safetensors.ts";
import type { RunResult, SampleRecord, StepMetrics } from "./records.ts";
import { lockRun } from "./run-lock.ts";

/** Raised when the layout or the records change so that an older run cannot be read. */
const FORMAT = 1;

const Manifest = z.object({
  format: z.literal(FORMAT),
  name: z.string(),
  task: z.string(),
  preset: z.string(),
  seed: z.number().int(),
  /** ISO 8601, when the run was created. */
  created: z.iso.datetime(),
  /** Everything the run is configured with; resuming reads it back. */
  config: z.record(z.string(), z.unknown()),
  /** What was changed when the run went on after so many steps, as `field=value`. */
  changes: z.array(z.object({ step: z.number().int(), set: z.array(z.string()) })).optional(),
  /** Of Pondera, Node, the runtime, the machine. */
  versions: z.record(z.string(), z.string()),
  /** Absolute path of the file that defines the task, for a task that is not built in. */
  taskFile: z.string().optional(),
  /** The pretrained model it began with, for a run that does not make its own. */
  model: z.object({ name: z.string(), path: z.string(), sha256: z.string() }).optional(),
  /** SHA-256 of each data file, by name. */
  data: z.record(z.string(), z.string()),
});

/** `run.json`. */
export type RunManifest = Readonly<z.infer<typeof Manifest>>;

const CheckpointState = z.object({
  format: z.literal(FORMAT),
  step: z.number().int().nonnegative(),
  metricsBytes: z.number().int().nonnegative(),
  samplesBytes: z.number().int().nonnegative(),
  state: z.unknown(),
});

/** What is needed to go on from a step: tensors, and anything else as JSON. */
export interface CheckpointContent {
  readonly tensors: Readonly<Record<string, HostArray>>;
  readonly state: unknown;
}

/** A checkpoint read back. */
export interface Checkpoint extends CheckpointContent {
  /** Steps of the whole run done when it was taken. */
  readonly step: number;
  readonly metricsBytes: number;
  readonly samplesBytes: number;
}

/** Parses with a schema, naming the file and the first field that breaks it. */
function parse<T>(schema: z.ZodType<T>, path: string, value: unknown): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const field = issue === undefined || issue.path.length === 0 ? "" : `: ${issue.path.join(".")}`;
  throw new FormatError({ where: `${path}${field}`, rule: issue?.message ?? "must follow its schema" });
}

/**
 * The records of a JSONL file. A last line without its line break was torn by a kill and is left out.
 * @throws FileError when it cannot be read; FormatError naming the line that is no JSON object
 */
async function* jsonLines(path: string): AsyncGenerator<object> {
  let rest = "";
  let line = 0;
  try {
    for await (const chunk of createReadStream(path, "utf8")) {
      const parts = (rest + chunk).split("\n");
      rest = parts.pop()!;
      for (const part of parts) {
        line++;
        let value: unknown;
        try {
          value = JSON.parse(part);
        } catch {
          value = undefined;
        }
        if (typeof value !== "object" || value === null) {
          throw new FormatError({
            where: `${path}: line ${line}`,
            rule: "must be one JSON object",
            got: JSON.stringify(part.slice(0, 60)),
          });
        }
        yield value;
      }
    }
  } catch (error) {
    throw fileError(path, "readable", error);
  }
}

/** An append-only file whose length is known without asking, so that a checkpoint can record it. */
class Log {
  readonly #path: string;
  readonly #handle: FileHandle;
  #bytes: number;

  private constructor(path: string, handle: FileHandle, bytes: number) {
    this.#path = path;
    this.#handle = handle;
    this.#bytes = bytes;
  }

  /** Opens the file, cut to its first `bytes` bytes. @throws FileError when it is shorter */
  static async open(path: string, bytes: number): Promise<Log> {
    try {
      // Not the append mode, whose files Windows does not cut: every write names its position.
      const handle = await open(path, constants.O_RDWR | constants.O_CREAT);
      const { size } = await handle.stat();
      if (size < bytes) {
        await handle.close();
        throw new FileError({
          where: path,
          rule: `must hold the ${bytes} bytes it had at the checkpoint`,
          got: `${size}`,
          remedy: "Put the file back, or start a new run",
        });
      }
      await handle.truncate(bytes);
      return new Log(path, handle, bytes);
    } catch (error) {
      throw fileError(path, "writable", error);
    }
  }

  get bytes(): number {
    return this.#bytes;
  }

  async append(records: readonly object[]): Promise<void> {
    if (records.length === 0) return;
    const text = Buffer.from(records.map((record) => `${JSON.stringify(record)}\n`).join(""), "utf8");
    try {
      let written = 0;
      while (written < text.byteLength) {
        const rest = text.byteLength - written;
        written += (await this.#handle.write(text, written, rest, this.#bytes + written)).bytesWritten;
      }
    } catch (error) {
      // A full disk may have taken half a line; without it the file stays readable. That this may fail too changes
      // nothing: a resumed run cuts the file anyway.
      await this.#handle.truncate(this.#bytes).catch(() => undefined);
      throw fileError(this.#path, "writable", error);
    }
    this.#bytes += text.byteLength;
  }

  /** Waits until all that was appended is on the disk. */
  async sync(): Promise<void> {
    try {
      await this.#handle.sync();
    } catch (error) {
      throw fileError(this.#path, "writable", error);
    }
  }

  close(): Promise<void> {
    return this.#handle.close();
  }
}

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
  #logs: { readonly metrics: Log; readonly samples: Log } | undefined;

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
   * Makes a new run, ready for its first step. Never touches a folder that exists.
   * @throws FileError when the name is taken or the root may not be written to; ConfigError when the name is none
   */
  static async create(options: CreateRun): Promise<RunFolder> {
    const created = options.created ?? new Date();
    const name = options.name === undefined ? undefined : checkedName(options.name);
    const path = await makeFolder(options.root, name, defaultStem(options.task, options.preset, created));
    const release = await lockRun(join(path, LOCK));
    try {
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
      await clearLeftovers(join(path, "checkpoints"));
      return new RunFolder(resolve(path), manifest, options.keep ?? 2, release);
    } catch (error) {
      await release();
      throw error;
    }
  }

  /**
   * Cuts both logs back to a checkpoint, or to nothing where there is none, and removes checkpoints later than it.
   * @throws FileError when a log is shorter than it was at the checkpoint
   */
  async truncateAfter(checkpoint: Checkpoint | undefined): Promise<void> {
    await this.#closeLogs();
    for (const step of await this.checkpoints()) {
      if (step > (checkpoint?.step ?? -1)) await this.#removeCheckpoint(step);
    }
    const metrics = await Log.open(join(this.path, "metrics.jsonl"), checkpoint?.metricsBytes ?? 0);
    try {
      const samples = await Log.open(join(this.path, "samples.jsonl"), checkpoint?.samplesBytes ?? 0);
      this.#logs = { metrics, samples };
    } catch (error) {
      await metrics.close();
      throw error;
    }
  }

  /**
   * Writes another configuration into run.json, and what was changed after which step.
   * @throws FileError when it cannot be written
   */
  async changeConfig(
    config: Readonly<Record<string, unknown>>,
    change: { readonly step: number; readonly set: readonly string[] },
  ): Promise<void> {
    const changes = [...(this.#manifest.changes ?? []), { step: change.step, set: [...change.set] }];
    const manifest = { ...this.#manifest, config, changes };
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
    const parent = join(this.path, "checkpoints");
    await makeFolders(parent);
    await writeFolderAtomic(join(parent, `step-${step}`), async (folder) => {
      await writeSafetensors(join(folder, "state.safetensors"), { ...content.tensors });
      const state: z.infer<typeof CheckpointState> = {
        format: FORMAT,
        step,
        metricsBytes: metrics.bytes,
        samplesBytes: samples.bytes,
        state: content.state,
      };
      await writeFileAtomic(join(folder, "state.json"), `${JSON.stringify(state)}\n`);
    });
    for (const old of (await this.checkpoints()).slice(0, -this.#keep)) await this.#removeCheckpoint(old);
  }

  /** The steps of the checkpoints there are, ascending. */
  checkpoints(): Promise<number[]> {
    return listCheckpoints(this.path);
  }

  /** The newest checkpoint, read back; undefined when the run has none. */
  async latestCheckpoint(): Promise<Checkpoint | undefined> {
    const step = (await this.checkpoints()).at(-1);
    return step === undefined ? undefined : readCheckpoint(this.path, step);
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

  #open(): { readonly metrics: Log; readonly samples: Log } {
    invariant(this.#logs !== undefined, "a run's logs are open after create or truncateAfter, until close");
    return this.#logs;
  }

  async #closeLogs(): Promise<void> {
    const logs = this.#logs;
    this.#logs = undefined;
    await logs?.metrics.close();
    await logs?.samples.close();
  }

  /** Renamed before it is emptied: a checkpoint is whole or absent, also while it goes. */
  async #removeCheckpoint(step: number): Promise<void> {
    const path = join(this.path, "checkpoints", `step-${step}`);
    const partial = join(this.path, "checkpoints", `.step-${step}.${process.pid}-removed.partial`);
    try {
      await rename(path, partial);
      await rm(partial, { recursive: true, force: true });
    } catch (error) {
      throw fileError(path, "removable", error);
    }
  }
}

const LOCK = "run.lock";

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
      throw new FileError({
        where: path,
        rule: "a new run needs a new folder",
        got: "one that exists",
        remedy: "Choose another name, or go on with it by --resume",
      });
    }
  }
}

/** Removes what writers that were killed left under temporary names; only safe while the run is locked. */
async function clearLeftovers(parent: string): Promise<void> {
  if (!(await exists(parent))) return;
  try {
    for (const entry of await readdir(parent)) {
      const previous = /^\.(step-\d+)\.previous$/.exec(entry)?.[1];
      if (previous !== undefined) await recoverFolder(join(parent, previous));
    }
    for (const entry of await readdir(parent)) {
      if (/^\.step-.*\.(partial|previous)$/.test(entry)) {
        await rm(join(parent, entry), { recursive: true, force: true });
      }
    }
  } catch (error) {
    throw fileError(parent, "writable", error);
  }
}

async function listCheckpoints(path: string): Promise<number[]> {
  const parent = join(path, "checkpoints");
  if (!(await exists(parent))) return [];
  const steps = (await readdir(parent)).map((entry) => /^step-(\d+)$/.exec(entry)?.[1]);
  return steps
    .filter((step) => step !== undefined)
    .map(Number)
    .sort((a, b) => a - b);
}

/** A stored tensor as typed numbers. @throws FormatError on a type that the host has no arrays of */
function toHost(where: string, { dtype, shape, data }: StoredTensor): HostArray {
  if (dtype === "bf16" || dtype === "f8_e4m3")
    throw new FormatError({ where, rule: "a checkpoint's tensors have a host dtype", got: dtype });
  return hostArray(dtype, shape, typedArray(dtype, data.byteLength / BYTES[dtype], data.buffer));
}

/**
 * Reads the checkpoint taken after `step` steps.
 * @throws FileError, FormatError when it is missing or damaged
 */
export async function readCheckpoint(path: string, step: number): Promise<Checkpoint> {
  const folder = join(path, "checkpoints", `step-${step}`);
  const file = join(folder, "state.json");
  const { metricsBytes, samplesBytes, state } = parse(CheckpointState, file, await readJson(file));
  const stored = await readSafetensors(join(folder, "state.safetensors"));
  const tensors: Record<string, HostArray> = {};
  for (const [name, tensor] of stored.tensors) tensors[name] = toHost(`${folder}: ${name}`, tensor);
  return { step, tensors, state, metricsBytes, samplesBytes };
}

function writeManifest(path: string, manifest: RunManifest): Promise<void> {
  return writeFileAtomic(join(path, "run.json"), jsonText(manifest));
}

/** @throws FileError when the folder is no run; FormatError when its run.json is damaged or of another version */
async function readManifest(path: string): Promise<RunManifest> {
  const file = join(path, "run.json");
  if (!(await exists(file))) {
    throw new FileError({
      where: path,
      rule: "a run's folder holds run.json",
      got: (await exists(path)) ? "none" : "no such folder",
      remedy: "See `pondera runs list` for the runs there are",
    });
  }
  return parse(Manifest, file, await readJson(file));
}

/** The records of a run's steps so far; a torn last line is left out. */
export async function readMetrics(path: string): Promise<StepMetrics[]> {
  const file = join(path, "metrics.jsonl");
  const steps: StepMetrics[] = [];
  // Written by this program under the manifest's format number; what could differ is checked by that number.
  if (await exists(file)) for await (const record of jsonLines(file)) steps.push(record as StepMetrics);
  return steps;
}

/** The samples of a run so far, one at a time: there may be many. */
export async function* readSamples(path: string): AsyncGenerator<SampleRecord> {
  const file = join(path, "samples.jsonl");
  if (await exists(file)) for await (const record of jsonLines(file)) yield record as SampleRecord;
}

/** Finished: it has a result. Running: a living process holds it. Stopped: neither; it can be resumed. */
export type RunStatus = "finished" | "running" | "stopped";

/** A run as others see it, read without taking its lock. */
export interface RunView {
  readonly path: string;
  readonly manifest: RunManifest;
  readonly status: RunStatus;
  readonly metrics: readonly StepMetrics[];
  readonly result?: RunResult;
}

/** Reads a run, also one that is being written. @throws FileError when the folder is no run */
export async function readRun(path: string): Promise<RunView> {
  const manifest = await readManifest(path);
  const file = join(path, "result.json");
  const result = (await exists(file)) ? ((await readJson(file)) as RunResult) : undefined;
  const running = await isLocked(join(path, LOCK));
  return {
    path: resolve(path),
    manifest,
    status: running ? "running" : result === undefined ? "stopped" : "finished",
    metrics: await readMetrics(path),
    ...(result === undefined ? {} : { result }),
  };
}

/**
 * The folders under `root` that are runs, oldest first; none when `root` does not exist.
 * @param onUnreadable   called for each whose run.json is damaged or of another version, which is left out
 */
export async function listRuns(root: string, onUnreadable?: (error: FormatError) => void): Promise<string[]> {
  if (!(await exists(root))) return [];
  const found: { path: string; created: string }[] = [];
  for (const entry of await readdir(root)) {
    const path = join(root, entry);
    if (!(await exists(join(path, "run.json")))) continue;
    try {
      found.push({ path, created: (await readManifest(path)).created });
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      onUnreadable?.(error);
    }
  }
  return found
    .sort((a, b) => (a.created < b.created ? -1 : a.created > b.created ? 1 : 0))
    .map((run) => run.path);
}

/**
 * The folder of a run named by its path, by its name under `root`, or, without a name, the newest.
 * @throws FileError when there is no run at all; ConfigError suggesting the nearest name
 */
export async function findRun(root: string, name?: string): Promise<string> {
  if (name !== undefined) {
    for (const path of [name, join(root, name)])
      if (await exists(join(path, "run.json"))) return resolve(path);
  }
  const runs = await listRuns(root);
  const newest = runs.at(-1);
  if (newest === undefined) {
    throw new FileError({
      where: resolve(root),
      rule: "must hold a run",
      got: "none",
      remedy: "Make one with `pondera train`, or name its folder",
    });
  }
  if (name === undefined) return resolve(newest);
  expectKnown(
    "run",
    name,
    runs.map((run) => basename(run)),
  );
  return resolve(join(root, name));
}
