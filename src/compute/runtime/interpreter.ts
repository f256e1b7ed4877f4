/**
 * The slow reference interpreter: every primitive as plain loops, the oracle for the engine's kernels.
 *
 * Each application computes in float64 and rounds its result once to the precision of its dtype, so what it returns is
 * as near to the exact value as a chain of such roundings can be. `interpretWide` does not round floats at all: finite
 * differences of it are clean. Integers are exact up to 2^53.
 */

import { DTypeError, invariant, ShapeError } from "../../base/errors.ts";
import type { Application, Attributes, Graph, PrimitiveName, Quantization, Value } from "../graph/ir.ts";
import { type DType, typedArray } from "../tensor/dtype.ts";
import { fromHalfBits, toHalfBits } from "../tensor/half.ts";
import { type HostArray, hostArray } from "../tensor/host.ts";
import { type Shape, sameShape, showSpec, sizeOf, stridesOf, type TensorSpec } from "../tensor/shape.ts";

/** An array whose elements, of whatever dtype, are held in float64. */
export interface WideArray extends TensorSpec {
  readonly data: Float64Array;
}

/**
 * Evaluates a graph, rounding the result of every application to its dtype.
 * @param inputs  one array for each input of the graph
 * @throws ShapeError, DTypeError when an input is missing, unknown or not as the graph declares it
 */
export function interpret(
  graph: Graph,
  inputs: Readonly<Record<string, HostArray>>,
): Record<string, HostArray> {
  const wide = Object.fromEntries(Object.entries(inputs).map(([name, x]) => [name, widen(x)]));
  return Object.fromEntries(evaluate(graph, wide, ROUND).map(([name, x]) => [name, narrow(x)]));
}

/**
 * Evaluates a graph in float64 throughout; integers and booleans are still kept to their range.
 * @param inputs  one array for each input of the graph
 * @throws ShapeError, DTypeError when an input is missing, unknown or not as the graph declares it
 */
export function interpretWide(
  graph: Graph,
  inputs: Readonly<Record<string, HostArray | WideArray>>,
): Record<string, WideArray> {
  const wide = Object.fromEntries(Object.entries(inputs).map(([name, x]) => [name, widen(x)]));
  const exact = (x: number): number => x;
  return Object.fromEntries(evaluate(graph, wide, { ...ROUND, f32: exact, f16: exact }));
}

type Rounding = { readonly [D in DType]: (x: number) => number };

const ROUND: Rounding = {
  f32: Math.fround,
  f16: (x) => fromHalfBits(toHalfBits(x)),
  i64: (x) => x,
  i32: (x) => x | 0,
  i8: (x) => (x << 24) >> 24,
  u8: (x) => x & 255,
  bool: (x) => (x === 0 ? 0 : 1),
};

function widen({ dtype, shape, data }: HostArray | WideArray): WideArray {
  if (data instanceof Float64Array) return { dtype, shape, data };
  const numbers = data instanceof BigInt64Array ? Float64Array.from(data, Number) : Float64Array.from(data);
  return { dtype, shape, data: dtype === "f16" ? numbers.map(fromHalfBits) : numbers };
}

function narrow({ dtype, shape, data }: WideArray): HostArray {
  const narrowed = typedArray(dtype, data.length);
  if (narrowed instanceof BigInt64Array) narrowed.set(Array.from(data, BigInt));
  else narrowed.set(dtype === "f16" ? data.map(toHalfBits) : data);
  return hostArray(dtype, shape, narrowed);
}

function evaluate(
  graph: Graph,
  inputs: Readonly<Record<string, WideArray>>,
  rounding: Rounding,
): [string, WideArray][] {
  const values = new Map<Value, WideArray>();
  const unknown = Object.keys(inputs).find((name) => !graph.inputs.has(name));
  if (unknown !== undefined) {
    const rule = `inputs are ${[...graph.inputs.keys()].join(", ")}`;
    throw new ShapeError({ where: "interpret", rule, got: unknown });
  }
  for (const [name, declared] of graph.inputs) {
    const given = inputs[name];
    const rule = `input ${name} must be ${showSpec(declared)}`;
    if (given === undefined) throw new ShapeError({ where: "interpret", rule, got: "nothing" });
    if (given.dtype !== declared.dtype) {
      throw new DTypeError({ where: "interpret", rule, got: showSpec(given) });
    }
    if (!sameShape(given.shape, declared.shape)) {
      throw new ShapeError({ where: "interpret", rule, got: showSpec(given) });
    }
    values.set(declared, given);
  }
  for (const { primitive, inputs: args, attributes, outputs } of graph.applications) {
    const kernel = KERNELS[primitive] as Kernel<PrimitiveName>;
    const known = args.map((x) => values.get(x)!);
    const results = kernel(known, attributes, outputs);
    for (const [i, { dtype, shape }] of outputs.entries()) {
      const data = results[i]!;
      invariant(data.length === sizeOf(shape), `${primitive} computes output ${i} at another size`);
      values.set(outputs[i]!, { dtype, shape, data: data.map(rounding[dtype]) });
    }
  }
  return [...graph.outputs].map(([name, x]) => [name, values.get(x)!]);
}

