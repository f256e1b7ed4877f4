/** Shape and dtype rules, one row per primitive: what each application yields, or why it may not be made. */

import { DTypeError, ShapeError } from "../../base/errors.ts";
import type { DType } from "../tensor/dtype.ts";
import {
  broadcastShapes,
  type Shape,
  sameShape,
  showSpec,
  sizeOf,
  type TensorSpec,
} from "../tensor/shape.ts";
import type { Attributes, PrimitiveName, Quantization } from "./ir.ts";

type Rule<P extends PrimitiveName> = (
  inputs: readonly TensorSpec[],
  attributes: Attributes[P],
) => TensorSpec[];

const FLOAT: readonly DType[] = ["f32", "f16"];
const NUMBER: readonly DType[] = ["f32", "f16", "i32", "i64"];
const BOOL: readonly DType[] = ["bool"];
const INDEX: readonly DType[] = ["i32"];

/** ONNX Runtime's GroupQueryAttention refuses other head widths, and only once it runs: when it rotates, and when not. */
const ROTATED_WIDTH_STEP = 16;
const PLAIN_WIDTH_STEP = 8;

function show(inputs: readonly TensorSpec[]): string {
  return inputs.map(showSpec).join(", ");
}

/** The i-th argument, of one of the given dtypes. */
function argument(
  where: string,
  inputs: readonly TensorSpec[],
  i: number,
  dtypes: readonly DType[],
): TensorSpec {
  const x = inputs[i];
  if (x === undefined) {
    throw new ShapeError({ where, rule: `takes at least ${i + 1} arguments`, got: `${inputs.length}` });
  }
  if (!dtypes.includes(x.dtype)) {
    throw new DTypeError({ where, rule: `argument ${i} must be ${dtypes.join(" or ")}`, got: show(inputs) });
  }
  return x;
}

function expectCount(where: string, inputs: readonly TensorSpec[], count: number): void {
  if (inputs.length !== count) {
    throw new ShapeError({ where, rule: `takes ${count} arguments`, got: `${inputs.length}` });
  }
}

function expectSameDType(where: string, inputs: readonly TensorSpec[], alike: readonly TensorSpec[]): void {
  if (alike.every((x) => x.dtype === alike[0]!.dtype)) return;
  throw new DTypeError({
    where,
    rule: "arguments must share a dtype",
    got: show(inputs),
    remedy: "Cast one",
  });
}

const unary =
  (where: string, dtypes: readonly DType[]) =>
  (inputs: readonly TensorSpec[]): TensorSpec[] => {
    expectCount(where, inputs, 1);
    const x = argument(where, inputs, 0, dtypes);
    return [{ dtype: x.dtype, shape: x.shape }];
  };

const binary =
  (where: string, dtypes: readonly DType[], result?: DType) =>
  (inputs: readonly TensorSpec[]): TensorSpec[] => {
    expectCount(where, inputs, 2);
    const a = argument(where, inputs, 0, dtypes);
    const b = argument(where, inputs, 1, dtypes);
    expectSameDType(where, inputs, [a, b]);
    return [{ dtype: result ?? a.dtype, shape: broadcastShapes(where, a.shape, b.shape) }];
  };

const reduction =
  (where: string) =>
  (inputs: readonly TensorSpec[], { axes, keepDims }: Attributes["reduceSum"]): TensorSpec[] => {
    expectCount(where, inputs, 1);
    const x = argument(where, inputs, 0, NUMBER);
    const bad = axes.find((axis) => !(axis in x.shape));
    if (bad !== undefined || axes.length === 0) {
      throw new ShapeError({
        where,
        rule: "axes must name axes of the argument",
        got: `${axes} for ${show(inputs)}`,
      });
    }
    const shape = keepDims
      ? x.shape.map((n, i) => (axes.includes(i) ? 1 : n))
      : x.shape.filter((_, i) => !axes.includes(i));
    return [{ dtype: x.dtype, shape }];
  };

/** Last axis of a shape, and what precedes it. */
function splitLast(where: string, x: TensorSpec): { lead: Shape; last: number } {
  const last = x.shape.at(-1);
  if (last === undefined) throw new ShapeError({ where, rule: "needs at least one axis", got: showSpec(x) });
  return { lead: x.shape.slice(0, -1), last };
}

