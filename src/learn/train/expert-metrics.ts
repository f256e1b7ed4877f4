/** What a step's record says of its experts. */

import { mean } from "../../base/numbers.ts";
import type { ExpertLoads } from "../optim/trainer.ts";
import type { ExpertMetrics } from "../runs/records.ts";

/**
 * Loads of all updates of a step together.
 * @returns undefined where there are no experts, or no update was taken
 */
export function expertMetrics(updates: readonly ExpertLoads[]): ExpertMetrics | undefined {
  const total: Record<string, Float64Array> = {};
  for (const loads of updates) {
    for (const [name, load] of Object.entries(loads)) {
      total[name] ??= new Float64Array(load.length);
      for (const [e, n] of load.entries()) total[name][e]! += n;
    }
  }
  const layers = Object.values(total);
  if (layers.length === 0) return undefined;
  const violations = layers.map((load) => {
    const even = mean(load);
    return even === 0 ? 0 : Math.max(...load) / even - 1;
  });
  return {
    violation: mean(violations),
    violations,
    idle: layers.reduce((sum, load) => sum + load.filter((n) => n === 0).length, 0),
  };
}