/** The outputs of one application, in float64, not yet rounded. The arguments must not be written to. */
type Kernel<P extends PrimitiveName> = (
  inputs: readonly WideArray[],
  attributes: Attributes[P],
  outputs: Application["outputs"],
) => readonly Float64Array[];

/** Offsets, under the given strides, of the elements of `shape` in row-major order. */
function walk(shape: Shape, strides: readonly number[], start = 0): Int32Array {
  const offsets = new Int32Array(sizeOf(shape));
  const index = shape.map(() => 0);
  let offset = start;
  for (let i = 0; i < offsets.length; i++) {
    offsets[i] = offset;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index[axis]!++;
      offset += strides[axis]!;
      if (index[axis]! < shape[axis]!) break;
      offset -= shape[axis]! * strides[axis]!;
      index[axis] = 0;
    }
  }
  return offsets;
}

/** For each element of shape `to`, the offset of the element of shape `from` that broadcasts to it. */
function broadcastOffsets(from: Shape, to: Shape): Int32Array {
  const lead = to.length - from.length;
  const strides = stridesOf(from);
  return walk(
    to,
    to.map((_, axis) => (axis < lead || from[axis - lead] === 1 ? 0 : strides[axis - lead]!)),
  );
}

/** For each element of `shape`, the offset of the element it is reduced into. */
function reducedOffsets(shape: Shape, axes: readonly number[]): Int32Array {
  const strides = stridesOf(shape.map((n, axis) => (axes.includes(axis) ? 1 : n)));
  return walk(
    shape,
    shape.map((_, axis) => (axes.includes(axis) ? 0 : strides[axis]!)),
  );
}

/** Elements of `data` at `offsets`, in that order. */
function pick(data: Float64Array, offsets: Int32Array): Float64Array {
  return Float64Array.from(offsets, (offset) => data[offset]!);
}

/** @throws ShapeError when an index would read or write outside `size` elements, which loops would not notice */
function expectWithin(where: string, indices: Float64Array, size: number): void {
  const bad = indices.find((index) => !(index >= 0 && index < size));
  if (bad === undefined) return;
  throw new ShapeError({ where, rule: `indices must lie in 0 … ${size - 1}`, got: String(bad) });
}

/** The group of each row, from how many rows each group has. @throws ShapeError unless they have all rows together */
function groupsOf(where: string, counts: Float64Array, rows: number): number[] {
  const groups = [...counts].flatMap((n, group) => new Array<number>(Math.max(0, n)).fill(group));
  if (groups.length !== rows || counts.some((n) => n < 0)) {
    throw new ShapeError({ where, rule: `counts must add up to ${rows} rows`, got: counts.join(", ") });
  }
  return groups;
}

const unary =
  (f: (x: number) => number): Kernel<PrimitiveName> =>
  ([x]) => [x!.data.map(f)];

const binary =
  (f: (a: number, b: number) => number): Kernel<PrimitiveName> =>
  ([a, b], _, [y]) => {
    const left = pick(a!.data, broadcastOffsets(a!.shape, y!.shape));
    const right = pick(b!.data, broadcastOffsets(b!.shape, y!.shape));
    return [left.map((value, i) => f(value, right[i]!))];
  };

const reduction =
  (initial: number, f: (total: number, x: number) => number): Kernel<"reduceSum" | "reduceMax"> =>
  ([x], { axes }, [y]) => {
    const into = reducedOffsets(x!.shape, axes);
    const result = new Float64Array(sizeOf(y!.shape)).fill(initial);
    for (const [i, value] of x!.data.entries()) result[into[i]!] = f(result[into[i]!]!, value);
    return [result];
  };

/** Applies `f` to each row along the last axis, in place. */
function mapRows(x: WideArray, f: (row: Float64Array) => void): Float64Array {
  const result = x.data.slice();
  const width = x.shape.at(-1)!;
  for (let start = 0; start < result.length; start += width) f(result.subarray(start, start + width));
  return result;
}

