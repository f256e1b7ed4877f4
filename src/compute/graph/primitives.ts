/**
 * The primitives as functions of traced values: the vocabulary in which everything else is written.
 * A number stands for a constant of the other argument's dtype. Axes may be negative, counting from the end.
 */

import { invariant } from "../../base/errors.ts";
import { type DType, typedArray } from "../tensor/dtype.ts";
import { toHalfBits } from "../tensor/half.ts";
import { type HostArray, hostArray } from "../tensor/host.ts";
import { normalizeAxis, type Shape, sameShape } from "../tensor/shape.ts";
import { isPrimitive, type Quantization, type Value } from "./ir.ts";
import { apply, constantIn } from "./trace.ts";

/** A traced value or a plain number. */
export type Operand = Value | number;

/** A constant array in the trace of `like`. */
export function constant(like: Value, value: HostArray): Value {
  return constantIn(like, value);
}

/** A constant scalar of the given dtype in the trace of `like`. */
export function scalar(like: Value, value: number, dtype: DType = like.dtype): Value {
  const data = typedArray(dtype, 1);
  if (data instanceof BigInt64Array) data[0] = BigInt(value);
  else data[0] = dtype === "f16" ? toHalfBits(value) : value;
  return constantIn(like, hostArray(dtype, [], data));
}

/** An array filled with one value: a scalar broadcast, so that nothing large is stored in the graph. */
export function full(like: Value, shape: Shape, value: number, dtype: DType = like.dtype): Value {
  return broadcast(scalar(like, value, dtype), shape);
}

function pair(a: Operand, b: Operand): [Value, Value] {
  if (typeof a !== "number") return [a, typeof b === "number" ? scalar(a, b) : b];
  invariant(typeof b !== "number", "an operation needs a traced argument");
  return [scalar(b, a), b];
}

export const neg = (x: Value): Value => apply("neg", [x], {})[0]!;
export const abs = (x: Value): Value => apply("abs", [x], {})[0]!;
export const exp = (x: Value): Value => apply("exp", [x], {})[0]!;
export const log = (x: Value): Value => apply("log", [x], {})[0]!;
export const sqrt = (x: Value): Value => apply("sqrt", [x], {})[0]!;
/** 1 / (1 + e^−x). */
export const sigmoid = (x: Value): Value => apply("sigmoid", [x], {})[0]!;
export const not = (x: Value): Value => apply("not", [x], {})[0]!;
export const cast = (x: Value, dtype: DType): Value =>
  x.dtype === dtype ? x : apply("cast", [x], { dtype })[0]!;

/**
 * `result`, whose gradient with respect to `inputs` is what `rule` makes of its cotangent, and not what the chain rule
 * would. The rule must return one cotangent per input, of that input's shape.
 */
export function withGradient(
  result: Value,
  inputs: readonly Value[],
  rule: (g: Value) => readonly Value[],
): Value {
  return apply("withGradient", [result, ...inputs], { rule })[0]!;
}

/** The value itself, which lets no gradient through. */
export const stopGradient = (x: Value): Value => apply("stopGradient", [x], {})[0]!;

export const add = (a: Operand, b: Operand): Value => apply("add", pair(a, b), {})[0]!;
export const sub = (a: Operand, b: Operand): Value => apply("sub", pair(a, b), {})[0]!;
export const mul = (a: Operand, b: Operand): Value => apply("mul", pair(a, b), {})[0]!;
export const div = (a: Operand, b: Operand): Value => apply("div", pair(a, b), {})[0]!;
export const min = (a: Operand, b: Operand): Value => apply("min", pair(a, b), {})[0]!;
export const max = (a: Operand, b: Operand): Value => apply("max", pair(a, b), {})[0]!;
/** a < b. */
export const less = (a: Operand, b: Operand): Value => apply("less", pair(a, b), {})[0]!;
/** a > b. */
export const greater = (a: Operand, b: Operand): Value => less(b, a);
export const equal = (a: Operand, b: Operand): Value => apply("equal", pair(a, b), {})[0]!;
export const and = (a: Value, b: Value): Value => apply("and", [a, b], {})[0]!;
export const or = (a: Value, b: Value): Value => apply("or", [a, b], {})[0]!;

