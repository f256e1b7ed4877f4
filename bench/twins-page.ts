/**
 * `twins.html`: a run on Countdown beside its twins on one page of the report's parts, the table and the curves over minutes of
 * training. A twin that only reads text writes nothing on the way and has no curve, but its end like the others.
 */

import { join } from "node:path";
import { machineLine } from "../src/app/bench/measure.ts";
import { percent } from "../src/app/format.ts";
import { type Chart, type Color, type Series, short } from "../src/app/report/charts.ts";
import { type Html, html } from "../src/app/report/html.ts";
import {
  type Assets,
  backtrackSection,
  figure,
  intervalPicture,
  loadAssets,
  renderPage,
} from "../src/app/report/report.ts";
import { writeFileAtomic } from "../src/base/files.ts";
import { mean } from "../src/base/numbers.ts";
import { type RunView, readRun } from "../src/learn/runs/read-run.ts";
import type { RolloutMetrics } from "../src/learn/runs/records.ts";
import type { Original, TwinRow, TwinsReport, Variant } from "./countdown-twins.ts";
import { workSeconds } from "./timed-run.ts";

/** A row of the report and the run it is of. */
export interface TwinRun {
  readonly row: TwinRow;
  readonly run: RunView;
}

const VARIANTS: Readonly<Record<Variant, { readonly learnsFrom: string; readonly color: Color }>> = {
  "r1-zero": { learnsFrom: "rewards, with thoughts", color: "--accuracy" },
  "base-on": { learnsFrom: "more of the base's text", color: "--a" },
  "no-thought": { learnsFrom: "rewards, without thoughts", color: "--b" },
  "no-thought-sft": { learnsFrom: "the solver's right answers, without thoughts", color: "--c" },
  r1: { learnsFrom: "a cold start, then rewards", color: "--accuracy" },
  "sft-on": { learnsFrom: "more of the cold start", color: "--a" },
};

/** The twin that lacks one thing only, and what that is. */
const LACKS: Readonly<Record<Original, { readonly over: Variant; readonly what: string }>> = {
  "r1-zero": { over: "no-thought", what: "With rewards alone, thinking" },
  r1: { over: "sft-on", what: "After the same cold start, reinforcement learning" },
};

/** Stretches of the longest training that a curve has a point for. */
const STRETCHES = 60;

const points = (fraction: number): string => (100 * fraction).toFixed(1).replace("-", "−");

const span = ([low, high]: readonly [number, number]): string => `${points(low)} to ${points(high)}`;

const name = (variant: Variant): Html =>
  html`<b style="color: var(${VARIANTS[variant].color})">${variant}</b>`;

/**
 * The samples of each stretch of training, drawn where it ends, and the test puzzles at the end of all.
 * @param ofStep  a step's mean over its samples
 */
function chartOf(
  title: string,
  format: Series["format"],
  twins: readonly TwinRun[],
  ofStep: (rl: RolloutMetrics) => number,
  ofEnd: (row: TwinRow) => number,
): Chart {
  const longest = Math.max(...twins.map(({ row }) => row.minutes));
  const x = Array.from({ length: STRETCHES + 1 }, (_, i) => short((i * longest) / STRETCHES) ?? 0);
  const stretchOf = (minutes: number): number =>
    Math.min(STRETCHES, Math.ceil((STRETCHES * minutes) / longest));
  const series = twins.flatMap(({ row, run }): Series[] => {
    const samples = x.map((): number[] => []);
    let seconds = 0;
    for (const step of run.metrics) {
      seconds += workSeconds(step);
      if (step.rl !== undefined) samples[stretchOf(seconds / 60)]!.push(ofStep(step.rl));
    }
    const { color } = VARIANTS[row.variant];
    const curve = samples.map((values) => (values.length === 0 ? null : short(mean(values))));
    const end = x.map((_, i) => (i === stretchOf(row.minutes) ? short(ofEnd(row)) : null));
    return [
      ...(curve.some((value) => value !== null)
        ? [{ label: row.variant, color, format, values: curve }]
        : []),
      { label: `${row.variant} on test`, color, format, values: end, dots: true },
    ];
  });
  return { title, x, unit: "minute", series, bands: [], group: "rl" };
}

function headline({ original, pooled, margins }: TwinsReport): Html {
  const { over, what } = LACKS[original];
  const pass1 = (variant: Variant) => percent(pooled.find((one) => one.variant === variant)!.pass1);
  const { difference, interval } = margins.find((margin) => margin.over === over)!;
  const verdict = interval[0] <= 0 && interval[1] >= 0 ? "makes no clear difference:" : "is worth";
  return html`<p class="big"><span class="to">${pass1(original)}</span> <span class="from">vs ${pass1(over)}</span></p>
<p class="lead">${what} ${verdict} ${points(difference)} points (${span(interval)}), ${name(original)} beside ${name(over)}.</p>`;
}

