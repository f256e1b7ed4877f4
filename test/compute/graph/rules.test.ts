import { describe, expect, it } from "vitest";
import { PonderaError } from "../../../src/base/errors.ts";
import type { Attributes, PrimitiveName } from "../../../src/compute/graph/ir.ts";
import { SHAPE_RULES } from "../../../src/compute/graph/rules.ts";
import type { DType } from "../../../src/compute/tensor/dtype.ts";
import { f32 } from "../../../src/compute/tensor/host.ts";
import { showSpec, type TensorSpec } from "../../../src/compute/tensor/shape.ts";

/** `f32[2,3]` → its dtype and shape. */
function parse(text: string): TensorSpec {
  const [, dtype, sizes] = /^(\w+)\[(.*)\]$/.exec(text)!;
  return { dtype: dtype as DType, shape: sizes === "" ? [] : sizes!.split(",").map(Number) };
}

const parseAll = (text: string): TensorSpec[] => (text === "" ? [] : text.split(" ").map(parse));

/** Arguments, attributes, and what comes out: specs, or the class and message of the error. */
type Case<P extends PrimitiveName> = readonly [inputs: string, attributes: Attributes[P], result: string];
interface Cases<P extends PrimitiveName> {
  readonly accepts: readonly Case<P>[];
  readonly rejects: readonly Case<P>[];
}

const unaryFloat = (name: PrimitiveName) => ({
  accepts: [
    ["f32[2,3]", {}, "f32[2,3]"],
    ["f16[]", {}, "f16[]"],
  ] as const,
  rejects: [
    ["i32[2]", {}, `DTypeError: ${name}: argument 0 must be f32 or f16; got i32[2].`],
    ["f32[2] f32[2]", {}, `ShapeError: ${name}: takes 1 arguments; got 2.`],
  ] as const,
});

const unaryNumber = (name: PrimitiveName) => ({
  accepts: [
    ["f32[2,3]", {}, "f32[2,3]"],
    ["i64[1]", {}, "i64[1]"],
  ] as const,
  rejects: [
    ["bool[2]", {}, `DTypeError: ${name}: argument 0 must be f32 or f16 or i32 or i64; got bool[2].`],
  ] as const,
});

const binaryNumber = (name: PrimitiveName, result?: DType) => ({
  accepts: [
    ["f32[2,3] f32[3]", {}, `${result ?? "f32"}[2,3]`],
    ["i32[4,1] i32[1,5]", {}, `${result ?? "i32"}[4,5]`],
    ["i64[] i64[2]", {}, `${result ?? "i64"}[2]`],
  ] as const,
  rejects: [
    [
      "f32[2,3] f32[2]",
      {},
      `ShapeError: ${name}: shapes must broadcast: sizes aligned from the last axis must be equal or 1; got [2,3] and [2].`,
    ],
    ["f32[2] i32[2]", {}, `DTypeError: ${name}: arguments must share a dtype; got f32[2], i32[2]. Cast one.`],
    [
      "u8[2] u8[2]",
      {},
      `DTypeError: ${name}: argument 0 must be f32 or f16 or i32 or i64; got u8[2], u8[2].`,
    ],
    ["f32[2]", {}, `ShapeError: ${name}: takes 2 arguments; got 1.`],
  ] as const,
});

const binaryBool = (name: PrimitiveName) => ({
  accepts: [["bool[2,1] bool[3]", {}, "bool[2,3]"]] as const,
  rejects: [
    ["bool[2] f32[2]", {}, `DTypeError: ${name}: argument 1 must be bool; got bool[2], f32[2].`],
  ] as const,
});

