/**
 * An open file of which ranges are read when they are needed, into memory the caller chose: whoever loads a model reads each
 * tensor once, into the array it will live in, so that the file is never in memory beside the model.
 *
 * What lives in memory just as it is stored, weights in float32, is mapped instead. Everything else is read by position: pages of
 * a map count as memory until they are dropped, and a file that shrinks meanwhile is an error that can be named.
 */

import { readSync } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { FileError } from "../../base/errors.ts";
import { fileError } from "../../base/files.ts";
import { mapFile } from "../../compute/runtime/map-file.ts";

export interface RangeReader {
  readonly file: string;
  /** Bytes in the file when it was opened. */
  readonly size: number;
  /** Fills `target` with the bytes from `start` on. @throws FileError when the file cannot be read, or has become shorter */
  readInto(target: Uint8Array, start: number): Promise<void>;
  /** The same at once: for a few bytes. */
  readIntoSync(target: Uint8Array, start: number): void;
  /**
   * The whole file as memory, the same at every call: see {@link mapFile}. It outlives the reader.
   * @returns undefined where files cannot be mapped
   */
  map(): Promise<ArrayBuffer | undefined>;
  close(): Promise<void>;
}

/** One system call reads at most 2 GiB. */
const SLICE_BYTES = 2 ** 30;

/** @throws FileError when there is no such file, it may not be read, or it is no regular file */
export async function openRanges(file: string): Promise<RangeReader> {
  let handle: FileHandle | undefined;
  let size: number;
  try {
    // Before opening: to open a pipe is to wait for its writer.
    if (!(await stat(file)).isFile()) {
      throw new FileError({ where: file, rule: "must be a file", got: "something else" });
    }
    handle = await open(file, "r");
    size = (await handle.stat()).size;
  } catch (error) {
    await handle?.close();
    throw fileError(file, "readable", error);
  }
  const opened = handle;
  let mapped: Promise<ArrayBuffer | undefined> | undefined;
  /** @throws FileError when nothing came */
  const expectSome = (bytesRead: number, expected: number, got: number): void => {
    if (bytesRead > 0) return;
    throw new FileError({
      where: file,
      rule: `must stay as it is while it is read; ${expected} bytes were expected`,
      got: `${got}`,
    });
  };
  return {
    file,
    size,
    async readInto(target, start) {
      try {
        for (let done = 0; done < target.byteLength; ) {
          const length = Math.min(target.byteLength - done, SLICE_BYTES);
          const { bytesRead } = await opened.read(target, done, length, start + done);
          expectSome(bytesRead, start + target.byteLength, start + done);
          done += bytesRead;
        }
      } catch (error) {
        throw fileError(file, "readable", error);
      }
    },
    readIntoSync(target, start) {
      try {
        for (let done = 0; done < target.byteLength; ) {
          const bytesRead = readSync(opened.fd, target, done, target.byteLength - done, start + done);
          expectSome(bytesRead, start + target.byteLength, start + done);
          done += bytesRead;
        }
      } catch (error) {
        throw fileError(file, "readable", error);
      }
    },
    map: () => {
      mapped ??= mapFile(opened.fd, size);
      return mapped;
    },
    close: () => opened.close(),
  };
}
