/**
 * `report.html`: one page with everything in it, that opens anywhere and asks the network for nothing. What a model wrote
 * is shown as text only: templates escape it, and a content policy lets no script run but the two whose hashes it names.
 */

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { writeFileAtomic } from "../../base/files.ts";
import { shellPath } from "../../base/shell.ts";
import { CPU_HOUR } from "../../learn/cost/price.ts";
import { COUNTDOWN_RUNS } from "../../learn/cost/published.ts";
import { diagnose } from "../../learn/runs/doctor.ts";
import { type RunView, readRun } from "../../learn/runs/read-run.ts";
import { type EvalSummary, milestones, type RunResult, type SampleRecord } from "../../learn/runs/records.ts";
import { REPORT } from "../../learn/runs/run-folder.ts";
import { compact, dollars, flops, percent, sampledAt, stageName, times } from "../format.ts";
import { promptText, splitCompletion } from "../thought.ts";
import { type Chart, healthCharts, mainChart, SMOOTHING } from "./charts.ts";
import { embedJson, type Html, html, raw } from "./html.ts";
import { SCRIPT, STYLE } from "./page.ts";

/** The plotting library, as text to put into the page. */
export interface Assets {
  readonly script: string;
  readonly style: string;
}

/** uPlot as it was installed. */
export async function loadAssets(): Promise<Assets> {
  const { resolve } = createRequire(import.meta.url);
  return {
    script: await readFile(resolve("uplot/dist/uPlot.iife.min.js"), "utf8"),
    style: await readFile(resolve("uplot/dist/uPlot.min.css"), "utf8"),
  };
}

const count = (value: number): string => value.toLocaleString("en");

/** An estimate and its interval on a line from 0 to 100 %. */
export function intervalPicture(
  { pass1, interval }: Pick<EvalSummary, "pass1" | "interval">,
  color: string,
): Html {
  const x = (fraction: number) => (100 * fraction).toFixed(2);
  return html`<svg class="interval" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
<line x1="0" x2="100" y1="5" y2="5" stroke="var(--line)" vector-effect="non-scaling-stroke"/>
<line x1="${x(interval[0])}" x2="${x(interval[1])}" y1="5" y2="5" stroke="var(${color})" stroke-width="6" stroke-opacity=".35" vector-effect="non-scaling-stroke"/>
<line x1="${x(pass1)}" x2="${x(pass1)}" y1="1" y2="9" stroke="var(${color})" stroke-width="2.5" vector-effect="non-scaling-stroke"/>
</svg>`;
}

function evalTable(result: RunResult): Html {
  const { final, sampling } = result;
  const ks = Object.keys(final.passK).filter((k) => k !== "1");
  const row = ({ name, summary }: { name: string; summary: EvalSummary }, color: string) => html`<tr>
<td>${name}</td><td>${percent(summary.pass1)}</td><td>${percent(summary.interval[0])} – ${percent(summary.interval[1])}</td>
<td>${intervalPicture(summary, color)}</td>
${ks.map((k) => html`<td>${summary.passK[k] === undefined ? "" : percent(summary.passK[k])}</td>`)}
<td>${summary.meanLength.toFixed(1)}</td><td>${percent(summary.truncatedFraction)}</td></tr>`;
  const [samples, intervals] =
    final.samplesPerPrompt === 1
      ? ["one sample", "Wilson intervals"]
      : [`${final.samplesPerPrompt} samples`, "intervals clustered by prompt"];
  return html`<div class="scroll"><table>
<thead><tr><th></th><th>pass@1</th><th>95 % interval</th><th></th>${ks.map((k) => html`<th>pass@${k}</th>`)}<th>tokens</th><th>cut off</th></tr></thead>
<tbody>${milestones(result).map((point) => row(point, point.summary === final ? "--accuracy" : "--soft"))}</tbody></table></div>
<p class="soft">${count(final.count)} held-out prompts, ${samples} each${sampledAt(sampling)}; ${intervals}.</p>`;
}

