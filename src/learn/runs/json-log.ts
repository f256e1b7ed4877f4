/** Files of one JSON object a line, that only grow: written so that a kill at any moment costs half a line, and read so. */

import { constants, createReadStream } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { FileError, FormatError } from "../../base/errors.ts";
import { fileError } from "../../base/files.ts";

/**
 * The records of a JSONL file. A last line without its line break was torn by a kill and is left out.
 * @throws FileError when it cannot be read; FormatError naming the line that is no JSON object
 */
export async function* jsonLines(path: string): AsyncGenerator<object> {
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
export class JsonLog {
  readonly #path: string;
  readonly #handle: FileHandle;
  #bytes: number;

  private constructor(path: string, handle: FileHandle, bytes: number) {
    this.#path = path;
    this.#handle = handle;
    this.#bytes = bytes;
  }

  /** Opens the file, cut to its first `bytes` bytes. @throws FileError when it is shorter */
  static async open(path: string, bytes: number): Promise<JsonLog> {
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
      return new JsonLog(path, handle, bytes);
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
