/**
 * Reverse-mode rules, one row per primitive: the cotangents of the arguments from the cotangent of the result.
 *
 * `null` says an argument gets none (indices, conditions). A rule may compute a cotangent nobody wants; what no output
 * needs is dropped when the trace ends. `scatterAdd…` are the transposes of the gathers and have the gathers as theirs.
 */

import type { Application, PrimitiveName, Value } from "../graph/ir.ts";
import {
  add,
  broadcast,
  cast,
  cumulativeSum,
  div,
  equal,
  full,
  gatherRows,
  greater,
  groupedMatmul,
  groupedOuter,
  less,
  matmul,
  mean,
  mul,
  neg,
  not,
  reshape,
  rotary,
  scatterAddLast,
  scatterAddRows,
  slice,
  sqrt,
  sub,
  sum,
  takeAlongLast,
  transpose,
  transposeLast,
  where,
} from "../graph/primitives.ts";
import { type Shape, sizeOf } from "../tensor/shape.ts";

/** What an argument receives: a cotangent of its own shape, or one for a slice of it. */
export type Contribution =
  | { readonly kind: "whole"; readonly value: Value }
  | {
      readonly kind: "slice";
      readonly axis: number;
      readonly start: number;
      readonly end: number;
      readonly value: Value;
    };

type Rule<P extends PrimitiveName> = (
  application: Application<P>,
  g: Value,
) => readonly (Value | Contribution | null)[];

/** aᵀ·b. Of two matrices the narrower one is transposed, which the lowering does in memory. */
function transposedProduct(a: Value, b: Value): Value {
  return a.shape.length > 2 || b.shape.length > 2 || a.shape[1]! <= b.shape[1]!
    ? matmul(transposeLast(a), b)
    : transposeLast(matmul(transposeLast(b), a));
}

/** Undoes broadcasting: sums over the axes along which an argument of shape `shape` was repeated. */
export function sumTo(g: Value, shape: Shape): Value {
  const lead = g.shape.length - shape.length;
  const axes = g.shape.flatMap((n, i) => (i < lead || (shape[i - lead] === 1 && n !== 1) ? [i] : []));
  return reshape(sum(g, axes, { keepDims: true }), shape);
}

/** A reduced cotangent with its axes put back, at the argument's shape. */
function unreduce(g: Value, x: Value, axes: readonly number[]): Value {
  return broadcast(
    reshape(
      g,
      x.shape.map((n, i) => (axes.includes(i) ? 1 : n)),
    ),
    x.shape,
  );
}

/** Ties share the cotangent of a pairwise extremum equally, as PyTorch does. */
function extremum(application: Application, g: Value, firstWins: Value): Value[] {
  const [a, b] = application.inputs as readonly [Value, Value];
  const tie = cast(equal(a, b), "f32");
  const share = add(cast(firstWins, "f32"), mul(tie, 0.5));
  return [sumTo(mul(g, share), a.shape), sumTo(mul(g, sub(1, share)), b.shape)];
}

const none = (application: Application): null[] => application.inputs.map(() => null);

