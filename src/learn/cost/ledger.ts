/** From hours to dollars. Prices are inputs; the defaults are published ones, named with their source. */

import { ConfigError } from "../../base/errors.ts";

/** A price with where it was read, so that a figure in a report can be checked. */
export interface Price {
  readonly dollarsPerHour: number;
  readonly what: string;
  readonly source: string;
}

/**
 * One virtual CPU of a general-purpose cloud machine, on demand. A machine that already stands on a desk costs its
 * electricity instead.
 */
export const CPU_HOUR: Price = {
  dollarsPerHour: 0.048,
  what: "one vCPU, on demand",
  source:
    "AWS EC2 m5.large, Linux, us-east-1: $0.096 per hour for 2 vCPUs (aws.amazon.com/ec2/pricing/on-demand)",
};

/**
 * The rental price the V3 report assumes for an H800. H100s mostly rent for more, so figures that use it understate
 * what others paid.
 */
export const GPU_HOUR: Price = {
  dollarsPerHour: 2,
  what: "one H800, rented",
  source: "DeepSeek-V3 technical report, arXiv:2412.19437, table 1",
};

export interface LedgerInput {
  /** Hours times virtual CPUs held, whether busy or not: what a cloud would bill. */
  readonly cpuHours?: number;
  readonly gpuHours?: number;
  /** @default CPU_HOUR.dollarsPerHour */
  readonly pricePerCpuHour?: number;
  /** @default GPU_HOUR.dollarsPerHour */
  readonly pricePerGpuHour?: number;
}

export interface Ledger {
  readonly cpuHours: number;
  readonly gpuHours: number;
  readonly pricePerCpuHour: number;
  readonly pricePerGpuHour: number;
  readonly dollars: number;
}

/**
 * What a run cost.
 * @throws ConfigError on hours or prices that are negative or no numbers
 */
export function ledger(input: LedgerInput): Ledger {
  const entry = {
    cpuHours: input.cpuHours ?? 0,
    gpuHours: input.gpuHours ?? 0,
    pricePerCpuHour: input.pricePerCpuHour ?? CPU_HOUR.dollarsPerHour,
    pricePerGpuHour: input.pricePerGpuHour ?? GPU_HOUR.dollarsPerHour,
  };
  for (const [name, value] of Object.entries(entry)) {
    if (!(value >= 0 && Number.isFinite(value))) {
      throw new ConfigError({
        where: `ledger: ${name}`,
        rule: "must be a number of at least 0",
        got: String(value),
      });
    }
  }
  const dollars = entry.cpuHours * entry.pricePerCpuHour + entry.gpuHours * entry.pricePerGpuHour;
  return { ...entry, dollars };
}
