/** `pondera grade`: verdicts on completions somebody else's model wrote. */

import { createInterface } from "node:readline";
import { Argument, type Command } from "commander";
import { gradeCountdown } from "../../../learn/tasks/grade.ts";
import { readLines } from "../../../learn/tasks/jsonl.ts";
import { compact, percent } from "../../format.ts";
import { withExamples } from "../help.ts";
import { type Context, colorsFor, columnsOfOutput, type Io, isInteractive, write } from "../io.ts";
import { type Column, table } from "../table.ts";

interface GradeOptions {
  readonly exactlyOnce?: true;
  readonly json?: true;
}

/** Long enough that nobody wonders, short enough that a quick run shows nothing. */
const PROGRESS_AFTER_MS = 2000;
const PROGRESS_EVERY_MS = 250;
/** Output is collected up to this length, as one write per row would cost more than the verdict. */
const CHUNK = 64 * 1024;
/** Reasons listed in the summary. */
const MOST_REASONS = 12;

/** A count on standard error while it takes long, where somebody is looking. */
function progress(io: Io): { tick(rows: number): void; done(): void } {
  if (!isInteractive(io.stderr, io.env)) return { tick() {}, done() {} };
  let next = Date.now() + PROGRESS_AFTER_MS;
  let shown = false;
  return {
    tick(rows) {
      // Asking the clock for every row would be felt at 10,000 rows a second.
      if (rows % 256 !== 0 || Date.now() < next) return;
      next = Date.now() + PROGRESS_EVERY_MS;
      shown = true;
      io.stderr.write(`\r${rows.toLocaleString("en")} rows graded`);
    },
    done() {
      if (shown) io.stderr.write("\r\u001b[K");
    },
  };
}

/** Reasons alike but for their numbers count as one. */
const kindOf = (reason: string): string => reason.replace(/^line \d+: /, "").replace(/-?\d+(\/\d+)?/g, "N");

async function grade(file: string, options: GradeOptions, io: Io): Promise<void> {
  const lines = file === "-" ? createInterface({ input: io.stdin }) : readLines(file);
  const shown = progress(io);
  const began = performance.now();
  const sums = { rows: 0, reward: 0, accuracy: 0, format: 0 };
  const reasons = new Map<string, number>();
  let pending = "";
  for await (const verdict of gradeCountdown(lines, options.exactlyOnce ? { use: "exactly-once" } : {})) {
    sums.rows++;
    sums.reward += verdict.reward;
    sums.accuracy += verdict.accuracy;
    sums.format += verdict.format;
    if (options.json) {
      pending += `${JSON.stringify(verdict)}\n`;
      if (pending.length >= CHUNK) {
        await write(io.stdout, pending);
        pending = "";
      }
    } else {
      const kind = kindOf(verdict.reason);
      reasons.set(kind, (reasons.get(kind) ?? 0) + 1);
    }
    shown.tick(sums.rows);
  }
  shown.done();
  const seconds = (performance.now() - began) / 1000;
  await write(io.stdout, options.json ? pending : summary({ ...sums, seconds }, reasons, io));
}

function summary(
  sums: {
    readonly rows: number;
    readonly reward: number;
    readonly accuracy: number;
    readonly format: number;
    readonly seconds: number;
  },
  reasons: ReadonlyMap<string, number>,
  io: Io,
): string {
  const { rows, seconds } = sums;
  if (rows === 0) return "No rows.\n";
  const share = (n: number) => percent(n / rows);
  const columns: readonly Column<readonly [string, number]>[] = [
    { title: "rows", value: ([, n]) => n.toLocaleString("en"), align: "right" },
    { title: "share", value: ([, n]) => share(n), align: "right" },
    { title: "reason", value: ([reason]) => reason },
  ];
  const sorted = [...reasons].sort((a, b) => b[1] - a[1]);
  const rest = sorted.slice(MOST_REASONS).reduce((n, [, count]) => n + count, 0);
  const listed: (readonly [string, number])[] = [
    ...sorted.slice(0, MOST_REASONS),
    ...(rest > 0 ? [["other reasons", rest] as const] : []),
  ];
  return `${[
    `${rows.toLocaleString("en")} rows: ${share(sums.accuracy)} right, ${share(sums.format)} well formed, mean reward ${(sums.reward / rows).toFixed(3)}`,
    `took ${seconds.toFixed(seconds < 10 ? 2 : 0)} s, ${compact(Math.round(rows / seconds))} rows/s`,
    "",
    ...table(listed, columns, columnsOfOutput(io.stdout), colorsFor(io.stdout, io.env)),
  ].join("\n")}\n`;
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("grade")
    .summary("grade completions in a file")
    .description(
      "Grades a file of completions by the rules of a task, exactly, whatever the text holds. The reward is 1 for a right answer and 1 for " +
        "the form, <think>…</think><answer>…</answer>; training pays less for the form (countdown.formatWeight).",
    )
    .addArgument(new Argument("<task>", "whose rules to grade by").choices(["countdown"]))
    .argument("<file>", "JSONL rows {numbers, target, completion}, or - for standard input")
    .option("--exactly-once", "every number must be used; without it, each at most once")
    .option("--json", "one {reward, accuracy, format, reason} per row, instead of a summary")
    .action((_task: string, file: string, options: GradeOptions) => grade(file, options, io));
  withExamples(command, [
    ["pondera grade countdown completions.jsonl", "how many are right, and why the others are not"],
    ["pondera grade countdown completions.jsonl --json > verdicts.jsonl", "a verdict per row"],
    ["my-model | pondera grade countdown -", "from a pipe"],
  ]);
}
