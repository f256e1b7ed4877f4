/**
 * A picture of a finished run, as SVG: how often it was right and how long it thought, step by step of reinforcement learning.
 *
 *     node --import jiti/register bench/picture.ts runs/my-run > docs/quick.svg
 */

import { escapeHtml } from "../src/app/report/html.ts";
import { ConfigError } from "../src/base/errors.ts";
import { readRun } from "../src/learn/runs/read-run.ts";
import { isMain } from "./versus.ts";

export interface Curve {
  readonly title: string;
  /** One for each step. */
  readonly values: readonly number[];
  /** From the axis' foot to its top. */
  readonly range: readonly [number, number];
  readonly show: (value: number) => string;
  readonly color: string;
}

const [WIDTH, HEIGHT] = [760, 250];
/** Of a chart, and around it. */
const [W, H, LEFT, TOP] = [290, 150, 60, 52];
/** Readable on white and on black. */
const GREY = "#808080";
/** Steps on either side that a point of the curve is the mean of; each step stays as a dot. */
const SMOOTH = 3;

/** Means over the steps around each. */
export function smoothed(values: readonly number[]): number[] {
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - SMOOTH), i + SMOOTH + 1);
    return near.reduce((sum, x) => sum + x, 0) / near.length;
  });
}

function chart({ title, values, range: [low, high], show, color }: Curve, left: number): string[] {
  const x = (i: number): string => (left + (W * i) / Math.max(1, values.length - 1)).toFixed(1);
  const y = (value: number): string => (TOP + H * (1 - (value - low) / (high - low))).toFixed(1);
  const text = (at: string, content: string, extra = ""): string =>
    `<text ${at} fill="${GREY}" ${extra}>${escapeHtml(content)}</text>`;
  const middle = (low + high) / 2;
  return [
    text(`x="${left}" y="${TOP - 16}"`, title, 'font-weight="bold"'),
    ...[low, middle, high].flatMap((value) => [
      `<line x1="${left}" x2="${left + W}" y1="${y(value)}" y2="${y(value)}" stroke="${GREY}" stroke-opacity="0.3"/>`,
      text(`x="${left - 8}" y="${Number(y(value)) + 4}"`, show(value), 'text-anchor="end"'),
    ]),
    ...values.map(
      (value, i) => `<circle cx="${x(i)}" cy="${y(value)}" r="1.5" fill="${color}" fill-opacity="0.5"/>`,
    ),
    `<polyline fill="none" stroke="${color}" stroke-width="2" points="${smoothed(values)
      .map((value, i) => `${x(i)},${y(value)}`)
      .join(" ")}"/>`,
    text(`x="${left}" y="${TOP + H + 18}"`, "step 1"),
    text(`x="${left + W}" y="${TOP + H + 18}"`, `${values.length}`, 'text-anchor="end"'),
  ];
}

/** Two curves side by side under a heading. */
export function picture(heading: string, curves: readonly [Curve, Curve]): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">`,
    `<title>${escapeHtml(heading)}</title>`,
    ...curves.flatMap((curve, i) => chart(curve, LEFT + i * (W + LEFT + 20))),
    `<text x="${LEFT}" y="${HEIGHT - 10}" fill="${GREY}">${escapeHtml(heading)}</text>`,
    "</svg>",
    "",
  ].join("\n");
}

/** @throws FileError where there is no such run; ConfigError where it has no steps of reinforcement learning */
export async function pictureOf(path: string): Promise<string> {
  const { manifest, result, metrics } = await readRun(path);
  const steps = metrics.flatMap(({ rl }) => (rl === undefined ? [] : [rl]));
  if (steps.length === 0) {
    throw new ConfigError({ where: path, rule: "must have steps of reinforcement learning", got: "none" });
  }
  const lengths = steps.map(({ length }) => length.all);
  const most = Math.ceil(Math.max(...lengths) / 20) * 20;
  const percent = (share: number): string => `${Math.round(100 * share)} %`;
  const minutes = result === undefined ? "" : `, ${result.minutes.toFixed(1)} minutes in all`;
  return picture(
    `${manifest.task}, preset ${manifest.preset}, seed ${manifest.seed}${minutes}: training samples, the mean of each step and of ${2 * SMOOTH + 1} steps`,
    [
      {
        title: "right",
        values: steps.map(({ pass1 }) => pass1),
        range: [0, 1],
        show: percent,
        color: "#2f81f7",
      },
      {
        title: "tokens a completion",
        values: lengths,
        range: [0, most],
        show: (value) => `${Math.round(value)}`,
        color: "#e3872d",
      },
    ],
  );
}

if (isMain(import.meta.url)) process.stdout.write(await pictureOf(process.argv[2] ?? ""));
