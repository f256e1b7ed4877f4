/** Learning-rate schedules: factors of the base rate, as pure functions of the step. */

import { ConfigError } from "../../base/errors.ts";

/** Warm up linearly from 0, stay, then fall linearly to `final` over the last `decay` share of the steps. */
export interface Schedule {
  /** Steps of warm-up. */
  readonly warmup: number;
  /** Share of all steps, at the end, over which the rate falls. */
  readonly decay: number;
  /** Factor that a step after the last would have: with 0, the last step still moves. */
  readonly final: number;
}

/**
 * The factor for one step.
 * @param step   1-based
 * @param steps  how many there are
 */
export function scheduleFactor(schedule: Schedule, step: number, steps: number): number {
  const { warmup, decay, final } = schedule;
  if (!(decay >= 0 && decay <= 1)) {
    throw new ConfigError({
      where: "schedule: decay",
      rule: "must be a share from 0 to 1",
      got: String(decay),
    });
  }
  const rising = warmup > 0 ? Math.min(1, step / warmup) : 1;
  const left = decay > 0 ? Math.min(1, (steps - step + 1) / (steps * decay)) : 1;
  return rising * (final + (1 - final) * left);
}
