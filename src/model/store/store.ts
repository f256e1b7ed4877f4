/**
 * Models on disk, by content. A file's content lies once in `blobs/`, under its hash; a name is a manifest that says which
 * blobs make up the model; and beside the manifest is a folder with the model's own file names, hard links to the blobs (copies
 * where the disk has no hard links), which any other program can open.
 *
 * ```
 * blobs/sha256-…                                  write-protected
 * models/OWNER/MODEL/TAG/manifest.json            the model exists exactly while this does
 * models/OWNER/MODEL/TAG/files-…/config.json …    named after what the manifest lists
 * partial/…                                       downloads under way or cut off, and notes of what came for unfinished pulls
 * store.lock                                      held while names or blobs change, never during a download
 * ```
 *
 * No part of it may be a symbolic link: nothing is written or deleted through one.
 */

import { createHash } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import {
  chmod,
  copyFile,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
} from "node:fs/promises";
import { dirname, join } from "node:path";
import { ConfigError, FileError, FormatError, nearestOf, PonderaError } from "../../base/errors.ts";
import { fileError, makeFolders, syncFolder, writeFileAtomic, writeFolderAtomic } from "../../base/files.ts";
import { jsonText } from "../../base/json.ts";
import { acquireLock, LockedError, waitForLock } from "../../base/lock.ts";
import { ALIASES } from "./aliases.ts";
import { type Manifest, readManifest, type StoredFile } from "./manifest.ts";
import { formatModelName, type ModelName, nameFolders, parseModelName } from "./name.ts";

export interface StoredModel {
  /** As it was pulled or copied, with its case. */
  readonly name: string;
  readonly manifest: Manifest;
  /** The folder with the model's files, absolute. */
  readonly folder: string;
  /** What other programs are to be given: the folder, or the one GGUF file in it. */
  readonly path: string;
  /** Bytes of all files; equal files count once. */
  readonly bytes: number;
}

/** What was taken away. */
export interface Removed {
  readonly names: readonly string[];
  /** Bytes that are free now. */
  readonly bytes: number;
}

const BLOBS = "blobs";
const MODELS = "models";
const PARTIAL = "partial";
const MANIFEST = "manifest.json";
const LOCK = "store.lock";
/** In the folder of a download that is done: the sha256 of what came. */
const ARRIVED = "arrived";

/** Changes of names and blobs take moments; whoever holds the lock for longer is stuck. */
const LOCK_TIMEOUT_MS = 60_000;

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? "";
const isAbsent = (error: unknown): boolean => ["ENOENT", "ENOTDIR"].includes(codeOf(error));

/** Where a disk has no hard links, or no more of them, or the two places are on different disks. */
const NO_LINKS = new Set(["EXDEV", "EPERM", "EMLINK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL"]);

/** The folder's name follows from its content, so that a new one never takes the place of one that is being read. */
function viewName(files: readonly StoredFile[]): string {
  const hash = createHash("sha256");
  for (const { path, sha256 } of files) hash.update(`${path}\0${sha256}\n`);
  return `files-${hash.digest("hex").slice(0, 12)}`;
}

/** The one file that is the whole model: a GGUF, or the first part of one, in a folder that is not in Hugging Face layout. */
function wholeModel(files: readonly StoredFile[]): string | undefined {
  if (files.some(({ path }) => path === "config.json")) return undefined;
  const weights = files.filter(
    ({ path }) => /\.gguf$/i.test(path) && !/(?:mmproj|projector|adapter)/i.test(path),
  );
  const first = weights.filter(
    ({ path }) => !/-\d{5}-of-\d{5}\.gguf$/i.test(path) || /-00001-of-/.test(path),
  );
  return first.length === 1 ? first[0]!.path : undefined;
}

function distinct(files: readonly StoredFile[]): Map<string, number> {
  return new Map(files.map(({ sha256, size }) => [sha256, size]));
}

