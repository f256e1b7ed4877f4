/** Ctrl-C: the first asks for an orderly end, the second does not wait for it. */

import type { EventEmitter } from "node:events";

/** What a shell reports for a process that Ctrl-C ended: 128 + SIGINT. */
export const INTERRUPTED = 130;

export interface InterruptOptions {
  /** Called at the first Ctrl-C, to tell the person what is being finished. */
  readonly onFirst: () => void;
  /** Where the signals arrive. @default process */
  readonly source?: EventEmitter;
  /** Ends the process at the second. @default process.exit */
  readonly exit?: (code: number) => void;
}

/**
 * Runs work that can be asked to stop. SIGINT and SIGTERM abort its signal; a second one exits at once. The handlers are
 * gone when the work has ended.
 */
export async function interruptible<T>(
  options: InterruptOptions,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const { source = process, exit = process.exit, onFirst } = options;
  const controller = new AbortController();
  const onSignal = () => {
    if (controller.signal.aborted) exit(INTERRUPTED);
    else {
      controller.abort();
      onFirst();
    }
  };
  source.on("SIGINT", onSignal);
  source.on("SIGTERM", onSignal);
  try {
    return await work(controller.signal);
  } finally {
    source.off("SIGINT", onSignal);
    source.off("SIGTERM", onSignal);
  }
}
