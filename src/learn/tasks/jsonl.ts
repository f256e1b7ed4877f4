/** JSON Lines: one JSON value a line, in UTF-8. */
import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { FormatError } from "../../base/errors.ts";
import { fileError } from "../../base/files.ts";

/**
 * The lines of a text file, without their ends, read as they are asked for.
 * @throws FileError when the file cannot be read
 */
export async function* readLines(path: string | URL): AsyncGenerator<string> {
  const file = path instanceof URL ? fileURLToPath(path) : path;
  const stream = createReadStream(file, "utf8");
  try {
    // A line end inside `\r\n` may fall between two chunks; without a delay limit both halves still make one end.
    yield* createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY });
  } catch (error) {
    throw fileError(file, "readable", error);
  } finally {
    stream.destroy();
  }
}

/**
 * The rows of a JSONL file; blank lines are passed over.
 * @param toRow turns the JSON value of a line (counted from 1) into a row; by default the value is the row
 * @throws FileError when the file cannot be read; FormatError naming the line that is not JSON
 */
export async function* jsonl<Row>(
  path: string | URL,
  toRow: (value: unknown, line: number) => Row = (value) => value as Row,
): AsyncGenerator<Row> {
  let line = 0;
  for await (const text of readLines(path)) {
    line++;
    if (text.trim() === "") continue;
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw new FormatError({
        where: `${path}:${line}`,
        rule: "must be one JSON value a line",
        got: (cause as Error).message,
        cause,
      });
    }
    yield toRow(value, line);
  }
}