/** Whether a folder is there. @throws FileError where a link or a file is in its place */
async function isOwnFolder(path: string): Promise<boolean> {
  try {
    const found = await lstat(path);
    if (found.isDirectory()) return true;
    throw new FileError({
      where: path,
      rule: "must be a folder of the model store itself",
      got: found.isSymbolicLink() ? "a symbolic link" : "a file",
      remedy: "Remove it, or choose another store with --store or PONDERA_HOME",
    });
  } catch (error) {
    if (isAbsent(error)) return false;
    throw fileError(path, "readable", error);
  }
}

async function isOrdinary(path: string, size: number): Promise<boolean> {
  try {
    const found = await lstat(path);
    return found.isFile() && found.size === size;
  } catch (error) {
    if (isAbsent(error)) return false;
    throw fileError(path, "readable", error);
  }
}

async function linkOrCopy(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch (error) {
    if (!NO_LINKS.has(codeOf(error))) throw error;
    await copyFile(from, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE);
    const copy = await open(to, "r");
    try {
      // Windows flushes only what is open for writing, and has links on the disks it is installed on.
      if (process.platform !== "win32") await copy.sync();
    } finally {
      await copy.close();
    }
  }
}

async function names(folder: string): Promise<string[]> {
  try {
    return (await readdir(folder)).sort();
  } catch (error) {
    if (isAbsent(error)) return [];
    throw fileError(folder, "readable", error);
  }
}

/** Deletes an empty folder; leaves one that holds something. */
async function removeIfEmpty(folder: string): Promise<void> {
  try {
    await rmdir(folder);
  } catch (error) {
    if (!["ENOTEMPTY", "EEXIST", "ENOENT", "EPERM", "EBUSY"].includes(codeOf(error))) throw error;
  }
}

/** sha256 of a file's content, in hex. */
export async function hashFile(
  path: string,
  options: { readonly signal?: AbortSignal; readonly onBytes?: (bytes: number) => void } = {},
): Promise<string> {
  const hash = createHash("sha256");
  const { signal, onBytes } = options;
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 2 ** 20 }) as AsyncIterable<Buffer>) {
      signal?.throwIfAborted();
      hash.update(chunk);
      onBytes?.(chunk.length);
    }
  } catch (error) {
    throw fileError(path, "readable", error);
  }
  return hash.digest("hex");
}

export class ModelStore {
  /** Absolute. */
  readonly root: string;

  /** Nothing is read or made until it is needed. @param root as {@link storePlace} gives it */
  constructor(root: string) {
    this.root = root;
  }

  /**
   * A folder of the store, made where it is absent.
   * @throws FileError where a link or a file lies in its place, or it cannot be made
   */
  async folder(...parts: readonly string[]): Promise<string> {
    await makeFolders(this.root);
    let path = this.root;
    for (const part of parts) {
      path = join(path, part);
      await mkdir(path).catch((error: unknown) => {
        if (codeOf(error) !== "EEXIST") throw fileError(path, "writable", error);
      });
      // Before anything is made inside it: what was there may be a link to elsewhere.
      await isOwnFolder(path);
    }
    return path;
  }