export const GRADIENT_RULES: { readonly [P in PrimitiveName]: Rule<P> | null } = {
  constant: none,

  neg: (_, g) => [neg(g)],
  // The subgradient at 0 is 0.
  abs: ({ inputs: [x] }, g) => [mul(g, sub(cast(greater(x!, 0), "f32"), cast(less(x!, 0), "f32")))],
  exp: ({ outputs: [y] }, g) => [mul(g, y!)],
  log: ({ inputs: [x] }, g) => [div(g, x!)],
  sqrt: ({ outputs: [y] }, g) => [div(mul(g, 0.5), y!)],
  sigmoid: ({ outputs: [y] }, g) => [mul(g, mul(y!, sub(1, y!)))],
  not: none,
  cast: ({ inputs: [x] }, g) => [x!.dtype === "f32" || x!.dtype === "f16" ? cast(g, x!.dtype) : null],

  stopGradient: none,
  withGradient: ({ attributes: { rule } }, g) => [null, ...rule(g)],

  add: ({ inputs: [a, b] }, g) => [sumTo(g, a!.shape), sumTo(g, b!.shape)],
  sub: ({ inputs: [a, b] }, g) => [sumTo(g, a!.shape), sumTo(neg(g), b!.shape)],
  mul: ({ inputs: [a, b] }, g) => [sumTo(mul(g, b!), a!.shape), sumTo(mul(g, a!), b!.shape)],
  div: ({ inputs: [a, b], outputs: [y] }, g) => {
    const ga = div(g, b!);
    return [sumTo(ga, a!.shape), sumTo(neg(mul(ga, y!)), b!.shape)];
  },
  min: (application, g) => extremum(application, g, less(application.inputs[0]!, application.inputs[1]!)),
  max: (application, g) => extremum(application, g, greater(application.inputs[0]!, application.inputs[1]!)),
  less: none,
  equal: none,
  and: none,
  or: none,

  where: ({ inputs: [condition, a, b] }, g) => {
    const zero = full(g, [], 0);
    return [
      null,
      sumTo(where(condition!, g, zero), a!.shape),
      sumTo(where(not(condition!), g, zero), b!.shape),
    ];
  },

  reduceSum: ({ inputs: [x], attributes: { axes } }, g) => [unreduce(g, x!, axes)],
  // Ties share equally, as in PyTorch's amax.
  reduceMax: ({ inputs: [x], outputs: [y], attributes: { axes } }, g) => {
    const winners = cast(equal(x!, unreduce(y!, x!, axes)), "f32");
    const count = sum(winners, axes, { keepDims: true });
    return [mul(unreduce(g, x!, axes), div(winners, count))];
  },
  argMax: none,
  topK: none,
  // The transpose of a running sum is a running sum from the end: total − running sum + itself.
  cumulativeSum: ({ inputs: [x], attributes: { axis } }, g) => {
    const total = sum(g, [axis], { keepDims: true });
    return [add(sub(broadcast(total, x!.shape), cumulativeSum(g, axis)), g)];
  },

  matmul: ({ inputs: [a, b] }, g) => {
    // [B…,M,K]·[K,N]: fold the batch into the rows, so that the weight gradient is one product and not a sum of many.
    if (b!.shape.length === 2 && a!.shape.length > 2) {
      const [K, N] = b!.shape as readonly [number, number];
      const rows = a!.shape.slice(0, -1).reduce((n, m) => n * m, 1);
      const gRows = reshape(g, [rows, N]);
      return [
        reshape(matmul(gRows, transposeLast(b!)), a!.shape),
        transposedProduct(reshape(a!, [rows, K]), gRows),
      ];
    }
    return [sumTo(matmul(g, transposeLast(b!)), a!.shape), sumTo(transposedProduct(a!, g), b!.shape)];
  },

  groupedMatmul: ({ inputs: [x, counts, ...matrices], attributes: { transposed } }, g) => [
    groupedMatmul(g, counts!, matrices, { transposed: !transposed }),
    null,
    ...(transposed ? groupedOuter(x!, g, counts!) : groupedOuter(g, x!, counts!)),
  ],
  groupedOuter: null,

  dequantize: null,
  matmulNBits: null,

  reshape: ({ inputs: [x] }, g) => [reshape(g, x!.shape)],
  transpose: ({ attributes: { permutation } }, g) => {
    const inverse = permutation.map((_, axis) => permutation.indexOf(axis));
    return [transpose(g, inverse)];
  },
  broadcast: ({ inputs: [x] }, g) => [sumTo(g, x!.shape)],
  slice: ({ attributes: { axis, start, end } }, g) => [{ kind: "slice", axis, start, end, value: g }],
  concat: ({ inputs, attributes: { axis } }, g) => {
    let start = 0;
    return inputs.map((x) => {
      const end = start + x.shape[axis]!;
      const part = slice(g, axis, start, end);
      start = end;
      return part;
    });
  },

  gatherRows: ({ inputs: [table, ids] }, g) => [scatterAddRows(ids!, g, table!.shape[0]!), null],
  scatterAddRows: ({ inputs: [ids] }, g) => [null, gatherRows(g, ids!)],
  takeAlongLast: ({ inputs: [x, indices] }, g) => [scatterAddLast(indices!, g, x!.shape.at(-1)!), null],
  scatterAddLast: ({ inputs: [indices] }, g) => [null, takeAlongLast(g, indices!)],

  // y·(g − Σ g·y), with the product shared.
  softmax: ({ outputs: [y] }, g) => {
    const gy = mul(g, y!);
    return [sub(gy, mul(y!, sum(gy, [-1], { keepDims: true })))];
  },
  // With r = 1/sqrt(mean x² + ε) and x̂ = x·r: r·(g·w − x̂·mean(g·w·x̂)). r is recomputed: the kernel's second output is
  // not written on every device.
  rmsNorm: ({ inputs: [x, weight], attributes: { epsilon } }, g) => {
    const r = div(1, sqrt(add(mean(mul(x!, x!), [-1], { keepDims: true }), epsilon)));
    const normed = mul(x!, r);
    const gNormed = mul(g, normed);
    const C = weight!.shape[0]!;
    // The mean of weight · g · normed, as a product: no array of the terms is written.
    const terms = matmul(reshape(gNormed, [sizeOf(r.shape), C]), reshape(weight!, [C, 1]));
    const projection = mul(reshape(terms, r.shape), 1 / C);
    return [mul(r, sub(mul(g, weight!), mul(normed, projection))), sumTo(gNormed, weight!.shape)];
  },
  // A rotation's transpose is the rotation back. The tables are constants of the position, so they get none.
  rotary: ({ inputs: [, positions, cos, sin], attributes }, g) => [
    rotary(g, positions!, cos!, neg(sin!), attributes),
    null,
    null,
    null,
  ],
  cachedAttention: null,
};
