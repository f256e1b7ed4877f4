/** What others published about the cost of their runs, for scale beside ours. Hours as printed; dollars by their own
 * price where they gave one, by {@link GPU_HOUR} where they gave only hours. */

import { dollarsFor, GPU_HOUR } from "./price.ts";

/** The two published tables of a whole model: GPU-hours by part, at $2 an hour. */
export interface PublishedBudget {
  readonly source: string;
  readonly gpu: string;
  readonly gpuHours: Readonly<Record<string, number>>;
  /** As printed, which may be rounded. */
  readonly totalGpuHours: number;
  readonly totalDollars: number;
}

/** Excludes earlier research, ablations and data. */
export const DEEPSEEK_V3: PublishedBudget = {
  source: "arXiv:2412.19437, table 1",
  gpu: "H800",
  gpuHours: { "pre-training": 2_664_000, "context extension": 119_000, "post-training": 5_000 },
  totalGpuHours: 2_788_000,
  totalDollars: 5_576_000,
};

/** On top of the V3 base, whose cost it excludes. */
export const DEEPSEEK_R1: PublishedBudget = {
  source: "arXiv:2501.12948v2, table 7",
  gpu: "H800",
  gpuHours: { "R1-Zero": 101_000, "SFT data": 5_000, R1: 41_000 },
  totalGpuHours: 147_000,
  totalDollars: 294_000,
};

/** Somebody's run on the Countdown game. */
export interface Comparison {
  readonly name: string;
  readonly what: string;
  readonly result: string;
  readonly gpuHours?: number;
  /** `upTo` when the authors say "less than". */
  readonly dollars: { readonly value: number; readonly upTo: boolean };
  readonly source: string;
}

const miniR1Hours = 4 * 6;

/** Countdown runs whose authors published what they cost. */
export const COUNTDOWN_RUNS: readonly Comparison[] = [
  {
    name: "TinyZero",
    what: "Qwen2.5-3B base, PPO, 3 and 4 numbers",
    result: "learns to search and check; the 0.5 B base does not",
    dollars: { value: 30, upTo: true },
    source: "github.com/Jiayi-Pan/TinyZero, README",
  },
  {
    name: "Mini-R1",
    what: "Qwen2.5-3B-Instruct, GRPO, 3 and 4 numbers, about 6 hours on 4 H100s",
    result: "about 50 % right",
    gpuHours: miniR1Hours,
    dollars: { value: dollarsFor(miniR1Hours, GPU_HOUR), upTo: false },
    source: "philschmid.de/mini-deepseek-r1; hours priced at $2",
  },
];
