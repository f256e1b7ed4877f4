/** Memory that is garbage and too large to wait for. */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import koffi from "koffi";

interface Freeing {
  readonly collect: () => void;
  readonly trim: () => void;
}

let freeing: Freeing | undefined;

/** glibc keeps what is freed for what comes next, unless it is told to give it back. Others do without. */
function trimmer(): () => void {
  if (process.platform !== "linux") return () => {};
  try {
    const trim = koffi.load("libc.so.6").func("malloc_trim", "int", ["size_t"]);
    return () => trim(0);
  } catch {
    return () => {};
  }
}

/**
 * Frees what nobody uses any more now, instead of at some time, and gives it back to the system: for many megabytes at once. Takes some
 * milliseconds for each ten megabytes that are in use.
 */
export function freeGarbage(): void {
  if (freeing === undefined) {
    setFlagsFromString("--expose-gc");
    freeing = { collect: runInNewContext("gc") as () => void, trim: trimmer() };
  }
  freeing.collect();
  freeing.trim();
}
