/**
 * What every primitive and composite is tried on. Adding an operation means adding a row here: a primitive without one
 * does not compile.
 */

import type { PrimitiveName, Value } from "../../src/compute/graph/ir.ts";
import * as p from "../../src/compute/graph/primitives.ts";
import type * as attentionOps from "../../src/compute/ops/attention.ts";
import { attention } from "../../src/compute/ops/attention.ts";
import type * as stableOps from "../../src/compute/ops/stable.ts";
import {
  gatedSilu,
  logSoftmax,
  logSumExp,
  rmsNormUnfused,
  rotaryUnfused,
  silu,
  softmaxUnfused,
} from "../../src/compute/ops/stable.ts";
import { f32, type HostArray, hostArray, i32 } from "../../src/compute/tensor/host.ts";
import type { Random } from "../../src/compute/tensor/random.ts";
import type { Shape } from "../../src/compute/tensor/shape.ts";
import { type Arrays, bools, f16, i64, ids, normal, positive, type Row, type Traced } from "./harness.ts";

type Rows = readonly [Row, ...Row[]];

// Rows shared by families of primitives

function unaryRows(name: string, f: (x: Value) => Value, make = normal): [Row, ...Row[]] {
  const fn = ({ x }: Traced): Value => f(x!);
  return [
    { name: `${name} of a matrix`, inputs: (random) => ({ x: make(random, [3, 4]) }), fn },
    { name: `${name} of a scalar`, inputs: (random) => ({ x: make(random, []) }), fn },
  ];
}

/** Aligned, broadcast on either side and on both, against axes of length 1 and against scalars. */
function binaryRows(name: string, f: (a: p.Operand, b: p.Operand) => Value, make = normal): [Row, ...Row[]] {
  const shapes: [string, Shape, Shape][] = [
    ["of equal shapes", [2, 3], [2, 3]],
    ["broadcast on the left", [3], [2, 3]],
    ["broadcast on the right", [2, 3], [2, 1]],
    ["broadcast on both sides", [4, 1, 3], [2, 1]],
    ["of axes of length 1", [1, 1], [1]],
    ["of a scalar and an array", [], [2, 2]],
    ["of scalars", [], []],
  ];
  return [
    {
      name: `${name} of a number and an array`,
      inputs: (random) => ({ x: make(random, [3]) }),
      fn: ({ x }) => f(1.5, x!),
    },
    {
      name: `${name} of an array and a number`,
      inputs: (random) => ({ x: make(random, [3]) }),
      fn: ({ x }) => f(x!, 1.5),
    },
    ...shapes.map(
      ([how, a, b]): Row => ({
        name: `${name} ${how}`,
        inputs: (random) => ({ a: make(random, a), b: make(random, b) }),
        fn: (inputs) => f(inputs.a!, inputs.b!),
      }),
    ),
  ];
}

/** The same function on small integers of both widths. */
function integerRows(name: string, f: (a: Value, b: Value) => Value): Row[] {
  const [a, b] = [
    [-3, 0, 5, 7],
    [2, 0, 5, -7],
  ] as const;
  const fn = (inputs: Traced): Value => f(inputs.a!, inputs.b!);
  return [
    { name: `${name} of i32`, inputs: () => ({ a: i32([4], a), b: i32([4], b) }), fn },
    { name: `${name} of i64`, inputs: () => ({ a: i64([4], a), b: i64([4], b) }), fn },
  ];
}

/** Both arguments equal in places, where the gradient is shared. */
function tieRow(name: string, f: (a: Value, b: Value) => Value): Row {
  return {
    name: `${name} of arguments with ties`,
    inputs: () => ({ a: f32([4], [1, 2, 3, -1]), b: f32([4], [1, 5, 3, -2]) }),
    fn: (inputs) => f(inputs.a!, inputs.b!),
  };
}

// Attention over a cache

/** Cosines and sines of S positions for heads of width D. */
function tables(S: number, D: number): { cos: HostArray<"f32">; sin: HostArray<"f32"> } {
  const angles = Array.from({ length: (S * D) / 2 }, (_, i) => {
    const [position, j] = [Math.floor(i / (D / 2)), i % (D / 2)];
    return position * 100 ** ((-2 * j) / D);
  });
  return { cos: f32([S, D / 2], angles.map(Math.cos)), sin: f32([S, D / 2], angles.map(Math.sin)) };
}

interface QuantizedCase {
  readonly bits: 4 | 8;
  readonly blockSize: 16 | 32;
  readonly offsets: boolean;
}

/** A matrix of 5 rows and 64 columns: codes of all sizes under scales of both signs. */
function quantizedInputs(
  random: Random,
  { bits, blockSize, offsets }: QuantizedCase,
): Record<string, HostArray> {
  const blocks = [5, 64 / blockSize];
  const bytes = 5 * 8 * bits;
  const codes = Uint8Array.from({ length: bytes }, () => random.integer(256));
  return {
    codes: hostArray("u8", [...blocks, (blockSize * bits) / 8], codes),
    scales: normal(random, blocks),
    ...(offsets ? { offsets: normal(random, blocks) } : {}),
  };
}

/** With `rows`, a product of as many with the matrix; without, the matrix. */
function quantizedRow({
  name,
  rows,
  ...rest
}: QuantizedCase & { readonly name: string; readonly rows?: Shape }): Row {
  const quantization = { bits: rest.bits, blockSize: rest.blockSize, activations: "f32" } as const;
  return {
    name,
    inputs: (random) => ({
      ...(rows === undefined ? {} : { x: normal(random, [...rows, 64]) }),
      ...quantizedInputs(random, rest),
    }),
    fn: ({ x, codes, scales, offsets }) => {
      const parts: p.QuantizedParts = offsets ? [codes!, scales!, offsets] : [codes!, scales!];
      return x === undefined ? p.dequantize(parts, quantization) : p.matmulNBits(x, parts, quantization);
    },
    differentiable: [],
  };
}

interface CacheCase {
  readonly name: string;
  readonly B: number;
  /** New positions of each row, padded ones included. */
  readonly T: number;
  readonly H: number;
  readonly Hk: number;
  /** Valid positions of each row after the call. */
  readonly valid: readonly number[];
  /** Largest of them by default; T for a first prompt in which every row is padded. */
  readonly total?: number;
}

