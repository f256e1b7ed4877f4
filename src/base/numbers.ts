/** Arithmetic on lists of numbers. */

/** @param values  at least one; of none it is NaN */
export function mean(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]!;
  return sum / values.length;
}
