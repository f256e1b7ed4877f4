/**
 * Arithmetic as a puzzle's answer writes it, read exactly and without `eval`: whole numbers in ASCII digits, round
 * brackets, and + − × ÷, where `-` may also be written − (U+2212), `*` ×, and `/` ÷. Nothing else: no sign before a
 * number or bracket, no `**` or `//`, no `x` for times, no `=`, no leading zeros, no number next to a bracket.
 *
 * One pass over the text with a stack of our own (Dijkstra's shunting yard), so that depth costs memory in proportion
 * and never the call stack; limits bound length, depth, and the numbers' count and size.
 */
import { add, divide, lowest, multiply, type Rational, subtract, whole } from "./rational.ts";

export type Operator = "+" | "-" | "*" | "/";

/** Why a text is no expression, or one without a value. */
export type ExpressionFault =
  | "empty"
  | "too long"
  | "too deep"
  | "too many numbers"
  | "number too large"
  | "leading zero"
  | "unexpected character"
  | "missing number"
  | "missing operator"
  | "unclosed bracket"
  | "unopened bracket"
  | "division by zero";

export interface ExpressionFailure {
  readonly ok: false;
  readonly fault: ExpressionFault;
  /** The fault in a reader's words, with the place. */
  readonly reason: string;
}

/** An expression in reverse Polish order: numbers, and operators after their two operands. */
export interface ParsedExpression {
  readonly ok: true;
  readonly postfix: readonly (number | Operator)[];
  /** Each number as often as it is written, in order. */
  readonly numbers: readonly number[];
}

export interface EvaluatedExpression {
  readonly ok: true;
  /** In lowest terms. */
  readonly value: Rational;
  readonly numbers: readonly number[];
}

export interface ExpressionLimits {
  /** In UTF-16 units. @default 65,536 */
  readonly maxLength?: number;
  /** Brackets inside each other. @default 16,384 */
  readonly maxDepth?: number;
  /** @default 64 */
  readonly maxNumbers?: number;
}

/** Digits of one number; 15 keep it exact in a double. */
const MAX_DIGITS = 15;

/** The largest number that an expression may hold. */
export const LARGEST_NUMBER = 10 ** MAX_DIGITS - 1;

const OPERATORS: Readonly<Record<string, Operator>> = {
  "+": "+",
  "-": "-",
  "\u2212": "-",
  "*": "*",
  "×": "*",
  "/": "/",
  "÷": "/",
};

const precedence = (operator: Operator): number => (operator === "+" || operator === "-" ? 1 : 2);

const fail = (fault: ExpressionFault, detail?: string): ExpressionFailure => ({
  ok: false,
  fault,
  reason: detail === undefined ? fault : `${fault}: ${detail}`,
});

function characterAt(text: string, at: number): string {
  const code = text.codePointAt(at)!;
  const shown = JSON.stringify(String.fromCodePoint(code));
  // Digits of other scripts look like ours; the number tells which they are.
  return code < 128 ? shown : `${shown} (U+${code.toString(16).toUpperCase().padStart(4, "0")})`;
}

const isDigit = (code: number): boolean => code >= 48 && code <= 57;

/** Reads an expression without working it out. */
export function parseExpression(
  text: string,
  limits: ExpressionLimits = {},
): ParsedExpression | ExpressionFailure {
  const { maxLength = 65_536, maxDepth = 16_384, maxNumbers = 64 } = limits;
  if (text.length > maxLength) return fail("too long", `${text.length} characters, at most ${maxLength}`);
  const postfix: (number | Operator)[] = [];
  const numbers: number[] = [];
  const stack: (Operator | "(")[] = [];
  let depth = 0;
  let wantsOperand = true;
  for (let at = 0; at < text.length; at++) {
    const character = text[at]!;
    if (character === " " || character === "\t" || character === "\n" || character === "\r") continue;
    const place = (): string => `at character ${at + 1}`;
    if (isDigit(character.charCodeAt(0))) {
      if (!wantsOperand) return fail("missing operator", place());
      const start = at;
      while (isDigit(text.charCodeAt(at + 1))) at++;
      const digits = at + 1 - start;
      if (digits > MAX_DIGITS) return fail("number too large", `${digits} digits, at most ${MAX_DIGITS}`);
      if (digits > 1 && character === "0") return fail("leading zero", text.slice(start, at + 1));
      if (numbers.length === maxNumbers) return fail("too many numbers", `at most ${maxNumbers}`);
      const value = Number(text.slice(start, at + 1));
      numbers.push(value);
      postfix.push(value);
      wantsOperand = false;
    } else if (character === "(") {
      if (!wantsOperand) return fail("missing operator", place());
      if (++depth > maxDepth) return fail("too deep", `more than ${maxDepth} brackets inside each other`);
      stack.push("(");
    } else if (character === ")") {
      if (depth === 0) return fail("unopened bracket", place());
      if (wantsOperand) return fail("missing number", place());
      for (let top = stack.pop(); top !== "(" && top !== undefined; top = stack.pop()) postfix.push(top);
      depth--;
    } else {
      const operator = OPERATORS[character];
      if (operator === undefined) return fail("unexpected character", `${characterAt(text, at)} ${place()}`);
      if (wantsOperand) return fail("missing number", `before ${JSON.stringify(character)} ${place()}`);
      // Equal precedence too: all four operators group from the left.
      for (
        let top = stack.at(-1);
        top !== undefined && top !== "(" && precedence(top) >= precedence(operator);
        top = stack.at(-1)
      ) {
        postfix.push(top);
        stack.pop();
      }
      stack.push(operator);
      wantsOperand = true;
    }
  }
  if (depth > 0) return fail("unclosed bracket");
  if (numbers.length === 0) return fail("empty");
  if (wantsOperand) return fail("missing number", "at the end");
  for (let top = stack.pop(); top !== undefined && top !== "("; top = stack.pop()) postfix.push(top);
  return { ok: true, postfix, numbers };
}

const APPLY: Readonly<Record<Operator, (a: Rational, b: Rational) => Rational | undefined>> = {
  "+": add,
  "-": subtract,
  "*": multiply,
  "/": divide,
};

/** The value of what `parseExpression` read, not in lowest terms; undefined where it divides by zero. */
export function evaluatePostfix(postfix: readonly (number | Operator)[]): Rational | undefined {
  const stack: Rational[] = [];
  for (const item of postfix) {
    if (typeof item === "number") {
      stack.push(whole(item));
      continue;
    }
    const b = stack.pop()!;
    const value = APPLY[item](stack.pop()!, b);
    if (value === undefined) return undefined;
    stack.push(value);
  }
  return stack[0];
}

/** The exact value of an expression and the numbers it uses, or why it has none. */
export function evaluateExpression(
  text: string,
  limits: ExpressionLimits = {},
): EvaluatedExpression | ExpressionFailure {
  const parsed = parseExpression(text, limits);
  if (!parsed.ok) return parsed;
  const value = evaluatePostfix(parsed.postfix);
  if (value === undefined) return fail("division by zero");
  return { ok: true, value: lowest(value), numbers: parsed.numbers };
}
