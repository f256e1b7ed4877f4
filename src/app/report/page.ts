/** The fixed parts of the report: its style, and the script that turns chart data into plots. */

/** Two palettes, one layout. Colours keep a contrast of at least 4.5 to 1 against their paper. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1d1b18; --soft: #6a645b; --line: #e4dfd6; --wash: #f1ede5;
  --accuracy: #0b6e75; --length: #9a3aa0; --a: #2456a8; --b: #a8550f; --c: #7a3fb0; --d: #5d6b1a;
  --good: #2a7038; --warning: #8f5a00; --problem: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171614; --card: #1f1d1a; --ink: #ece8e1; --soft: #a39c90; --line: #36322c; --wash: #25221e;
    --accuracy: #4fc3cb; --length: #e08ae6; --a: #8ab4ff; --b: #f0a35c; --c: #c59bf5; --d: #b9c95c;
    --good: #7fcf8f; --warning: #f0b455; --problem: #ff8a80;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 ui-sans-serif, system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1 { font-size: 1.05rem; font-weight: 600; margin: 0; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 3rem 0 .25rem; }
p { margin: .35rem 0; max-width: 44rem; }
.soft, caption, figcaption .unit { color: var(--soft); }
.big { font-size: clamp(2.4rem, 8vw, 4.2rem); line-height: 1.1; letter-spacing: -.03em; font-weight: 650; margin: 1.6rem 0 .4rem; font-variant-numeric: tabular-nums; }
.big .from { color: var(--soft); font-weight: 400; } .big .to { color: var(--accuracy); }
.lead { font-size: 1.1rem; }
table { border-collapse: collapse; width: 100%; margin-top: .75rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .45rem .7rem; border-bottom: 1px solid var(--line); font-weight: 400; }
th, td { white-space: nowrap; } td.text { text-align: left; white-space: normal; min-width: 12rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
svg.interval { display: block; width: 9rem; height: 1.1rem; }
figure { margin: .75rem 0 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem .9rem .5rem; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; font-size: .88rem; margin-bottom: .4rem; min-height: 1.4em; }
figcaption .title { font-weight: 600; }
.readout { font-variant-numeric: tabular-nums; color: var(--soft); }
.readout b { font-weight: 500; margin-left: .9em; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .9rem; margin-top: .75rem; }
.grid figure { margin: 0; }
.thought { background: var(--card); border: 1px solid var(--line); border-left: 3px solid var(--length); border-radius: 10px; padding: .8rem 1rem; margin-top: .75rem; }
.thought pre { margin: .35rem 0; font: .85rem/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.thought .prompt { font-weight: 600; } .thought .think { color: var(--soft); max-height: 22rem; overflow: auto; } .thought .answer { color: var(--accuracy); }
.thought .meta { font-size: .85rem; color: var(--soft); }
.finding { border-left: 3px solid var(--line); padding: .1rem 0 .1rem .9rem; margin-top: .75rem; }
.finding.good { border-color: var(--good); } .finding.warning { border-color: var(--warning); } .finding.problem { border-color: var(--problem); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .9rem; margin: .9rem 0 0; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
details { margin-top: .75rem; } summary { cursor: pointer; color: var(--soft); }
details pre { font: .8rem/1.5 ui-monospace, monospace; background: var(--wash); border-radius: 8px; padding: .8rem; overflow: auto; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .85rem; }
code { font: .92em ui-monospace, monospace; }
`;

/** Runs in the page. Reads the charts from the element "charts" and draws each into its figure with uPlot. */
export const SCRIPT = `
(() => {
  "use strict";
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const formats = {
    percent: (v) => (100 * v).toFixed(1) + "\\u00a0%",
    number: (v) => String(Number(v.toPrecision(3))),
    count: (v) => Math.round(v).toLocaleString("en"),
  };
  const ticks = {
    percent: (v) => Math.round(100 * v) + "\\u00a0%",
    number: (v) => String(Number(v.toPrecision(3))),
    count: (v) => (v >= 10000 ? v / 1000 + "k" : String(v)),
  };

  function readout(chart, element, index) {
    element.textContent = (chart.unit || "step") + " " + chart.x[index];
    for (const s of chart.series) {
      const value = s.values[index];
      if (s.faint || value === null) continue;
      const part = document.createElement("b");
      part.style.color = color(s.color);
      part.textContent = s.label + " " + formats[s.format](value);
      element.append(part);
    }
  }

  function bands(chart) {
    return (u) => {
      const { ctx, bbox } = u;
      ctx.save();
      chart.bands.forEach((band, i) => {
        const left = u.valToPos(band.from, "x", true);
        const right = u.valToPos(band.to, "x", true);
        ctx.fillStyle = color("--wash");
        if (i % 2 === 1) ctx.fillRect(left, bbox.top, right - left, bbox.height);
        ctx.fillStyle = color("--soft");
        ctx.font = 11 * devicePixelRatio + "px system-ui";
        ctx.textBaseline = "bottom";
        const start = Math.min(left, bbox.left + bbox.width - ctx.measureText(band.label).width);
        if (chart.bands.length > 1) ctx.fillText(band.label, start, bbox.top - 4 * devicePixelRatio);
      });
      ctx.restore();
    };
  }

  function draw(figure) {
    const chart = charts[Number(figure.dataset.chart)];
    const box = figure.querySelector(".plot");
    const text = figure.querySelector(".readout");
    const last = chart.x.length - 1;
    const left = chart.series.find((s) => !s.right).format;
    const right = chart.series.find((s) => s.right);
    const axis = (scale, format, side, grid, paint) => ({
      scale, side, stroke: color(paint || "--soft"), font: "12px system-ui", size: 52,
      // On a logarithmic axis only the powers of ten.
      filter: (u, splits) => splits.map((v) => (chart.log && !Number.isInteger(Math.log10(v)) ? null : v)),
      grid: {
        show: grid, stroke: color("--line"), width: 1,
        filter: (u, splits) => splits.map((v) => (chart.log && !Number.isInteger(Math.log10(v)) ? null : v)),
      },
      ticks: { show: false },
      values: (u, splits) => splits.map((v) => (v === null ? "" : ticks[format](v))),
    });
    // Axes begin at zero, so that no curve looks steeper than it is.
    const whole = (u, low, high) => [Math.min(0, low), high > 0 ? high * 1.06 : 1];
    const scaleOf = (format) => (chart.log ? { distr: 3 } : { range: format === "percent" ? [0, 1] : whole });
    const plot = new uPlot({
      width: box.clientWidth,
      height: Number(figure.dataset.height),
      padding: [chart.bands.length > 1 ? 20 : 10, right ? 0 : 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, sync: { key: chart.group }, points: { size: 6 } },
      scales: { x: { time: false }, y: scaleOf(left), right: { range: whole } },
      axes: [
        {
          stroke: color("--soft"), font: "12px system-ui", size: 30, space: 60,
          // Steps are whole; minutes are divided as the library does.
          ...(chart.unit ? {} : { incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000, 10000, 20000, 50000] }),
          grid: { show: false }, ticks: { stroke: color("--line"), size: 5 },
        },
        axis("y", left, 3, true, right ? chart.series.find((s) => !s.right).color : undefined),
        ...(right ? [axis("right", right.format, 1, false, right.color)] : []),
      ],
      series: [{}, ...chart.series.map((s) => ({
        scale: s.right ? "right" : "y",
        stroke: color(s.color) + (s.faint ? "40" : ""),
        width: s.dots ? 0 : s.faint ? 1 : 2,
        spanGaps: true,
        points: s.dots ? { show: true, size: 8, fill: color("--card"), stroke: color(s.color), width: 2 } : { show: false },
      }))],
      hooks: {
        drawClear: [bands(chart)],
        setCursor: [(u) => readout(chart, text, u.cursor.idx === null || u.cursor.idx === undefined ? last : u.cursor.idx)],
      },
    }, [chart.x, ...chart.series.map((s) => s.values)], box);
    readout(chart, text, last);
    return { plot, box };
  }

  let drawn = [];
  function build() {
    for (const { plot } of drawn) plot.destroy();
    drawn = [...document.querySelectorAll("figure[data-chart]")].map(draw);
  }
  build();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
  addEventListener("resize", () => {
    for (const { plot, box } of drawn) plot.setSize({ width: box.clientWidth, height: plot.height });
  });
})();
`;
