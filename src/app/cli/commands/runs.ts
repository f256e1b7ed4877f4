/** `pondera runs`: what has been trained here, how it went, and what is wrong with it. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import { FormatError } from "../../../base/errors.ts";
import { shellPath } from "../../../base/shell.ts";
import { diagnose, type Level } from "../../../learn/runs/doctor.ts";
import { remedyOf } from "../../../learn/runs/failure.ts";
import { findRun, listRuns, type RunView, readRun } from "../../../learn/runs/read-run.ts";
import { REPORT } from "../../../learn/runs/run-folder.ts";
import { clock, dollars, percent, stageName } from "../../format.ts";
import { writeReport } from "../../report/report.ts";
import { DEFAULT_RUNS, RUNS_OPTION, withExamples } from "../help.ts";
import { type Context, colorsFor, columnsOfOutput, commandName, type Io, write, writeJson } from "../io.ts";
import { type Colors, renderResult, type Typed } from "../live-view.ts";
import { type Column, table } from "../table.ts";
import { printable, sparkline, wrap } from "../text.ts";

interface RunsOptions {
  readonly runs: string;
  readonly json?: true;
  readonly report?: true;
}

/** The doctor found a problem: not an error of the command, and still something a script wants to know. */
export const SICK = 3;

/** A run in a few fields, as `runs list` tells of it. */
function brief(run: RunView) {
  const last = run.metrics.at(-1);
  const { name, task, preset, seed, created } = run.manifest;
  return {
    name,
    path: run.path,
    status: run.status,
    task,
    preset,
    seed,
    created,
    ...(last === undefined ? {} : { stage: last.stage, step: last.step, steps: last.steps }),
    ...(run.result === undefined
      ? {}
      : {
          base: run.result.base.pass1,
          ...(run.result.sft === undefined ? {} : { sft: run.result.sft.pass1 }),
          final: run.result.final.pass1,
          minutes: run.result.minutes,
          dollars: run.result.dollars,
        }),
  };
}

const columns: readonly Column<ReturnType<typeof brief>>[] = [
  { title: "run", value: (r) => r.name },
  { title: "status", value: (r) => r.status },
  { title: "step", value: (r) => (r.stage === undefined ? "" : `${r.stage} ${r.step}/${r.steps}`) },
  { title: "base", value: (r) => (r.base === undefined ? "" : percent(r.base)), align: "right" },
  { title: "final", value: (r) => (r.final === undefined ? "" : percent(r.final)), align: "right" },
  { title: "minutes", value: (r) => r.minutes?.toFixed(1) ?? "", align: "right" },
  { title: "cost", value: (r) => (r.dollars === undefined ? "" : dollars(r.dollars)), align: "right" },
  { title: "created", value: (r) => r.created.slice(0, 16).replace("T", " ") },
];

async function list(options: RunsOptions, io: Io): Promise<void> {
  const runs = [];
  const unreadable = (error: Error) => io.stderr.write(`left out: ${printable(error.message)}\n`);
  for (const path of await listRuns(options.runs, unreadable)) {
    try {
      runs.push(brief(await readRun(path)));
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      unreadable(error);
    }
  }
  if (options.json) return writeJson(io.stdout, runs);
  const lines =
    runs.length === 0
      ? [`No runs in ${options.runs}. Make one with: ${commandName(io.env)} train countdown`]
      : table(runs, columns, columnsOfOutput(io.stdout), colorsFor(io.stdout, io.env));
  await write(io.stdout, `${lines.join("\n")}\n`);
}

/** A run's curves and figures for a terminal. */
function showLines(run: RunView, width: number, colors: Colors, typed: Typed): string[] {
  const { manifest, metrics, result, failure } = run;
  const last = metrics.at(-1);
  const lines = [
    `${colors.bold(printable(manifest.name))}  ${colors.dim(printable(`${manifest.task} · ${manifest.preset} · seed ${manifest.seed} · ${run.status}`))}`,
    colors.dim(run.path),
  ];
  if (failure !== undefined) {
    const told = `Failed after step ${failure.step}: ${failure.error}. ${remedyOf(failure, shellPath(run.path), typed.command)}.`;
    lines.push(...wrap(printable(told), width).map(colors.red));
  }
  if (last === undefined) return [...lines, "", "No step done yet."];
  lines.push(
    `${stageName(last.stage)}, step ${last.step} of ${last.steps} · ${clock(last.timing.elapsed)} of training`,
    "",
  );
  const rl = metrics.filter((m) => m.rl !== undefined).map((m) => m.rl!);
  const curves: readonly [name: string, values: readonly number[], show: (v: number) => string][] = [
    ["right", rl.map((m) => m.pass1), percent],
    ["tokens", rl.map((m) => m.length.all), (v) => v.toFixed(0)],
    ["reward", rl.map((m) => m.reward.mean), (v) => v.toFixed(3)],
    ["entropy", rl.map((m) => m.entropy), (v) => v.toFixed(3)],
    ["loss", metrics.filter((m) => m.rl === undefined).map((m) => m.loss), (v) => v.toFixed(3)],
  ];
  for (const [name, values, show] of curves) {
    const first = values[0];
    const end = values.at(-1);
    if (first === undefined || end === undefined) continue;
    const picture = sparkline(values, Math.max(8, Math.min(48, width - 40)));
    lines.push(`${colors.dim(name.padEnd(8))} ${picture}  ${show(first)} → ${show(end)}`);
  }
  return result === undefined ? lines : [...lines, ...renderResult(result, width, colors, typed)];
}