function softmaxInPlace(row: Float64Array): void {
  const largest = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  let total = 0;
  for (const [i, x] of row.entries()) total += row[i] = Math.exp(x - largest);
  for (const i of row.keys()) row[i]! /= total;
}

const KERNELS: { readonly [P in PrimitiveName]: Kernel<P> } = {
  constant: (_, { value }) => [widen(value).data],

  neg: unary((x) => -x),
  abs: unary(Math.abs),
  exp: unary(Math.exp),
  log: unary(Math.log),
  sqrt: unary(Math.sqrt),
  sigmoid: unary((x) => 1 / (1 + Math.exp(-x))),
  not: unary((x) => 1 - x),
  cast: ([x], { dtype }) => {
    const isFloat = dtype === "f32" || dtype === "f16";
    return [isFloat || dtype === "bool" ? x!.data : x!.data.map(Math.trunc)];
  },
  stopGradient: ([x]) => [x!.data],
  withGradient: ([x]) => [x!.data],

  add: binary((a, b) => a + b),
  sub: binary((a, b) => a - b),
  mul: binary((a, b) => a * b),
  div: binary((a, b) => a / b),
  min: binary(Math.min),
  max: binary(Math.max),
  less: binary((a, b) => Number(a < b)),
  equal: binary((a, b) => Number(a === b)),
  and: binary((a, b) => a * b),
  or: binary(Math.max),

  where: ([condition, a, b], _, [y]) => {
    const chosen = pick(condition!.data, broadcastOffsets(condition!.shape, y!.shape));
    const yes = pick(a!.data, broadcastOffsets(a!.shape, y!.shape));
    const no = pick(b!.data, broadcastOffsets(b!.shape, y!.shape));
    return [chosen.map((c, i) => (c === 0 ? no[i]! : yes[i]!))];
  },

  reduceSum: reduction(0, (total, x) => total + x),
  reduceMax: reduction(Number.NEGATIVE_INFINITY, Math.max),
  argMax: ([x]) => {
    const width = x!.shape.at(-1)!;
    const rows = x!.data.length / width;
    return [
      Float64Array.from({ length: rows }, (_, row) => {
        const values = x!.data.subarray(row * width, (row + 1) * width);
        return values.indexOf(values.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY));
      }),
    ];
  },
  topK: ([x], { k }) => {
    const width = x!.shape.at(-1)!;
    const result = new Float64Array((x!.data.length / width) * k);
    for (let row = 0; row * width < x!.data.length; row++) {
      const values = x!.data.subarray(row * width, (row + 1) * width);
      // Sorting is stable: of equal elements the first stays first.
      const order = Array.from(values.keys()).sort((a, b) => values[b]! - values[a]! || 0);
      result.set(order.slice(0, k), row * k);
    }
    return [result];
  },
  cumulativeSum: ([x], { axis }) => {
    const result = x!.data.slice();
    const step = stridesOf(x!.shape)[axis]!;
    const size = x!.shape[axis]!;
    // Row-major order visits position p − 1 along the axis before position p.
    for (let i = 0; i < result.length; i++) {
      if (Math.floor(i / step) % size > 0) result[i]! += result[i - step]!;
    }
    return [result];
  },

  matmul: ([a, b], _, [y]) => {
    const [M, K] = a!.shape.slice(-2) as [number, number];
    const N = b!.shape.at(-1)!;
    const batch = y!.shape.slice(0, -2);
    const batchA = broadcastOffsets(a!.shape.slice(0, -2), batch);
    const batchB = broadcastOffsets(b!.shape.slice(0, -2), batch);
    const result = new Float64Array(sizeOf(y!.shape));
    for (let i = 0; i < sizeOf(batch); i++) {
      for (let m = 0; m < M; m++) {
        for (let n = 0; n < N; n++) {
          let total = 0;
          for (let k = 0; k < K; k++) {
            total += a!.data[batchA[i]! * M * K + m * K + k]! * b!.data[batchB[i]! * K * N + k * N + n]!;
          }
          result[i * M * N + m * N + n] = total;
        }
      }
    }
    return [result];
  },

  groupedMatmul: ([x, counts, ...matrices], { transposed }, [y]) => {
    const [K, N] = [x!.shape[1]!, y!.shape[1]!];
    const groups = groupsOf("groupedMatmul", counts!.data, x!.shape[0]!);
    const result = new Float64Array(sizeOf(y!.shape));
    for (const [m, group] of groups.entries()) {
      const matrix = matrices[group]!.data;
      for (let n = 0; n < N; n++) {
        for (let k = 0; k < K; k++) {
          result[m * N + n]! += x!.data[m * K + k]! * matrix[transposed ? k * N + n : n * K + k]!;
        }
      }
    }
    return [result];
  },
  groupedOuter: ([a, b, counts], _, outputs) => {
    const [N, K] = [a!.shape[1]!, b!.shape[1]!];
    const results = outputs.map(() => new Float64Array(N * K));
    for (const [m, group] of groupsOf("groupedOuter", counts!.data, a!.shape[0]!).entries()) {
      for (let n = 0; n < N; n++) {
        for (let k = 0; k < K; k++) {
          results[group]![n * K + k]! += a!.data[m * N + n]! * b!.data[m * K + k]!;
        }
      }
    }
    return results;
  },

  dequantize: (parts, quantization) => [dequantized(parts, quantization)],
  matmulNBits: ([x, ...parts], quantization, [y]) => {
    const weights = dequantized(parts, quantization);
    const [N, K] = [y!.shape.at(-1)!, x!.shape.at(-1)!];
    const result = new Float64Array(sizeOf(y!.shape));
    for (let i = 0; i < result.length; i++) {
      const [m, n] = [Math.floor(i / N), i % N];
      for (let k = 0; k < K; k++) result[i]! += x!.data[m * K + k]! * weights[n * K + k]!;
    }
    return [result];
  },

  reshape: ([x]) => [x!.data],
  transpose: ([x], { permutation }, [y]) => {
    const strides = stridesOf(x!.shape);
    return [
      pick(
        x!.data,
        walk(
          y!.shape,
          permutation.map((axis) => strides[axis]!),
        ),
      ),
    ];
  },
  broadcast: ([x], { shape }) => [pick(x!.data, broadcastOffsets(x!.shape, shape))],
  slice: ([x], { axis, start }, [y]) => {
    const strides = stridesOf(x!.shape);
    return [pick(x!.data, walk(y!.shape, strides, start * strides[axis]!))];
  },
  concat: (parts, { axis }, [y]) => {
    const strides = stridesOf(y!.shape);
    const result = new Float64Array(sizeOf(y!.shape));
    let start = 0;
    for (const { shape, data } of parts) {
      const into = walk(shape, strides, start * strides[axis]!);
      for (const [i, value] of data.entries()) result[into[i]!] = value;
      start += shape[axis]!;
    }
    return [result];
  },

  gatherRows: ([table, ids]) => {
    expectWithin("gatherRows", ids!.data, table!.shape[0]!);
    const width = sizeOf(table!.shape.slice(1));
    const result = new Float64Array(ids!.data.length * width);
    for (const [i, id] of ids!.data.entries()) {
      result.set(table!.data.subarray(id * width, (id + 1) * width), i * width);
    }
    return [result];
  },
  scatterAddRows: ([ids, updates], { rows }, [y]) => {
    expectWithin("scatterAddRows", ids!.data, rows);
    const result = new Float64Array(sizeOf(y!.shape));
    const width = sizeOf(y!.shape.slice(1));
    for (const [i, id] of ids!.data.entries()) {
      for (let j = 0; j < width; j++) result[id * width + j]! += updates!.data[i * width + j]!;
    }
    return [result];
  },
  takeAlongLast: ([x, indices]) => {
    const [from, width] = [x!.shape.at(-1)!, indices!.shape.at(-1)!];
    expectWithin("takeAlongLast", indices!.data, from);
    return [indices!.data.map((index, i) => x!.data[Math.floor(i / width) * from + index]!)];
  },
  scatterAddLast: ([indices, updates], { size }, [y]) => {
    expectWithin("scatterAddLast", indices!.data, size);
    const width = indices!.shape.at(-1)!;
    const result = new Float64Array(sizeOf(y!.shape));
    for (const [i, index] of indices!.data.entries()) {
      result[Math.floor(i / width) * size + index]! += updates!.data[i]!;
    }
    return [result];
  },

  softmax: ([x]) => [mapRows(x!, softmaxInPlace)],
  rmsNorm: ([x, weight], { epsilon }) => [
    mapRows(x!, (row) => {
      const meanSquare = row.reduce((total, value) => total + value * value, 0) / row.length;
      const scale = 1 / Math.sqrt(meanSquare + epsilon);
      for (const i of row.keys()) row[i]! *= scale * weight!.data[i]!;
    }),
  ],
  rotary: ([x, positions, cos, sin], { interleaved }) => {
    const [positionCount, half] = cos!.shape as [number, number];
    expectWithin("rotary", positions!.data, positionCount);
    const width = x!.shape[2]!;
    const result = new Float64Array(x!.data.length);
    for (let start = 0; start < result.length; start += 2 * half) {
      const position = positions!.data[Math.floor(start / width)]!;
      const head = x!.data.subarray(start, start + 2 * half);
      result.set(rotate(head, position, cos!.data, sin!.data, interleaved), start);
    }
    return [result];
  },
  cachedAttention,
};

