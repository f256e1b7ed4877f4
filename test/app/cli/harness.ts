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

/** @param options.input what standard input holds */
export async function pondera(
  argv: readonly string[],
  options: { readonly input?: string; readonly env?: Record<string, string> } = {},
): Promise<Ran> {
  const out = collect();
  const err = collect();
  const stdin = Readable.from([Buffer.from(options.input ?? "")]);
  const code = await run(argv, { stdin, stdout: out.stream, stderr: err.stream, env: options.env ?? {} });
  await new Promise(setImmediate);
  return { code, out: out.text(), err: err.text() };
}