const existing = (path: string): string | undefined => (existsSync(path) ? path : undefined);

async function show(name: string | undefined, options: RunsOptions, io: Io): Promise<void> {
  const path = await findRun(options.runs, name);
  const run = await readRun(path);
  const command = commandName(io.env);
  const report = options.report ? await writeReport(path, { command }) : existing(join(path, REPORT));
  if (options.json) {
    const { metrics, ...rest } = run;
    return writeJson(io.stdout, { ...rest, steps: metrics.length, last: metrics.at(-1), report });
  }
  const typed = { command, ...(options.runs === DEFAULT_RUNS ? {} : { runs: options.runs }) };
  const lines = showLines(run, columnsOfOutput(io.stdout), colorsFor(io.stdout, io.env), typed);
  if (report !== undefined) lines.push(`Report: ${report}`);
  await write(io.stdout, `${lines.join("\n")}\n`);
}

async function doctor(name: string | undefined, options: RunsOptions, io: Context): Promise<void> {
  const run = await readRun(await findRun(options.runs, name), { samples: true });
  const findings = diagnose(run, commandName(io.env));
  if (findings.some((f) => f.level === "problem")) io.exitWith(SICK);
  if (options.json) return writeJson(io.stdout, { run: run.manifest.name, findings });
  const colors = colorsFor(io.stdout, io.env);
  const paint: Readonly<Record<Level, (text: string) => string>> = {
    problem: colors.red,
    warning: colors.yellow,
    good: colors.green,
  };
  const width = Math.min(100, columnsOfOutput(io.stdout));
  const lines = findings.flatMap((f) => [
    `${paint[f.level](f.level.padEnd(8))} ${colors.bold(f.finding)}`,
    ...wrap(`${printable(f.evidence)}.`, width - 9).map((text) => colors.dim(`         ${text}`)),
    ...(f.remedy === "" ? [] : wrap(printable(f.remedy), width - 9).map((text) => `         ${text}`)),
    "",
  ]);
  if (findings.some((f) => f.level !== "good"))
    lines.push(colors.dim("Names in brackets are fields of the configuration: --set field=value."), "");
  await write(io.stdout, `${colors.dim(printable(run.manifest.name))}\n\n${lines.join("\n")}`);
}

export function register(program: Command, io: Context): void {
  const runs = program
    .command("runs")
    .summary("list, show and examine training runs")
    .description("What has been trained, how it went, and what is wrong with it.");
  withExamples(runs, [
    ["pondera runs list", "every run in ./runs"],
    ["pondera runs doctor", "what is wrong with the newest one, also while it trains"],
  ]);
  withExamples(
    runs
      .command("list")
      .description("Lists the runs, oldest first.")
      .option(...RUNS_OPTION)
      .option("--json", "an array instead of a table")
      .action((options: RunsOptions) => list(options, io)),
    [["pondera runs list", "every run in ./runs"]],
  );
  withExamples(
    runs
      .command("show")
      .description("Shows a run: its curves, its result and what it cost.")
      .argument("[run]", "name or folder of the run; the newest if left out")
      .option(...RUNS_OPTION)
      .option("--report", "write report.html anew, also of a run that has not finished")
      .option("--json", "everything as one object")
      .action((name: string | undefined, options: RunsOptions) => show(name, options, io)),
    [
      ["pondera runs show", "the newest run"],
      ["pondera runs show countdown-quick-2026-11-23-1 --report", "and its page with plots"],
    ],
  );
  withExamples(
    runs
      .command("doctor")
      .description(
        "Says in plain words what is wrong with a run and what to change. Exits with 3 on a problem.",
      )
      .argument("[run]", "name or folder of the run; the newest if left out")
      .option(...RUNS_OPTION)
      .option("--json", "the findings as one object")
      .action((name: string | undefined, options: RunsOptions) => doctor(name, options, io)),
    [["pondera runs doctor", "examine the newest run, also while it trains"]],
  );
}
