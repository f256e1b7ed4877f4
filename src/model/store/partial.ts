/**
 * A file that is being put together from pieces, by processes that may be killed: `data` has its whole length from the start,
 * with holes, and `journal` says which bytes of it are there. A range enters the journal only after its bytes are on the disk.
 */

import { constants } from "node:fs";
import { type FileHandle, lstat, open, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileError } from "../../base/files.ts";
import { mergeRanges, type Range, totalOf } from "./ranges.ts";

const DATA = "data";
const JOURNAL = "journal";

/** A journal of the largest model has some hundred kilobytes. */
const MOST_JOURNAL_BYTES = 64 * 2 ** 20;

/** Never through a link: the name might lead out of the store. Windows makes no links without being asked to. */
const NO_FOLLOW = constants.O_NOFOLLOW ?? 0;

/** What a journal of a file of this size says; undefined for one of another size, or none. A last line cut short is not read. */
function parseJournal(text: string, size: number): Range[] | undefined {
  const [first, ...lines] = text.split("\n").slice(0, -1);
  if (first !== `size ${size}`) return undefined;
  const ranges: Range[] = [];
  for (const line of lines) {
    const match = /^(\d{1,16}) (\d{1,16})$/.exec(line);
    if (match === null) continue;
    const [start, end] = [Number(match[1]), Number(match[2])];
    if (start < end && end <= size) ranges.push({ start, end });
  }
  return mergeRanges(ranges);
}

async function readJournal(folder: string, size: number): Promise<Range[] | undefined> {
  try {
    const [data, journal] = [await lstat(join(folder, DATA)), await lstat(join(folder, JOURNAL))];
    if (!data.isFile() || data.size !== size || !journal.isFile() || journal.size > MOST_JOURNAL_BYTES) {
      return undefined;
    }
    return parseJournal(await readFile(join(folder, JOURNAL), "latin1"), size);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

export class PartialFile {
  readonly path: string;
  readonly size: number;
  readonly #data: FileHandle;
  readonly #journal: FileHandle;
  #ranges: readonly Range[];

  private constructor(
    path: string,
    size: number,
    handles: readonly [FileHandle, FileHandle],
    ranges: readonly Range[],
  ) {
    this.path = path;
    this.size = size;
    [this.#data, this.#journal] = handles;
    this.#ranges = ranges;
  }

  /**
   * Goes on with what is in a folder, or begins anew where there is nothing, or nothing of this size.
   * @param options.fresh  begins anew in any case
   * @throws FileError when the folder cannot be written to
   */
  static async open(
    folder: string,
    size: number,
    options: { readonly fresh?: boolean } = {},
  ): Promise<PartialFile> {
    const [data, journal] = [join(folder, DATA), join(folder, JOURNAL)];
    const handles: FileHandle[] = [];
    try {
      let ranges = options.fresh === true ? undefined : await readJournal(folder, size);
      if (ranges === undefined) {
        await PartialFile.remove(folder);
        await writeFile(data, "", { flag: "wx" });
        await truncate(data, size);
        await writeFile(journal, `size ${size}\n`, { flag: "wx" });
        ranges = [];
      }
      handles.push(await open(data, constants.O_RDWR | NO_FOLLOW));
      handles.push(await open(journal, constants.O_WRONLY | constants.O_APPEND | NO_FOLLOW));
      return new PartialFile(data, size, handles as [FileHandle, FileHandle], ranges);
    } catch (error) {
      for (const handle of handles) await handle.close();
      throw fileError(folder, "writable", error);
    }
  }

  /** Forgets what is in a folder. */
  static async remove(folder: string): Promise<void> {
    for (const name of [DATA, JOURNAL]) {
      try {
        await rm(join(folder, name), { force: true, recursive: true });
      } catch (error) {
        throw fileError(join(folder, name), "removable", error);
      }
    }
  }

  /** How many bytes of a file of this size are in a folder already; zero where it cannot be gone on with. */
  static async doneIn(folder: string, size: number): Promise<number> {
    try {
      return totalOf((await readJournal(folder, size)) ?? []);
    } catch (error) {
      throw fileError(folder, "readable", error);
    }
  }

  /** Bytes that are there for certain. */
  get done(): readonly Range[] {
    return this.#ranges;
  }

  get doneBytes(): number {
    return totalOf(this.#ranges);
  }

  /** Writes bytes; they count only after {@link record}. */
  async write(bytes: Uint8Array, at: number): Promise<void> {
    try {
      for (let written = 0; written < bytes.length; ) {
        const part = await this.#data.write(bytes, written, bytes.length - written, at + written);
        written += part.bytesWritten;
      }
    } catch (error) {
      throw fileError(this.path, "writable", error);
    }
  }

  /** Makes written bytes count, also after a crash. */
  async record(range: Range): Promise<void> {
    if (range.end <= range.start) return;
    try {
      await this.#data.datasync();
      // The empty line before parts this one from what a killed process may have left of another.
      await this.#journal.write(`\n${range.start} ${range.end}\n`);
    } catch (error) {
      throw fileError(this.path, "writable", error);
    }
    this.#ranges = mergeRanges([...this.#ranges, range]);
  }

  async close(): Promise<void> {
    await this.#data.close();
    await this.#journal.close();
  }
}
