/** What a person sees of a download: a bar that redraws itself in a terminal, a line now and then elsewhere. */

import { createLogUpdate } from "log-update";
import type { PullEvent } from "../../model/store/pull.ts";
import { byteSize, clock, percent } from "../format.ts";
import { colorsFor, columnsOfOutput, type Io, isInteractive, type Output } from "./io.ts";
import { bar, columnsOf, ellipsize, printable } from "./text.ts";

export interface PullView {
  show(event: PullEvent): void;
  /** Leaves the terminal as it was. */
  stop(): void;
}

/** Bytes per second over the last moments: what arrived since the oldest moment that is remembered. */
export class Speed {
  readonly #moments: { readonly at: number; readonly done: number }[] = [];
  static readonly WINDOW_MS = 10_000;

  /** @param now milliseconds */
  add(done: number, now: number): void {
    this.#moments.push({ at: now, done });
    while (this.#moments.length > 2 && now - this.#moments[0]!.at > Speed.WINDOW_MS) this.#moments.shift();
  }

  /** Undefined until something is known. */
  get bytesPerSecond(): number | undefined {
    const [first, last] = [this.#moments[0], this.#moments.at(-1)];
    if (first === undefined || last === undefined || last.at - first.at < 500) return undefined;
    return Math.max(0, (1000 * (last.done - first.done)) / (last.at - first.at));
  }
}

/** `1.20 GB of 3.55 GB, 11.2 MB/s, 3:30 left`. */
export function progressText(done: number, bytes: number, speed: number | undefined): string {
  const parts = [`${byteSize(done)} of ${byteSize(bytes)}`];
  if (done >= bytes) return `${parts[0]}, checking`;
  if (speed !== undefined) parts.push(`${byteSize(speed)}/s`);
  if (speed !== undefined && speed > 0) parts.push(`${clock((bytes - done) / speed)} left`);
  return parts.join(", ");
}

function planText({ name, files, bytes, present, omitted }: Extract<PullEvent, { kind: "plan" }>): string[] {
  const here = present > 0 ? `, ${byteSize(present)} of it here already` : "";
  return [
    `${printable(name)}: ${files} file${files === 1 ? "" : "s"}, ${byteSize(bytes)}${here}`,
    ...(omitted.length === 0
      ? []
      : [
          `left out, the same in other formats: ${omitted
            .slice(0, 5)
            .map((path) => printable(path))
            .join(", ")}${omitted.length > 5 ? `, and ${omitted.length - 5} more` : ""}`,
        ]),
  ];
}

const REDRAW_MS = 100;
const LINE_MS = 10_000;
const BAR = 24;

/** In a terminal. */
function panelView(output: Output, env: Io["env"]): PullView {
  const update = createLogUpdate(output as NodeJS.WriteStream, { showCursor: true });
  const colors = colorsFor(output, env);
  const speed = new Speed();
  let drawn = 0;
  /** Lines that stay, above the bar. */
  const keep = (lines: readonly string[]) => {
    update.clear();
    output.write(lines.map((line) => `${line}\n`).join(""));
  };
  return {
    show(event) {
      const width = columnsOfOutput(output) - 1;
      if (event.kind === "plan") keep(planText(event));
      else if (event.kind === "note") keep([colors.yellow(ellipsize(printable(event.text), width))]);
      if (event.kind !== "progress") return;
      const now = performance.now();
      speed.add(event.done, now);
      if (now - drawn < REDRAW_MS && event.done < event.bytes) return;
      drawn = now;
      const { filled, rest } = bar(event.bytes === 0 ? 1 : event.done / event.bytes, BAR);
      const text = ` ${percent(event.bytes === 0 ? 1 : event.done / event.bytes)}  ${progressText(event.done, event.bytes, speed.bytesPerSecond)}`;
      const fits = BAR + columnsOf(text) <= width;
      update(fits ? `${colors.cyan(filled)}${colors.dim(rest)}${text}` : ellipsize(text.trim(), width));
    },
    stop() {
      update.clear();
      update.done();
    },
  };
}

/** Elsewhere: a line for the plan, each file and each note, and one every so often. */
function lineView(output: Output): PullView {
  const speed = new Speed();
  let written = performance.now();
  return {
    show(event) {
      if (event.kind === "plan")
        output.write(
          planText(event)
            .map((line) => `${line}\n`)
            .join(""),
        );
      else if (event.kind === "note") output.write(`${printable(event.text)}\n`);
      else if (event.kind === "file")
        output.write(`done: ${printable(event.path)}, ${byteSize(event.bytes)}\n`);
      else {
        const now = performance.now();
        speed.add(event.done, now);
        if (now - written < LINE_MS) return;
        written = now;
        output.write(`${progressText(event.done, event.bytes, speed.bytesPerSecond)}\n`);
      }
    },
    stop() {},
  };
}

export function createPullView(io: Io): PullView {
  return isInteractive(io.stderr, io.env) ? panelView(io.stderr, io.env) : lineView(io.stderr);
}
