/** Numbers as people read them; shared by the terminal and the report. */

import type { Stage } from "../learn/runs/records.ts";

const nbsp = "\u00a0";

/** `62.4 %`, with a space that does not break. */
export function percent(fraction: number, digits = 1): string {
  return `${(100 * fraction).toFixed(digits)}${nbsp}%`;
}

/** `950`, `31.2k`, `12.4M`, `7.10T`: three significant digits and a suffix for thousands. */
export function compact(value: number): string {
  const suffixes = ["", "k", "M", "G", "T", "P", "E"];
  let scaled = Math.abs(value);
  let power = 0;
  // 999.5 would be shown as 1000, so it already belongs to the next suffix.
  while (scaled >= 999.5 && power < suffixes.length - 1) {
    scaled /= 1000;
    power++;
  }
  const digits =
    power === 0 && Number.isInteger(value) ? 0 : Math.max(0, 2 - Math.floor(Math.log10(Math.max(scaled, 1))));
  return `${value < 0 ? "-" : ""}${scaled.toFixed(digits)}${suffixes[power]}`;
}

/** `71.0 TFLOP`: an amount of work, not a speed. */
export function flops(value: number): string {
  const text = compact(value).replace(/k$/, "K");
  const suffix = /[A-Z]$/.exec(text)?.[0] ?? "";
  return `${text.slice(0, text.length - suffix.length)}${nbsp}${suffix}FLOP`;
}

/** `$12.40`, `$0.015`: cents, or two significant digits where cents would say nothing. */
export function dollars(value: number): string {
  if (value === 0 || value >= 0.1) return `$${value.toFixed(2)}`;
  return `$${value.toFixed(Math.min(8, 1 - Math.floor(Math.log10(value))))}`;
}

/** `0:41`, `12:05`, `1:02:05`. */
export function clock(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (n: number) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** `1.9×`. */
export function times(ratio: number): string {
  return `${ratio >= 10 ? ratio.toFixed(0) : ratio.toFixed(1)}×`;
}

const STAGES: Readonly<Record<Stage, string>> = {
  pretrain: "pre-training",
  sft: "cold start",
  rl: "reinforcement learning",
};

/** A stage in a reader's words. */
export function stageName(stage: Stage): string {
  return STAGES[stage];
}

/** `0 B`, `950 B`, `1.12 GB`: decimal units, as disks and hubs count. */
export function byteSize(value: number): string {
  const [, digits, suffix] = /^(.*?)([a-zA-Z]?)$/.exec(compact(value))!;
  return `${digits}${nbsp}${suffix}B`;
}

/** How answers were drawn, after "samples"; nothing where that is not known. */
export function sampledAt(
  sampling: { readonly temperature: number; readonly topP: number } | undefined,
): string {
  if (sampling === undefined) return "";
  const { temperature, topP } = sampling;
  return ` at temperature ${temperature}${topP < 1 ? `, top-p ${topP}` : ""}`;
}
