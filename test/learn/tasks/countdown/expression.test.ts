import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  evaluateExpression,
  evaluatePostfix,
  parseExpression,
} from "../../../../src/learn/tasks/countdown/expression.ts";
import {
  add,
  divide,
  equals,
  format,
  lowest,
  multiply,
  subtract,
  whole,
} from "../../../../src/learn/tasks/countdown/rational.ts";

/** The value as text, or the fault. */
const work = (text: string): string => {
  const result = evaluateExpression(text);
  return result.ok ? format(result.value) : result.fault;
};

describe("an expression", () => {
  test.each([
    ["1+2*3", "7"],
    ["(1+2)*3", "9"],
    ["8-3-2", "3"],
    ["8-(3-2)", "7"],
    ["24/4/2", "3"],
    ["24/4*2", "12"],
    ["7/2", "7/2"],
    ["1/3+1/6", "1/2"],
    ["3-5", "-2"],
    ["(3-5)/(2-6)", "1/2"],
    ["2×3−8÷4", "4"],
    [" 1\t+\n2 ", "3"],
    ["((7))", "7"],
    ["0*5", "0"],
    // Past 2⁵³, where doubles would round: 999999999999999² = 999999999999998000000000000001.
    ["999999999999999*999999999999999", "999999999999998000000000000001"],
    ["999999999999999*999999999999999-999999999999998*(999999999999999+1)", "1"],
  ])("%j makes %s", (text, value) => {
    expect(work(text)).toBe(value);
  });

  test.each([
    ["", "empty"],
    [" \n", "empty"],
    ["()", "missing number"],
    ["1+", "missing number"],
    ["-1+2", "missing number"],
    ["+1", "missing number"],
    ["2*-3", "missing number"],
    ["(-2)", "missing number"],
    ["2**3", "missing number"],
    ["7//2", "missing number"],
    ["1 2", "missing operator"],
    ["2(3)", "missing operator"],
    ["(2)3", "missing operator"],
    ["(2)(3)", "missing operator"],
    ["(1+2", "unclosed bracket"],
    ["(", "unclosed bracket"],
    ["1+2)", "unopened bracket"],
    [")(", "unopened bracket"],
    ["1/0", "division by zero"],
    ["1/(2-2)", "division by zero"],
    ["0/0", "division by zero"],
    ["007", "leading zero"],
    ["1e3", "unexpected character"],
    ["1.0", "unexpected character"],
    ["2^3", "unexpected character"],
    ["2x3", "unexpected character"],
    ["1+2=3", "unexpected character"],
    ["[1+2]", "unexpected character"],
    ["0x10", "unexpected character"],
    ["process.exit()", "unexpected character"],
    ["\u0663+1", "unexpected character"],
    ["\uff13+1", "unexpected character"],
    ["1\u00a0+2", "unexpected character"],
    ["\ud83d", "unexpected character"],
    ["1000000000000000", "number too large"],
    ["9".repeat(50_000), "number too large"],
    [Array(65).fill("1").join("+"), "too many numbers"],
    [" ".repeat(65_537), "too long"],
  ])("%j has the fault %s", (text, fault) => {
    expect(work(text)).toBe(fault);
  });

  test("a fault tells where, and which digit only looks like one of ours", () => {
    expect(parseExpression("1+\u0663")).toMatchObject({
      reason: 'unexpected character: "\u0663" (U+0663) at character 3',
    });
    expect(parseExpression("2**3")).toMatchObject({ reason: 'missing number: before "*" at character 3' });
  });

  test("brackets may be deeper than any call stack, up to their limit", () => {
    const nested = (depth: number, inner: string) => "(".repeat(depth) + inner + ")".repeat(depth);
    expect(work(nested(16_384, "1+2"))).toBe("3");
    expect(work(nested(16_385, "1+2"))).toBe("too deep");
    expect(work("(".repeat(10_000))).toBe("unclosed bracket");
    expect(work(`1${")".repeat(10_000)}`)).toBe("unopened bracket");
    const rightDeep = `${"1-(".repeat(63)}1${")".repeat(63)}`;
    expect(work(rightDeep)).toBe("0");
  });

  test("any text gets a value or a fault", () => {
    const text = fc.oneof(
      fc.string({ unit: "binary", maxLength: 60 }),
      fc.string({ unit: fc.constantFrom(..."0123456789+-*/()×÷−x. "), maxLength: 60 }),
    );
    fc.assert(
      fc.property(text, (input) => {
        const result = evaluateExpression(input);
        if (result.ok) expect(result.value.den).toBeGreaterThan(0n);
        else expect(result.reason.startsWith(result.fault)).toBe(true);
      }),
      { numRuns: 2_000 },
    );
  });
});