/** Outputs are compared where positions are valid: after `valid` the cache may keep or clear what it held. */
function cachedAttentionRow({ name, B, T, H, Hk, valid, total = Math.max(...valid) }: CacheCase): Row {
  const [S, D] = [8, 16];
  const past = valid.map((n) => (total === T ? 0 : n - T));
  // 1 for all `width` numbers of a [B, …, positions, width] array at which `isValid`.
  const mark = (positions: number, width: number, isValid: (b: number, position: number) => boolean) =>
    valid.flatMap((_, b) =>
      Array.from({ length: positions * width }, (_, i) => (isValid(b, Math.floor(i / width)) ? 1 : 0)),
    );
  const cache = mark(Hk * S, D, (b, row) => row % S < valid[b]!);
  return {
    name,
    inputs: (random) => ({
      q: normal(random, [B, T, H * D]),
      k: normal(random, [B, T, Hk * D]),
      v: normal(random, [B, T, Hk * D]),
      pastKeys: normal(random, [B, Hk, S, D]),
      pastValues: normal(random, [B, Hk, S, D]),
      lengths: i32(
        [B],
        valid.map((n) => n - 1),
      ),
      total: i32([1], [total]),
      ...tables(S, D),
    }),
    fn: ({ q, k, v, pastKeys, pastValues, lengths, total, cos, sin }) =>
      p.cachedAttention(
        {
          q: q!,
          k: k!,
          v: v!,
          pastKeys: pastKeys!,
          pastValues: pastValues!,
          lengths: lengths!,
          total: total!,
          cos: cos!,
          sin: sin!,
        },
        { heads: H, kvHeads: Hk, scale: 0.3 },
      ),
    differentiable: [],
    inPlace: [
      ["pastKeys", "keys"],
      ["pastValues", "values"],
    ],
    meaningful: {
      attended: mark(T, H * D, (b, t) => past[b]! + t < valid[b]!),
      keys: cache,
      values: cache,
    },
  };
}

/** The same, where queries, keys and values are cut from one array. */
function cutAttentionRow(options: CacheCase): Row {
  const { B, T, H, Hk } = options;
  const row = cachedAttentionRow(options);
  const D = 16;
  return {
    ...row,
    inputs: (random) => {
      const { q, k, v, ...rest } = row.inputs(random);
      return { qkv: normal(random, [B, T, (H + 2 * Hk) * D]), ...rest };
    },
    fn: ({ qkv, ...rest }) => {
      const [keys, values] = [H * D, (H + Hk) * D];
      const cut = {
        q: p.slice(qkv!, -1, 0, keys),
        k: p.slice(qkv!, -1, keys, values),
        v: p.slice(qkv!, -1, values, values + Hk * D),
      };
      return row.fn({ ...cut, ...rest });
    },
  };
}

/** Attention over a latent cache: nothing is rotated, and one array is keys and values, its memory updated by both. */
function latentAttentionRow({
  name,
  B,
  T,
  H,
  valid,
  total = Math.max(...valid),
}: Omit<CacheCase, "Hk">): Row {
  const [S, D] = [8, 24];
  const row = cachedAttentionRow({ name, B, T, H, Hk: 1, valid, total });
  const past = valid.map((n) => (total === T ? 0 : n - T));
  const mark = (positions: number, width: number, isValid: (b: number, position: number) => boolean) =>
    valid.flatMap((_, b) =>
      Array.from({ length: positions * width }, (_, i) => (isValid(b, Math.floor(i / width)) ? 1 : 0)),
    );
  const cache = mark(S, D, (b, position) => position < valid[b]!);
  return {
    ...row,
    inputs: (random) => {
      const { lengths, total: largest } = row.inputs(random);
      return {
        q: normal(random, [B, T, H * D]),
        k: normal(random, [B, T, D]),
        past: normal(random, [B, 1, S, D]),
        lengths: lengths!,
        total: largest!,
      };
    },
    fn: ({ q, k, past: before, lengths, total: largest }) =>
      p.cachedAttention(
        {
          q: q!,
          k: k!,
          v: k!,
          pastKeys: before!,
          pastValues: before!,
          lengths: lengths!,
          total: largest!,
        },
        { heads: H, kvHeads: 1, scale: 0.3 },
      ),
    inPlace: [
      ["past", "keys"],
      ["past", "values"],
    ],
    meaningful: {
      attended: mark(T, H * D, (b, t) => past[b]! + t < valid[b]!),
      keys: cache,
      values: cache,
    },
  };
}

/** Products by group, plain and transposed, of groups that are uneven, empty and alone. */
function groupedRows(): [Row, ...Row[]] {
  const counts: [string, readonly number[]][] = [
    ["of uneven groups", [3, 1, 2]],
    ["with an empty group", [0, 4, 2]],
    ["with all rows in the last group", [0, 0, 6]],
  ];
  const rows = [false, true].flatMap((transposed) =>
    counts.map(
      ([how, sizes]): Row => ({
        name: `groupedMatmul ${how}${transposed ? ", transposed" : ""}`,
        inputs: (random) => ({
          x: normal(random, [6, transposed ? 2 : 4]),
          counts: i32([3], sizes),
          first: normal(random, [2, 4]),
          second: normal(random, [2, 4]),
          third: normal(random, [2, 4]),
        }),
        fn: ({ x, counts, first, second, third }) =>
          p.groupedMatmul(x!, counts!, [first!, second!, third!], { transposed }),
      }),
    ),
  );
  return rows as [Row, ...Row[]];
}

// The tables

