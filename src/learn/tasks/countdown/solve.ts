/**
 * Exhaustive Countdown: which targets some numbers can make, and every way to make one. Exact: values are whole numbers
 * or fractions of two whole numbers, all small enough for a double to hold.
 */
import { ConfigError } from "../../../base/errors.ts";
import type { Operator } from "./expression.ts";
import type { NumberUse, Puzzle } from "./types.ts";

/** A number of the puzzle, or an operation on two expressions; the value is num / den, not in lowest terms. */
export type Expression =
  | { readonly kind: "number"; readonly num: number; readonly den: 1 }
  | {
      readonly kind: "operation";
      readonly operator: Operator;
      readonly left: Expression;
      readonly right: Expression;
      readonly num: number;
      readonly den: number;
    };

export interface SolveRules {
  /** @default "at-most-once" */
  readonly use?: NumberUse;
  /** Whether results on the way may be fractions. @default false, as in the television game */
  readonly fractions?: boolean;
  /**
   * Whether results on the way may be below zero. No target above zero needs them: whatever makes v makes |v| without
   * them, since |±u ± w| is u + w or the larger minus the smaller, and signs pass through × and ÷. @default false
   */
  readonly negatives?: boolean;
}

export interface Solution {
  /** With as few brackets as keep the order of working. */
  readonly text: string;
  /** How many operators it has; 0 when the target is one of the numbers. */
  readonly operations: number;
  readonly expression: Expression;
}

const isSum = (operator: Operator): boolean => operator === "+" || operator === "-";

/** The expression as text, with `+ - * /`. */
export function expressionText(expression: Expression): string {
  if (expression.kind === "number") return `${expression.num}`;
  const { operator, left, right } = expression;
  const bracketed = (side: Expression, needed: boolean): string =>
    needed ? `(${expressionText(side)})` : expressionText(side);
  const leftNeeds = left.kind === "operation" && isSum(left.operator) && !isSum(operator);
  // On the right, equal precedence needs brackets too, except + in + and × in ×.
  const rightNeeds =
    right.kind === "operation" &&
    (isSum(right.operator) || !isSum(operator)) &&
    !(right.operator === operator && (operator === "+" || operator === "*"));
  return `${bracketed(left, leftNeeds)}${operator}${bracketed(right, rightNeeds)}`;
}

const INVERSE: Readonly<Record<Operator, Operator>> = { "+": "-", "-": "+", "*": "/", "/": "*" };

/** Splits a chain of + and −, or of × and ÷, into its parts, each with the sign or side on which it ends up. */
function collectParts(expression: Expression, sign: Operator, sums: boolean, parts: string[]): void {
  if (expression.kind === "operation" && isSum(expression.operator) === sums) {
    const turns = expression.operator === "-" || expression.operator === "/";
    collectParts(expression.left, sign, sums, parts);
    collectParts(expression.right, turns ? INVERSE[sign] : sign, sums, parts);
  } else {
    parts.push(sign + canonical(expression));
  }
}

/** Equal for expressions that differ only in order and bracketing: a−(b−c), (a+c)−b, c−(b−a). */
function canonical(expression: Expression): string {
  if (expression.kind === "number") return `${expression.num}`;
  const sums = isSum(expression.operator);
  const parts: string[] = [];
  collectParts(expression, sums ? "+" : "*", sums, parts);
  return `(${parts.sort().join("")})`;
}

function operate(
  operator: Operator,
  left: Expression,
  right: Expression,
  num: number,
  den: number,
): Expression {
  // A denominator below zero would turn comparisons around.
  return den < 0
    ? { kind: "operation", operator, left, right, num: -num, den: -den }
    : { kind: "operation", operator, left, right, num, den };
}

/** Every expression that one operation makes of two. */
function* results(a: Expression, b: Expression, rules: Required<SolveRules>): Generator<Expression> {
  const [an, bn, den] = [a.num * b.den, b.num * a.den, a.den * b.den];
  yield operate("+", a, b, an + bn, den);
  yield operate("*", a, b, a.num * b.num, den);
  if (an >= bn || rules.negatives) yield operate("-", a, b, an - bn, den);
  if (bn > an || (rules.negatives && an !== bn)) yield operate("-", b, a, bn - an, den);
  // Without fractions, dividends and divisors are whole; what leaves no remainder is carried on as a whole number.
  if (bn !== 0 && (rules.fractions || an % bn === 0))
    yield operate("/", a, b, ...quotient(an, bn, rules.fractions));
  if (an !== 0 && (rules.fractions || bn % an === 0))
    yield operate("/", b, a, ...quotient(bn, an, rules.fractions));
}

