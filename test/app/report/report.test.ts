import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createContext, runInContext } from "node:vm";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Chart, healthCharts, mainChart, smooth } from "../../../src/app/report/charts.ts";
import { embedJson, escapeHtml, html, raw } from "../../../src/app/report/html.ts";
import { SCRIPT } from "../../../src/app/report/page.ts";
import { loadAssets, renderReport, writeReport } from "../../../src/app/report/report.ts";
import type { RunView } from "../../../src/learn/runs/read-run.ts";
import type { RunResult } from "../../../src/learn/runs/records.ts";
import { RunFolder } from "../../../src/learn/runs/run-folder.ts";
import { pretrainStep, result, sample, step } from "../../learn/runs/synthetic.ts";

const metrics = [
  ...Array.from({ length: 4 }, (_, i) => pretrainStep(i, 4)),
  ...Array.from({ length: 12 }, (_, i) =>
    step(i, 12, i % 5 === 4 ? { validation: { pass1: 0.5, count: 100, meanLength: 50 } } : {}, {
      kl: 0.01 * i,
    }),
  ),
];

const run = (change: Partial<RunView> = {}): RunView => ({
  path: "runs/one",
  manifest: {
    format: 1,
    name: "countdown-quick-2026-11-23-1",
    task: "countdown",
    preset: "quick",
    seed: 1,
    created: "2026-11-23T10:12:00.000Z",
    config: { depth: 4 },
    versions: { pondera: "0.1.0" },
    data: {},
  },
  status: "finished",
  metrics,
  result: result(),
  ...change,
});

const assets = await loadAssets();
const text = (page: string) => page.replaceAll("\u00a0", " ");