export const PRIMITIVE_ROWS: { readonly [P in PrimitiveName]: Rows } = {
  constant: [
    {
      name: "constant that is itself a result",
      inputs: (random) => ({ x: normal(random, [2]) }),
      fn: ({ x }) => ({ y: p.constant(x!, f32([2, 2], [1, -2, 3, 0.1])), z: p.neg(x!) }),
    },
    {
      name: "constant scalar that is a result",
      inputs: (random) => ({ x: normal(random, [2]) }),
      fn: ({ x }) => p.scalar(x!, 2.5),
    },
    {
      name: "constant of every dtype",
      inputs: (random) => ({ x: normal(random, [1]) }),
      fn: ({ x }) => ({
        f32: p.scalar(x!, -0.5),
        f16: p.scalar(x!, -0.5, "f16"),
        i64: p.scalar(x!, -7, "i64"),
        i32: p.scalar(x!, -7, "i32"),
        i8: p.scalar(x!, -7, "i8"),
        u8: p.scalar(x!, 200, "u8"),
        bool: p.scalar(x!, 1, "bool"),
      }),
    },
    {
      name: "constant negative zero beside zero",
      inputs: (random) => ({ x: positive(random, [2]) }),
      fn: ({ x }) => ({ up: p.div(x!, 0), down: p.div(x!, -0) }),
      differentiable: [],
    },
  ],

  neg: [
    ...unaryRows("neg", p.neg),
    { name: "neg of i32", inputs: () => ({ x: i32([3], [-1, 0, 4]) }), fn: ({ x }) => p.neg(x!) },
  ],
  abs: [
    ...unaryRows("abs", p.abs),
    { name: "abs at zero", inputs: () => ({ x: f32([3], [-2, 0, 2]) }), fn: ({ x }) => p.abs(x!) },
    { name: "abs of i32", inputs: () => ({ x: i32([3], [-1, 0, 4]) }), fn: ({ x }) => p.abs(x!) },
  ],
  exp: [
    ...unaryRows("exp", p.exp),
    {
      name: "exp where it vanishes and overflows",
      inputs: () => ({ x: f32([4], [-200, -80, 80, 200]) }),
      fn: ({ x }) => p.exp(x!),
      differentiable: [],
    },
  ],
  log: unaryRows("log", p.log, positive),
  sqrt: unaryRows("sqrt", p.sqrt, positive),
  sigmoid: [
    ...unaryRows("sigmoid", p.sigmoid),
    {
      name: "sigmoid where it saturates",
      inputs: () => ({ x: f32([5], [-200, -20, 0, 20, 200]) }),
      fn: ({ x }) => p.sigmoid(x!),
    },
  ],
  not: [
    {
      name: "not",
      inputs: () => ({ x: hostArray("bool", [2], Uint8Array.of(0, 1)) }),
      fn: ({ x }) => p.not(x!),
    },
  ],
  cast: [
    {
      name: "cast f32 to integers truncates",
      inputs: () => ({ x: f32([5], [-2.7, -0.5, 0, 1.5, 2.9]) }),
      fn: ({ x }) => ({ i32: p.cast(x!, "i32"), i64: p.cast(x!, "i64") }),
    },
    {
      name: "cast f32 to bool",
      inputs: () => ({ x: f32([3], [-0.25, 0, 3]) }),
      fn: ({ x }) => p.cast(x!, "bool"),
    },
    {
      name: "cast to f32",
      inputs: (random) => ({
        a: ids(random, [3], 9),
        b: bools(random, [3]),
        c: i64([1], [2 ** 24 + 1]),
      }),
      fn: ({ a, b, c }) => ({
        fromI32: p.cast(a!, "f32"),
        fromBool: p.cast(b!, "f32"),
        fromI64: p.cast(c!, "f32"),
      }),
    },
    {
      name: "cast f32 to f16 rounds to even, overflows and keeps subnormals",
      inputs: () => ({ x: f32([8], [2049, 2051, 65504, 65519, 65520, -1e9, 2 ** -24, 2 ** -26]) }),
      fn: ({ x }) => p.cast(x!, "f16"),
    },
    {
      name: "cast f32 through f16",
      inputs: () => ({ x: f32([5], [0.1, -1e-6, 1 / 3, 2 ** -24, 5]) }),
      fn: ({ x }) => p.cast(p.cast(x!, "f16"), "f32"),
    },
  ],

  withGradient: [
    {
      name: "withGradient of a rule that is right",
      inputs: (random) => ({ x: normal(random, [3]) }),
      fn: ({ x }) => p.withGradient(p.mul(x!, x!), [x!], (g) => [p.mul(p.mul(x!, 2), g)]),
    },
  ],

  stopGradient: [
    {
      name: "stopGradient",
      // Finite differences do not stop; the gradient has a test of its own.
      inputs: (random) => ({ x: normal(random, [3]) }),
      fn: ({ x }) => p.mul(x!, p.stopGradient(x!)),
      differentiable: [],
    },
    {
      name: "stopGradient of integers",
      inputs: (random) => ({ x: ids(random, [3], 9) }),
      fn: ({ x }) => p.stopGradient(x!),
    },
  ],

  add: [
    ...binaryRows("add", p.add),
    ...integerRows("add", p.add),
    {
      name: "add of f16",
      inputs: () => ({ a: f16([3], [1, 0.1, 2048]), b: f16([3], [0.5, 0.2, 1]) }),
      fn: ({ a, b }) => ({ sum: p.add(a!, b!), half: p.add(a!, 0.5) }),
    },
    {
      name: "add of a value to itself",
      inputs: (random) => ({ x: normal(random, [3]) }),
      fn: ({ x }) => p.add(x!, x!),
    },
  ],
  sub: [...binaryRows("sub", p.sub), ...integerRows("sub", p.sub)],
  mul: [
    ...binaryRows("mul", p.mul),
    ...integerRows("mul", p.mul),
    {
      name: "mul of a value by itself",
      inputs: (random) => ({ x: normal(random, [3]) }),
      fn: ({ x }) => p.mul(x!, x!),
    },
  ],
  div: binaryRows("div", p.div, positive),
  min: [...binaryRows("min", p.min), ...integerRows("min", p.min), tieRow("min", p.min)],
  max: [...binaryRows("max", p.max), ...integerRows("max", p.max), tieRow("max", p.max)],
  less: [...binaryRows("less", p.less), ...integerRows("less", p.less), tieRow("less", p.less)],
  equal: [...binaryRows("equal", p.equal), ...integerRows("equal", p.equal), tieRow("equal", p.equal)],
  and: [
    {
      name: "and, broadcast",
      inputs: (random) => ({ a: bools(random, [2, 3]), b: bools(random, [3]) }),
      fn: ({ a, b }) => p.and(a!, b!),
    },
  ],
  or: [
    {
      name: "or, broadcast",
      inputs: (random) => ({ a: bools(random, [3]), b: bools(random, [2, 1]) }),
      fn: ({ a, b }) => p.or(a!, b!),
    },
  ],
  where: [
    {
      name: "where of equal shapes",
      inputs: (random) => ({
        c: bools(random, [2, 3]),
        a: normal(random, [2, 3]),
        b: normal(random, [2, 3]),
      }),
      fn: ({ c, a, b }) => p.where(c!, a!, b!),
    },
    {
      name: "where with all three broadcast",
      inputs: (random) => ({ c: bools(random, [2, 1]), a: normal(random, [3]), b: normal(random, []) }),
      fn: ({ c, a, b }) => p.where(c!, a!, b!),
    },
    {
      name: "where with a wide condition and numbers",
      inputs: (random) => ({ c: bools(random, [4]), a: normal(random, []) }),
      fn: ({ c, a }) => ({ one: p.where(c!, a!, 2), both: p.where(c!, -1, 1) }),
    },
    {
      name: "where of integers and of booleans",
      inputs: (random) => ({
        c: bools(random, [4]),
        i: ids(random, [4], 9),
        yes: bools(random, [4]),
        no: bools(random, [4]),
      }),
      fn: ({ c, i, yes, no }) => ({ integers: p.where(c!, i!, -1), booleans: p.where(c!, yes!, no!) }),
    },
  ],

  reduceSum: [
    {
      name: "reduceSum over a middle axis",
      inputs: (random) => ({ x: normal(random, [2, 3, 4]) }),
      fn: ({ x }) => p.sum(x!, [1]),
    },
    {
      name: "reduceSum over outer axes, kept",
      inputs: (random) => ({ x: normal(random, [2, 3, 4]) }),
      fn: ({ x }) => p.sum(x!, [-1, 0], { keepDims: true }),
    },
    {
      name: "reduceSum over everything",
      inputs: (random) => ({ x: normal(random, [2, 3]) }),
      fn: ({ x }) => p.sum(x!),
    },
    {
      name: "reduceSum over an axis of length 1",
      inputs: (random) => ({ x: normal(random, [3, 1]) }),
      fn: ({ x }) => p.sum(x!, [1]),
    },
    {
      name: "reduceSum of i32",
      inputs: (random) => ({ x: ids(random, [2, 5], 9) }),
      fn: ({ x }) => p.sum(x!, [1]),
    },
  ],
  reduceMax: [
    {
      name: "reduceMax over the last axis, kept",
      inputs: (random) => ({ x: normal(random, [3, 4]) }),
      fn: ({ x }) => p.reduceMax(x!, [-1], { keepDims: true }),
    },
    {
      name: "reduceMax over two axes",
      inputs: (random) => ({ x: normal(random, [2, 3, 4]) }),
      fn: ({ x }) => p.reduceMax(x!, [0, 2]),
    },
    {
      name: "reduceMax with two ties a row",
      inputs: () => ({ x: f32([2, 3], [4, 1, 4, -2, -2, -3]) }),
      fn: ({ x }) => p.reduceMax(x!, [1]),
    },
    {
      name: "reduceMax over an axis of length 1",
      inputs: (random) => ({ x: normal(random, [1, 3]) }),
      fn: ({ x }) => p.reduceMax(x!, [0]),
    },
    {
      name: "reduceMax of i32",
      inputs: (random) => ({ x: ids(random, [2, 5], 9) }),
      fn: ({ x }) => p.reduceMax(x!, [1]),
    },
  ],
  argMax: [
    {
      name: "argMax of rows",
      inputs: (random) => ({ x: normal(random, [2, 3, 5]) }),
      fn: ({ x }) => p.argMax(x!),
    },
    {
      name: "argMax with ties takes the first",
      inputs: () => ({ x: f32([2, 4], [1, 7, 7, 7, 0, 0, 0, 0]) }),
      fn: ({ x }) => p.argMax(x!),
    },
    {
      name: "argMax over an axis of length 1",
      inputs: (random) => ({ x: normal(random, [3, 1]) }),
      fn: ({ x }) => p.argMax(x!),
    },
    {
      name: "argMax of a vector",
      inputs: (random) => ({ x: normal(random, [6]) }),
      fn: ({ x }) => p.argMax(x!),
    },
  ],
  topK: [
    {
      name: "topK of rows",
      inputs: (random) => ({ x: normal(random, [3, 7]) }),
      fn: ({ x }) => p.topK(x!, 3),
    },
    {
      name: "topK of all, and with ties the first first",
      inputs: () => ({ x: f32([2, 4], [2, 1, 2, 1, 0, 0, 0, 0]) }),
      fn: ({ x }) => p.topK(x!, 4),
    },
    {
      name: "topK that sorts many numbers with ties",
      inputs: (random) => ({ x: f32([500], [...ids(random, [500], 9).data]) }),
      fn: ({ x }) => p.topK(x!, 500),
    },
    {
      name: "topK with excluded elements",
      inputs: () => ({ x: f32([4], [-Infinity, -1, -Infinity, -5]) }),
      fn: ({ x }) => p.topK(x!, 2),
    },
  ],
  groupedMatmul: groupedRows(),
  groupedOuter: [
    {
      name: "groupedOuter with an empty group",
      inputs: (random) => ({
        a: normal(random, [5, 3]),
        b: normal(random, [5, 2]),
        counts: i32([3], [2, 0, 3]),
      }),
      fn: ({ a, b, counts }) => {
        const [first, second, third] = p.groupedOuter(a!, b!, counts!);
        return { first: first!, second: second!, third: third! };
      },
      differentiable: [],
    },
  ],
  cumulativeSum: [
    {
      name: "cumulativeSum along the last axis",
      inputs: (random) => ({ x: normal(random, [2, 5]) }),
      fn: ({ x }) => p.cumulativeSum(x!, -1),
    },
    {
      name: "cumulativeSum along a middle axis",
      inputs: (random) => ({ x: normal(random, [2, 4, 3]) }),
      fn: ({ x }) => p.cumulativeSum(x!, 1),
    },
    {
      name: "cumulativeSum along an axis of length 1",
      inputs: (random) => ({ x: normal(random, [1, 3]) }),
      fn: ({ x }) => p.cumulativeSum(x!, 0),
    },
    {
      name: "cumulativeSum of i32",
      inputs: (random) => ({ x: ids(random, [2, 4], 9) }),
      fn: ({ x }) => p.cumulativeSum(x!, 1),
    },
  ],

  matmul: (
    [
      ["of matrices", [2, 3], [3, 4]],
      ["of a batch and a matrix", [2, 3, 4, 5], [5, 2]],
      ["of a matrix and a batch", [3, 4], [2, 4, 5]],
      ["of two batches", [2, 3, 4, 5], [2, 3, 5, 2]],
      ["of batches broadcast on both sides", [4, 1, 2, 3], [2, 3, 2]],
      ["with every size 1", [1, 1], [1, 1]],
      ["of a row and a column", [1, 6], [6, 1]],
    ] as const
  ).map(
    ([how, a, b]): Row => ({
      name: `matmul ${how}`,
      inputs: (random) => ({ a: normal(random, a), b: normal(random, b) }),
      fn: (inputs) => p.matmul(inputs.a!, inputs.b!),
    }),
  ) as [Row, ...Row[]],

  reshape: [
    {
      name: "reshape that folds and splits",
      inputs: (random) => ({ x: normal(random, [2, 6]) }),
      fn: ({ x }) => p.reshape(x!, [3, 1, 4]),
    },
    {
      name: "reshape to a scalar and back",
      inputs: (random) => ({ x: normal(random, [1, 1]) }),
      fn: ({ x }) => ({ scalar: p.reshape(x!, []), back: p.reshape(p.neg(p.reshape(x!, [])), [1]) }),
    },
  ],
  transpose: [
    {
      name: "transpose of a matrix",
      inputs: (random) => ({ x: normal(random, [2, 3]) }),
      fn: ({ x }) => p.transposeLast(x!),
    },
    {
      name: "transpose that turns three axes",
      inputs: (random) => ({ x: normal(random, [2, 3, 4]) }),
      fn: ({ x }) => p.transpose(x!, [1, 2, 0]),
    },
    {
      name: "transpose of heads and positions",
      inputs: (random) => ({ x: normal(random, [2, 3, 1, 4]) }),
      fn: ({ x }) => p.transpose(x!, [0, 2, 1, 3]),
    },
  ],
  broadcast: [
    {
      name: "broadcast along new and length-1 axes",
      inputs: (random) => ({ x: normal(random, [3, 1]) }),
      fn: ({ x }) => p.broadcast(x!, [2, 3, 4]),
    },
    {
      name: "broadcast of a scalar",
      inputs: (random) => ({ x: normal(random, []) }),
      fn: ({ x }) => p.broadcast(x!, [2, 2]),
    },
    {
      name: "broadcast of booleans",
      inputs: (random) => ({ x: bools(random, [3]) }),
      fn: ({ x }) => p.broadcast(x!, [2, 3]),
    },
  ],
  slice: [
    {
      name: "slice from the middle",
      inputs: (random) => ({ x: normal(random, [2, 6]) }),
      fn: ({ x }) => p.slice(x!, 1, 2, 4),
    },
    {
      name: "slice of one element at either end",
      inputs: (random) => ({ x: normal(random, [4, 2]) }),
      fn: ({ x }) => ({ first: p.slice(x!, 0, 0, 1), last: p.slice(x!, 0, 3, 4) }),
    },
    {
      name: "slices that overlap, repeat and leave gaps",
      inputs: (random) => ({ x: normal(random, [7]) }),
      fn: ({ x }) => ({
        a: p.slice(x!, 0, 0, 3),
        b: p.slice(x!, 0, 2, 5),
        c: p.exp(p.slice(x!, 0, 2, 5)),
        whole: p.neg(x!),
      }),
    },
    {
      name: "slices along two axes",
      inputs: (random) => ({ x: normal(random, [3, 4]) }),
      fn: ({ x }) => ({ rows: p.slice(x!, 0, 1, 2), columns: p.slice(x!, -1, 0, 3) }),
    },
  ],
  concat: [
    {
      name: "concat of three along the first axis",
      inputs: (random) => ({
        a: normal(random, [1, 2]),
        b: normal(random, [3, 2]),
        c: normal(random, [2, 2]),
      }),
      fn: ({ a, b, c }) => p.concat([a!, b!, c!], 0),
    },
    {
      name: "concat of a value with itself along the last axis",
      inputs: (random) => ({ x: normal(random, [2, 3]) }),
      fn: ({ x }) => p.concat([x!, x!], -1),
    },
    {
      name: "concat of integers",
      inputs: (random) => ({ a: ids(random, [2], 9), b: ids(random, [1], 9) }),
      fn: ({ a, b }) => p.concat([a!, b!], 0),
    },
  ],

  gatherRows: [
    {
      name: "gatherRows with repeated ids",
      inputs: (random) => ({ table: normal(random, [4, 3]), ids: ids(random, [2, 5], 4) }),
      fn: (inputs) => p.gatherRows(inputs.table!, inputs.ids!),
    },
    {
      name: "gatherRows of elements",
      inputs: (random) => ({ table: normal(random, [4]), ids: ids(random, [6], 4) }),
      fn: (inputs) => p.gatherRows(inputs.table!, inputs.ids!),
    },
    {
      name: "gatherRows of matrices by one id",
      inputs: (random) => ({ table: normal(random, [3, 2, 2]), ids: i32([], [2]) }),
      fn: (inputs) => p.gatherRows(inputs.table!, inputs.ids!),
    },
    {
      name: "gatherRows of a large table",
      inputs: (random) => ({ table: normal(random, [1100, 1]), ids: i32([4], [0, 1099, 1099, 512]) }),
      fn: (inputs) => p.gatherRows(inputs.table!, inputs.ids!),
    },
    {
      name: "gatherRows of integers",
      inputs: (random) => ({ table: ids(random, [4, 2], 99), ids: ids(random, [3], 4) }),
      fn: (inputs) => p.gatherRows(inputs.table!, inputs.ids!),
    },
  ],
  scatterAddRows: [
    {
      name: "scatterAddRows with repeated ids",
      inputs: (random) => ({ ids: ids(random, [2, 5], 3), updates: normal(random, [2, 5, 3]) }),
      fn: ({ ids, updates }) => p.scatterAddRows(ids!, updates!, 4),
    },
    {
      name: "scatterAddRows of elements into one row",
      inputs: (random) => ({ ids: i32([5], [0, 0, 0, 0, 0]), updates: normal(random, [5]) }),
      fn: ({ ids, updates }) => p.scatterAddRows(ids!, updates!, 1),
    },
    {
      name: "scatterAddRows of one matrix",
      inputs: (random) => ({ ids: i32([], [1]), updates: normal(random, [2, 3]) }),
      fn: ({ ids, updates }) => p.scatterAddRows(ids!, updates!, 3),
    },
    {
      name: "scatterAddRows into a large table",
      inputs: (random) => ({ ids: i32([5], [3, 1025, 3, 0, 1025]), updates: normal(random, [5, 2]) }),
      fn: ({ ids, updates }) => p.scatterAddRows(ids!, updates!, 1026),
    },
  ],
  takeAlongLast: [
    {
      name: "takeAlongLast with repeated indices",
      inputs: (random) => ({ x: normal(random, [2, 3, 4]), indices: ids(random, [2, 3, 5], 4) }),
      fn: ({ x, indices }) => p.takeAlongLast(x!, indices!),
    },
    {
      name: "takeAlongLast of one element a row",
      inputs: (random) => ({ x: normal(random, [4, 3]), indices: ids(random, [4, 1], 3) }),
      fn: ({ x, indices }) => p.takeAlongLast(x!, indices!),
    },
    {
      name: "takeAlongLast of a vector",
      inputs: (random) => ({ x: normal(random, [5]), indices: ids(random, [7], 5) }),
      fn: ({ x, indices }) => p.takeAlongLast(x!, indices!),
    },
  ],
  scatterAddLast: [
    {
      name: "scatterAddLast with repeated indices",
      inputs: (random) => ({ indices: ids(random, [2, 3, 6], 4), updates: normal(random, [2, 3, 6]) }),
      fn: ({ indices, updates }) => p.scatterAddLast(indices!, updates!, 4),
    },
    {
      name: "scatterAddLast of one element a row",
      inputs: (random) => ({ indices: ids(random, [3, 1], 5), updates: normal(random, [3, 1]) }),
      fn: ({ indices, updates }) => p.scatterAddLast(indices!, updates!, 5),
    },
  ],

  softmax: [
    {
      name: "softmax of rows",
      inputs: (random) => ({ x: normal(random, [2, 3, 5]) }),
      fn: ({ x }) => p.softmax(x!),
    },
    {
      name: "softmax far from zero",
      inputs: () => ({ x: f32([2, 3], [1000, 1001, 999, -1000, -1002, -1001]) }),
      fn: ({ x }) => p.softmax(x!),
    },
    {
      name: "softmax over an axis of length 1",
      inputs: (random) => ({ x: normal(random, [3, 1]) }),
      fn: ({ x }) => p.softmax(x!),
    },
    {
      name: "softmax of a vector with ties",
      inputs: () => ({ x: f32([4], [2, 2, 2, 1]) }),
      fn: ({ x }) => p.softmax(x!),
    },
    {
      name: "softmax of rows masked in part and in full",
      // A finite minimum absorbs what is added to it, so finite differences see nothing; the gradient has a test of its own.
      inputs: (random) => ({
        x: normal(random, [3, 3]),
        mask: f32([3, 3], [0, 0, 0, 0, -1e30, 0, -1e30, -1e30, -1e30]),
      }),
      fn: ({ x, mask }) => p.softmax(p.add(x!, mask!)),
      differentiable: [],
    },
  ],
  rmsNorm: [
    {
      name: "rmsNorm of rows",
      inputs: (random) => ({ x: normal(random, [2, 3, 4]), weight: normal(random, [4]) }),
      fn: ({ x, weight }) => p.rmsNorm(x!, weight!, { epsilon: 1e-5 }),
    },
    {
      name: "rmsNorm of a vector",
      inputs: (random) => ({ x: normal(random, [7]), weight: normal(random, [7]) }),
      fn: ({ x, weight }) => p.rmsNorm(x!, weight!, { epsilon: 1e-6 }),
    },
    {
      name: "rmsNorm over an axis of length 1",
      inputs: (random) => ({ x: normal(random, [3, 1]), weight: normal(random, [1]) }),
      fn: ({ x, weight }) => p.rmsNorm(x!, weight!, { epsilon: 0.1 }),
    },
    {
      name: "rmsNorm of a zero row",
      inputs: (random) => ({ x: f32([2, 2], [0, 0, 3, -4]), weight: normal(random, [2]) }),
      fn: ({ x, weight }) => p.rmsNorm(x!, weight!, { epsilon: 0.5 }),
    },
  ],
  rotary: [
    {
      name: "rotary of two heads",
      inputs: (random) => ({
        x: normal(random, [2, 3, 16]),
        positions: i32([2, 3], [0, 1, 2, 5, 5, 0]),
        ...tables(6, 8),
      }),
      fn: ({ x, positions, cos, sin }) => p.rotary(x!, positions!, cos!, sin!),
      differentiable: ["x"],
    },
    {
      name: "rotary of one position, one head",
      inputs: (random) => ({ x: normal(random, [1, 1, 8]), positions: i32([1, 1], [3]), ...tables(4, 8) }),
      fn: ({ x, positions, cos, sin }) => p.rotary(x!, positions!, cos!, sin!),
      differentiable: ["x"],
    },
    {
      name: "rotary of interleaved pairs",
      inputs: (random) => ({
        x: normal(random, [2, 3, 16]),
        positions: i32([2, 3], [0, 1, 2, 5, 5, 0]),
        ...tables(6, 8),
      }),
      fn: ({ x, positions, cos, sin }) => p.rotary(x!, positions!, cos!, sin!, { interleaved: true }),
      differentiable: ["x"],
    },
  ],
  dequantize: [
    quantizedRow({ name: "dequantize of nibbles", bits: 4, blockSize: 32, offsets: false }),
    quantizedRow({ name: "dequantize of nibbles with offsets", bits: 4, blockSize: 16, offsets: true }),
    quantizedRow({ name: "dequantize of bytes", bits: 8, blockSize: 16, offsets: false }),
    quantizedRow({ name: "dequantize of bytes with offsets", bits: 8, blockSize: 32, offsets: true }),
    ...([4, 8] as const).map((bits) => {
      const row = quantizedRow({
        name: `dequantize of rows by ids, ${bits} bits`,
        bits,
        blockSize: 32,
        offsets: true,
      });
      const quantization = { bits, blockSize: 32, activations: "f32" } as const;
      return {
        ...row,
        inputs: (random: Random) => ({ ...row.inputs(random), ids: i32([2, 3], [4, 0, 1, 1, 3, 2]) }),
        fn: ({ codes, scales, offsets, ids }: Readonly<Record<string, Value>>) => {
          const parts = [codes!, scales!, offsets!].map((part) => p.gatherRows(part, ids!));
          return p.dequantize(parts as readonly Value[] as p.QuantizedParts, quantization);
        },
      };
    }),
  ],
  matmulNBits: [
    quantizedRow({ name: "matmulNBits of one row", rows: [1], bits: 4, blockSize: 32, offsets: false }),
    quantizedRow({ name: "matmulNBits of nibbles", rows: [3], bits: 4, blockSize: 32, offsets: true }),
    quantizedRow({ name: "matmulNBits of small blocks", rows: [3], bits: 4, blockSize: 16, offsets: true }),
    quantizedRow({ name: "matmulNBits of bytes", rows: [3], bits: 8, blockSize: 32, offsets: true }),
    quantizedRow({ name: "matmulNBits of sequences", rows: [2, 3], bits: 4, blockSize: 32, offsets: true }),
    {
      name: "matmulNBits of one x with two matrices",
      inputs: (random) => ({
        x: normal(random, [2, 64]),
        ...quantizedInputs(random, { bits: 4, blockSize: 32, offsets: true }),
      }),
      fn: ({ x, codes, scales, offsets }) => {
        const quantization = { bits: 4, blockSize: 32, activations: "f32" } as const;
        const first = p.matmulNBits(x!, [codes!, scales!, offsets!], quantization);
        return { first, second: p.matmulNBits(x!, [codes!, offsets!, scales!], quantization) };
      },
      differentiable: [],
    },
  ],

  cachedAttention: [
    cutAttentionRow({
      name: "cachedAttention of one array, a token each",
      B: 3,
      T: 1,
      H: 4,
      Hk: 2,
      valid: [3, 6, 1],
    }),
    cutAttentionRow({
      name: "cachedAttention of one array, prompts",
      B: 2,
      T: 5,
      H: 2,
      Hk: 2,
      valid: [5, 2],
    }),
    cutAttentionRow({
      name: "cachedAttention of one array, of two tokens",
      B: 1,
      T: 2,
      H: 4,
      Hk: 1,
      valid: [7],
    }),
    latentAttentionRow({ name: "cachedAttention over latents", B: 2, T: 1, H: 3, valid: [3, 6] }),
    latentAttentionRow({ name: "cachedAttention over latents, of prompts", B: 2, T: 5, H: 2, valid: [5, 2] }),
    latentAttentionRow({ name: "cachedAttention over latents, of two tokens", B: 1, T: 2, H: 4, valid: [7] }),
    cachedAttentionRow({
      name: "cachedAttention of one token",
      B: 2,
      T: 1,
      H: 4,
      Hk: 2,
      valid: [3, 6],
    }),
    cachedAttentionRow({
      name: "cachedAttention of a first token",
      B: 2,
      T: 1,
      H: 2,
      Hk: 2,
      valid: [1, 1],
    }),
    cachedAttentionRow({
      name: "cachedAttention of first prompts, padded on the right",
      B: 3,
      T: 5,
      H: 4,
      Hk: 1,
      valid: [5, 2, 1],
    }),
    cachedAttentionRow({
      name: "cachedAttention of several tokens after a prompt",
      B: 1,
      T: 3,
      H: 4,
      Hk: 2,
      valid: [7],
    }),
    cachedAttentionRow({
      name: "cachedAttention of first prompts, every one padded",
      B: 2,
      T: 6,
      H: 2,
      Hk: 1,
      valid: [4, 3],
      total: 6,
    }),
    cachedAttentionRow({
      name: "cachedAttention that fills the cache",
      B: 1,
      T: 8,
      H: 2,
      Hk: 1,
      valid: [8],
    }),
  ],
};

