/** `failure.json`: why a run stopped before its end, and from where it may go better. There until the run goes on. */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { FileError } from "../../base/errors.ts";
import { exists, fileError, readJson, writeFileAtomic } from "../../base/files.ts";
import { jsonText, parsedBy } from "../../base/json.ts";

const Failure = z.object({
  /** Steps of the whole run that were done. */
  step: z.number().int().nonnegative(),
  /** What was not finite, and where. */
  error: z.string(),
  /** Resuming starts at this checkpoint, the newest from which lower rates lead to other weights; 0: at the first step. */
  from: z.number().int().nonnegative(),
  /** Those rates, as `field=value`; none where no rate has moved the weights. */
  set: z.array(z.string()),
});

export type RunFailure = Readonly<z.infer<typeof Failure>>;

const fileOf = (run: string): string => join(run, "failure.json");

/** @throws FileError when it cannot be written */
export function writeFailure(run: string, failure: RunFailure): Promise<void> {
  return writeFileAtomic(fileOf(run), jsonText(failure));
}

/** What stopped a run; undefined where nothing did. @throws FormatError when the file holds something else */
export async function readFailure(run: string): Promise<RunFailure | undefined> {
  const file = fileOf(run);
  try {
    return parsedBy(Failure, file, await readJson(file));
  } catch (error) {
    // Asked after the read, as a run that goes on removes it.
    if (error instanceof FileError && !(await exists(file))) return undefined;
    throw error;
  }
}

/** Forgets what stopped a run. @throws FileError when the folder may not be written to */
export async function removeFailure(run: string): Promise<void> {
  try {
    await rm(fileOf(run), { force: true });
  } catch (error) {
    throw fileError(fileOf(run), "removable", error);
  }
}

/**
 * What to do about it, as the remedy of an error.
 * @param run      as `--resume` takes it
 * @param command  what is typed before `train`
 */
export function remedyOf({ from, set }: RunFailure, run: string, command = "pondera"): string {
  const resume = `${command} train --resume ${run}`;
  if (set.length === 0) {
    return `No step has moved the weights, so no rate helps: check the rewards and the model it began with; ${resume} goes on`;
  }
  const example = `${resume} ${set.map((one) => `--set ${one}`).join(" ")}`;
  if (from === 0) return `For example, ${example} begins again with lower rates`;
  // What goes wrong by degrees may have begun before any checkpoint that is left.
  return `For example, ${example} goes on after step ${from} with lower rates; where that fails, too, begin a new run with them`;
}