/** Shape […, K] of the rows whose codes are argument `first`, their scales the next and their offsets, if any, the last. */
function quantizedShape(
  where: string,
  inputs: readonly TensorSpec[],
  first: number,
  { bits, blockSize }: Quantization,
): Shape {
  if (inputs.length !== first + 3) expectCount(where, inputs, first + 2);
  const codes = argument(where, inputs, first, ["u8"]);
  const scales = argument(where, inputs, first + 1, ["f32"]);
  const perBlock = codes.shape.slice(0, -1);
  const offsets = inputs[first + 2];
  const fits =
    codes.shape.length >= 3 &&
    codes.shape.at(-1)! * 8 === blockSize * bits &&
    sameShape(scales.shape, perBlock) &&
    (offsets === undefined || (offsets.dtype === "f32" && sameShape(offsets.shape, perBlock)));
  if (fits) return [...perBlock.slice(0, -1), perBlock.at(-1)! * blockSize];
  throw new ShapeError({
    where,
    rule: `codes u8[…,K/${blockSize},${(blockSize * bits) / 8}], scales f32[…,K/${blockSize}], offsets like scales or none`,
    got: show(inputs),
  });
}

export const SHAPE_RULES: { readonly [P in PrimitiveName]: Rule<P> } = {
  constant: (_, { value }) => [{ dtype: value.dtype, shape: value.shape }],

  neg: unary("neg", NUMBER),
  abs: unary("abs", NUMBER),
  exp: unary("exp", FLOAT),
  log: unary("log", FLOAT),
  sqrt: unary("sqrt", FLOAT),
  sigmoid: unary("sigmoid", FLOAT),
  not: unary("not", BOOL),
  cast: (inputs, { dtype }) => {
    expectCount("cast", inputs, 1);
    return [{ dtype, shape: inputs[0]!.shape }];
  },

  withGradient: (inputs) => {
    if (inputs.length < 2) {
      throw new ShapeError({
        where: "withGradient",
        rule: "takes a result and its arguments",
        got: show(inputs),
      });
    }
    return [{ dtype: inputs[0]!.dtype, shape: inputs[0]!.shape }];
  },
  stopGradient: (inputs) => {
    expectCount("stopGradient", inputs, 1);
    return [{ dtype: inputs[0]!.dtype, shape: inputs[0]!.shape }];
  },

  add: binary("add", NUMBER),
  sub: binary("sub", NUMBER),
  mul: binary("mul", NUMBER),
  div: binary("div", FLOAT),
  min: binary("min", NUMBER),
  max: binary("max", NUMBER),
  less: binary("less", NUMBER, "bool"),
  equal: binary("equal", NUMBER, "bool"),
  and: binary("and", BOOL),
  or: binary("or", BOOL),

  where: (inputs) => {
    expectCount("where", inputs, 3);
    const condition = argument("where", inputs, 0, BOOL);
    const [chosen] = binary("where", [...NUMBER, "bool"])(inputs.slice(1));
    return [{ dtype: chosen!.dtype, shape: broadcastShapes("where", condition.shape, chosen!.shape) }];
  },

  reduceSum: reduction("reduceSum"),
  reduceMax: reduction("reduceMax"),
  argMax: (inputs) => {
    expectCount("argMax", inputs, 1);
    const { lead } = splitLast("argMax", argument("argMax", inputs, 0, FLOAT));
    return [{ dtype: "i32", shape: lead }];
  },
  topK: (inputs, { k }) => {
    expectCount("topK", inputs, 1);
    const { lead, last } = splitLast("topK", argument("topK", inputs, 0, FLOAT));
    if (!Number.isSafeInteger(k) || k < 1 || k > last) {
      throw new ShapeError({ where: "topK", rule: `k must be from 1 to ${last}`, got: `${k}` });
    }
    return [{ dtype: "i32", shape: [...lead, k] }];
  },
  cumulativeSum: (inputs, { axis }) => {
    expectCount("cumulativeSum", inputs, 1);
    const x = argument("cumulativeSum", inputs, 0, NUMBER);
    if (!(axis in x.shape)) {
      throw new ShapeError({
        where: "cumulativeSum",
        rule: "axis must exist",
        got: `${axis} for ${show(inputs)}`,
      });
    }
    return [{ dtype: x.dtype, shape: x.shape }];
  },

  matmul: (inputs) => {
    expectCount("matmul", inputs, 2);
    const a = argument("matmul", inputs, 0, FLOAT);
    const b = argument("matmul", inputs, 1, FLOAT);
    expectSameDType("matmul", inputs, [a, b]);
    const [M, K] = a.shape.slice(-2);
    const [K2, N] = b.shape.slice(-2);
    if (N === undefined || M === undefined || K === undefined || K !== K2) {
      throw new ShapeError({
        where: "matmul",
        rule: "inner sizes must agree: [M,K]·[K,N]",
        got: show(inputs),
      });
    }
    return [
      {
        dtype: a.dtype,
        shape: [...broadcastShapes("matmul", a.shape.slice(0, -2), b.shape.slice(0, -2)), M, N],
      },
    ];
  },

  groupedMatmul: (inputs, { transposed }) => {
    const x = argument("groupedMatmul", inputs, 0, FLOAT);
    const counts = argument("groupedMatmul", inputs, 1, INDEX);
    const matrices = inputs.slice(2);
    const first = argument("groupedMatmul", inputs, 2, FLOAT);
    expectSameDType("groupedMatmul", inputs, [x, ...matrices]);
    const [M, K] = x.shape;
    const fits =
      x.shape.length === 2 &&
      sameShape(counts.shape, [matrices.length]) &&
      first.shape.length === 2 &&
      first.shape[transposed ? 0 : 1] === K &&
      matrices.every(({ shape }) => sameShape(shape, first.shape));
    if (!fits) {
      throw new ShapeError({
        where: "groupedMatmul",
        rule: `x [M,K], counts i32[E], E matrices ${transposed ? "[K,N]" : "[N,K]"}`,
        got: show(inputs),
      });
    }
    return [{ dtype: x.dtype, shape: [M!, first.shape[transposed ? 1 : 0]!] }];
  },
  groupedOuter: (inputs, { groups }) => {
    expectCount("groupedOuter", inputs, 3);
    const a = argument("groupedOuter", inputs, 0, FLOAT);
    const b = argument("groupedOuter", inputs, 1, FLOAT);
    const counts = argument("groupedOuter", inputs, 2, INDEX);
    expectSameDType("groupedOuter", inputs, [a, b]);
    const fits =
      a.shape.length === 2 &&
      b.shape.length === 2 &&
      a.shape[0] === b.shape[0] &&
      sameShape(counts.shape, [groups]);
    if (!fits) {
      throw new ShapeError({
        where: "groupedOuter",
        rule: `a [M,N], b [M,K], counts i32[${groups}]`,
        got: show(inputs),
      });
    }
    return Array.from({ length: groups }, () => ({ dtype: a.dtype, shape: [a.shape[1]!, b.shape[1]!] }));
  },

  dequantize: (inputs, quantization) => [
    { dtype: "f32", shape: quantizedShape("dequantize", inputs, 0, quantization) },
  ],
  matmulNBits: (inputs, quantization) => {
    const x = argument("matmulNBits", inputs, 0, ["f32"]);
    const [N, K, ...rest] = quantizedShape("matmulNBits", inputs, 1, quantization) as readonly number[];
    if (x.shape.length < 2 || x.shape.at(-1) !== K || rest.length > 0) {
      const rule = "x must be […,M,K] and the matrix [N,K]";
      throw new ShapeError({ where: "matmulNBits", rule, got: show(inputs) });
    }
    return [{ dtype: "f32", shape: [...x.shape.slice(0, -1), N!] }];
  },

  reshape: (inputs, { shape }) => {
    expectCount("reshape", inputs, 1);
    // Two negative sizes would multiply to a size that fits.
    if (shape.some((n) => n < 0) || sizeOf(shape) !== sizeOf(inputs[0]!.shape)) {
      throw new ShapeError({ where: "reshape", rule: `must keep the size of [${shape}]`, got: show(inputs) });
    }
    return [{ dtype: inputs[0]!.dtype, shape }];
  },
  transpose: (inputs, { permutation }) => {
    expectCount("transpose", inputs, 1);
    const x = inputs[0]!;
    const sorted = [...permutation].sort((a, b) => a - b);
    if (sorted.length !== x.shape.length || sorted.some((axis, i) => axis !== i)) {
      throw new ShapeError({
        where: "transpose",
        rule: "must permute all axes",
        got: `${permutation} for ${show(inputs)}`,
      });
    }
    return [{ dtype: x.dtype, shape: permutation.map((axis) => x.shape[axis]!) }];
  },
  broadcast: (inputs, { shape }) => {
    expectCount("broadcast", inputs, 1);
    if (!sameShape(broadcastShapes("broadcast", inputs[0]!.shape, shape), shape)) {
      throw new ShapeError({ where: "broadcast", rule: `must grow to [${shape}]`, got: show(inputs) });
    }
    return [{ dtype: inputs[0]!.dtype, shape }];
  },
  slice: (inputs, { axis, start, end }) => {
    expectCount("slice", inputs, 1);
    const size = inputs[0]!.shape[axis];
    if (size === undefined || start < 0 || end > size || start >= end) {
      throw new ShapeError({
        where: "slice",
        rule: "needs 0 ≤ start < end ≤ size",
        got: `axis ${axis}, ${start}…${end} of ${show(inputs)}`,
      });
    }
    return [
      { dtype: inputs[0]!.dtype, shape: inputs[0]!.shape.map((n, i) => (i === axis ? end - start : n)) },
    ];
  },
  concat: (inputs, { axis }) => {
    const first = inputs[0];
    const fits = (x: TensorSpec): boolean =>
      x.dtype === first?.dtype &&
      x.shape.length === first.shape.length &&
      x.shape.every((n, i) => i === axis || n === first.shape[i]);
    if (first === undefined || !(axis in first.shape) || !inputs.every(fits)) {
      throw new ShapeError({
        where: "concat",
        rule: `sizes may differ at axis ${axis} only`,
        got: show(inputs),
      });
    }
    const total = inputs.reduce((sum, x) => sum + x.shape[axis]!, 0);
    return [{ dtype: first.dtype, shape: first.shape.map((n, i) => (i === axis ? total : n)) }];
  },

  gatherRows: (inputs) => {
    expectCount("gatherRows", inputs, 2);
    const ids = argument("gatherRows", inputs, 1, INDEX);
    const table = inputs[0]!;
    if (table.shape.length === 0)
      throw new ShapeError({ where: "gatherRows", rule: "needs rows", got: show(inputs) });
    return [{ dtype: table.dtype, shape: [...ids.shape, ...table.shape.slice(1)] }];
  },
  scatterAddRows: (inputs, { rows }) => {
    expectCount("scatterAddRows", inputs, 2);
    const ids = argument("scatterAddRows", inputs, 0, INDEX);
    const updates = argument("scatterAddRows", inputs, 1, FLOAT);
    if (!sameShape(updates.shape.slice(0, ids.shape.length), ids.shape)) {
      throw new ShapeError({
        where: "scatterAddRows",
        rule: "updates must start with the shape of ids",
        got: show(inputs),
      });
    }
    return [{ dtype: updates.dtype, shape: [rows, ...updates.shape.slice(ids.shape.length)] }];
  },
  takeAlongLast: (inputs) => {
    expectCount("takeAlongLast", inputs, 2);
    const x = splitLast("takeAlongLast", inputs[0]!);
    const indices = argument("takeAlongLast", inputs, 1, INDEX);
    if (!sameShape(x.lead, indices.shape.slice(0, -1))) {
      throw new ShapeError({
        where: "takeAlongLast",
        rule: "all axes but the last must agree",
        got: show(inputs),
      });
    }
    return [{ dtype: inputs[0]!.dtype, shape: indices.shape }];
  },
  scatterAddLast: (inputs, { size }) => {
    expectCount("scatterAddLast", inputs, 2);
    const indices = argument("scatterAddLast", inputs, 0, INDEX);
    const updates = argument("scatterAddLast", inputs, 1, FLOAT);
    if (!sameShape(indices.shape, updates.shape)) {
      throw new ShapeError({
        where: "scatterAddLast",
        rule: "indices and updates share a shape",
        got: show(inputs),
      });
    }
    return [{ dtype: updates.dtype, shape: [...updates.shape.slice(0, -1), size] }];
  },

  softmax: (inputs) => {
    splitLast("softmax", argument("softmax", inputs, 0, FLOAT));
    return unary("softmax", FLOAT)(inputs);
  },
  rmsNorm: (inputs) => {
    expectCount("rmsNorm", inputs, 2);
    const { last } = splitLast("rmsNorm", argument("rmsNorm", inputs, 0, FLOAT));
    const weight = argument("rmsNorm", inputs, 1, FLOAT);
    expectSameDType("rmsNorm", inputs, [inputs[0]!, weight]);
    if (!sameShape(weight.shape, [last])) {
      throw new ShapeError({
        where: "rmsNorm",
        rule: "weight must be [C], C the last axis of x",
        got: show(inputs),
      });
    }
    return [{ dtype: inputs[0]!.dtype, shape: inputs[0]!.shape }];
  },
  rotary: (inputs) => {
    expectCount("rotary", inputs, 4);
    const x = argument("rotary", inputs, 0, FLOAT);
    const positions = argument("rotary", inputs, 1, INDEX);
    const [cos, sin] = [inputs[2]!, inputs[3]!];
    expectSameDType("rotary", inputs, [x, cos, sin]);
    const headWidth = (cos.shape[1] ?? Number.NaN) * 2;
    const fits =
      x.shape.length === 3 &&
      sameShape(positions.shape, x.shape.slice(0, 2)) &&
      cos.shape.length === 2 &&
      sameShape(cos.shape, sin.shape) &&
      x.shape[2]! % headWidth === 0;
    if (!fits) {
      throw new ShapeError({
        where: "rotary",
        rule: "x [B,T,H·D], positions i32[B,T], cos and sin [S,D/2]",
        got: show(inputs),
      });
    }
    return [{ dtype: x.dtype, shape: x.shape }];
  },
  cachedAttention: (inputs, { heads, kvHeads }) => {
    const rotated = inputs.length === 9;
    if (!rotated) expectCount("cachedAttention", inputs, 7);
    const [q, k, v, pastKeys, pastValues, lengths, total, ...tables] = inputs as readonly [
      TensorSpec,
      TensorSpec,
      TensorSpec,
      TensorSpec,
      TensorSpec,
      TensorSpec,
      TensorSpec,
      ...TensorSpec[],
    ];
    argument("cachedAttention", inputs, 0, FLOAT);
    expectSameDType("cachedAttention", inputs, [q, k, v, pastKeys, pastValues, ...tables]);
    const [B, Hk, S, D] = pastKeys.shape;
    const T = q.shape[1];
    const fits =
      B !== undefined &&
      Hk === kvHeads &&
      S !== undefined &&
      D !== undefined &&
      T !== undefined &&
      T <= S &&
      pastKeys.shape.length === 4 &&
      heads % kvHeads === 0 &&
      sameShape(q.shape, [B, T, heads * D]) &&
      sameShape(k.shape, [B, T, kvHeads * D]) &&
      sameShape(v.shape, k.shape) &&
      sameShape(pastValues.shape, pastKeys.shape) &&
      sameShape(lengths.shape, [B]) &&
      lengths.dtype === "i32" &&
      sameShape(total.shape, [1]) &&
      total.dtype === "i32" &&
      tables.every(({ shape }) => sameShape(shape, [S, D / 2]));
    if (!fits) {
      throw new ShapeError({
        where: "cachedAttention",
        rule: "q [B,T,H·D], k and v [B,T,Hk·D], caches [B,Hk,S,D], lengths i32[B], total i32[1], cos and sin [S,D/2]; T ≤ S, Hk divides H",
        got: `${show(inputs)} with H=${heads}, Hk=${kvHeads}`,
      });
    }
    const step = rotated ? ROTATED_WIDTH_STEP : PLAIN_WIDTH_STEP;
    if (D % step !== 0) {
      throw new ShapeError({
        where: "cachedAttention",
        rule: `D must be a multiple of ${step}`,
        got: `D=${D} (${show(inputs)})`,
        remedy: "Choose another head width",
      });
    }
    const cache = { dtype: pastKeys.dtype, shape: pastKeys.shape };
    return [{ dtype: q.dtype, shape: q.shape }, cache, cache];
  },
};