const reduction = (name: PrimitiveName) => ({
  accepts: [
    ["f32[2,3,4]", { axes: [1], keepDims: false }, "f32[2,4]"],
    ["f32[2,3,4]", { axes: [0, 2], keepDims: true }, "f32[1,3,1]"],
    ["i32[5]", { axes: [0], keepDims: false }, "i32[]"],
  ] as const,
  rejects: [
    [
      "f32[2,3]",
      { axes: [2], keepDims: false },
      `ShapeError: ${name}: axes must name axes of the argument; got 2 for f32[2,3].`,
    ],
    [
      "f32[2,3]",
      { axes: [], keepDims: false },
      `ShapeError: ${name}: axes must name axes of the argument; got  for f32[2,3].`,
    ],
  ] as const,
});

const CACHE = "f32[2,2,8,16] f32[2,2,8,16] i32[2] i32[1] f32[8,8] f32[8,8]";
const HEADS = { heads: 4, kvHeads: 2, scale: 1 };
const NIBBLES = { bits: 4, blockSize: 32, activations: "f32" } as const;
const NBITS_RULE = "ShapeError: matmulNBits: x must be […,M,K] and the matrix [N,K]; got";
const CACHE_RULE =
  "ShapeError: cachedAttention: q [B,T,H·D], k and v [B,T,Hk·D], caches [B,Hk,S,D], lengths i32[B], total i32[1], cos and sin [S,D/2]; T ≤ S, Hk divides H; got";