function tableOf({ original, pooled, margins, rows, puzzles }: TwinsReport): Html {
  const line = ({ variant, ...all }: TwinsReport["pooled"][number]): Html => {
    const own = rows.filter((row) => row.variant === variant);
    const { pass1, interval } = own.length === 1 ? own[0]!.final : all;
    const margin = margins.find(({ over }) => over === variant);
    return html`<tr><td class="text">${name(variant)}<br><span class="soft">${VARIANTS[variant].learnsFrom}</span></td>
<td>${percent(pass1)}</td><td>${span(interval)}</td><td>${intervalPicture({ pass1, interval }, VARIANTS[variant].color)}</td>
<td>${margin && `${points(margin.difference)} (${span(margin.interval)})`}</td>
<td>${mean(own.map(({ final }) => final.meanLength)).toFixed(1)}</td><td>${mean(own.map(({ minutes }) => minutes)).toFixed(1)}</td></tr>`;
  };
  const seeds = new Set(rows.map(({ seed }) => seed)).size;
  return html`<div class="scroll"><table>
<thead><tr><th>learns from</th><th>right</th><th>95 % interval</th><th></th><th>${original} is ahead by</th><th>tokens</th><th>minutes</th></tr></thead>
<tbody>${pooled.map(line)}</tbody></table></div>
<p class="soft">${puzzles.toLocaleString("en")} test puzzles, one sample each at temperature 1${seeds > 1 && `, over ${seeds} seeds`}; ahead in points, puzzle by puzzle. Minutes are those of training.</p>`;
}

/** Each run with the twins that follow it in the report. */
function families(report: TwinsReport, twins: readonly TwinRun[]): TwinRun[][] {
  const all: TwinRun[][] = [];
  for (const twin of twins) {
    if (twin.row.variant === report.original) all.push([]);
    all.at(-1)!.push(twin);
  }
  return all;
}

/**
 * The page of a comparison.
 * @param twins     one for each row of the report, in its order
 * @param warnings  what is wrong with the times
 */
export function renderTwins(
  report: TwinsReport,
  twins: readonly TwinRun[],
  warnings: readonly string[],
  assets: Assets,
): string {
  const { original, game, machine } = report;
  const charts: Chart[] = [];
  const draw = (chart: Chart): Html => figure(chart, charts.push(chart) - 1, 300);
  const sections = families(report, twins).map((family) => {
    const right = chartOf(
      "Share right, over minutes of training",
      "percent",
      family,
      ({ pass1 }) => pass1,
      ({ final }) => final.pass1,
    );
    const length = chartOf(
      "Tokens a completion, over minutes of training",
      "count",
      family,
      (rl) => rl.length.all,
      ({ final }) => final.meanLength,
    );
    const result = family[0]!.run.result;
    return html`<h2>While they learned: seed ${family[0]!.row.seed}</h2>
<p class="soft">${family.map(({ row }) => html`${name(row.variant)} `)}</p>
<p class="soft">Lines: samples of reinforcement learning, on the puzzles it drew, the mean of each ${STRETCHES}th of the time. Rings: the test puzzles, at the end. Who only reads text writes no samples and has a ring alone.</p>
<div class="grid">${draw(right)}${draw(length)}</div>
${result !== undefined && backtrackSection(result)}`;
  });
  const title = `${original} beside its twins`;
  const body = html`<h1>Countdown <span class="soft">· the game ${game} · ${title}</span></h1>
${headline(report)}
${warnings.map((line) => html`<div class="finding warning"><p>${line}.</p></div>`)}
${tableOf(report)}
${sections}
<footer>${machineLine(machine)}</footer>`;
  return renderPage(title, body, charts, assets);
}

/**
 * Writes the page into the folder that holds the runs.
 * @returns the page's path
 * @throws FileError when a run is gone or the folder cannot be written to
 */
export async function writeTwinsPage(
  report: TwinsReport,
  warnings: readonly string[],
  folder: string,
): Promise<string> {
  const twins: TwinRun[] = [];
  for (const row of report.rows) twins.push({ row, run: await readRun(row.path) });
  const path = join(folder, "twins.html");
  await writeFileAtomic(path, renderTwins(report, twins, warnings, await loadAssets()));
  return path;
}
