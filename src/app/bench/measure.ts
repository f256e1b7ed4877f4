/** What a benchmark reports: the middle and the ends of its measurements, and the machine they were taken on. */

import { availableParallelism, cpus, totalmem } from "node:os";
import type { Runtime } from "../../compute/runtime/runtime.ts";

/** Measurements of one thing, every one of them kept. */
export interface Measured {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly all: readonly number[];
}

/** The median of an even number of values is the mean of the middle two. @param values  at least one */
export function measured(values: readonly number[]): Measured {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  const median = (sorted[Math.ceil(middle) - 1]! + sorted[Math.floor(middle)]!) / 2;
  return { median, min: sorted[0]!, max: sorted.at(-1)!, all: values };
}

export interface Machine {
  readonly cpu: string;
  /** Logical ones that this process may use, and those the machine has. */
  readonly cores: number;
  readonly installedCores: number;
  readonly memoryGiB: number;
  readonly platform: string;
  readonly node: string;
  /** Of ONNX Runtime, and how it is reached. */
  readonly runtime: string;
  readonly threads: number;
}

export function describeMachine(runtime: Pick<Runtime, "version" | "backend" | "threads">): Machine {
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    installedCores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    platform: `${process.platform} ${process.arch}`,
    node: process.versions.node,
    runtime: `ONNX Runtime ${runtime.version} (${runtime.backend})`,
    threads: runtime.threads,
  };
}

/** `AMD EPYC 9R14, 2 of 2 cores, 2 threads, 24 GiB · linux x64 · Node 20.20.2 · ONNX Runtime 1.30.0 (ffi)`. */
export function machineLine(machine: Machine): string {
  const { cpu, cores, installedCores, threads, memoryGiB, platform, node, runtime } = machine;
  return `${cpu}, ${cores} of ${installedCores} cores, ${threads} threads, ${memoryGiB} GiB · ${platform} · Node ${node} · ${runtime}`;
}

/** Runs something some times, first without looking. @returns what it returned each time */
export async function repeat(
  times: number,
  warmup: number,
  run: () => Promise<number>,
  onDone?: (done: number) => void,
): Promise<number[]> {
  for (let i = 0; i < warmup; i++) await run();
  const values: number[] = [];
  for (let i = 0; i < times; i++) {
    values.push(await run());
    onDone?.(i + 1);
  }
  return values;
}
