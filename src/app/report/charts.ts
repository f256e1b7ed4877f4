/** Which curves the report draws, as plain data that the page's script turns into plots. */

import { mean } from "../../base/numbers.ts";
import type { RolloutMetrics, StepMetrics } from "../../learn/runs/records.ts";
import { stageName } from "../format.ts";

/** A CSS variable of the page's style, so that light and dark each pick their own. */
export type Color = "--accuracy" | "--length" | "--a" | "--b" | "--c" | "--d";

export interface Series {
  readonly label: string;
  readonly color: Color;
  readonly format: "percent" | "number" | "count";
  /** One value per x; null where there is none. */
  readonly values: readonly (number | null)[];
  /** Measured against the axis on the right. */
  readonly right?: boolean;
  /** A faint line behind its own smoothed twin, left out of the readout. */
  readonly faint?: boolean;
  /** Single measurements, drawn as dots. */
  readonly dots?: boolean;
}

export interface Chart {
  readonly title: string;
  readonly x: readonly number[];
  /** What x counts. @default "step" */
  readonly unit?: "minute";
  readonly series: readonly Series[];
  /** Stages, as stretches of x. */
  readonly bands: readonly { readonly from: number; readonly to: number; readonly label: string }[];
  readonly log?: boolean;
  /** Charts of one group move their cursors together. */
  readonly group: "rl" | "all";
}

/** Steps averaged in a smoothed curve, centred. */
export const SMOOTHING = 9;

/** Centred moving average over up to `window` values; fewer at the ends. */
export function smooth(values: readonly number[], window: number): number[] {
  const reach = Math.floor(window / 2);
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - reach), i + reach + 1);
    return mean(near);
  });
}

/** Four significant digits: finer than a pixel, and a third of the bytes. */
export const short = (value: number | null | undefined): number | null =>
  value === null || value === undefined || !Number.isFinite(value) ? null : Number(value.toPrecision(4));

/** Consecutive steps of one stage. */
function bandsOf(metrics: readonly StepMetrics[]): Chart["bands"] {
  const bands: { from: number; to: number; label: string }[] = [];
  metrics.forEach(({ stage }, i) => {
    const last = bands.at(-1);
    const label = stageName(stage);
    if (last?.label === label) last.to = i + 1;
    else bands.push({ from: i + 1, to: i + 1, label });
  });
  return bands;
}

/** Accuracy and length of thought over the steps of reinforcement learning: the picture of R1-Zero. */
export function mainChart(metrics: readonly StepMetrics[]): Chart | undefined {
  const steps = metrics.filter((m) => m.rl !== undefined);
  if (steps.length < 2) return undefined;
  const pass1 = steps.map((m) => m.rl!.pass1);
  const length = steps.map((m) => m.rl!.length.all);
  const held = steps.map((m) => short(m.validation?.pass1));
  return {
    title: "Accuracy and length of thought",
    x: steps.map((_, i) => i + 1),
    bands: [],
    group: "rl",
    series: [
      { label: "samples", color: "--accuracy", format: "percent", values: pass1.map(short), faint: true },
      {
        label: "tokens",
        color: "--length",
        format: "count",
        values: length.map(short),
        faint: true,
        right: true,
      },
      { label: "right", color: "--accuracy", format: "percent", values: smooth(pass1, SMOOTHING).map(short) },
      {
        label: "tokens",
        color: "--length",
        format: "count",
        values: smooth(length, SMOOTHING).map(short),
        right: true,
      },
      ...(held.some((v) => v !== null)
        ? [{ label: "held out", color: "--accuracy", format: "percent", values: held, dots: true } as const]
        : []),
    ],
  };
}

/** The curves that tell whether training is healthy; charts without data are left out. */
export function healthCharts(metrics: readonly StepMetrics[]): Chart[] {
  const rl = metrics.filter((m) => m.rl !== undefined);
  const before = metrics.filter((m) => m.rl === undefined);
  const ofRl = (title: string, series: readonly Series[]): Chart => ({
    title,
    x: rl.map((_, i) => i + 1),
    series,
    bands: [],
    group: "rl",
  });
  const pick = (get: (m: RolloutMetrics) => number | undefined) => rl.map((m) => short(get(m.rl!)));
  const colors: readonly Color[] = ["--a", "--b", "--c", "--d"];
  const names = Object.keys(rl[0]?.rl?.rewards ?? {}).slice(0, colors.length - 1);
  const charts: Chart[] = [
    ofRl("Reward", [
      { label: "total", color: "--a", format: "number", values: pick((m) => m.reward.mean) },
      ...names.map((name, i): Series => {
        return {
          label: name,
          color: colors[i + 1]!,
          format: "number",
          values: pick((m) => m.rewards[name]?.mean),
        };
      }),
    ]),
    ofRl("Entropy, nats per token", [
      { label: "entropy", color: "--b", format: "number", values: pick((m) => m.entropy) },
    ]),
    ofRl("KL to the reference, nats per token", [
      { label: "KL", color: "--c", format: "number", values: pick((m) => m.kl) },
    ]),
    ofRl("Wasted: equal rewards, cut-off samples", [
      { label: "equal", color: "--d", format: "percent", values: pick((m) => m.equalGroups) },
      { label: "cut off", color: "--b", format: "percent", values: pick((m) => m.truncatedFraction) },
    ]),
    {
      title: "Loss before RL, nats per token",
      x: before.map((_, i) => i + 1),
      series: [{ label: "loss", color: "--a", format: "number", values: before.map((m) => short(m.loss)) }],
      bands: bandsOf(before),
      group: "all",
    },
    {
      title: "Gradient norm before clipping",
      x: metrics.map((_, i) => i + 1),
      // A logarithmic axis has no place for zero.
      series: [
        {
          label: "norm",
          color: "--c",
          format: "number",
          values: metrics.map((m) => short(m.gradientNorm > 0 ? m.gradientNorm : null)),
        },
      ],
      bands: bandsOf(metrics),
      log: true,
      group: "all",
    },
    {
      title: "Tokens per second",
      x: metrics.map((_, i) => i + 1),
      series: [
        {
          label: "training",
          color: "--a",
          format: "count",
          values: metrics.map((m) => short(m.timing.trainTokensPerSecond)),
        },
        {
          label: "rollout",
          color: "--b",
          format: "count",
          values: metrics.map((m) => short(m.timing.rolloutTokensPerSecond)),
        },
      ],
      bands: bandsOf(metrics),
      group: "all",
    },
  ];
  return charts
    .map((chart) => ({ ...chart, series: chart.series.filter((s) => s.values.some((v) => v !== null)) }))
    .filter((chart) => chart.x.length >= 2 && chart.series.length > 0);
}
