/**
 * One holder at a time: a lock file that says which process holds it. Whoever is killed leaves the file behind, so a lock
 * counts only while its process lives.
 */

import { readFile, rm, stat, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { setTimeout } from "node:timers/promises";
import { z } from "zod";
import { FileError } from "./errors.ts";
import { fileError } from "./files.ts";

/** Held by another process, or perhaps: its lock cannot be read. */
export class LockedError extends FileError {
  /** Of the holder, where that is known. */
  readonly pid: number | undefined;
  /** Whether the holder is on another machine, so that nobody here can tell if it still lives. */
  readonly elsewhere: boolean;

  constructor(path: string, owner: Owner | undefined) {
    const elsewhere = owner !== undefined && owner.host !== hostname();
    super({
      where: path,
      rule: "one process holds it at a time",
      got:
        owner === undefined ? "an unreadable lock" : `a lock held by process ${owner.pid} on ${owner.host}`,
      remedy: elsewhere
        ? "If that machine no longer works on it, delete the lock file"
        : "Wait for that process, or stop it",
    });
    this.pid = owner?.pid;
    this.elsewhere = elsewhere;
  }
}

const Owner = z.object({
  pid: z.number().int().positive(),
  host: z.string(),
  /** When the process started, in the kernel's ticks; null where the system does not tell. */
  started: z.string().nullable(),
});
type Owner = z.infer<typeof Owner>;

/** A lock without an owner is one that is being written, for this long; after that its writer must have died. */
const WRITING_MS = 2000;

/** Tells a process from a later one with the same id, which containers hand out again and again. Linux only. */
async function startOf(pid: number): Promise<string | null> {
  try {
    const status = await readFile(`/proc/${pid}/stat`, "utf8");
    // The name, in brackets, may itself contain blanks and brackets. Field 22 is the 20th after it.
    return status.slice(status.lastIndexOf(")") + 2).split(" ")[19] ?? null;
  } catch {
    return null;
  }
}

async function isHeld(owner: Owner): Promise<boolean> {
  if (owner.host !== hostname()) return true;
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    // EPERM: it lives and belongs to another user.
    if ((error as NodeJS.ErrnoException).code !== "EPERM") return false;
  }
  const started = await startOf(owner.pid);
  return started === null || owner.started === null || started === owner.started;
}

/** The lock's text, and who it names; undefined when there is no lock. */
async function readLock(path: string): Promise<{ text: string; owner: Owner | undefined } | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw fileError(path, "readable", error);
  }
  try {
    return { text, owner: Owner.parse(JSON.parse(text)) };
  } catch {
    return { text, owner: undefined };
  }
}

/** Whether a living process holds the lock at `path`. */
export async function isLocked(path: string): Promise<boolean> {
  const lock = await readLock(path);
  if (lock === undefined) return false;
  if (lock.owner !== undefined) return isHeld(lock.owner);
  const age = Date.now() - (await stat(path)).mtimeMs;
  return age < WRITING_MS;
}

/**
 * Removes a lock whose owner is dead. Only who made the file beside it may, and looks again first: a lock that another
 * has taken over in the meantime is alive and stays.
 * @throws LockedError while another is at it
 */
async function removeDead(
  path: string,
  found: { readonly text: string; readonly owner: Owner | undefined },
): Promise<void> {
  const claim = `${path}.takeover`;
  try {
    await writeFile(claim, "", { flag: "wx" });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw fileError(path, "writable", error);
    const made = await stat(claim).catch(() => undefined);
    if (made === undefined || Date.now() - made.mtimeMs < WRITING_MS)
      throw new LockedError(path, found.owner);
    await rm(claim, { force: true });
    return;
  }
  try {
    // The same text is the same dead owner's; it cannot go or change while the claim is held.
    const now = await readLock(path);
    if (now?.text === found.text && !(await isLocked(path))) await rm(path, { force: true });
  } finally {
    await rm(claim, { force: true });
  }
}

/**
 * Takes the lock, also over one whose process is gone.
 * @returns how to give it back
 * @throws LockedError when a living process holds it; FileError when the folder may not be written to
 */
export async function acquireLock(path: string): Promise<() => Promise<void>> {
  const mine = JSON.stringify({ pid: process.pid, host: hostname(), started: await startOf(process.pid) });
  for (;;) {
    try {
      await writeFile(path, mine, { flag: "wx" });
      return () => rm(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw fileError(path, "writable", error);
    }
    const found = await readLock(path);
    if (found === undefined) continue;
    if (await isLocked(path)) throw new LockedError(path, found.owner);
    await removeDead(path, found);
  }
}

export interface WaitOptions {
  readonly signal?: AbortSignal;
  /** Longest wait. @default Infinity: as long as the holder lives */
  readonly timeoutMs?: number;
  /** Called once, when there is something to wait for. */
  readonly onWait?: (holder: LockedError) => void;
}

const POLL_MS = 100;

/**
 * Takes the lock as soon as its holder gives it back or dies.
 * @returns how to give it back
 * @throws LockedError when that takes longer than the limit, or at once when the holder is on another machine; the signal's
 *   reason
 */
export async function waitForLock(path: string, options: WaitOptions = {}): Promise<() => Promise<void>> {
  const { signal, timeoutMs = Number.POSITIVE_INFINITY, onWait } = options;
  const start = Date.now();
  let told = false;
  for (;;) {
    signal?.throwIfAborted();
    try {
      return await acquireLock(path);
    } catch (error) {
      if (!(error instanceof LockedError)) throw error;
      if (error.elsewhere || Date.now() - start > timeoutMs) throw error;
      if (!told) onWait?.(error);
      told = true;
    }
    await setTimeout(POLL_MS, undefined, signal === undefined ? {} : { signal });
  }
}
