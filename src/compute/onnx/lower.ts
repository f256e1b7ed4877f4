/**
 * Lowering: graph → ONNX, one row per primitive.
 *
 * The operators are ONNX's own (opset 18) wherever possible, so that one graph runs on every device; the runtime's
 * optimiser fuses them again (transposes into products, for one). `com.microsoft` operators appear for rotary
 * embedding and the attention cache alone. SimplifiedLayerNormalization is an operator of ONNX Runtime filed under the default domain.
 */

import type { Application, Graph, PrimitiveName, Value } from "../graph/ir.ts";
import { BYTES } from "../tensor/dtype.ts";
import { type Shape, sizeOf, type TensorSpec } from "../tensor/shape.ts";
import { modelHeader, NodeWriter } from "./nodes.ts";
import { ELEMENT_TYPE, encodeModel, type TensorProto, type ValueInfoProto } from "./proto.ts";

/**
 * Below this many rows the gradient of an embedding is a product with a one-hot matrix: exact, deterministic and
 * parallel, where scattering is serial. Above it the one-hot matrix would not fit.
 */
const ONE_HOT_ROWS = 1024;

/** Collects nodes and initializers while a graph is lowered. */
class Emitter extends NodeWriter {
  readonly #names = new Map<Value, string>();
  readonly #splits = new Map<string, readonly string[]>();

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

  matmul: same("MatMul"),

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

  reshape: (emitter, { attributes: { shape } }, [x], outputs) =>
    emitter.node("Reshape", [x!, emitter.integers(shape)], outputs),
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
  cachedAttention: (emitter, { attributes: { heads, kvHeads, scale } }, inputs, outputs) =>
    emitter.node(
      "GroupQueryAttention",
      inputs,
      outputs,
      {
        num_heads: heads,
        kv_num_heads: kvHeads,
        scale: { float: scale },
        do_rotary: inputs.length === 9 ? 1 : 0,
        rotary_interleaved: 0,
      },
      "com.microsoft",
    ),
};

function valueInfo(name: string, { dtype, shape }: TensorSpec): ValueInfoProto {
  const dim = shape.map((dimValue) => ({ dimValue }));
  return { name, type: { tensorType: { elemType: ELEMENT_TYPE[dtype], shape: { dim } } } };
}

export interface LowerOptions {
  /** Inputs whose values never change: they become external initializers, handed over when the program is loaded. */
  readonly initializers?: ReadonlySet<string>;
}

/**
 * The graph as the bytes of an ONNX model. Inputs and outputs keep their names.
 */
export function lowerToOnnx(graph: Graph, options: LowerOptions = {}): Uint8Array {
  const emitter = new Emitter();
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
  return encodeModel({
    ...modelHeader("com.microsoft"),
    graph: {
      name: "pondera",
      node: emitter.nodes,
      initializer: [...emitter.initializers, ...external],
      input: [...graph.inputs].flatMap(([name, x]) => (fixed.has(name) ? [] : [valueInfo(name, x)])),
      output: [...graph.outputs].map(([name, x]) => valueInfo(name, x)),
    },
  });
}