/** Rows from their codes, scales and offsets. */
function dequantized(parts: readonly WideArray[], { bits, blockSize }: Quantization): Float64Array {
  const [codes, scales, offsets] = parts as readonly [WideArray, WideArray, WideArray?];
  return Float64Array.from({ length: scales.data.length * blockSize }, (_, i) => {
    const code = bits === 8 ? codes.data[i]! : (codes.data[i >> 1]! >> (4 * (i & 1))) & 15;
    const block = Math.floor(i / blockSize);
    return (code - 2 ** (bits - 1)) * scales.data[block]! + (offsets?.data[block] ?? 0);
  });
}

/**
 * One head turned to its position: pairs (j, j + D/2), or (2j, 2j + 1) where they are interleaved, by the angle whose cosine
 * and sine row `position` holds.
 */
function rotate(
  head: Float64Array,
  position: number,
  cos: Float64Array,
  sin: Float64Array,
  interleaved = false,
): Float64Array {
  const half = head.length / 2;
  const turned = new Float64Array(head.length);
  for (let j = 0; j < half; j++) {
    const [c, s] = [cos[position * half + j]!, sin[position * half + j]!];
    const [a, b] = interleaved ? [2 * j, 2 * j + 1] : [j, j + half];
    turned[a] = head[a]! * c - head[b]! * s;
    turned[b] = head[b]! * c + head[a]! * s;
  }
  return turned;
}

