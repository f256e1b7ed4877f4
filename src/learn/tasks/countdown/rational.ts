/**
 * Exact rational numbers of any size. Operations do not reduce: a common divisor at every step takes far longer than the step,
 * and without one a fraction has about as many digits as the numbers it is made of.
 */

/** `num / den`, `den` above 0. */
export interface Rational {
  readonly num: bigint;
  readonly den: bigint;
}

const abs = (a: bigint): bigint => (a < 0n ? -a : a);

/** The same number in lowest terms. */
export function lowest({ num, den }: Rational): Rational {
  // Whole numbers are by far the most common, and need no divisor.
  if (den === 1n) return { num, den };
  let [a, b] = [abs(num), den];
  while (b > 0n) [a, b] = [b, a % b];
  return { num: num / a, den: den / a };
}

/** @param value a whole number, exactly representable */
export const whole = (value: number | bigint): Rational => ({ num: BigInt(value), den: 1n });

export const add = (a: Rational, b: Rational): Rational => ({
  num: a.num * b.den + b.num * a.den,
  den: a.den * b.den,
});

export const subtract = (a: Rational, b: Rational): Rational => ({
  num: a.num * b.den - b.num * a.den,
  den: a.den * b.den,
});

export const multiply = (a: Rational, b: Rational): Rational => ({ num: a.num * b.num, den: a.den * b.den });

/** Undefined when `b` is zero. */
export function divide(a: Rational, b: Rational): Rational | undefined {
  if (b.num === 0n) return undefined;
  const num = a.num * b.den;
  return b.num < 0n ? { num: -num, den: a.den * -b.num } : { num, den: a.den * b.num };
}

export const equals = (a: Rational, b: Rational): boolean => a.num * b.den === b.num * a.den;

/** `7` or `-7/2`, in lowest terms. */
export function format(a: Rational): string {
  const { num, den } = lowest(a);
  return den === 1n ? `${num}` : `${num}/${den}`;
}