/** A tree with its own text and its value as an unreduced fraction, worked out without the project's arithmetic. */
interface Oracle {
  readonly text: string;
  readonly fraction: readonly [bigint, bigint] | undefined;
  readonly numbers: readonly number[];
}

const spaced = (space: string, symbol: string): string => `${space}${symbol}${space}`;

const tree = fc.letrec<{ tree: Oracle }>((tie) => ({
  tree: fc.oneof(
    { maxDepth: 5 },
    fc.nat(120).map((n) => ({ text: `${n}`, fraction: [BigInt(n), 1n] as const, numbers: [n] })),
    fc
      .tuple(
        tie("tree"),
        tie("tree"),
        fc.constantFrom("+", "-", "−", "*", "×", "/", "÷"),
        fc.constantFrom("", " "),
      )
      .map(([a, b, symbol, space]) => {
        const text = `(${a.text}${spaced(space, symbol)}${b.text})`;
        const numbers = [...a.numbers, ...b.numbers];
        if (a.fraction === undefined || b.fraction === undefined)
          return { text, fraction: undefined, numbers };
        const [[p, q], [r, s]] = [a.fraction, b.fraction];
        if (symbol === "+") return { text, fraction: [p * s + r * q, q * s] as const, numbers };
        if (symbol === "-" || symbol === "−")
          return { text, fraction: [p * s - r * q, q * s] as const, numbers };
        if (symbol === "*" || symbol === "×") return { text, fraction: [p * r, q * s] as const, numbers };
        return { text, fraction: r === 0n ? undefined : ([p * s, q * r] as const), numbers };
      }),
  ),
})).tree;

describe("exactness", () => {
  test("fully bracketed expressions have the value of their tree, and its numbers in order", () => {
    fc.assert(
      fc.property(tree, ({ text, fraction, numbers }) => {
        const result = evaluateExpression(text);
        if (fraction === undefined) {
          expect(result).toMatchObject({ fault: "division by zero" });
          return;
        }
        if (!result.ok) throw new Error(result.reason);
        expect(result.value.num * fraction[1]).toBe(fraction[0] * result.value.den);
        expect(result.numbers).toEqual(numbers);
      }),
      { numRuns: 1_000 },
    );
  });

  test("without brackets, precedence and left grouping are those of JavaScript", () => {
    const flat = fc.array(fc.tuple(fc.integer({ min: 1, max: 50 }), fc.constantFrom("+", "-", "*")), {
      minLength: 1,
      maxLength: 7,
    });
    fc.assert(
      fc.property(flat, (parts) => {
        const text = parts.map(([n, operator], i) => (i === 0 ? `${n}` : `${operator}${n}`)).join("");
        // Only generated whole numbers and + - * reach the interpreter here, and stay exact in doubles.
        expect(work(text)).toBe(String(new Function(`return ${text}`)()));
      }),
    );
  });

  test("rationals are a field", () => {
    const rational = fc
      .tuple(fc.bigInt({ min: -(10n ** 30n), max: 10n ** 30n }), fc.bigInt({ min: 1n, max: 10n ** 20n }))
      .map(([a, b]) => divide(whole(a), whole(b))!);
    fc.assert(
      fc.property(rational, rational, rational, (a, b, c) => {
        const distributed = add(multiply(a, b), multiply(a, c));
        expect(lowest(multiply(a, add(b, c)))).toEqual(lowest(distributed));
        expect(equals(add(subtract(a, b), b), a)).toBe(true);
        expect(equals(add(a, whole(1)), a)).toBe(false);
        const quotient = divide(a, b);
        if (b.num === 0n) expect(quotient).toBeUndefined();
        else expect(lowest(multiply(quotient!, b))).toEqual(lowest(a));
      }),
    );
    expect(divide(whole(6), whole(-4))).toEqual({ num: -6n, den: 4n });
    expect(format(divide(whole(6), whole(-4))!)).toBe("-3/2");
    expect(format(divide(whole(0), whole(-4))!)).toBe("0");
  });

  test("a fraction is not reduced at every step, and its digits stay as few as its numbers'", () => {
    const half = divide(whole(1), whole(2))!;
    expect(add(half, half)).toEqual({ num: 4n, den: 4n });
    // Of 64 numbers of 15 digits, what would take the most divisors: divisions by sums with divisions in them.
    const parsed = parseExpression(`${"999999999999989/(999999999999937+".repeat(31)}7/9${")".repeat(31)}`);
    if (!parsed.ok) throw new Error(parsed.reason);
    expect(parsed.numbers).toHaveLength(64);
    const { num, den } = evaluatePostfix(parsed.postfix)!;
    for (const part of [num, den]) expect(`${part}`.length).toBeLessThanOrEqual(64 * 15);
  });
});