/**
 * Attention over a cache, with rotary embedding of queries and keys where tables are given.
 * @source microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.GroupQueryAttention: lengths hold the valid
 * positions minus one; T = total marks a first prompt, which starts at position 0 and may be padded on the right; any
 * other call appends T positions to each sequence. Outputs at padded positions, which mean nothing, are zero here.
 */
function cachedAttention(
  inputs: readonly WideArray[],
  { heads: H, kvHeads: Hk, scale }: Attributes["cachedAttention"],
): readonly Float64Array[] {
  const [q, k, v, pastKeys, pastValues, lengths, total, cos, sin] = inputs.map((x) => x.data) as [
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array?,
    Float64Array?,
  ];
  const turn = (head: Float64Array, position: number): Float64Array =>
    cos === undefined || sin === undefined ? head : rotate(head, position, cos, sin);
  const [B, T] = inputs[0]!.shape as [number, number, number];
  const [S, D] = inputs[3]!.shape.slice(2) as [number, number];
  const attended = new Float64Array(q.length);
  const keys = pastKeys.slice();
  const values = pastValues.slice();
  for (let b = 0; b < B; b++) {
    const valid = lengths[b]! + 1;
    const past = total[0] === T ? 0 : valid - T;
    expectWithin("cachedAttention", Float64Array.of(past, valid - 1), S);
    for (let position = past; position < valid; position++) {
      const row = b * T + position - past;
      for (let h = 0; h < Hk; h++) {
        const cached = ((b * Hk + h) * S + position) * D;
        const [start, end] = [(row * Hk + h) * D, (row * Hk + h + 1) * D];
        keys.set(turn(k.subarray(start, end), position), cached);
        values.set(v.subarray(start, end), cached);
      }
      for (let h = 0; h < H; h++) {
        const start = (row * H + h) * D;
        const query = turn(q.subarray(start, start + D), position);
        const head = (b * Hk + Math.floor(h / (H / Hk))) * S * D;
        const weights = Float64Array.from({ length: position + 1 }, (_, s) =>
          query.reduce((dot, x, d) => dot + x * keys[head + s * D + d]! * scale, 0),
        );
        softmaxInPlace(weights);
        for (const [s, weight] of weights.entries()) {
          for (let d = 0; d < D; d++) attended[start + d]! += weight * values[head + s * D + d]!;
        }
      }
    }
  }
  return [attended, keys, values];
}
