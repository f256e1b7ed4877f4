/** One writer per run: the lock in its folder. */

import { FileError } from "../../base/errors.ts";
import { acquireLock, LockedError } from "../../base/lock.ts";

/** The lock's file in a run's folder. */
export const LOCK = "run.lock";

/** The run is in use by another process, or may be. */
export class RunLockedError extends FileError {
  readonly pid: number | undefined;

  constructor(path: string, cause: LockedError) {
    super({
      where: path,
      rule: "a run has one writer at a time",
      got: cause.got ?? "a lock",
      remedy: cause.elsewhere
        ? "If that machine no longer trains this run, delete the lock file"
        : "Wait for it, stop it, or train under another name",
      cause,
    });
    this.pid = cause.pid;
  }
}

/**
 * Takes a run's lock, also over one whose process is gone.
 * @returns how to give it back
 * @throws RunLockedError when a living process holds it; FileError when the folder may not be written to
 */
export async function lockRun(path: string): Promise<() => Promise<void>> {
  try {
    return await acquireLock(path);
  } catch (error) {
    throw error instanceof LockedError ? new RunLockedError(path, error) : error;
  }
}
