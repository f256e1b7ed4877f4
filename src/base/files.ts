/**
 * Files that are whole or absent. Content is written under a temporary name in the folder it belongs to, flushed to the
 * disk, renamed to its own name, and the folder flushed: whoever dies at whatever moment, a reader finds the old content
 * or the new, never a half. What a killed writer leaves under a temporary name is cleared by the next write to the same path.
 */

import { type FileHandle, mkdir, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { FileError, FormatError, PonderaError } from "./errors.ts";

/** What to do about the failures people meet; other codes get the system's own words alone. */
const REMEDY: Readonly<Record<string, string>> = {
  ENOSPC: "The disk is full: free some space and try again",
  EDQUOT: "The disk quota is used up: free some space and try again",
  EFBIG: "The file would be larger than this system or its limits allow",
  EACCES: "Give this user the right to the folder, or choose another",
  EPERM: "Give this user the right to the folder, or choose another",
  EROFS: "The file system is read-only: choose another folder",
  ENOENT: "Check the path; its folder must exist",
  ENOTDIR: "A part of the path is a file, not a folder",
  EISDIR: "The path is a folder, not a file",
  EMFILE: "Too many files are open: raise the limit (ulimit -n)",
};

/** True of the errors that Node's file functions throw. */
function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).code === "string";
}

/** Whether there is something at a path that this user can reach. */
export const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

const isFolder = (path: string): Promise<boolean> =>
  stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );

/**
 * The typed form of what a file function threw; errors that are already typed, and those that are no file errors, stay as
 * they are.
 * @param action what was tried, to be read after "must be": `readable`, `writable`
 */
export function fileError(path: string, action: string, error: unknown): unknown {
  if (error instanceof PonderaError || !isSystemError(error)) return error;
  const remedy = REMEDY[error.code ?? ""];
  return new FileError({
    where: path,
    rule: `must be ${action}`,
    got: error.message,
    ...(remedy === undefined ? {} : { remedy }),
    cause: error,
  });
}

/**
 * A folder, and those above it that are not there yet. Not Node's recursive `mkdir`: below a folder that takes none, as in /proc, it
 * tries for ever.
 * @throws FileError when one cannot be made, or something else lies in its place
 */
export async function makeFolders(path: string): Promise<void> {
  const make = async (folder: string): Promise<void> => {
    try {
      await mkdir(folder);
    } catch (error) {
      const code = isSystemError(error) ? error.code : undefined;
      // Whatever the code, as a file system that is read-only gives its own for folders that are there.
      if (code !== "ENOENT" && (await isFolder(folder))) return;
      const parent = dirname(folder);
      if (code !== "ENOENT" || parent === folder || (await exists(parent))) throw error;
      await make(parent);
      await make(folder);
    }
  };
  try {
    await make(resolve(path));
  } catch (error) {
    throw fileError(path, "writable", error);
  }
}

/** @throws FormatError when a file is larger; whether it can be read is for whoever reads it to say */
async function checkBytes(path: string, most: number): Promise<void> {
  const bytes = await stat(path).then(
    ({ size }) => size,
    // Reading it says why.
    () => 0,
  );
  if (bytes <= most) return;
  throw new FormatError({ where: path, rule: `must have at most ${most} bytes`, got: `${bytes}` });
}

/**
 * A file's text.
 * @param most  bytes that such a file may have. @default any number
 * @throws FileError when it cannot be read; FormatError when it is larger, or not UTF-8
 */
export async function readText(path: string, most = Number.POSITIVE_INFINITY): Promise<string> {
  await checkBytes(path, most);
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (error) {
    throw fileError(path, "readable", error);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new FormatError({ where: path, rule: "must be UTF-8 text", got: "other bytes", cause });
  }
}

// Limits of JSON files, far above what configurations and indices of models have (a trillion weights: 13 MB, 140,000 values):
// a damaged or hostile file then takes little more memory than it has bytes, and no recursion is too deep for what reads it.
const MAX_JSON_BYTES = 32 * 2 ** 20;
const MAX_JSON_VALUES = 2 ** 20;
const MAX_JSON_DEPTH = 64;

/** @throws FormatError on JSON beyond the limits; whether it is JSON at all is not looked at */
function checkJsonSize(path: string, text: string, mostValues: number): void {
  const refuse = (rule: string, got: string): never => {
    throw new FormatError({ where: path, rule, got });
  };
  let depth = 0;
  let values = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (inString) {
      if (char === "\\") i++;
      else if (char === '"') inString = false;
    } else if (char === '"') {
      inString = true;
    } else if (char === "{" || char === "[") {
      values++;
      if (++depth > MAX_JSON_DEPTH)
        refuse(`must not nest deeper than ${MAX_JSON_DEPTH}`, `deeper at character ${i + 1}`);
    } else if (char === "}" || char === "]") {
      depth--;
    } else if (char === ",") {
      values++;
    }
    if (values > mostValues) refuse(`must hold at most ${mostValues} values`, "more");
  }
}

/**
 * The value of JSON text that came from a file.
 * @param path        what to call it in errors
 * @param mostValues  that it may hold. @default a million
 * @throws FormatError when it is not JSON, holds more values, or nests more than 64 levels deep
 */
export function parseJson(path: string, text: string, mostValues = MAX_JSON_VALUES): unknown {
  checkJsonSize(path, text, mostValues);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FormatError({ where: path, rule: "must be JSON", got: String(cause), cause });
  }
}

/**
 * A JSON file's content, to be parsed by the caller's schema.
 * @throws FileError when it cannot be read; FormatError when it is not JSON, or beyond what configurations need: 32 MiB, a
 *   million values, 64 levels
 */
