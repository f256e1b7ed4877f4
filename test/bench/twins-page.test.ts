import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { TwinRow, TwinsReport, Variant } from "../../bench/countdown-twins.ts";
import { writeTwinsPage } from "../../bench/twins-page.ts";
import type { Chart } from "../../src/app/report/charts.ts";
import type { RunResult, StepMetrics } from "../../src/learn/runs/records.ts";
import { RunFolder } from "../../src/learn/runs/run-folder.ts";
import { temporaryFolder } from "../base/temporary-folder.ts";
import { pretrainStep, result, sample, step } from "../learn/runs/synthetic.ts";

/** A step whose own work takes a minute; validation is no training. */
const minute = (metrics: StepMetrics): StepMetrics => ({
  ...metrics,
  timing: { ...metrics.timing, phases: { train: 60, validate: 600 } },
});

const reading = [0, 1].map((i) => minute(pretrainStep(i, 2)));
const learning = [...reading, ...[0, 1, 2, 3].map((i) => minute(step(i, 4)))];

async function twin(
  root: string,
  variant: Variant,
  seed: number,
  metrics: readonly StepMetrics[],
  change: Partial<RunResult> = {},
): Promise<TwinRow> {
  const name = `${variant}-${seed}`;
  const run = await RunFolder.create({
    ...{ root, name, task: "countdown", preset: "quick", seed, config: {}, versions: {} },
  });
  for (const one of metrics) await run.appendMetrics(one);
  await run.writeResult(result({ name, seed, ...change }));
  await run.close();
  const { stages, tokens, final } = result(change);
  return { variant, seed, final, minutes: metrics.length, stages, tokens, path: run.path };
}

const machine: TwinsReport["machine"] = {
  ...{ cpu: "a <fast> one", cores: 2, installedCores: 2, memoryGiB: 8, platform: "linux x64" },
  ...{ node: "20", runtime: "1.20", threads: 2 },
};

/** The page of a run of each seed beside twins with and without reinforcement learning. */
async function page(seeds: readonly number[], margin: TwinsReport["margins"][number]["interval"]) {
  const root = await temporaryFolder();
  const attack = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>";
  const rows: TwinRow[] = [];
  for (const seed of seeds) {
    const firstBacktrack = sample(3, { prompt: attack, completion: `<think>${attack}</think>${attack}` });
    rows.push(await twin(root, "r1-zero", seed, learning, { firstBacktrack }));
    rows.push(await twin(root, "base-on", seed, reading, { final: { ...result().final, pass1: 0.1 } }));
    rows.push(await twin(root, "no-thought", seed, learning.slice(1)));
  }
  const difference = (margin[0] + margin[1]) / 2;
  const report: TwinsReport = {
    ...{ benchmark: "countdown-twins", game: "quick", original: "r1-zero", puzzles: 1000, minutesScale: 1 },
    ...{ machine, rows, slowdown: [] },
    pooled: (["r1-zero", "base-on", "no-thought"] as const).map((variant) => {
      return { variant, pass1: variant === "r1-zero" ? 0.7 : 0.3, interval: [0.28, 0.72] };
    }),
    margins: (["base-on", "no-thought"] as const).map((over) => ({ over, difference, interval: margin })),
  };
  const path = await writeTwinsPage(report, ["seed 1: took <long>"], root);
  expect(path).toBe(join(root, "twins.html"));
  const text = (await readFile(path, "utf8")).replaceAll("\u00a0", " ");
  const json = /<script type="application\/json" id="charts">(.*?)<\/script>/.exec(text)![1]!;
  return { text, charts: JSON.parse(json) as Chart[] };
}

describe("the page of a run beside its twins", () => {
  it("has a table with margins, and draws over minutes of training what each was right and wrote", async () => {
    const { text, charts } = await page([1], [0.35, 0.45]);
    expect(text).toContain("With rewards alone, thinking is worth 40.0 points (35.0 to 45.0)");
    expect(text).toContain("<td>40.0 (35.0 to 45.0)</td>");
    expect(text).toContain("<td>10.0 %</td>");
    expect(text).toContain("seed 1: took &lt;long&gt;.");
    expect(charts.map(({ unit, title }) => [unit, title])).toEqual([
      ["minute", "Share right, over minutes of training"],
      ["minute", "Tokens a completion, over minutes of training"],
    ]);
    const drawn = charts.map(({ x, series }) =>
      series.map(({ label, values }) => {
        return [label, values.flatMap((value, i) => (value === null ? [] : [[x[i], value]]))];
      }),
    );
    const [right, length] = drawn.map(Object.fromEntries);
    expect(right).toEqual({
      "r1-zero": [0.2, 0.325, 0.45, 0.575].map((value, i) => [3 + i, value]),
      "r1-zero on test": [[6, 0.784]],
      "base-on on test": [[2, 0.1]],
      "no-thought": [0.2, 0.325, 0.45, 0.575].map((value, i) => [2 + i, value]),
      "no-thought on test": [[5, 0.784]],
    });
    expect(length["r1-zero"].at(-1)).toEqual([6, 70]);
    expect(length["base-on on test"]).toEqual([[2, 78.5]]);
  });

  it("shows what a model wrote as text, in a page that lets no other script run", async () => {
    const { text } = await page([1], [0.35, 0.45]);
    expect(text).toContain("The first time it went back and was then right");
    expect(text).toContain("&lt;script&gt;alert(1)");
    expect(text).toContain("a &lt;fast&gt; one");
    expect(text).not.toMatch(/<img|<script>alert|\b(src|href)="/);
    expect(text.match(/<script/g)).toHaveLength(3);
    expect(text).toContain("default-src &#39;none&#39;");
  });

  it("pools seeds in the table, draws each apart, and claims nothing where an interval has zero in it", async () => {
    const { text, charts } = await page([1, 2], [-0.02, 0.04]);
    expect(text).toContain("thinking makes no clear difference: 1.0 points (−2.0 to 4.0)");
    expect(text).toContain("<td>30.0 %</td><td>28.0 to 72.0</td>");
    expect(text).toContain("at temperature 1, over 2 seeds");
    expect(text.match(/While they learned: seed [12]/g)).toHaveLength(2);
    expect(charts).toHaveLength(4);
  });
});
