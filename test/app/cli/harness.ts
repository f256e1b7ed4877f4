/** Runs the command line in this process, with streams in place of a terminal. */

import { PassThrough, Readable } from "node:stream";
import { run } from "../../../src/app/cli/program.ts";

export interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

function collect(): { stream: PassThrough; text: () => string } {
  const stream = new PassThrough();
  const chunks: Buffer[] = [];
  stream.on("data", (chunk: Buffer) => chunks.push(chunk));
  return { stream, text: () => Buffer.concat(chunks).toString("utf8").replaceAll("\u00a0", " ") };
}

/**
 * @param options.input    what standard input holds
 * @param options.columns  of standard error, where it is a terminal
 */
export async function pondera(
  argv: readonly string[],
  options: {
    readonly input?: string;
    readonly env?: Record<string, string>;
    readonly columns?: number;
  } = {},
): Promise<Ran> {
  const out = collect();
  const err = collect();
  const stdin = Readable.from([Buffer.from(options.input ?? "")]);
  const { env = {}, columns } = options;
  const stderr = columns === undefined ? err.stream : Object.assign(err.stream, { isTTY: true, columns });
  const code = await run(argv, { stdin, stdout: out.stream, stderr, env });
  await new Promise(setImmediate);
  return { code, out: out.text(), err: err.text() };
}