const quotient = (num: number, den: number, fractions: boolean): [number, number] =>
  fractions ? [num, den] : [num / den, 1];

/** Shows `visit` everything that can be made of the items, and whether it uses them all. */
function search(
  items: readonly Expression[],
  rules: Required<SolveRules>,
  visit: (made: Expression, usesAll: boolean) => void,
): void {
  for (let i = 0; i < items.length; i++) {
    for (let j = i + 1; j < items.length; j++) {
      const rest = items.filter((_, k) => k !== i && k !== j);
      for (const made of results(items[i]!, items[j]!, rules)) {
        visit(made, rest.length === 0);
        if (rest.length > 0) search([...rest, made], rules, visit);
      }
    }
  }
}

const countOperations = (expression: Expression): number =>
  expression.kind === "number" ? 0 : 1 + countOperations(expression.left) + countOperations(expression.right);

/**
 * Every way to solve a puzzle, once each up to the order and bracketing of sums and products, fewest operations first.
 * Three numbers take some 10 µs, four 0.1 ms, five 3 ms, six 0.1 s.
 * @throws ConfigError for more than 6 numbers, or numbers so large that values might not be exact
 */
export function solve({ numbers, target }: Puzzle, rules: SolveRules = {}): readonly Solution[] {
  const filled = {
    use: rules.use ?? "at-most-once",
    fractions: rules.fractions ?? false,
    negatives: rules.negatives ?? false,
  };
  // With n numbers up to m, no numerator or denominator here exceeds 2ⁿ⁻¹·mⁿ.
  const largest = Math.max(2, ...numbers);
  if (numbers.length > 6 || 2 ** (numbers.length - 1) * largest ** numbers.length > Number.MAX_SAFE_INTEGER) {
    throw new ConfigError({
      where: "solve",
      rule: "takes at most 6 numbers, small enough to stay exact",
      got: `${numbers.length} numbers up to ${largest}`,
    });
  }
  const found = new Map<string, Expression>();
  const consider = (made: Expression, usesAll: boolean): void => {
    if (made.num !== target * made.den || (filled.use === "exactly-once" && !usesAll)) return;
    const key = canonical(made);
    if (!found.has(key)) found.set(key, made);
  };
  const items: Expression[] = numbers.map((num) => ({ kind: "number", num, den: 1 }));
  for (const item of items) consider(item, items.length === 1);
  search(items, filled, consider);
  return [...found.values()]
    .map((expression) => ({
      text: expressionText(expression),
      operations: countOperations(expression),
      expression,
    }))
    .sort((a, b) => a.operations - b.operations || (a.text < b.text ? -1 : 1));
}

/**
 * Every value that all the numbers together make with whole, non-negative results on the way: the targets for which
 * `solve` with "exactly-once" finds something, without building expressions. Three numbers take about 2 µs, four 0.1 ms.
 * @param largest  that any result may be, on the way or at the end
 */
export function makeable(numbers: readonly number[], largest = Number.POSITIVE_INFINITY): Set<number> {
  const values = new Set<number>();
  const visit = (items: readonly number[]): void => {
    if (items.length === 1) {
      values.add(items[0]!);
      return;
    }
    for (let i = 0; i < items.length; i++) {
      for (let j = i + 1; j < items.length; j++) {
        const next = items.filter((_, k) => k !== i && k !== j);
        const [large, small] = [Math.max(items[i]!, items[j]!), Math.min(items[i]!, items[j]!)];
        if (large + small <= largest) visit([...next, large + small]);
        visit([...next, large - small]);
        if (large * small <= largest) visit([...next, large * small]);
        if (small > 0 && large % small === 0) visit([...next, large / small]);
      }
    }
  };
  visit(numbers);
  return values;
}

/** Whether some of the numbers, each added or taken away, make a target above zero. */
export function sumsMake(numbers: readonly number[], target: number): boolean {
  const from = (index: number, total: number): boolean => {
    if (index === numbers.length) return total === target;
    const number = numbers[index]!;
    return from(index + 1, total) || from(index + 1, total + number) || from(index + 1, total - number);
  };
  return from(0, 0);
}
