/** The command line at a terminal that a test sits at: it types, and waits for what it wants to see. */

import { PassThrough } from "node:stream";
import { stripVTControlCharacters } from "node:util";
import { run } from "../../../src/app/cli/program.ts";

const PATIENCE_MS = 50_000;

export interface Terminal {
  /** Types as a keyboard does; `\r` is the enter key, `\u0003` Ctrl-C, `\u0004` Ctrl-D. */
  type(keys: string): void;
  /** Waits until the screen, from where the last wait ended, shows this, and returns all that was shown until then. */
  see(wanted: string | RegExp): Promise<string>;
  /** All that was shown, escape sequences and all. */
  readonly raw: string;
  /** The exit code. */
  readonly ended: Promise<number>;
}

/** Starts the command line at a terminal of 80 columns. */
export function sitAt(argv: readonly string[], env: Record<string, string> = {}): Terminal {
  const keyboard = Object.assign(new PassThrough(), { isTTY: true, setRawMode: () => keyboard });
  const screen = Object.assign(new PassThrough(), { isTTY: true, columns: 80 });
  let raw = "";
  let looked = 0;
  let changed = (): void => undefined;
  screen.setEncoding("utf8").on("data", (text: string) => {
    raw += text;
    changed();
  });
  const stderr = new PassThrough();
  stderr.resume();
  const ended = run(argv, {
    stdin: keyboard,
    stdout: screen,
    stderr,
    env: { TERM: "xterm", NO_COLOR: "1", ...env },
  });
  const shown = (): string => stripVTControlCharacters(raw);
  return {
    type: (keys) => void keyboard.write(keys),
    get raw() {
      return raw;
    },
    ended,
    see: (wanted) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(
          () => reject(new Error(`waited for ${wanted}; the screen shows:\n${shown().slice(looked)}`)),
          PATIENCE_MS,
        );
        changed = () => {
          const fresh = shown().slice(looked);
          const at = typeof wanted === "string" ? fresh.indexOf(wanted) : fresh.search(wanted);
          if (at < 0) return;
          clearTimeout(timer);
          const length = typeof wanted === "string" ? wanted.length : wanted.exec(fresh)![0].length;
          looked += at + length;
          changed = () => undefined;
          resolve(fresh.slice(0, at + length));
        };
        changed();
      }),
  };
}
