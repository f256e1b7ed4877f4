/**
 * Lowering: graph → ONNX, one row per primitive.
 *
 * The operators are ONNX's own (opset 18) wherever possible, so that one graph runs on every device; the runtime's
 * optimiser fuses them again (transposes into products, for one). `com.microsoft` operators appear for rotary
 * embedding, the attention cache and quantised matrices alone. SimplifiedLayerNormalization is an operator of ONNX Runtime filed under the default domain.
 */

import { invariant } from "../../base/errors.ts";
import { type Application, type Graph, isPrimitive, type PrimitiveName, type Value } from "../graph/ir.ts";
import { BYTES } from "../tensor/dtype.ts";
import { type Shape, sizeOf, type TensorSpec } from "../tensor/shape.ts";
import { modelHeader, NodeWriter } from "./nodes.ts";
import {
  ELEMENT_TYPE,
  type ModelProto,
  type NodeProto,
  type TensorProto,
  type ValueInfoProto,
} from "./proto.ts";

/**
 * Below this many rows the gradient of an embedding is a product with a one-hot matrix: exact, deterministic and
 * parallel, where scattering is serial. Above it the one-hot matrix would not fit.
 */
const ONE_HOT_ROWS = 1024;

/** From so many rows on a matrix that is multiplied by them is transposed in memory. */
const MANY = 128;

/** Collects nodes and initializers while a graph is lowered. */
class Emitter extends NodeWriter {
  readonly #names = new Map<Value, string>();
  readonly #splits = new Map<string, readonly string[]>();
  /** Sums of blocks, by what they are of. */
  readonly #sums = new Map<string, string>();
  /** Matrices that were transposed in memory. */
  readonly #transposed = new Map<Value, string>();
  readonly #open: readonly number[];

  constructor(open: readonly number[]) {
    super();
    this.#open = open;
  }

  name(x: Value): string {
    let name = this.#names.get(x);
    if (name === undefined) {
      name = this.fresh();
      this.#names.set(x, name);
    }
    return name;
  }