/** Every function that ops/ exports. */
type CompositeName = keyof typeof stableOps | keyof typeof attentionOps;

function attentionInputs(random: Random, [B, T, S]: [number, number, number]): Arrays {
  // Query t is position t + S − T, and sees what is not after it.
  const mask = Array.from({ length: B * T * S }, (_, i) => {
    const [t, s] = [Math.floor(i / S) % T, i % S];
    return s <= t + S - T ? 0 : -1e30;
  });
  return {
    q: normal(random, [B, T, 12]),
    k: normal(random, [B, S, 6]),
    v: normal(random, [B, S, 6]),
    mask: f32([B, 1, 1, T, S], mask),
  };
}

export const COMPOSITE_ROWS: { readonly [N in CompositeName]: Rows } = {
  logSumExp: [
    {
      name: "logSumExp of rows, one far from zero",
      inputs: () => ({ x: f32([3, 3], [0.1, -0.5, 2, 1000, 999, 1001, -90, -91, -90]) }),
      fn: ({ x }) => logSumExp(x!),
    },
  ],
  logSoftmax: [
    {
      name: "logSoftmax of rows",
      inputs: (random) => ({ x: normal(random, [2, 3, 5]) }),
      fn: ({ x }) => logSoftmax(x!),
    },
    {
      name: "logSoftmax where softmax would vanish",
      inputs: () => ({ x: f32([2, 3], [0, -150, 150, 2000, 0, 1000]) }),
      fn: ({ x }) => logSoftmax(x!),
    },
    {
      name: "logSoftmax over an axis of length 1",
      inputs: (random) => ({ x: normal(random, [3, 1]) }),
      fn: ({ x }) => logSoftmax(x!),
    },
    {
      name: "cross entropy of chosen tokens",
      inputs: (random) => ({ logits: normal(random, [4, 6]), targets: ids(random, [4, 1], 6) }),
      fn: ({ logits, targets }) => p.neg(p.mean(p.takeAlongLast(logSoftmax(logits!), targets!))),
    },
  ],
  softmaxUnfused: [
    {
      name: "softmaxUnfused of rows",
      inputs: (random) => ({ x: normal(random, [2, 5]) }),
      fn: ({ x }) => softmaxUnfused(x!),
    },
  ],
  rmsNormUnfused: [
    {
      name: "rmsNormUnfused of rows",
      inputs: (random) => ({ x: normal(random, [2, 3, 4]), weight: normal(random, [4]) }),
      fn: ({ x, weight }) => rmsNormUnfused(x!, weight!, { epsilon: 1e-5 }),
    },
  ],
  silu: unaryRows("silu", silu),
  gatedSilu: [
    {
      name: "gatedSilu of rows",
      inputs: (random) => ({ gate: normal(random, [3, 4]), up: normal(random, [3, 4]) }),
      fn: ({ gate, up }) => gatedSilu(gate!, up!),
    },
  ],
  rotaryUnfused: [
    {
      name: "rotaryUnfused of two heads",
      inputs: (random) => ({
        x: normal(random, [2, 3, 8]),
        positions: i32([2, 3], [0, 1, 2, 5, 5, 0]),
        ...tables(6, 4),
      }),
      fn: ({ x, positions, cos, sin }) => rotaryUnfused(x!, positions!, cos!, sin!),
    },
  ],
  attention: [
    {
      name: "attention with shared key heads",
      inputs: (random) => attentionInputs(random, [2, 3, 3]),
      fn: ({ q, k, v, mask }) => attention(q!, k!, v!, mask!, { heads: 4, kvHeads: 2 }),
      differentiable: ["q", "k", "v"],
    },
    {
      name: "attention of one query over more keys",
      inputs: (random) => attentionInputs(random, [1, 1, 4]),
      fn: ({ q, k, v, mask }) => attention(q!, k!, v!, mask!, { heads: 2, kvHeads: 1 }),
      differentiable: ["q", "k", "v"],
    },
  ],
};

