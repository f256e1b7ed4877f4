/** A wall for code that a file of unknown origin steers: a pattern that backtracks, a template that loops. */

import { createContext, runInContext } from "node:vm";
import { FormatError } from "../../base/errors.ts";

const bench: { run?: () => void } = {};
const context = createContext(bench);

// Not by its class: the error may be of the other context's.
const isTimeout = (error: unknown): boolean =>
  (error as { code?: unknown } | null)?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT";

/**
 * What `run` returns, if it does so in time; it is stopped wherever it is, also inside a regular expression. It is no
 * sandbox: `run` must be our own code, and nothing it was changing when it was stopped may be used afterwards.
 * @param where what to name in the error
 * @throws FormatError when it takes longer; whatever `run` throws
 */
export function withinTime<T>(milliseconds: number, where: string, run: () => T): T {
  let result: { readonly value: T } | undefined;
  const outer = bench.run;
  bench.run = () => {
    result = { value: run() };
  };
  try {
    runInContext("run()", context, { timeout: milliseconds });
  } catch (cause) {
    if (!isTimeout(cause)) throw cause;
    throw new FormatError({
      where,
      rule: `must be done within ${milliseconds / 1000} seconds`,
      got: "no end",
      remedy: "It comes from the model's files: use a model you trust, or a shorter text",
      cause,
    });
  } finally {
    if (outer === undefined) delete bench.run;
    else bench.run = outer;
  }
  return result!.value;
}