const CASES: { readonly [P in PrimitiveName]: Cases<P> } = {
  constant: { accepts: [["", { value: f32([2], [1, 2]) }, "f32[2]"]], rejects: [] },
  neg: unaryNumber("neg"),
  abs: unaryNumber("abs"),
  exp: unaryFloat("exp"),
  log: unaryFloat("log"),
  sqrt: unaryFloat("sqrt"),
  sigmoid: unaryFloat("sigmoid"),
  not: {
    accepts: [["bool[2]", {}, "bool[2]"]],
    rejects: [["f32[2]", {}, "DTypeError: not: argument 0 must be bool; got f32[2]."]],
  },
  cast: {
    accepts: [["bool[2]", { dtype: "f32" }, "f32[2]"]],
    rejects: [["", { dtype: "f32" }, "ShapeError: cast: takes 1 arguments; got 0."]],
  },
  add: binaryNumber("add"),
  sub: binaryNumber("sub"),
  mul: binaryNumber("mul"),
  div: {
    accepts: [["f32[2,3] f32[3]", {}, "f32[2,3]"]],
    rejects: [["i32[2] i32[2]", {}, "DTypeError: div: argument 0 must be f32 or f16; got i32[2], i32[2]."]],
  },
  min: binaryNumber("min"),
  max: binaryNumber("max"),
  less: binaryNumber("less", "bool"),
  equal: binaryNumber("equal", "bool"),
  and: binaryBool("and"),
  or: binaryBool("or"),
  withGradient: {
    accepts: [["f32[2] f32[3]", { rule: () => [] }, "f32[2]"]],
    rejects: [
      [
        "f32[2]",
        { rule: () => [] },
        "ShapeError: withGradient: takes a result and its arguments; got f32[2].",
      ],
    ],
  },
  stopGradient: {
    accepts: [["i32[2]", {}, "i32[2]"]],
    rejects: [["f32[2] f32[2]", {}, "ShapeError: stopGradient: takes 1 arguments; got 2."]],
  },
  where: {
    accepts: [
      ["bool[2,1] f32[3] f32[]", {}, "f32[2,3]"],
      ["bool[2] bool[2] bool[2]", {}, "bool[2]"],
    ],
    rejects: [
      ["f32[2] f32[2] f32[2]", {}, "DTypeError: where: argument 0 must be bool; got f32[2], f32[2], f32[2]."],
      [
        "bool[2] f32[2] i32[2]",
        {},
        "DTypeError: where: arguments must share a dtype; got f32[2], i32[2]. Cast one.",
      ],
    ],
  },
  reduceSum: reduction("reduceSum"),
  reduceMax: reduction("reduceMax"),
  argMax: {
    accepts: [
      ["f32[2,5]", {}, "i32[2]"],
      ["f32[5]", {}, "i32[]"],
    ],
    rejects: [["f32[]", {}, "ShapeError: argMax: needs at least one axis; got f32[]."]],
  },
  cumulativeSum: {
    accepts: [["f32[2,5]", { axis: 1 }, "f32[2,5]"]],
    rejects: [["f32[5]", { axis: 1 }, "ShapeError: cumulativeSum: axis must exist; got 1 for f32[5]."]],
  },
  matmul: {
    accepts: [
      ["f32[2,3] f32[3,4]", {}, "f32[2,4]"],
      ["f32[5,1,2,3] f32[6,3,4]", {}, "f32[5,6,2,4]"],
    ],
    rejects: [
      [
        "f32[2,3] f32[4,3]",
        {},
        "ShapeError: matmul: inner sizes must agree: [M,K]·[K,N]; got f32[2,3], f32[4,3].",
      ],
      [
        "f32[3] f32[3,4]",
        {},
        "ShapeError: matmul: inner sizes must agree: [M,K]·[K,N]; got f32[3], f32[3,4].",
      ],
      [
        "f32[2,2,3] f32[3,3,4]",
        {},
        "ShapeError: matmul: shapes must broadcast: sizes aligned from the last axis must be equal or 1; got [2] and [3].",
      ],
      [
        "f32[2,3] f16[3,4]",
        {},
        "DTypeError: matmul: arguments must share a dtype; got f32[2,3], f16[3,4]. Cast one.",
      ],
    ],
  },
  reshape: {
    accepts: [
      ["i32[2,6]", { shape: [3, 4] }, "i32[3,4]"],
      ["f32[1]", { shape: [] }, "f32[]"],
    ],
    rejects: [
      ["f32[2,6]", { shape: [5] }, "ShapeError: reshape: must keep the size of [5]; got f32[2,6]."],
      ["f32[6]", { shape: [-2, -3] }, "ShapeError: reshape: must keep the size of [-2,-3]; got f32[6]."],
    ],
  },
  transpose: {
    accepts: [["f32[2,3,4]", { permutation: [2, 0, 1] }, "f32[4,2,3]"]],
    rejects: [
      [
        "f32[2,3]",
        { permutation: [0, 0] },
        "ShapeError: transpose: must permute all axes; got 0,0 for f32[2,3].",
      ],
      ["f32[2,3]", { permutation: [0] }, "ShapeError: transpose: must permute all axes; got 0 for f32[2,3]."],
    ],
  },
  broadcast: {
    accepts: [["f32[3,1]", { shape: [2, 3, 4] }, "f32[2,3,4]"]],
    rejects: [
      ["f32[3,2]", { shape: [3, 1] }, "ShapeError: broadcast: must grow to [3,1]; got f32[3,2]."],
      ["f32[2,3]", { shape: [3] }, "ShapeError: broadcast: must grow to [3]; got f32[2,3]."],
    ],
  },
  slice: {
    accepts: [["f32[2,5]", { axis: 1, start: 1, end: 3 }, "f32[2,2]"]],
    rejects: [
      [
        "f32[5]",
        { axis: 0, start: 2, end: 2 },
        "ShapeError: slice: needs 0 ≤ start < end ≤ size; got axis 0, 2…2 of f32[5].",
      ],
      [
        "f32[5]",
        { axis: 0, start: 2, end: 6 },
        "ShapeError: slice: needs 0 ≤ start < end ≤ size; got axis 0, 2…6 of f32[5].",
      ],
      [
        "f32[5]",
        { axis: 0, start: -1, end: 2 },
        "ShapeError: slice: needs 0 ≤ start < end ≤ size; got axis 0, -1…2 of f32[5].",
      ],
      [
        "f32[5]",
        { axis: 1, start: 0, end: 1 },
        "ShapeError: slice: needs 0 ≤ start < end ≤ size; got axis 1, 0…1 of f32[5].",
      ],
    ],
  },
  concat: {
    accepts: [["f32[2,1] f32[2,3] f32[2,2]", { axis: 1 }, "f32[2,6]"]],
    rejects: [
      [
        "f32[2,1] f32[3,1]",
        { axis: 1 },
        "ShapeError: concat: sizes may differ at axis 1 only; got f32[2,1], f32[3,1].",
      ],
      [
        "f32[2] i32[2]",
        { axis: 0 },
        "ShapeError: concat: sizes may differ at axis 0 only; got f32[2], i32[2].",
      ],
      [
        "f32[2] f32[2,1]",
        { axis: 0 },
        "ShapeError: concat: sizes may differ at axis 0 only; got f32[2], f32[2,1].",
      ],
    ],
  },
  gatherRows: {
    accepts: [
      ["f32[9,4] i32[2,3]", {}, "f32[2,3,4]"],
      ["i32[9] i32[]", {}, "i32[]"],
    ],
    rejects: [
      ["f32[9,4] f32[2]", {}, "DTypeError: gatherRows: argument 1 must be i32; got f32[9,4], f32[2]."],
      ["f32[] i32[2]", {}, "ShapeError: gatherRows: needs rows; got f32[], i32[2]."],
    ],
  },
  scatterAddRows: {
    accepts: [
      ["i32[2,3] f32[2,3,4]", { rows: 9 }, "f32[9,4]"],
      ["i32[] f32[4]", { rows: 9 }, "f32[9,4]"],
    ],
    rejects: [
      [
        "i32[3] f32[2,4]",
        { rows: 9 },
        "ShapeError: scatterAddRows: updates must start with the shape of ids; got i32[3], f32[2,4].",
      ],
    ],
  },
  takeAlongLast: {
    accepts: [["f32[2,9] i32[2,3]", {}, "f32[2,3]"]],
    rejects: [
      [
        "f32[2,9] i32[3,3]",
        {},
        "ShapeError: takeAlongLast: all axes but the last must agree; got f32[2,9], i32[3,3].",
      ],
      ["f32[] i32[1]", {}, "ShapeError: takeAlongLast: needs at least one axis; got f32[]."],
    ],
  },
  scatterAddLast: {
    accepts: [["i32[2,3] f32[2,3]", { size: 9 }, "f32[2,9]"]],
    rejects: [
      [
        "i32[2,3] f32[2,4]",
        { size: 9 },
        "ShapeError: scatterAddLast: indices and updates share a shape; got i32[2,3], f32[2,4].",
      ],
    ],
  },
  softmax: {
    accepts: [["f32[2,3]", {}, "f32[2,3]"]],
    rejects: [
      ["f32[]", {}, "ShapeError: softmax: needs at least one axis; got f32[]."],
      ["i32[2]", {}, "DTypeError: softmax: argument 0 must be f32 or f16; got i32[2]."],
    ],
  },
  rmsNorm: {
    accepts: [["f32[2,3] f32[3]", { epsilon: 1 }, "f32[2,3]"]],
    rejects: [
      [
        "f32[2,3] f32[2]",
        { epsilon: 1 },
        "ShapeError: rmsNorm: weight must be [C], C the last axis of x; got f32[2,3], f32[2].",
      ],
      [
        "f32[2,3] f16[3]",
        { epsilon: 1 },
        "DTypeError: rmsNorm: arguments must share a dtype; got f32[2,3], f16[3]. Cast one.",
      ],
    ],
  },
  topK: {
    accepts: [
      ["f32[2,5]", { k: 3 }, "i32[2,3]"],
      ["f32[5]", { k: 5 }, "i32[5]"],
    ],
    rejects: [
      ["f32[2,5]", { k: 6 }, "ShapeError: topK: k must be from 1 to 5; got 6."],
      ["f32[2,5]", { k: 0 }, "ShapeError: topK: k must be from 1 to 5; got 0."],
      ["f32[]", { k: 1 }, "ShapeError: topK: needs at least one axis; got f32[]."],
    ],
  },
  groupedMatmul: {
    accepts: [
      ["f32[7,3] i32[2] f32[5,3] f32[5,3]", { transposed: false }, "f32[7,5]"],
      ["f32[7,5] i32[2] f32[5,3] f32[5,3]", { transposed: true }, "f32[7,3]"],
    ],
    rejects: [
      [
        "f32[7,3] i32[3] f32[5,3] f32[5,3]",
        { transposed: false },
        "ShapeError: groupedMatmul: x [M,K], counts i32[E], E matrices [N,K]; got f32[7,3], i32[3], f32[5,3], f32[5,3].",
      ],
      [
        "f32[7,3] i32[2] f32[5,3] f32[3,5]",
        { transposed: true },
        "ShapeError: groupedMatmul: x [M,K], counts i32[E], E matrices [K,N]; got f32[7,3], i32[2], f32[5,3], f32[3,5].",
      ],
      [
        "f32[7,3] f32[1] f32[5,3]",
        { transposed: false },
        "DTypeError: groupedMatmul: argument 1 must be i32; got f32[7,3], f32[1], f32[5,3].",
      ],
    ],
  },
  groupedOuter: {
    accepts: [["f32[7,3] f32[7,2] i32[2]", { groups: 2 }, "f32[3,2] f32[3,2]"]],
    rejects: [
      [
        "f32[7,3] f32[6,2] i32[2]",
        { groups: 2 },
        "ShapeError: groupedOuter: a [M,N], b [M,K], counts i32[2]; got f32[7,3], f32[6,2], i32[2].",
      ],
    ],
  },
  dequantize: {
    accepts: [
      ["u8[5,2,16] f32[5,2]", NIBBLES, "f32[5,64]"],
      ["u8[5,2,16] f32[5,2] f32[5,2]", { ...NIBBLES, bits: 8, blockSize: 16 }, "f32[5,32]"],
      ["u8[3,5,2,16] f32[3,5,2]", NIBBLES, "f32[3,5,64]"],
    ],
    rejects: [
      ["u8[5,2,32] f32[5,2]", NIBBLES, "ShapeError: dequantize: codes u8[…,K/32,16], scales f32[…,K/32]"],
      ["u8[5,2,16] f32[2,5]", NIBBLES, "ShapeError: dequantize: codes u8[…,K/32,16], scales f32[…,K/32]"],
      ["u8[5,2,16] f32[5,2] f32[5]", NIBBLES, "ShapeError: dequantize: codes u8[…,K/32,16]"],
      ["f32[5,2,16] f32[5,2]", NIBBLES, "DTypeError: dequantize: argument 0 must be u8; got"],
      ["u8[5,2,16]", NIBBLES, "ShapeError: dequantize: takes 2 arguments; got 1."],
    ],
  },
  matmulNBits: {
    accepts: [
      ["f32[3,64] u8[5,2,16] f32[5,2]", NIBBLES, "f32[3,5]"],
      ["f32[3,64] u8[5,2,16] f32[5,2] f32[5,2]", NIBBLES, "f32[3,5]"],
      ["f32[2,3,64] u8[5,2,16] f32[5,2]", NIBBLES, "f32[2,3,5]"],
    ],
    rejects: [
      ["f32[3,32] u8[5,2,16] f32[5,2]", NIBBLES, `${NBITS_RULE} f32[3,32]`],
      ["f32[64] u8[5,2,16] f32[5,2]", NIBBLES, NBITS_RULE],
      ["f32[3,64] u8[1,5,2,16] f32[1,5,2]", NIBBLES, NBITS_RULE],
      ["f16[3,64] u8[5,2,16] f32[5,2]", NIBBLES, "DTypeError: matmulNBits: argument 0 must be f32; got"],
      ["f32[3,64] u8[5,2,16]", NIBBLES, "ShapeError: matmulNBits: takes 3 arguments; got 2."],
    ],
  },
  rotary: {
    accepts: [["f32[2,3,16] i32[2,3] f32[9,4] f32[9,4]", { interleaved: false }, "f32[2,3,16]"]],
    rejects: [
      [
        "f32[2,3,12] i32[2,3] f32[9,4] f32[9,4]",
        { interleaved: false },
        "ShapeError: rotary: x [B,T,H·D], positions i32[B,T], cos and sin [S,D/2]; got f32[2,3,12], i32[2,3], f32[9,4], f32[9,4].",
      ],
      [
        "f32[2,3,16] i32[3] f32[9,4] f32[9,4]",
        { interleaved: true },
        "ShapeError: rotary: x [B,T,H·D], positions i32[B,T], cos and sin [S,D/2]; got f32[2,3,16], i32[3], f32[9,4], f32[9,4].",
      ],
    ],
  },
  cachedAttention: {
    accepts: [
      [`f32[2,3,64] f32[2,3,32] f32[2,3,32] ${CACHE}`, HEADS, "f32[2,3,64] f32[2,2,8,16] f32[2,2,8,16]"],
      [
        "f32[1,1,48] f32[1,1,24] f32[1,1,24] f32[1,1,8,24] f32[1,1,8,24] i32[1] i32[1]",
        { heads: 2, kvHeads: 1, scale: 1 },
        "f32[1,1,48] f32[1,1,8,24] f32[1,1,8,24]",
      ],
    ],
    rejects: [
      [`f32[2,3,64] f32[2,3,64] f32[2,3,64] ${CACHE}`, HEADS, CACHE_RULE],
      [`f32[2,3,48] f32[2,3,32] f32[2,3,32] ${CACHE}`, { ...HEADS, heads: 3 }, CACHE_RULE],
      [`f32[2,9,64] f32[2,9,32] f32[2,9,32] ${CACHE}`, HEADS, CACHE_RULE],
      [
        `f32[2,3,64] f16[2,3,32] f32[2,3,32] ${CACHE}`,
        HEADS,
        "DTypeError: cachedAttention: arguments must share a dtype; got",
      ],
      [
        "f32[1,1,8] f32[1,1,8] f32[1,1,8] f32[1,1,8,8] f32[1,1,8,8] i32[1] i32[1] f32[8,4] f32[8,4]",
        { heads: 1, kvHeads: 1, scale: 1 },
        "ShapeError: cachedAttention: D must be a multiple of 16; got D=8",
      ],
      [
        "f32[1,1,4] f32[1,1,4] f32[1,1,4] f32[1,1,8,4] f32[1,1,8,4] i32[1] i32[1]",
        { heads: 1, kvHeads: 1, scale: 1 },
        "ShapeError: cachedAttention: D must be a multiple of 8; got D=4",
      ],
      [
        "f32[1,1,8] f32[1,1,8]",
        { heads: 1, kvHeads: 1, scale: 1 },
        "ShapeError: cachedAttention: takes 7 arguments; got 2.",
      ],
    ],
  },
};

/** The rule of a primitive, its attributes' type forgotten. */
function ruleOf(name: string): (inputs: readonly TensorSpec[], attributes: object) => TensorSpec[] {
  return SHAPE_RULES[name as "neg"];
}

describe.each(Object.entries(CASES))("the shape rule of %s", (name, { accepts, rejects }) => {
  it.each(accepts as readonly Case<PrimitiveName>[])("accepts %s %o: %s", (inputs, attributes, result) => {
    expect(ruleOf(name)(parseAll(inputs), attributes).map(showSpec).join(" ")).toBe(result);
  });

  it.each(rejects as readonly Case<PrimitiveName>[])("rejects %s %o", (inputs, attributes, error) => {
    try {
      ruleOf(name)(parseAll(inputs), attributes);
    } catch (thrown) {
      expect(thrown).toBeInstanceOf(PonderaError);
      // A message may end in the specs of many arguments; what is given must be its beginning.
      expect(String(thrown).slice(0, error.length)).toBe(error);
      return;
    }
    expect.fail("nothing was thrown");
  });
});
