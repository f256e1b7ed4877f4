/** From what a person types to a task: the name of a built-in one, or a file of their own. */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { basename, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { expectKnown, FileError } from "../../base/errors.ts";
import { exists } from "../../base/files.ts";
import type { RunManifest } from "../../learn/runs/manifest.ts";
import { type CountdownOptions, countdownTask } from "../../learn/tasks/countdown/task.ts";
import { loadTask } from "../../learn/tasks/load.ts";
import { openTask } from "../../learn/tasks/open.ts";
import type { Task } from "../../learn/tasks/task.ts";

export interface NamedTask {
  readonly task: Task<unknown>;
  /** The file it came from, absolute; absent for a built-in task. */
  readonly file?: string;
  /** SHA-256 of that file and of the files of prompts that it names, by name. */
  readonly data: Readonly<Record<string, string>>;
}

const BUILT_IN = ["countdown"];

/** Whether a name means a file: it has a folder or the ending of one. */
const isFile = (name: string): boolean => /[\\/]|\.[cm]?[jt]s$/.test(name);

/**
 * Opens a task.
 * @param countdown  options of the built-in game
 * @throws ConfigError suggesting the nearest built-in name; what loading and opening a file throw
 */
export async function openNamedTask(name: string, countdown: CountdownOptions): Promise<NamedTask> {
  if (!isFile(name)) {
    expectKnown("task", name, BUILT_IN);
    // A task's rows are its own affair: whoever draws an example hands the same example to its judges.
    return { task: countdownTask(countdown) as unknown as Task<unknown>, data: {} };
  }
  const definition = await loadTask(name, { pondera: await import("../../index.ts") });
  const file = resolve(name);
  const task = (await openTask(definition)) as unknown as Task<unknown>;
  const data: Record<string, string> = { [basename(file)]: await hashOf(file) };
  for (const source of [definition.prompts, definition.validation]) {
    if (typeof source !== "string" && !(source instanceof URL)) continue;
    const path = typeof source === "string" ? resolve(source) : fileURLToPath(source);
    // Two may have one name, in different folders.
    data[basename(path) in data ? path : basename(path)] = await hashOf(path);
  }
  return { task, file, data };
}

async function hashOf(file: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file)) hash.update(chunk);
  return hash.digest("hex");
}

/**
 * The task of a run that is to go on, and what it is made of now.
 * @throws FileError when its file has gone; as {@link openNamedTask}
 */
export async function reopenTask(manifest: RunManifest, countdown: CountdownOptions): Promise<NamedTask> {
  const { taskFile } = manifest;
  if (taskFile !== undefined && !(await exists(taskFile))) {
    throw new FileError({
      where: `task ${manifest.task}`,
      rule: "must be in the file the run began with",
      got: "no such file",
      remedy: `Put it back at ${taskFile}`,
    });
  }
  return openNamedTask(taskFile ?? manifest.task, countdown);
}
