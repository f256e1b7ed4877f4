/** What a step's record says of its experts. */

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
    const mean = load.reduce((a, b) => a + b, 0) / load.length;
    return mean === 0 ? 0 : Math.max(...load) / mean - 1;
  });
  return {
    violation: violations.reduce((a, b) => a + b, 0) / violations.length,
    violations,
    idle: layers.reduce((sum, load) => sum + load.filter((n) => n === 0).length, 0),
  };
}
