/** Exact rational numbers: `num / den` in lowest terms with `den` above 0, of any size. */

export interface Rational {
  readonly num: bigint;
  readonly den: bigint;
}

const abs = (a: bigint): bigint => (a < 0n ? -a : a);

function reduced(num: bigint, den: bigint): Rational {
  // Whole numbers are by far the most common, and need no divisor.
  if (den === 1n) return { num, den };
  let [a, b] = [abs(num), abs(den)];
  while (b > 0n) [a, b] = [b, a % b];
  const divisor = den < 0n ? -a : a;
  return { num: num / divisor, den: den / divisor };
}

/** @param value a whole number, exactly representable */
export const whole = (value: number | bigint): Rational => ({ num: BigInt(value), den: 1n });

export const add = (a: Rational, b: Rational): Rational =>
  reduced(a.num * b.den + b.num * a.den, a.den * b.den);

export const subtract = (a: Rational, b: Rational): Rational =>
  reduced(a.num * b.den - b.num * a.den, a.den * b.den);

export const multiply = (a: Rational, b: Rational): Rational => reduced(a.num * b.num, a.den * b.den);

/** Undefined when `b` is zero. */
export const divide = (a: Rational, b: Rational): Rational | undefined =>
  b.num === 0n ? undefined : reduced(a.num * b.den, a.den * b.num);

export const equals = (a: Rational, b: Rational): boolean => a.num === b.num && a.den === b.den;

/** `7` or `-7/2`. */
export const format = (a: Rational): string => (a.den === 1n ? `${a.num}` : `${a.num}/${a.den}`);