export async function readJson(path: string): Promise<unknown> {
  return parseJson(path, await readText(path, MAX_JSON_BYTES));
}

/** Temporary names this process is using now. */
const active = new Set<string>();
let counter = 0;

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return isSystemError(error) && error.code === "EPERM"; // Alive, and another user's.
  }
}

/** Temporary names are `.NAME.PID-N.partial`, so that the next writer can tell a killed one's from a living one's. */
async function clearAbandoned(folder: string, name: string): Promise<void> {
  for (const entry of await readdir(folder)) {
    if (!entry.startsWith(`.${name}.`)) continue;
    const pid = /^(\d+)-\d+\.partial$/.exec(entry.slice(name.length + 2))?.[1];
    if (pid === undefined || active.has(join(folder, entry))) continue;
    if (Number(pid) === process.pid || !isAlive(Number(pid))) {
      await rm(join(folder, entry), { recursive: true, force: true });
    }
  }
}

/** Runs `write` on a fresh temporary path beside `path`, which is gone when this returns, renamed or removed. */
async function withPartial(path: string, write: (partial: string) => Promise<void>): Promise<void> {
  const folder = dirname(path);
  const partial = join(folder, `.${basename(path)}.${process.pid}-${counter++}.partial`);
  active.add(partial);
  try {
    await clearAbandoned(folder, basename(path));
    await write(partial);
    await syncFolder(folder);
  } catch (error) {
    // Why the write failed matters more than that its remains could not be cleared; the next write tries again.
    await rm(partial, { recursive: true, force: true }).catch(() => undefined);
    throw fileError(path, "writable", error);
  } finally {
    active.delete(partial);
  }
}

/** Flushes a folder: after it, what was renamed into it or removed from it is so on the disk. */
export async function syncFolder(folder: string): Promise<void> {
  // Windows cannot open a folder, and orders a rename after the writes before it by itself.
  if (process.platform === "win32") return;
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function syncTree(folder: string, filesToo: boolean): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) await syncTree(path, filesToo);
    else if (entry.isFile() && filesToo) {
      const handle = await open(path, "r+");
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
    }
  }
  await syncFolder(folder);
}

/** One call writes at most 2 GiB, so larger parts go in slices. */
const SLICE_BYTES = 2 ** 30;

async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  let start = 0;
  while (start < bytes.byteLength) {
    const slice = bytes.subarray(start, start + SLICE_BYTES);
    start += (await handle.write(slice, 0, slice.byteLength)).bytesWritten;
  }
}

/**
 * Writes a file whole or not at all; a previous file of that name stays as it was until the new one is on the disk.
 * @param data text (written as UTF-8), bytes, or several parts written one after another
 * @throws FileError when the disk is full, the folder is missing or may not be written to
 */
export async function writeFileAtomic(
  path: string,
  data: string | Uint8Array | Iterable<Uint8Array>,
): Promise<void> {
  const parts =
    typeof data === "string" ? [Buffer.from(data, "utf8")] : data instanceof Uint8Array ? [data] : data;
  await withPartial(path, async (partial) => {
    const handle = await open(partial, "wx");
    try {
      for (const part of parts) await writeAll(handle, part);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(partial, path);
  });
}

/** @throws FileError when something other than a folder is there */
async function folderExists(path: string): Promise<boolean> {
  try {
    if ((await stat(path)).isDirectory()) return true;
  } catch (error) {
    if (isSystemError(error) && error.code === "ENOENT") return false;
    throw error;
  }
  throw new FileError({ where: path, rule: "must be a folder or absent", got: "a file" });
}

/** Where the folder that is being replaced waits. */
const previousOf = (path: string) => join(dirname(path), `.${basename(path)}.previous`);

/**
 * Puts back the folder that {@link writeFolderAtomic} was replacing when it was killed between its two renames. Readers of
 * folders that may be replaced call it first; it does nothing when the folder is there.
 * @throws FileError when the folder cannot be renamed
 */
export async function recoverFolder(path: string): Promise<void> {
  const target = resolve(path);
  try {
    if (!(await folderExists(target)) && (await folderExists(previousOf(target)))) {
      await rename(previousOf(target), target);
    }
  } catch (error) {
    throw fileError(path, "readable", error);
  }
}

/**
 * Fills a folder whole or not at all. `write` gets the path of an empty folder, which is flushed and renamed to `path` when
 * it returns. A folder already at `path` is replaced; no system call known to Node exchanges two folders, so between two
 * renames `path` is absent: {@link recoverFolder} undoes a death in that moment.
 * @param options.flushed  the files that `write` leaves are on the disk already, as hard links to such files are, and may be
 *   write-protected; only the folders are flushed then. @default false
 * @throws FileError as {@link writeFileAtomic}; whatever `write` throws
 */
export async function writeFolderAtomic(
  path: string,
  write: (folder: string) => Promise<void>,
  options: { readonly flushed?: boolean } = {},
): Promise<void> {
  // Resolved, so that a trailing slash or "." names the folder itself and not one inside it.
  const target = resolve(path);
  const previous = previousOf(target);
  await recoverFolder(target);
  await withPartial(target, async (partial) => {
    await mkdir(partial);
    await write(partial);
    await syncTree(partial, options.flushed !== true);
    if (!(await folderExists(target))) {
      await rename(partial, target);
      return;
    }
    await rm(previous, { recursive: true, force: true });
    await rename(target, previous);
    try {
      await rename(partial, target);
    } catch (error) {
      await rename(previous, target);
      throw error;
    }
    await rm(previous, { recursive: true, force: true });
  });
}
