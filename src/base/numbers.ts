/** Arithmetic on lists of numbers. */

/** @param values  at least one; of none it is NaN */
export const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;