  /** @returns false when the value already has a name */
  claim(x: Value, name: string): boolean {
    this.claimName(name);
    if (this.#names.has(x)) return false;
    this.#names.set(x, name);
    return true;
  }

  /** The rows of an array in parts of as many as `counts` says when the graph runs; one split for all who ask. */
  split(x: string, counts: string, parts: number): readonly string[] {
    const key = `split:${x}:${counts}`;
    let names = this.#splits.get(key);
    if (names === undefined) {
      const sizes = this.temporary("Cast", [counts], { to: ELEMENT_TYPE.i64 });
      names = Array.from({ length: parts }, () => this.fresh());
      this.node("Split", [x, sizes], names, { axis: 0 });
      this.#splits.set(key, names);
    }
    return names;
  }

  override integers(values: readonly number[], dims?: Shape): string {
    invariant(!values.some((value) => this.isOpen(value)), `an open size cannot be a constant: ${values}`);
    return super.integers(values, dims);
  }

  /** What to reshape to: an open size is that of the same axis before, where it is, or left to the runtime. */
  shape(sizes: Shape, before: Shape): string {
    const open = sizes.map((size) => this.isOpen(size));
    const rest = sizes.map((size, axis) => (!open[axis] ? size : size === before[axis] ? 0 : -1));
    invariant(rest.filter((size) => size < 0).length <= 1, "one size of a reshape may be left open");
    // Not `integers` of this class, which takes every size for a constant: 0 and −1 are none.
    return super.integers(rest);
  }

  isOpen(size: number): boolean {
    return size !== 0 && this.#open.some((each) => size % each === 0);
  }

  /** Sums of each block of the rows of x […, blocks·blockSize]: […, blocks], once for all who ask. */
  blockSums(x: string, shape: Shape, blockSize: number): string {
    const key = `${x}:${blockSize}`;
    let sums = this.#sums.get(key);
    if (sums === undefined) {
      const blocks = [...shape.slice(0, -1), shape.at(-1)! / blockSize, blockSize];
      const apart = this.temporary("Reshape", [x, this.shape(blocks, shape)]);
      sums = this.temporary("ReduceSum", [apart, this.integers([-1])], { keepdims: 0 });
      this.#sums.set(key, sums);
    }
    return sums;
  }

  /** The halves of bytes, the lower first: […, n] as […, 2n]. */
  nibbles(bytes: string, shape: Shape): string {
    const [mask, four] = [15, 4].map((value) => this.tensor("u8", [1], Uint8Array.of(value)));
    const low = this.temporary("BitwiseAnd", [bytes, mask!]);
    const high = this.temporary("BitShift", [bytes, four!], { direction: "RIGHT" });
    const last = this.integers([-1]);
    const pairs = [low, high].map((half) => this.temporary("Unsqueeze", [half, last]));
    const both = this.temporary("Concat", pairs, { axis: -1 });
    return this.temporary("Reshape", [both, this.shape([...shape.slice(0, -1), 2 * shape.at(-1)!], shape)]);
  }

  /**
   * A factor of a product whose other side has so many rows or columns. A matrix that was transposed is so in memory where that is
   * many: the runtime would make one operator of it and the product, which is a fifth slower (docs/LOG.md). A third axis keeps it
   * from that.
   */
  factor(x: Value, others: number): string {
    const source = x.shape.length === 2 && isPrimitive(x.node, "transpose") ? x.node.inputs[0]! : undefined;
    const sizes = [...x.shape, others];
    if (source === undefined || others < MANY || sizes.some((size) => this.isOpen(size))) return this.name(x);
    let name = this.#transposed.get(x);
    if (name === undefined) {
      const [columns, rows] = x.shape as readonly [number, number];
      const apart = this.temporary("Reshape", [this.name(source), this.integers([1, rows, columns])]);
      const turned = this.temporary("Transpose", [apart], { perm: [0, 2, 1] });
      name = this.temporary("Reshape", [turned, this.integers([columns, rows])]);
      this.#transposed.set(x, name);
    }
    return name;
  }

  zeros(shape: Shape): string {
    return this.temporary("Expand", [this.floats([0], []), this.integers(shape)]);
  }
}

type Lowering<P extends PrimitiveName> = (
  emitter: Emitter,
  application: Application<P>,
  inputs: readonly string[],
  outputs: readonly string[],
) => void;

/** The primitive is exactly one ONNX operator without attributes. */
const same =
  (opType: string): Lowering<PrimitiveName> =>
  (emitter, _, inputs, outputs) =>
    emitter.node(opType, inputs, outputs);

const reduction =
  (opType: string): Lowering<"reduceSum" | "reduceMax"> =>
  (emitter, { attributes: { axes, keepDims } }, [x], outputs) =>
    emitter.node(opType, [x!, emitter.integers(axes)], outputs, { keepdims: keepDims ? 1 : 0 });

const LOWERINGS: { readonly [P in PrimitiveName]: Lowering<P> } = {
  constant: (emitter, { attributes: { value } }, _, [y]) => {
    emitter.tensor(value.dtype, value.shape, value.data, y!);
  },

  neg: same("Neg"),
  abs: same("Abs"),
  exp: same("Exp"),
  log: same("Log"),
  sqrt: same("Sqrt"),
  sigmoid: same("Sigmoid"),
  not: same("Not"),
  cast: (emitter, { attributes: { dtype } }, inputs, outputs) =>
    emitter.node("Cast", inputs, outputs, { to: ELEMENT_TYPE[dtype] }),

  stopGradient: same("Identity"),
  withGradient: (emitter, _, [result], outputs) => emitter.node("Identity", [result!], outputs),

  add: same("Add"),
  sub: same("Sub"),
  mul: same("Mul"),
  div: same("Div"),
  min: same("Min"),
  max: same("Max"),
  less: same("Less"),
  equal: same("Equal"),
  and: same("And"),
  or: same("Or"),
  where: (emitter, application, [condition, a, b], outputs) => {
    if (application.outputs[0]!.dtype !== "bool") {
      emitter.node("Where", [condition!, a!, b!], outputs);
      return;
    }
    // The CPU has no Where kernel for booleans: (condition ∧ a) ∨ (¬condition ∧ b).
    const otherwise = emitter.temporary("Not", [condition!]);
    const chosen = [emitter.temporary("And", [condition!, a!]), emitter.temporary("And", [otherwise, b!])];
    emitter.node("Or", chosen, outputs);
  },

  reduceSum: reduction("ReduceSum"),
  reduceMax: reduction("ReduceMax"),
  argMax: (emitter, _, inputs, outputs) => {
    const wide = emitter.temporary("ArgMax", inputs, { axis: -1, keepdims: 0 });
    emitter.node("Cast", [wide], outputs, { to: ELEMENT_TYPE.i32 });
  },
  topK: (emitter, { attributes: { k } }, [x], outputs) => {
    const [values, wide] = [emitter.fresh(), emitter.fresh()];
    emitter.node("TopK", [x!, emitter.integers([k])], [values, wide], { axis: -1, largest: 1, sorted: 1 });
    emitter.node("Cast", [wide], outputs, { to: ELEMENT_TYPE.i32 });
  },
  cumulativeSum: (emitter, { attributes: { axis } }, [x], outputs) =>
    emitter.node("CumSum", [x!, emitter.integers([axis])], outputs),

  matmul: (emitter, { inputs: [a, b] }, _, outputs) => {
    const [rows, columns] = [a!.shape.at(-2)!, b!.shape.at(-1)!];
    const operands = [emitter.factor(a!, columns), emitter.factor(b!, rows)];
    emitter.node("MatMul", operands, outputs);
  },

  groupedMatmul: (emitter, { attributes: { transposed } }, [x, counts, ...matrices], outputs) => {
    const parts = emitter.split(x!, counts!, matrices.length);
    const products = parts.map((part, e) =>
      emitter.temporary("Gemm", [part, matrices[e]!], { transB: transposed ? 0 : 1 }),
    );
    emitter.node("Concat", products, outputs, { axis: 0 });
  },
  groupedOuter: (emitter, { attributes: { groups } }, [a, b, counts], outputs) => {
    const [left, right] = [emitter.split(a!, counts!, groups), emitter.split(b!, counts!, groups)];
    for (const [e, output] of outputs.entries()) {
      emitter.node("Gemm", [left[e]!, right[e]!], [output], { transA: 1 });
    }
  },

  dequantize: (
    emitter,
    { inputs: [codes, perBlock], outputs: [rows], attributes: { bits } },
    [bytes, scales, offsets],
    [y],
  ) => {
    const numbers = bits === 8 ? bytes! : emitter.nibbles(bytes!, codes!.shape);
    const floats = emitter.temporary("Cast", [numbers], { to: ELEMENT_TYPE.f32 });
    const centered = emitter.temporary("Sub", [floats, emitter.floats([2 ** (bits - 1)], [])]);
    const ofBlock = (x: string): string => emitter.temporary("Unsqueeze", [x, emitter.integers([-1])]);
    const scaled = emitter.temporary("Mul", [centered, ofBlock(scales!)]);
    const values = offsets === undefined ? scaled : emitter.temporary("Add", [scaled, ofBlock(offsets)]);
    emitter.node("Reshape", [values, emitter.shape(rows!.shape, perBlock!.shape)], [y!]);
  },
  matmulNBits: (emitter, { inputs, attributes }, [x, codes, scales, offsets], outputs) => {
    const { bits, blockSize, activations } = attributes;
    const [N, blocks] = inputs[1]!.shape as readonly [number, number];
    const product = offsets === undefined ? outputs[0]! : emitter.fresh();
    emitter.node(
      "MatMulNBits",
      [x!, codes!, scales!],
      [product],
      // Levels count down from what the activations are: 1 is float32, 4 is int8.
      { K: blocks * blockSize, N, bits, block_size: blockSize, accuracy_level: activations === "i8" ? 4 : 1 },
      "com.microsoft",
    );
    if (offsets === undefined) return;
    // The operator has no minima that are no whole number of steps, but what a block of x adds up to is all they need.
    const sums = emitter.blockSums(x!, inputs[0]!.shape, blockSize);
    const added = emitter.fresh();
    emitter.node("FusedMatMul", [sums, offsets], [added], { transB: 1 }, "com.microsoft");
    emitter.node("Add", [product, added], outputs);
  },

  reshape: (emitter, { inputs: [before], attributes: { shape } }, [x], outputs) =>
    emitter.node("Reshape", [x!, emitter.shape(shape, before!.shape)], outputs),
  transpose: (emitter, { attributes: { permutation } }, inputs, outputs) =>
    emitter.node("Transpose", inputs, outputs, { perm: permutation }),
  broadcast: (emitter, { attributes: { shape } }, [x], outputs) =>
    emitter.node("Expand", [x!, emitter.integers(shape)], outputs),
  slice: (emitter, { attributes: { axis, start, end } }, [x], outputs) => {
    const [from, to, along] = [[start], [end], [axis]].map((values) => emitter.integers(values));
    emitter.node("Slice", [x!, from!, to!, along!], outputs);
  },
  concat: (emitter, { attributes: { axis } }, inputs, outputs) =>
    emitter.node("Concat", inputs, outputs, { axis }),

  gatherRows: (emitter, _, inputs, outputs) => emitter.node("Gather", inputs, outputs, { axis: 0 }),
  scatterAddRows: (emitter, application, [ids, updates], outputs) => {
    const { rows } = application.attributes;
    const [idShape, updateShape] = [application.inputs[0]!.shape, application.inputs[1]!.shape];
    const count = sizeOf(idShape);
    const rest = updateShape.slice(idShape.length);
    const width = sizeOf(rest);
    const flatUpdates = emitter.temporary("Reshape", [updates!, emitter.integers([count, width])]);
    const shape = emitter.integers([rows, ...rest]);
    if (rows <= ONE_HOT_ROWS) {
      const flatIds = emitter.temporary("Reshape", [ids!, emitter.integers([count])]);
      const offOn = emitter.floats([0, 1], [2]);
      // The depth shares the dtype of the ids: the only combination the CPU kernel has for i32.
      const depth = emitter.tensor("i32", [1], Int32Array.of(rows));
      const oneHot = emitter.temporary("OneHot", [flatIds, depth, offOn], { axis: 0 });
      const product = emitter.temporary("MatMul", [oneHot, flatUpdates]);
      emitter.node("Reshape", [product, shape], outputs);
      return;
    }
    // Not ScatterND: on two threads its additions at repeated indices race and updates are lost.
    const column = emitter.temporary("Reshape", [ids!, emitter.integers([count, 1])]);
    const indices = emitter.temporary("Expand", [column, emitter.integers([count, width])]);
    const scattered = emitter.temporary(
      "ScatterElements",
      [emitter.zeros([rows, width]), indices, flatUpdates],
      {
        axis: 0,
        reduction: "add",
      },
    );
    emitter.node("Reshape", [scattered, shape], outputs);
  },
  takeAlongLast: (emitter, _, inputs, outputs) =>
    emitter.node("GatherElements", inputs, outputs, { axis: -1 }),
  scatterAddLast: (emitter, application, [indices, updates], outputs) => {
    const shape = [...application.inputs[1]!.shape.slice(0, -1), application.attributes.size];
    const inputs = [emitter.zeros(shape), indices!, updates!];
    emitter.node("ScatterElements", inputs, outputs, { axis: -1, reduction: "add" });
  },

  softmax: (emitter, _, inputs, outputs) => emitter.node("Softmax", inputs, outputs, { axis: -1 }),
  rmsNorm: (emitter, { attributes: { epsilon } }, inputs, outputs) =>
    emitter.node("SimplifiedLayerNormalization", inputs, outputs, { axis: -1, epsilon: { float: epsilon } }),
  rotary: (emitter, { attributes }, [x, positions, cos, sin], outputs) => {
    const wide = emitter.temporary("Cast", [positions!], { to: ELEMENT_TYPE.i64 });
    const interleaved = attributes.interleaved ? 1 : 0;
    emitter.node("RotaryEmbedding", [x!, wide, cos!, sin!], outputs, { interleaved }, "com.microsoft");
  },
  cachedAttention: (emitter, { inputs: [q, k, v], attributes }, [, , , ...rest], outputs) => {
    const { heads, kvHeads, scale } = attributes;
    const kernel = (inputs: readonly string[], scale: number): void =>
      emitter.node(
        "GroupQueryAttention",
        inputs,
        outputs,
        {
          num_heads: heads,
          kv_num_heads: kvHeads,
          scale: { float: scale },
          do_rotary: rest.length === 6 ? 1 : 0,
          rotary_interleaved: 0,
        },
        "com.microsoft",
      );
    const rows = [q!, k!, v!].map((x) => emitter.name(x));
    if (q!.shape[1] === 1) {
      // With one token each, the kernel's tiles have one row, and are slow. A sink has it work by matrix products instead, which
      // are fast with one row if they scale nothing (docs/LOG.md). This sink's score is −∞, so that it takes no part.
      const [queries, ...others] = rows;
      const scaled = emitter.temporary("Mul", [queries!, emitter.floats([scale], [])]);
      const given = [scaled, ...others, ...rest];
      const unused = Array.from({ length: SINK - given.length }, () => "");
      const scores = Array.from({ length: heads }, () => -Infinity);
      kernel([...given, ...unused, emitter.floats(scores, [heads])], 1);
      return;
    }
    // What was cut into queries, keys and values the kernel takes as it was.
    const whole = wholeOf([q!, k!, v!]);
    kernel([...(whole === undefined ? rows : [emitter.name(whole), "", ""]), ...rest], scale);
  },
};

/** The place of `head_sink` among the inputs of GroupQueryAttention. */
const SINK = 11;

/** The value whose last axis was cut into just these parts, in this order; undefined when there is none. */
function wholeOf(parts: readonly Value[]): Value | undefined {
  let [whole, reached]: [Value | undefined, number] = [undefined, 0];
  for (const { node } of parts) {
    if (!isPrimitive(node, "slice")) return undefined;
    const { axis, start, end } = node.attributes;
    const [from] = node.inputs as readonly [Value];
    if (start !== reached || axis !== from.shape.length - 1 || (whole ?? from) !== from) return undefined;
    [whole, reached] = [from, end];
  }
  return reached === whole?.shape.at(-1) ? whole : undefined;
}

/** The nodes that lead to the outputs, in their order. */
function usedNodes(nodes: readonly NodeProto[], outputs: Iterable<string>): NodeProto[] {
  const used = new Set(outputs);
  return nodes
    .toReversed()
    .filter(({ input, output }) => {
      const leads = output.some((name) => used.has(name));
      if (leads) for (const name of input) used.add(name);
      return leads;
    })
    .toReversed();
}

function valueInfo(name: string, { dtype, shape }: TensorSpec, emitter: Emitter): ValueInfoProto {
  // Open sizes have names, by which the runtime knows which arrays are of one size and may follow each other in memory.
  const dim = shape.map((size) => (emitter.isOpen(size) ? { dimParam: `open${size}` } : { dimValue: size }));
  return { name, type: { tensorType: { elemType: ELEMENT_TYPE[dtype], shape: { dim } } } };
}

export interface LowerOptions {
  /** Inputs whose values never change: they become external initializers, handed over when the program is loaded. */
  readonly initializers?: ReadonlySet<string>;
  /**
   * Sizes that stand for any: wherever one, or a multiple of one, is a size of a tensor, the model leaves it open. Primes that
   * divide no other size of the graph, which the caller sees to. What would have to store them as constants cannot be lowered.
   */
  readonly open?: readonly number[];
}

/** The graph as an ONNX model. Inputs and outputs keep their names. */
export function lowerToOnnx(graph: Graph, options: LowerOptions = {}): ModelProto {
  const emitter = new Emitter(options.open ?? []);
  for (const [name, x] of graph.inputs) emitter.claim(x, name);
  const copies: [Value, string][] = [];
  for (const [name, x] of graph.outputs) {
    // An input returned as it is, or one value under two names, needs a copy.
    if (!emitter.claim(x, name)) copies.push([x, name]);
  }
  for (const application of graph.applications) {
    const lowering = LOWERINGS[application.primitive] as Lowering<PrimitiveName>;
    const names = (values: readonly Value[]): string[] => values.map((x) => emitter.name(x));
    lowering(emitter, application, names(application.inputs), names(application.outputs));
  }
  for (const [x, name] of copies) emitter.node("Identity", [emitter.name(x)], [name]);

  const fixed = options.initializers ?? new Set();
  const external = [...graph.inputs].flatMap(([name, spec]): TensorProto[] => {
    if (!fixed.has(name)) return [];
    const entries = { location: name, offset: "0", length: String(sizeOf(spec.shape) * BYTES[spec.dtype]) };
    const externalData = Object.entries(entries).map(([key, value]) => ({ key, value }));
    return [{ name, dims: spec.shape, dataType: ELEMENT_TYPE[spec.dtype], externalData, dataLocation: 1 }];
  });
  return {
    ...modelHeader("com.microsoft"),
    graph: {
      name: "pondera",
      node: usedNodes(emitter.nodes, graph.outputs.keys()),
      initializer: [...emitter.initializers, ...external],
      input: [...graph.inputs].flatMap(([name, x]) => (fixed.has(name) ? [] : [valueInfo(name, x, emitter)])),
      output: [...graph.outputs].map(([name, x]) => valueInfo(name, x, emitter)),
    },
  };
}
