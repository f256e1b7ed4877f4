/** The world as a command sees it: three streams and the environment, so that tests can stand in for a terminal. */

import { once } from "node:events";
import picocolors from "picocolors";
import { jsonText } from "../../base/json.ts";
import type { Colors } from "./live-view.ts";

/** A stream that may be a terminal. */
export type Output = NodeJS.WritableStream & { readonly isTTY?: boolean; readonly columns?: number };

export interface Io {
  readonly stdin: NodeJS.ReadableStream & { readonly isTTY?: boolean };
  readonly stdout: Output;
  readonly stderr: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** What a command gets: the world, and a way to end with another exit code than 0 without failing. */
export interface Context extends Io {
  exitWith(code: number): void;
}

/**
 * Whether a panel may be drawn there: a terminal that can move its cursor and has a size. Some in containers say 0 columns.
 */
export function isInteractive(output: Output, env: Io["env"]): boolean {
  return output.isTTY === true && output.columns !== 0 && env["TERM"] !== "dumb";
}

/** Colours for a stream, plain where it is no terminal or NO_COLOR is set. */
export function colorsFor(output: Output, env: Io["env"]): Colors {
  return picocolors.createColors(isInteractive(output, env) && !env["NO_COLOR"]);
}

/** Columns to lay text out in. */
export function columnsOfOutput(output: Output): number {
  return output.columns || 100;
}

/**
 * How the command is typed where this process was started: npm and npx put what a project has installed into reach of their own
 * children alone, so that what they started is started by them again.
 */
export function commandName(env: Io["env"]): string {
  return env["npm_lifecycle_event"] === undefined ? "pondera" : "npx pondera";
}

/** Writes text and waits while the reader is slower than we are. */
export async function write(output: Output, text: string): Promise<void> {
  if (!output.write(text)) await once(output, "drain");
}

/** Writes a value as JSON, indented for a person. */
export async function writeJson(output: Output, value: unknown): Promise<void> {
  await write(output, jsonText(value));
}
