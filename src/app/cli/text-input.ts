/** Text that a command is given: typed, in a file, or through a pipe. */

import { buffer } from "node:stream/consumers";
import { ConfigError, FormatError } from "../../base/errors.ts";
import { readText } from "../../base/files.ts";
import type { Io } from "./io.ts";

/** What standard input is called in errors. */
export const STDIN = "standard input";

/** All of standard input, as it is. @throws FormatError when it is not UTF-8 */
export async function readStdin(io: Pick<Io, "stdin">): Promise<string> {
  const bytes = await buffer(io.stdin);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new FormatError({ where: STDIN, rule: "must be UTF-8 text", got: "other bytes", cause });
  }
}

/** Text without its last line break, which the shell or the editor put there. */
export const withoutLastBreak = (text: string): string => text.replace(/\r?\n$/, "");

/** A file's text, or standard input's for `-`. @throws FileError when it cannot be read; FormatError when it is not UTF-8 */
export function readFileOrStdin(file: string, io: Pick<Io, "stdin">): Promise<string> {
  return file === "-" ? readStdin(io) : readText(file);
}

/**
 * Text from an argument, from `--file`, or from standard input where there is neither.
 * @throws ConfigError when both are given, or a person sits at standard input
 */
export async function readTextArgument(
  typed: string | undefined,
  file: string | undefined,
  io: Pick<Io, "stdin">,
): Promise<string> {
  if (typed !== undefined && file !== undefined) {
    throw new ConfigError({
      where: "--file",
      rule: "must not come with a text",
      got: "both",
      remedy: "Leave one of them out",
    });
  }
  if (typed !== undefined && typed !== "-") return typed;
  if (file === undefined && typed === undefined && io.stdin.isTTY === true) {
    throw new ConfigError({
      where: "text",
      rule: "must be given",
      got: "nothing",
      remedy: "Type it after the model, name a file with --file, or pipe it in",
    });
  }
  return readFileOrStdin(file ?? "-", io);
}
