/** Runs as others see them, read without taking their locks: one, all below a folder, or the one that a person means. */

import { readdir } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { expectKnown, FileError, FormatError } from "../../base/errors.ts";
import { exists, readJson } from "../../base/files.ts";
import { isLocked } from "../../base/lock.ts";
import { type RunFailure, readFailure } from "./failure.ts";
import { jsonLines } from "./json-log.ts";
import { type RunManifest, readManifest } from "./manifest.ts";
import type { RunResult, SampleRecord, StepMetrics } from "./records.ts";
import { LOCK } from "./run-lock.ts";

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

/** What came out of a run; undefined where it has not finished. @throws FormatError when the file holds something else */
export async function readResult(path: string): Promise<RunResult | undefined> {
  const file = join(path, "result.json");
  return (await exists(file)) ? ((await readJson(file)) as RunResult) : undefined;
}

/** Finished: it has a result. Running: a living process holds it. Stopped: neither; it can be resumed. */
export type RunStatus = "finished" | "running" | "stopped";

/** A run as others see it, read without taking its lock. */
export interface RunView {
  readonly path: string;
  readonly manifest: RunManifest;
  readonly status: RunStatus;
  readonly metrics: readonly StepMetrics[];
  /** Where they were asked for: there may be many. */
  readonly samples?: readonly SampleRecord[];
  readonly result?: RunResult;
  /** What stopped it, where numbers were not finite. */
  readonly failure?: RunFailure;
}

/**
 * Reads a run, also one that is being written.
 * @param options.samples   whether to read its samples, too. @default false
 * @throws FileError when the folder is no run
 */
export async function readRun(path: string, options: { readonly samples?: boolean } = {}): Promise<RunView> {
  const manifest = await readManifest(path);
  const result = await readResult(path);
  const failure = await readFailure(path);
  const running = await isLocked(join(path, LOCK));
  const samples: SampleRecord[] = [];
  if (options.samples) for await (const sample of readSamples(path)) samples.push(sample);
  return {
    path: resolve(path),
    manifest,
    status: running ? "running" : result === undefined ? "stopped" : "finished",
    metrics: await readMetrics(path),
    ...(options.samples ? { samples } : {}),
    ...(result === undefined ? {} : { result }),
    ...(failure === undefined ? {} : { failure }),
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