/** `condition ? a : b`, elementwise; two numbers are f32. */
export function where(condition: Value, a: Operand, b: Operand): Value {
  const first = typeof a === "number" && typeof b === "number" ? scalar(condition, a, "f32") : a;
  return apply("where", [condition, ...pair(first, b)], {})[0]!;
}

interface ReduceOptions {
  /** Keep reduced axes with size 1. Default false. */
  readonly keepDims?: boolean;
}

function reduce(
  primitive: "reduceSum" | "reduceMax",
  x: Value,
  axes: readonly number[],
  options: ReduceOptions,
): Value {
  const normal = [...new Set(axes.map((axis) => normalizeAxis(primitive, axis, x.shape.length)))].sort(
    (a, b) => a - b,
  );
  return apply(primitive, [x], { axes: normal, keepDims: options.keepDims ?? false })[0]!;
}

/** Sum over the given axes; over all of them by default. No axes at all (a scalar): the value itself. */
export function sum(
  x: Value,
  axes: readonly number[] = x.shape.map((_, i) => i),
  options: ReduceOptions = {},
): Value {
  return axes.length === 0 ? x : reduce("reduceSum", x, axes, options);
}

/** Mean over the given axes: the denominator is the number of elements reduced. */
export function mean(
  x: Value,
  axes: readonly number[] = x.shape.map((_, i) => i),
  options: ReduceOptions = {},
): Value {
  const count = axes.reduce((n, axis) => n * x.shape[normalizeAxis("mean", axis, x.shape.length)]!, 1);
  return mul(sum(x, axes, options), 1 / count);
}

/** Largest element over the given axes. */
export function reduceMax(x: Value, axes: readonly number[], options: ReduceOptions = {}): Value {
  return reduce("reduceMax", x, axes, options);
}

/** Index (i32) of the first largest element along the last axis. */
export const argMax = (x: Value): Value => apply("argMax", [x], {})[0]!;

/** Indices (i32) of the k largest elements along the last axis, largest first; of equal ones, the first first. */
export const topK = (x: Value, k: number): Value => apply("topK", [x], { k })[0]!;

/** Inclusive running sum along an axis. */
export function cumulativeSum(x: Value, axis: number): Value {
  return apply("cumulativeSum", [x], { axis: normalizeAxis("cumulativeSum", axis, x.shape.length) })[0]!;
}

/** `[…, M, K] · […, K, N] → […, M, N]`. */
export const matmul = (a: Value, b: Value): Value => apply("matmul", [a, b], {})[0]!;

/** Each group of rows of x times a matrix of its own; see `Attributes.groupedMatmul` for the shapes. */
export function groupedMatmul(
  x: Value,
  counts: Value,
  matrices: readonly Value[],
  options: { readonly transposed?: boolean } = {},
): Value {
  const { transposed = false } = options;
  return apply("groupedMatmul", [x, counts, ...matrices], { transposed })[0]!;
}

/** aᵀ·b over each group of rows; see `Attributes.groupedOuter` for the shapes. */
export function groupedOuter(a: Value, b: Value, counts: Value): readonly Value[] {
  return apply("groupedOuter", [a, b, counts], { groups: counts.shape[0]! });
}

/** Codes, scales and, where there are any, offsets of a matrix; see `Attributes.dequantize` for the shapes. */
export type QuantizedParts = readonly [codes: Value, scales: Value, offsets?: Value];

/** The rows […, K] that blocks of whole numbers stand for. */
export function dequantize(parts: QuantizedParts, quantization: Quantization): Value {
  return apply("dequantize", parts as readonly Value[], quantization)[0]!;
}

/** x · Wᵀ for a W that stays quantised. @param x […, M, K] @returns […, M, N] */
export function matmulNBits(x: Value, parts: QuantizedParts, quantization: Quantization): Value {
  return apply("matmulNBits", [x, ...(parts as readonly Value[])], quantization)[0]!;
}

export function reshape(x: Value, shape: Shape): Value {
  if (sameShape(x.shape, shape)) return x;
  // A reshape of a reshape is one reshape.
  const source = x.node?.primitive === "reshape" ? x.node.inputs[0]! : x;
  return sameShape(source.shape, shape) ? source : apply("reshape", [source], { shape })[0]!;
}