/** A fused primitive and what it must equal, in values and in gradients. */
export interface Twins extends Omit<Row, "fn"> {
  readonly fused: Row["fn"];
  readonly unfused: Row["fn"];
}

export const TWINS: readonly Twins[] = [
  {
    // Blocks of 67, 67 and 66 queries.
    name: "attention, block by block and at once",
    inputs: (random) => attentionInputs(random, [2, 200, 200]),
    fused: ({ q, k, v, mask }) => attention(q!, k!, v!, mask!, { heads: 4, kvHeads: 2, causal: true }),
    unfused: ({ q, k, v, mask }) => attention(q!, k!, v!, mask!, { heads: 4, kvHeads: 2 }),
    differentiable: ["q", "k", "v"],
  },
  {
    name: "gatedSilu",
    inputs: (random) => ({ gate: normal(random, [3, 5]), up: normal(random, [3, 5]) }),
    fused: ({ gate, up }) => gatedSilu(gate!, up!),
    unfused: ({ gate, up }) => p.mul(silu(gate!), up!),
  },
  {
    name: "softmax",
    inputs: (random) => ({ x: normal(random, [3, 4, 7]) }),
    fused: ({ x }) => p.softmax(x!),
    unfused: ({ x }) => softmaxUnfused(x!),
  },
  {
    name: "softmax of rows masked in part and in full",
    inputs: (random) => ({
      x: normal(random, [3, 3]),
      mask: f32([3, 3], [0, 0, 0, 0, -1e30, 0, -1e30, -1e30, -1e30]),
    }),
    fused: ({ x, mask }) => p.softmax(p.add(x!, mask!)),
    unfused: ({ x, mask }) => softmaxUnfused(p.add(x!, mask!)),
    differentiable: ["x"],
  },
  {
    name: "rmsNorm",
    inputs: (random) => ({ x: normal(random, [5, 16]), weight: normal(random, [16]) }),
    fused: ({ x, weight }) => p.rmsNorm(x!, weight!, { epsilon: 1e-6 }),
    unfused: ({ x, weight }) => rmsNormUnfused(x!, weight!, { epsilon: 1e-6 }),
  },
  {
    name: "rotary",
    inputs: (random) => ({
      x: normal(random, [2, 4, 24]),
      positions: ids(random, [2, 4], 9),
      ...tables(9, 8),
    }),
    fused: ({ x, positions, cos, sin }) => p.rotary(x!, positions!, cos!, sin!),
    unfused: ({ x, positions, cos, sin }) => rotaryUnfused(x!, positions!, cos!, sin!),
    differentiable: ["x"],
  },
  {
    name: "rotary of interleaved pairs",
    inputs: (random) => ({
      x: normal(random, [2, 4, 24]),
      positions: ids(random, [2, 4], 9),
      ...tables(9, 8),
    }),
    fused: ({ x, positions, cos, sin }) => p.rotary(x!, positions!, cos!, sin!, { interleaved: true }),
    unfused: ({ x, positions, cos, sin }) => rotaryUnfused(x!, positions!, cos!, sin!, { interleaved: true }),
    differentiable: ["x"],
  },
  {
    name: "cachedAttention of whole prompts",
    inputs: (random) => ({
      q: normal(random, [2, 5, 64]),
      k: normal(random, [2, 5, 32]),
      v: normal(random, [2, 5, 32]),
      empty: hostArray("f32", [2, 2, 8, 16]),
      positions: i32([2, 5], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
      mask: f32(
        [5, 5],
        Array.from({ length: 25 }, (_, i) => (i % 5 <= Math.floor(i / 5) ? 0 : -1e30)),
      ),
      ...tables(8, 16),
    }),
    fused: ({ q, k, v, empty, cos, sin }) =>
      p.cachedAttention(
        {
          q: q!,
          k: k!,
          v: v!,
          pastKeys: empty!,
          pastValues: empty!,
          lengths: p.constant(q!, i32([2], [4, 4])),
          total: p.constant(q!, i32([1], [5])),
          cos: cos!,
          sin: sin!,
        },
        { heads: 4, kvHeads: 2, scale: 1 / Math.sqrt(16) },
      ).attended,
    unfused: ({ q, k, v, positions, mask, cos, sin }) =>
      attention(
        rotaryUnfused(q!, positions!, cos!, sin!),
        rotaryUnfused(k!, positions!, cos!, sin!),
        v!,
        mask!,
        { heads: 4, kvHeads: 2 },
      ),
    differentiable: [],
  },
];