/** What a completion says, its thought apart from its answer. */
function thoughtCard(sample: SampleRecord): Html {
  const { thought, answer } = splitCompletion(sample.prompt, sample.completion);
  return html`<div class="thought"><pre class="prompt">${promptText(sample.prompt)}</pre>
<pre class="think">${thought}</pre>${answer !== "" && html`<pre class="answer">${answer}</pre>`}
<div class="meta">${sample.correct ? "right" : sample.truncated ? "cut off" : "wrong"} · ${sample.tokens} tokens · step ${sample.step} · reward ${Number(sample.reward.toPrecision(3))}</div></div>`;
}

/** Where the page's script draws the chart at `index`. */
export function figure(chart: Chart, index: number, height: number): Html {
  const names = chart.series.filter((s) => s.faint !== true).map((s) => s.label);
  return html`<figure data-chart="${index}" data-height="${height}"><figcaption><span class="title">${chart.title}</span><span class="readout"></span></figcaption>
<div class="plot" role="img" aria-label="${chart.title}: ${names.join(", ")} over ${chart.unit === undefined ? `${chart.x.length} steps` : `${chart.x.at(-1)} ${chart.unit}s`}"></div></figure>`;
}

function costSection(result: RunResult): Html {
  const facts: readonly [string, string][] = [
    ["minutes", result.minutes.toFixed(1)],
    ["tokens", compact(result.tokens)],
    ["work", flops(result.flops)],
    ["CPU-hours", result.cpuHours.toFixed(2)],
    ["cost", dollars(result.dollars)],
  ];
  const others = result.task === "countdown" ? COUNTDOWN_RUNS : [];
  return html`<h2>What it cost</h2>
<dl>${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
<p class="soft">CPU-hours count every virtual CPU held, busy or not. Priced at ${dollars(CPU_HOUR.dollarsPerHour)} an hour (${CPU_HOUR.source}).</p>
${
  others.length > 0 &&
  html`<div class="scroll"><table><thead><tr><th>for scale</th><th></th><th></th><th>cost</th><th>this run</th></tr></thead><tbody>
${others.map(
  (
    other,
  ) => html`<tr><td>${other.name}</td><td class="text">${other.what}</td><td class="text">${other.result}</td>
<td>${other.dollars.upTo ? "under " : "about "}${dollars(other.dollars.value)}</td><td>${percent(result.dollars / other.dollars.value, 2)}</td></tr>`,
)}</tbody></table></div>
<p class="soft">Larger models on their own puzzles: the cost compares, the accuracy does not. Sources: ${others.map((o) => o.source).join("; ")}.</p>`
}`;
}

function headline(run: RunView, command: string): Html {
  const { result, metrics } = run;
  if (result === undefined) {
    const last = metrics.at(-1);
    const where =
      last === undefined
        ? "before its first step"
        : `at step ${last.step} of ${last.steps} of ${stageName(last.stage)}`;
    return html`<p class="big">${run.status === "running" ? "Still learning" : "Unfinished"}</p>
<p class="lead">${run.status === "running" ? "The run is under way," : "The run stopped"} ${where}. ${run.status === "stopped" && html`Go on with <code>${command} train --resume ${shellPath(run.path)}</code>.`}</p>`;
  }
  const { base, sft, final } = result;
  const points = milestones(result);
  const earlier = points.slice(0, -1);
  // What the cold start did is not reinforcement learning's doing.
  const before = earlier.at(-1)!.summary;
  const who = result.stages.some(({ stage }) => stage === "rl") ? "Reinforcement learning" : "Training";
  const what = sft === undefined ? "" : " after the cold start";
  const verdict =
    final.interval[0] > before.interval[1]
      ? `${who} made it right more often${what}`
      : final.interval[1] < before.interval[0]
        ? `${who} made it worse${what}`
        : `The intervals before and after ${who.toLowerCase()} overlap: no clear change`;
  const longer = final.meanLength / base.meanLength;
  return html`<p class="big"><span class="from">${earlier.map(({ summary }) => `${percent(summary.pass1)} → `)}</span><span class="to">${percent(final.pass1)}</span></p>
<p class="lead">${verdict}, on ${count(final.count)} prompts it never saw. Its thoughts are ${times(longer)} as long as the base's.</p>`;
}

