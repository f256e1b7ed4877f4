/** From hours to dollars, at published prices that are named with their source. */

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

/** What hours cost; those of a CPU are times the virtual CPUs held, whether busy or not: what a cloud would bill. */
export const dollarsFor = (hours: number, price: Price): number => hours * price.dollarsPerHour;