/** Reorders axes: axis i of the result is axis `permutation[i]` of x. */
export function transpose(x: Value, permutation: readonly number[]): Value {
  if (permutation.every((axis, i) => axis === i)) return x;
  if (isPrimitive(x.node, "transpose")) {
    const first = x.node.attributes.permutation;
    return transpose(
      x.node.inputs[0]!,
      permutation.map((axis) => first[axis]!),
    );
  }
  return apply("transpose", [x], { permutation })[0]!;
}

/** Exchanges the last two axes. */
export function transposeLast(x: Value): Value {
  const rank = x.shape.length;
  const axes = Array.from({ length: rank }, (_, i) => i);
  return transpose(x, [...axes.slice(0, -2), rank - 1, rank - 2]);
}

export function broadcast(x: Value, shape: Shape): Value {
  return sameShape(x.shape, shape) ? x : apply("broadcast", [x], { shape })[0]!;
}

/** Elements start … end−1 along an axis. */
export function slice(x: Value, axis: number, start: number, end: number): Value {
  const normal = normalizeAxis("slice", axis, x.shape.length);
  return start === 0 && end === x.shape[normal] ? x : apply("slice", [x], { axis: normal, start, end })[0]!;
}

export function concat(parts: readonly Value[], axis: number): Value {
  const first = parts[0];
  invariant(first !== undefined, "concat: needs at least one part");
  return parts.length === 1
    ? first
    : apply("concat", parts, { axis: normalizeAxis("concat", axis, first.shape.length) })[0]!;
}

/** Rows of `table [N, …]` by `ids i32[…]` → `[…, …]`. */
export const gatherRows = (table: Value, ids: Value): Value => apply("gatherRows", [table, ids], {})[0]!;

/** Adds `updates` into a zero table `[rows, …]` at `ids`; repeated ids accumulate. */
export function scatterAddRows(ids: Value, updates: Value, rows: number): Value {
  return apply("scatterAddRows", [ids, updates], { rows })[0]!;
}

/** `x[…, indices]` along the last axis. */
export const takeAlongLast = (x: Value, indices: Value): Value =>
  apply("takeAlongLast", [x, indices], {})[0]!;

/** Adds `updates` into zeros of width `size` along the last axis at `indices`; repeated indices accumulate. */
export function scatterAddLast(indices: Value, updates: Value, size: number): Value {
  return apply("scatterAddLast", [indices, updates], { size })[0]!;
}

/** Softmax along the last axis, fused; `softmaxUnfused` in ops/ is its oracle. */
export const softmax = (x: Value): Value => apply("softmax", [x], {})[0]!;

/** Root-mean-square norm along the last axis, fused; `rmsNormUnfused` in ops/ is its oracle. */
export function rmsNorm(x: Value, weight: Value, options: { readonly epsilon: number }): Value {
  return apply("rmsNorm", [x, weight], { epsilon: options.epsilon })[0]!;
}

/** Rotary position embedding, fused; `rotaryUnfused` in ops/ is its oracle. See `Attributes.rotary` for the shapes. */
export function rotary(
  x: Value,
  positions: Value,
  cos: Value,
  sin: Value,
  options: { readonly interleaved?: boolean } = {},
): Value {
  return apply("rotary", [x, positions, cos, sin], { interleaved: options.interleaved ?? false })[0]!;
}

/** Attention over a cache updated in place; see `Attributes.cachedAttention` for the shapes. */
export function cachedAttention(
  inputs: {
    readonly q: Value;
    readonly k: Value;
    readonly v: Value;
    readonly pastKeys: Value;
    readonly pastValues: Value;
    readonly lengths: Value;
    readonly total: Value;
    /** Both or neither. */
    readonly cos?: Value;
    readonly sin?: Value;
  },
  options: { readonly heads: number; readonly kvHeads: number; readonly scale: number },
): { attended: Value; keys: Value; values: Value } {
  const { q, k, v, pastKeys, pastValues, lengths, total, cos, sin } = inputs;
  const rotation = [cos, sin].filter((table) => table !== undefined);
  const outputs = apply(
    "cachedAttention",
    [q, k, v, pastKeys, pastValues, lengths, total, ...rotation],
    options,
  );
  return { attended: outputs[0]!, keys: outputs[1]!, values: outputs[2]! };
}
