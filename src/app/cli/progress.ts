/** A line on standard error that says how far something long has come, where somebody is looking. */

import { clock } from "../format.ts";
import { colorsFor, columnsOfOutput, type Io, isInteractive } from "./io.ts";
import { ellipsize } from "./text.ts";

/** Long enough that nobody wonders, short enough that something quick shows nothing. */
const AFTER_MS = 2000;
const EVERY_MS = 250;

export interface Progress {
  /** Says this from now on; shown once it has taken long, and not more often than anybody reads. */
  say(text: string): void;
  /** Takes the line away. */
  done(): void;
}

/** What `say` shows stays until something else is said, so that a wait in which nothing happens is not silent either. */
export function progressOn(io: Pick<Io, "stderr" | "env">): Progress {
  if (!isInteractive(io.stderr, io.env)) return { say() {}, done() {} };
  const colors = colorsFor(io.stderr, io.env);
  let text = "";
  let shown = "";
  const draw = (): void => {
    if (text === shown) return;
    shown = text;
    io.stderr.write(`\r\u001b[K${colors.dim(ellipsize(text, columnsOfOutput(io.stderr) - 1))}`);
  };
  let timer: NodeJS.Timeout | undefined = setTimeout(() => {
    draw();
    timer = setInterval(draw, EVERY_MS);
    timer.unref();
  }, AFTER_MS);
  timer.unref();
  return {
    say(next) {
      text = next;
    },
    done() {
      clearTimeout(timer);
      timer = undefined;
      if (shown !== "") io.stderr.write("\r\u001b[K");
      shown = "";
    },
  };
}

/** To be called at every token: says how many there are. */
export function countTokens(progress: Progress): () => void {
  let written = 0;
  return () => progress.say(`${(++written).toLocaleString("en")} tokens written…`);
}

/** `, 0:42 left`, once there is something to tell it from. */
export function timeLeft(beganMs: number, share: number): string {
  const seconds = (performance.now() - beganMs) / 1000;
  return share <= 0 || share >= 1 ? "" : `, ${clock((seconds * (1 - share)) / share)} left`;
}