describe("html", () => {
  it("escapes every value but its own pieces", () => {
    const inner = html`<i>${"<b>"}</i>`;
    expect(html`<p title="${`"'`}">${inner}${["&", 3]}${false}${undefined}</p>`.text).toBe(
      `<p title="&quot;&#39;"><i>&lt;b&gt;</i>&amp;3</p>`,
    );
    expect(html`${raw("<hr>")}`.text).toBe("<hr>");
  });

  it("leaves no character that opens a tag, an attribute or an entity", () => {
    fc.assert(
      fc.property(fc.string(), (value) => {
        const escaped = escapeHtml(value);
        expect(escaped).not.toMatch(/[<>"']/);
        expect(escaped.replace(/&(amp|lt|gt|quot|#39);/g, "")).not.toContain("&");
      }),
    );
  });

  it("embeds JSON that nothing in it can break out of, and that reads back the same", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        const embedded = embedJson(value).text;
        expect(embedded).not.toMatch(/[<>&]/);
        expect(JSON.parse(embedded)).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
    expect(embedJson("</script><!--").text).toBe(String.raw`"\u003c/script\u003e\u003c!--"`);
  });
});

describe("charts", () => {
  it("smooths by a centred mean, shorter at the ends", () => {
    expect(smooth([0, 3, 6, 9], 3)).toEqual([1.5, 3, 6, 7.5]);
    expect(smooth([5], 9)).toEqual([5]);
  });

  it("draws accuracy and length over the steps of reinforcement learning only", () => {
    const chart = mainChart(metrics)!;
    expect(chart.x).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
    expect(chart.series.map((s) => s.label)).toEqual(["samples", "tokens", "right", "tokens", "held out"]);
    expect(chart.series.at(-1)?.values.filter((v) => v !== null)).toEqual([0.5, 0.5]);
    expect(mainChart(metrics.slice(0, 5))).toBeUndefined();
  });

  it("marks the stages and leaves out what was not measured", () => {
    const charts = healthCharts(metrics);
    const gradient = charts.find((c) => c.title.startsWith("Gradient"))!;
    expect(gradient.bands).toEqual([
      { from: 1, to: 4, label: "pre-training" },
      { from: 5, to: 16, label: "reinforcement learning" },
    ]);
    const withoutKl = metrics.map((m) => {
      if (m.rl === undefined) return m;
      const { kl: _, ...rl } = m.rl;
      return { ...m, rl };
    });
    expect(charts.some((c) => c.title.startsWith("KL"))).toBe(true);
    expect(healthCharts(withoutKl).some((c) => c.title.startsWith("KL"))).toBe(false);
    expect(healthCharts([])).toEqual([]);
  });

  it("gives every series one value per step, none of them NaN", () => {
    const broken = [...metrics, step(12, 13, { loss: Number.NaN, gradientNorm: 0 }, { entropy: Number.NaN })];
    for (const chart of [mainChart(broken)!, ...healthCharts(broken)]) {
      for (const series of chart.series) {
        expect(series.values).toHaveLength(chart.x.length);
        expect(series.values.every((v) => v === null || Number.isFinite(v))).toBe(true);
      }
    }
  });
});

describe("renderReport", () => {
  it("does not credit reinforcement learning with what the cold start did", () => {
    const at = (pass1: number) => ({
      ...result().final,
      pass1,
      interval: [pass1 - 0.02, pass1 + 0.02] as const,
    });
    const page = (change: Partial<RunResult>) => text(renderReport(run({ result: result(change) }), assets));
    const same = page({ sft: at(0.86), final: at(0.85) });
    expect(same).toContain(
      "The intervals before and after reinforcement learning overlap: no clear change, on",
    );
    expect(same).toContain(`<span class="from">23.1 % → 86.0 % → </span><span class="to">85.0 %</span>`);
    for (const name of ["base", "cold start", "after RL"]) expect(same).toContain(`<td>${name}</td>`);
    expect(same).not.toContain("<td>before RL</td>");
    expect(page({ sft: at(0.8), final: at(0.9) })).toContain("made it right more often after the cold start");
    expect(page({ sft: at(0.9), final: at(0.8) })).toContain("made it worse after the cold start");
    const stages = result().stages.filter(({ stage }) => stage !== "rl");
    const supervised = page({ stages });
    expect(supervised).toContain("Training made it right more often, on");
    expect(supervised).toContain("<td>trained</td>");
  });

  it("says before and after with intervals, cost, thoughts and the first backtrack", () => {
    const page = text(renderReport(run(), assets));
    for (const part of [
      "23.1 % →",
      "78.4 %",
      "Reinforcement learning made it right more often, on 1,000 prompts it never saw",
      "75.7 % – 80.8 %",
      "1.9× as long",
      "71.0 TFLOP",
      "$0.015",
      "under $30.00",
      "Priced at $0.048 an hour (AWS EC2 m5.large",
      "The first time it went back",
      "75-(83-18)",
      "Wilson intervals",
    ]) {
      expect(page).toContain(part);
    }
  });

  it("claims no gain where the intervals overlap, and a loss where there is one", () => {
    const same = result({ final: { ...result().final, pass1: 0.24, interval: [0.214, 0.267] } });
    expect(renderReport(run({ result: same }), assets)).toContain("no clear change");
    const worse = result({ final: { ...result().final, pass1: 0.1, interval: [0.08, 0.12] } });
    expect(renderReport(run({ result: worse }), assets)).toContain("made it worse");
  });

  it("compares its cost with Countdown runs only on Countdown", () => {
    expect(renderReport(run({ result: result({ task: "sql" }) }), assets)).not.toContain("TinyZero");
  });

  it("shows a run that is under way, stopped or without steps", () => {
    const { result: _, ...unfinished } = run();
    const running = renderReport({ ...unfinished, status: "running" }, assets);
    expect(running).toContain("The run is under way, at step 12 of 12 of reinforcement learning");
    const stopped = renderReport({ ...unfinished, status: "stopped", metrics: [] }, assets);
    expect(stopped).toContain(`Go on with <code>pondera train --resume ${join("runs", "one")}</code>`);
    const elsewhere = { ...unfinished, path: "my runs/one", status: "stopped" } as const;
    expect(renderReport(elsewhere, assets, { command: "npx pondera" })).toContain(
      `Go on with <code>npx pondera train --resume &#39;${join("my runs", "one")}&#39;</code>`,
    );
    expect(stopped).not.toContain("<figure");
  });

  it("lets nothing a model wrote become markup or script", () => {
    const attack = `</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>"'&<!--`;
    const nasty = sample(1, { prompt: attack, completion: `<think>${attack}</think>${attack}`, id: attack });
    const page = renderReport(
      run({ result: result({ solved: [nasty], firstBacktrack: nasty, task: attack, model: attack }) }),
      assets,
    );
    expect(page).not.toContain("<img");
    expect(page).not.toContain("<script>alert");
    expect(page.match(/<script/g)).toHaveLength(3);
    expect(page.match(/<\/script>/g)).toHaveLength(3);
    expect(page).toContain("&lt;script&gt;alert(1)");
  });

  it("asks the network for nothing", () => {
    const page = renderReport(run(), assets);
    expect(page).not.toMatch(/\b(src|href)=/);
    expect(page).not.toMatch(/url\(|@import|fetch\(|XMLHttpRequest|WebSocket/);
    expect(page).toContain("default-src &#39;none&#39;");
  });

  it("allows by hash exactly the scripts it carries", () => {
    const page = renderReport(run(), assets);
    const scripts = [...page.matchAll(/<script>([\s\S]*?)<\/script>/g)].map((m) => m[1]!);
    expect(scripts).toHaveLength(2);
    for (const script of scripts) {
      expect(page).toContain(`sha256-${createHash("sha256").update(script).digest("base64")}`);
    }
  });

  it("is small", () => {
    expect(renderReport(run(), assets).length).toBeLessThan(90_000);
  });
});

describe("the page's script", () => {
  interface Options {
    readonly series: readonly unknown[];
    readonly axes: readonly { readonly incrs?: readonly number[] }[];
  }

  it("gives the plotting library one aligned row per series, and shows the last values", () => {
    const inMinutes: Chart = { ...mainChart(metrics)!, unit: "minute" };
    const charts: Chart[] = [mainChart(metrics)!, ...healthCharts(metrics), inMinutes];
    const drawn: { data: unknown[][]; options: Options }[] = [];
    const readouts: string[] = [];
    const element = () => {
      const parts: string[] = [];
      return {
        clientWidth: 600,
        style: {},
        set textContent(value: string) {
          parts.splice(0, parts.length, value);
          readouts.push(value);
        },
        append(part: object) {
          parts.push(String(part));
        },
      };
    };
    const figures = charts.map((_, i) => ({
      dataset: { chart: String(i), height: "200" },
      querySelector: element,
    }));
    class UPlot {
      constructor(options: Options, data: unknown[][]) {
        drawn.push({ data, options });
      }
      destroy() {}
    }
    runInContext(
      SCRIPT,
      createContext({
        uPlot: UPlot,
        document: {
          documentElement: {},
          getElementById: () => ({ textContent: embedJson(charts).text }),
          querySelectorAll: () => figures,
          createElement: element,
        },
        getComputedStyle: () => ({ getPropertyValue: () => " #000000 " }),
        matchMedia: () => ({ addEventListener() {} }),
        addEventListener() {},
        devicePixelRatio: 1,
      }),
    );
    expect(drawn).toHaveLength(charts.length);
    for (const { data, options } of drawn) {
      expect(options.series).toHaveLength(data.length);
      for (const row of data) expect(row).toHaveLength(data[0]!.length);
    }
    expect(readouts).toContain("step 12");
    expect(readouts).toContain("minute 12");
    expect(drawn[0]!.options.axes[0]!.incrs![0]).toBe(1);
    expect(drawn.at(-1)!.options.axes[0]!.incrs).toBeUndefined();
    expect(readouts).toContain("entropy 0.3");
  });
});

describe("writeReport", () => {
  it("writes the page into the run's folder", async () => {
    const root = await mkdtemp(join(tmpdir(), "pondera-report-"));
    const folder = await RunFolder.create({
      root,
      task: "t",
      preset: "p",
      seed: 1,
      config: {},
      versions: {},
    });
    await folder.appendMetrics(step(0, 2));
    await folder.appendMetrics(step(1, 2));
    await folder.close();
    const path = await writeReport(folder.path);
    expect(await readFile(path, "utf8")).toMatch(/^<!doctype html>/);
    await rm(root, { recursive: true });
  });
});