/** The sample in which a run first went back after a failed check and was then right. */
export function backtrackSection({ firstBacktrack }: RunResult): Html | undefined {
  if (firstBacktrack === undefined) return undefined;
  return html`<h2>The first time it went back and was then right</h2>
<p class="soft">Step ${firstBacktrack.step}: a check failed, it tried another way, and that way was rewarded.</p>
${thoughtCard(firstBacktrack)}`;
}

/** A page with everything in it: a body, and the script that draws the charts into its figures. */
export function renderPage(title: string, body: Html, charts: readonly Chart[], assets: Assets): string {
  const scripts = [assets.script, SCRIPT];
  const hashes = scripts.map(
    (text) => `'sha256-${createHash("sha256").update(text, "utf8").digest("base64")}'`,
  );
  const policy = `default-src 'none'; style-src 'unsafe-inline'; script-src ${hashes.join(" ")}`;
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title} · Pondera</title>
<style>${raw(assets.style)}${raw(STYLE)}</style></head>
<body><main>
${body}
<noscript><p>The curves are drawn by a script inside this page; without it, see metrics.jsonl.</p></noscript>
</main>
<script type="application/json" id="charts">${embedJson(charts)}</script>
${scripts.map((text) => html`<script>${raw(text)}</script>`)}
</body></html>
`;
  return page.text;
}

export interface ReportOptions {
  /** What commands begin with, for what to type next. @default "pondera" */
  readonly command?: string;
}

/** The page of a run, finished or not. */
export function renderReport(run: RunView, assets: Assets, options: ReportOptions = {}): string {
  const { manifest, metrics, result } = run;
  const main = mainChart(metrics);
  const health = healthCharts(metrics);
  const charts = [...(main === undefined ? [] : [main]), ...health];
  const findings = diagnose(run, options.command);
  const versions = Object.entries(manifest.versions).map(([name, version]) => `${name} ${version}`);
  const body = html`<h1>${manifest.task} <span class="soft">· ${manifest.preset} · seed ${manifest.seed}${result !== undefined && ` · ${compact(result.parameters)} parameters`}</span></h1>
${headline(run, options.command ?? "pondera")}
${result !== undefined && evalTable(result)}
${
  main !== undefined &&
  html`<h2>While it learned</h2>
<p class="soft">Bold: mean of ${SMOOTHING} steps. Faint: each step's own samples.${main.series.some((s) => s.dots) && " Rings: held-out prompts."}</p>
${figure(main, 0, 340)}`
}
${result !== undefined && backtrackSection(result)}
${result !== undefined && result.solved.length > 0 && html`<h2>Puzzles it solves now</h2>${result.solved.map(thoughtCard)}`}
${health.length > 0 && html`<h2>Vital signs</h2><div class="grid">${health.map((chart, i) => figure(chart, charts.length - health.length + i, 200))}</div>`}
<h2>The doctor says</h2>
${findings.map((f) => html`<div class="finding ${f.level}"><p>${f.finding} <span class="soft">${f.evidence}.</span></p>${f.remedy !== "" && html`<p>${f.remedy}</p>`}</div>`)}
${result !== undefined && costSection(result)}
<h2>To repeat it</h2>
<details><summary>Configuration, versions and data</summary><pre>${JSON.stringify({ config: manifest.config, versions: manifest.versions, data: manifest.data }, undefined, 2)}</pre></details>
<footer>${manifest.name} · ${manifest.created} · ${versions.join(" · ")}</footer>`;
  return renderPage(manifest.name, body, charts, assets);
}

/**
 * Writes the report of the run in a folder.
 * @returns the page's path
 * @throws FileError when the folder is no run or cannot be written to
 */
export async function writeReport(folder: string, options: ReportOptions = {}): Promise<string> {
  const path = join(folder, REPORT);
  const run = await readRun(folder, { samples: true });
  await writeFileAtomic(path, renderReport(run, await loadAssets(), options));
  return path;
}