  /** @returns whether they are all there. @throws FileError where one is a link or a file */
  async #checkFolders(parts: readonly string[]): Promise<boolean> {
    let path = this.root;
    for (const part of parts) {
      path = join(path, part);
      if (!(await isOwnFolder(path))) return false;
    }
    return true;
  }

  /** Runs `work` while no other process changes names or blobs. */
  async #locked<T>(work: () => Promise<T>): Promise<T> {
    const release = await waitForLock(join(await this.folder(), LOCK), { timeoutMs: LOCK_TIMEOUT_MS });
    try {
      return await work();
    } finally {
      await release();
    }
  }

  /** Where the content with this hash lies, or would. */
  blobPath(sha256: string): string {
    return join(this.root, BLOBS, `sha256-${sha256}`);
  }

  /** Whether content is there, by its size; {@link verify} reads it. */
  hasBlob({ sha256, size }: Pick<StoredFile, "sha256" | "size">): Promise<boolean> {
    return isOrdinary(this.blobPath(sha256), size);
  }

  /** Where a download of this key is put together. */
  async partialFolder(key: string): Promise<string> {
    return this.folder(PARTIAL, key);
  }

  /** The lock of a download, which one process at a time carries on. */
  async partialLock(key: string): Promise<string> {
    return join(await this.folder(PARTIAL), `${key}.lock`);
  }

  /** Removes what a download left, its own lock apart. */
  async removePartial(key: string): Promise<void> {
    if (await this.#checkFolders([PARTIAL, key])) await this.#delete(join(this.root, PARTIAL, key));
  }

  /**
   * Notes under which hash the content of a download is in the store, where its key does not tell. Until a model names it, the
   * note is all that tells so, and a pull that is stopped before its end needs it to go on.
   */
  async noteArrival(key: string, sha256: string): Promise<void> {
    await this.removePartial(key);
    await writeFileAtomic(join(await this.partialFolder(key), ARRIVED), sha256);
  }

  /** What {@link noteArrival} noted. */
  async arrivalOf(key: string): Promise<string | undefined> {
    const note = join(this.root, PARTIAL, key, ARRIVED);
    if (!(await this.#checkFolders([PARTIAL, key])) || !(await isOrdinary(note, 64))) return undefined;
    try {
      const text = await readFile(note, "latin1");
      return /^[0-9a-f]{64}$/.test(text) ? text : undefined;
    } catch (error) {
      if (isAbsent(error)) return undefined; // A model names the content since.
      throw fileError(note, "readable", error);
    }
  }

  /** Removes what {@link noteArrival} noted, unless another process is at that download: then the note is that one's to remove. */
  async forgetArrival(key: string): Promise<void> {
    if ((await this.arrivalOf(key)) === undefined) return;
    const release = await acquireLock(await this.partialLock(key)).catch((error: unknown) => {
      if (error instanceof LockedError) return undefined;
      throw error;
    });
    if (release === undefined) return;
    try {
      await this.removePartial(key);
    } finally {
      await release();
    }
  }

  /**
   * Takes a whole, flushed and verified file into the store; afterwards it is gone from where it was.
   * @param options.replace  also where such content is there already, because that is broken. @default false
   * @throws FileError when the store cannot be written to
   */
  async adopt(
    file: string,
    content: Pick<StoredFile, "sha256" | "size">,
    options: { readonly replace?: boolean } = {},
  ): Promise<void> {
    const folder = await this.folder(BLOBS);
    const target = this.blobPath(content.sha256);
    try {
      if (options.replace !== true && (await this.hasBlob(content))) {
        await rm(file);
        return;
      }
      await chmod(file, 0o444);
      await rename(file, target);
      await syncFolder(folder);
    } catch (error) {
      throw fileError(target, "writable", error);
    }
  }

  /** @throws FormatError or FileError when what is there is broken */
  async #read(folders: readonly string[]): Promise<StoredModel | undefined> {
    if (!(await this.#checkFolders([MODELS, ...folders]))) return undefined;
    const home = join(this.root, MODELS, ...folders);
    const manifest = await readManifest(join(home, MANIFEST));
    if (manifest === undefined) return undefined;
    const { name, files } = manifest;
    const folder = join(home, viewName(files));
    const whole = wholeModel(files);
    return {
      name,
      manifest,
      folder,
      path: whole === undefined ? folder : join(folder, ...whole.split("/")),
      bytes: [...distinct(files).values()].reduce((a, b) => a + b, 0),
    };
  }

  /**
   * The model of a name, whatever its case; a name without a tag also finds `latest`, and an alias what it stands for.
   * @throws FormatError or FileError when what is there is broken
   */
  async find(name: ModelName): Promise<StoredModel | undefined> {
    const folders = await this.#locate(name);
    return folders === undefined ? undefined : this.#read(folders);
  }

  /** Where the manifest of a name lies, readable or not. */
  async #locate(name: ModelName): Promise<readonly string[] | undefined> {
    const alias = ALIASES.get(formatModelName(name).toLowerCase());
    const candidates = [
      name,
      ...(name.tag === undefined ? [{ ...name, tag: "latest" }] : []),
      ...(alias === undefined ? [] : [parseModelName(alias)]),
    ];
    for (const folders of candidates.map(nameFolders)) {
      if (!(await this.#checkFolders([MODELS, ...folders]))) continue;
      const home = join(this.root, MODELS, ...folders);
      if ((await names(home)).includes(MANIFEST)) return folders;
    }
    return undefined;
  }

  /** @throws ConfigError when there is no such model, suggesting the nearest */
  async get(name: string): Promise<StoredModel> {
    return (await this.find(parseModelName(name))) ?? (await this.#fail(name));
  }

  async #fail(name: string): Promise<never> {
    const known = (await this.list()).map((model) => model.name);
    const near = nearestOf(name, known);
    throw new ConfigError({
      where: `model store ${this.root}`,
      rule: "must hold the model",
      got: known.length === 0 ? `${JSON.stringify(name)}, and no models yet` : JSON.stringify(name),
      remedy:
        near === undefined
          ? `Fetch it: pondera pull ${name}`
          : `Did you mean ${near}? Or fetch it: pondera pull ${name}`,
    });
  }

  /**
   * Every model, by name.
   * @param onUnreadable  told of those that are broken, which are left out. @default they are left out
   */
  async list(onUnreadable: (error: Error) => void = () => undefined): Promise<StoredModel[]> {
    const found: StoredModel[] = [];
    for (const folders of await this.#places(onUnreadable)) {
      try {
        const model = await this.#read(folders);
        if (model !== undefined) found.push(model);
      } catch (error) {
        if (!(error instanceof PonderaError)) throw error;
        onUnreadable(error);
      }
    }
    return found.sort((a, b) => (a.name.toLowerCase() < b.name.toLowerCase() ? -1 : 1));
  }

  /** The three folders of every place where a manifest may lie. */
  async #places(onUnreadable: (error: Error) => void): Promise<string[][]> {
    let level: string[][] = [[]];
    for (let depth = 0; depth < 3; depth++) {
      const next: string[][] = [];
      for (const folders of level) {
        try {
          if (!(await this.#checkFolders([MODELS, ...folders]))) continue;
          const inside = await names(join(this.root, MODELS, ...folders));
          next.push(...inside.filter((n) => !n.startsWith(".")).map((n) => [...folders, n]));
        } catch (error) {
          if (!(error instanceof PonderaError)) throw error;
          onUnreadable(error);
        }
      }
      level = next;
    }
    return level;
  }

  /** Builds the folder of a model's files, unless it is there and whole. */
  async #makeView(home: string, files: readonly StoredFile[]): Promise<void> {
    const view = join(home, viewName(files));
    const whole = await Promise.all(
      files.map(async ({ path, sha256, size }) => {
        const file = join(view, ...path.split("/"));
        // Another file of that size may be what was broken before its content was fetched again.
        return (await isOrdinary(file, size)) && (await isSameFile(file, this.blobPath(sha256)));
      }),
    );
    if (whole.every(Boolean)) return;
    const build = async (partial: string) => {
      for (const { path, sha256 } of files) {
        const target = join(partial, ...path.split("/"));
        await makeFolders(dirname(target));
        await linkOrCopy(this.blobPath(sha256), target);
      }
    };
    await writeFolderAtomic(view, build, { flushed: true });
  }

  /** Writes a manifest, its folder of files first; call it with the lock. */
  async #write(manifest: Manifest): Promise<void> {
    const home = await this.folder(MODELS, ...nameFolders(parseModelName(manifest.name)));
    await this.#makeView(home, manifest.files);
    await writeFileAtomic(join(home, MANIFEST), jsonText(manifest));
    // What an earlier manifest listed, and what killed writers left.
    const kept = new Set([MANIFEST, viewName(manifest.files)]);
    for (const entry of await names(home)) {
      if (!kept.has(entry)) await this.#delete(join(home, entry));
    }
  }

  async #delete(path: string): Promise<void> {
    try {
      await rm(path, { recursive: true, force: true });
    } catch (error) {
      throw fileError(path, "removable", error);
    }
  }

  /**
   * Gives a name to content that is in the store; the name may have meant something else before.
   * @returns the files whose content is not there (another process may have removed it meanwhile); the name is then untouched
   * @throws FileError when the store cannot be written to
   */
  async commit(manifest: Manifest): Promise<readonly StoredFile[]> {
    return this.#locked(async () => {
      const there = await Promise.all(manifest.files.map((file) => this.hasBlob(file)));
      const missing = manifest.files.filter((_, i) => there[i] === false);
      if (missing.length > 0) return missing;
      const name = parseModelName(manifest.name);
      const before = await this.#read(nameFolders(name)).catch((error: unknown) => {
        if (error instanceof FormatError) return undefined; // Broken, and about to be replaced.
        throw error;
      });
      await this.#write(manifest);
      if (before !== undefined) await this.#release(before.manifest.files);
      return [];
    });
  }

  /**
   * A second name for the same content.
   * @throws ConfigError when there is no such model, or the other name is taken and `replace` is not set
   */
  async copy(from: string, to: string, options: { readonly replace?: boolean } = {}): Promise<StoredModel> {
    const source = await this.get(from);
    const name = parseModelName(to);
    return this.#locked(async () => {
      const before = await this.#read(nameFolders(name));
      if (before !== undefined && options.replace !== true) {
        throw new ConfigError({
          where: to,
          rule: "must be a name that is not in use",
          got: `the name of a model from ${before.manifest.source.repo}`,
          remedy: `Choose another, or replace it with --force`,
        });
      }
      await this.#write({ ...source.manifest, name: formatModelName(name) });
      if (before !== undefined) await this.#release(before.manifest.files);
      return (await this.#read(nameFolders(name)))!;
    });
  }

  /**
   * Removes names, and the content that no other name needs. All names are looked up before the first is removed.
   * @throws ConfigError when one does not exist
   */
  async remove(wanted: readonly string[]): Promise<Removed> {
    const parsed = wanted.map(parseModelName);
    for (const name of parsed) {
      if ((await this.#locate(name)) === undefined) await this.#fail(formatModelName(name));
    }
    return this.#locked(async () => {
      let bytes = 0;
      const gone: string[] = [];
      for (const name of parsed) {
        const folders = await this.#locate(name);
        if (folders === undefined) continue; // Named twice, or removed by another process just now.
        const model = await this.#read(folders).catch((error: unknown) => {
          if (error instanceof PonderaError) return undefined; // Broken, which is a good reason to remove it.
          throw error;
        });
        const home = join(this.root, MODELS, ...folders);
        // The manifest first: without it the rest is rubbish, whereas a manifest without its files would be a lie.
        await this.#delete(join(home, MANIFEST));
        await this.#delete(home);
        for (let depth = 2; depth > 0; depth--) {
          await removeIfEmpty(join(this.root, MODELS, ...folders.slice(0, depth)));
        }
        gone.push(model?.name ?? formatModelName(name));
        if (model !== undefined) bytes += await this.#release(model.manifest.files);
      }
      return { names: gone, bytes };
    });
  }

  /** Hashes that some manifest needs; undefined when one cannot be read, and so nobody knows. */
  async #needed(): Promise<Set<string> | undefined> {
    let readable = true;
    const models = await this.list(() => {
      readable = false;
    });
    if (!readable) return undefined;
    return new Set(models.flatMap(({ manifest }) => manifest.files.map(({ sha256 }) => sha256)));
  }

  /** Removes those of these files' blobs that no manifest needs. @returns bytes freed */
  async #release(files: readonly StoredFile[]): Promise<number> {
    const needed = await this.#needed();
    if (needed === undefined || !(await this.#checkFolders([BLOBS]))) return 0;
    let bytes = 0;
    for (const [sha256, size] of distinct(files)) {
      if (needed.has(sha256) || !(await this.hasBlob({ sha256, size }))) continue;
      await this.#delete(this.blobPath(sha256));
      bytes += size;
    }
    return bytes;
  }

  /**
   * Removes content that no name needs and downloads that nobody carries on.
   * @returns bytes freed
   * @throws FormatError when a manifest cannot be read, and so nobody knows what it needs
   */
  async prune(): Promise<number> {
    return this.#locked(async () => {
      const needed = await this.#needed();
      if (needed === undefined) {
        throw new FileError({
          where: this.root,
          rule: "every manifest must be readable before content is removed",
          got: "one that is not",
          remedy: "pondera list says which",
        });
      }
      let bytes = 0;
      if (await this.#checkFolders([BLOBS])) {
        for (const entry of await names(join(this.root, BLOBS))) {
          if (needed.has(entry.replace(/^sha256-/, ""))) continue;
          const path = join(this.root, BLOBS, entry);
          bytes += (await lstat(path)).size;
          await this.#delete(path);
        }
      }
      return bytes + (await this.#prunePartial());
    });
  }

  async #prunePartial(): Promise<number> {
    if (!(await this.#checkFolders([PARTIAL]))) return 0;
    let bytes = 0;
    const entries = await names(join(this.root, PARTIAL));
    for (const key of new Set(entries.map((entry) => entry.replace(/\.lock(?:\.takeover)?$/, "")))) {
      const path = join(this.root, PARTIAL, key);
      const release = await acquireLock(`${path}.lock`).catch((error: unknown) => {
        if (error instanceof LockedError) return undefined;
        throw error;
      });
      if (release === undefined) continue; // Being downloaded at this moment.
      try {
        // Blocks, since the file of a download has its whole length from the start, with holes.
        for (const file of await names(path)) bytes += 512 * ((await lstat(join(path, file))).blocks ?? 0);
        await this.#delete(path);
      } finally {
        await release();
      }
    }
    return bytes;
  }

  /** Whether all files of a model are in their folder, by size; {@link verify} reads them. */
  async isWhole({ folder, manifest }: StoredModel): Promise<boolean> {
    const there = await Promise.all(
      manifest.files.map(({ path, size }) => isOrdinary(join(folder, ...path.split("/")), size)),
    );
    return there.every(Boolean);
  }

  /**
   * Reads all content of a model.
   * @returns the files that are missing or whose content is not what the manifest says
   */
  async verify(
    model: StoredModel,
    options: { readonly signal?: AbortSignal; readonly onBytes?: (bytes: number) => void } = {},
  ): Promise<readonly StoredFile[]> {
    const broken: StoredFile[] = [];
    for (const file of model.manifest.files) {
      const blob = this.blobPath(file.sha256);
      const view = join(model.folder, ...file.path.split("/"));
      const sound =
        (await this.hasBlob(file)) &&
        (await isOrdinary(view, file.size)) &&
        (await hashFile(blob, options)) === file.sha256 &&
        ((await isSameFile(blob, view)) || (await hashFile(view, options)) === file.sha256);
      if (!sound) broken.push(file);
    }
    return broken;
  }
}

async function isSameFile(a: string, b: string): Promise<boolean> {
  const [one, other] = [await lstat(a, { bigint: true }), await lstat(b, { bigint: true })];
  return one.dev === other.dev && one.ino === other.ino && one.ino !== 0n;
}
