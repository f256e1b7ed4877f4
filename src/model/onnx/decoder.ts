/**
 * llama and qwen2 as an ONNX graph that other programs run: the inputs, outputs and names that transformers.js and Optimum use,
 * every size but the model's own left open, and nothing but ONNX's own operators.
 *
 * Our engine's graphs are traced for one shape each and updated in place by an attention kernel of ONNX Runtime; this one is written
 * out node by node instead, from the same weights. Sizes that are known only when it runs are carried by 0 and −1 in Reshape.
 *
 * @source Hugging Face transformers, modeling_llama.py and modeling_qwen2.py; transformers.js, src/models/modeling_utils.js
 */

import { NodeWriter } from "../../compute/onnx/nodes.ts";
import { ELEMENT_TYPE, type ModelProto, type ValueInfoProto } from "../../compute/onnx/proto.ts";
import type { LlamaConfig } from "../arch/llama.ts";
import { rotaryFrequencies } from "../nn/rope.ts";

/** What matrices are stored as; numbers are float32 once they are read. */
export type OnnxType = "F32" | "F16";

/** A tensor of the file, made of one of the model's. */
export interface StoredWeight {
  /** Hugging Face name, also in the graph. */
  readonly name: string;
  readonly type: OnnxType;
  /** [out, in] is stored as [in, out], as MatMul wants it. */
  readonly transposed: boolean;
}

export interface DecoderGraph {
  /** Without its weights' initializers. */
  readonly graph: ModelProto["graph"];
  /** In the order in which they are used. */
  readonly weights: readonly StoredWeight[];
}

const EMBEDDING = "model.embed_tokens.weight";
/** Finite, so that a row that sees nothing, as padding does, is no row of NaN. */
const MASKED = -1e30;

const BATCH = "batch_size";
const NEW = "sequence_length";
const PAST = "past_sequence_length";
const TOTAL = "total_sequence_length";

type Size = number | string;

function valueInfo(name: string, type: "f32" | "i64", sizes: readonly Size[]): ValueInfoProto {
  const dim = sizes.map((size) => (typeof size === "number" ? { dimValue: size } : { dimParam: size }));
  return { name, type: { tensorType: { elemType: ELEMENT_TYPE[type], shape: { dim } } } };
}

/** Names of the caches of a layer: what comes in, and what goes out one step longer. */
function cachePorts(layer: number): readonly { readonly past: string; readonly present: string }[] {
  return ["key", "value"].map((part) => ({
    past: `past_key_values.${layer}.${part}`,
    present: `present.${layer}.${part}`,
  }));
}

/** Writes the nodes; values are their names. */
class DecoderWriter {
  readonly nodes = new NodeWriter();
  readonly weights: StoredWeight[] = [];
  readonly #config: LlamaConfig;
  readonly #type: OnnxType;

  constructor(config: LlamaConfig, type: OnnxType) {
    this.#config = config;
    this.#type = type;
  }

  #op(opType: string, input: readonly string[], attributes = {}): string {
    return this.nodes.temporary(opType, input, attributes);
  }

  #reshape(x: string, shape: readonly number[]): string {
    return this.#op("Reshape", [x, this.nodes.integers(shape)]);
  }

  #weight(name: string, type: OnnxType, transposed: boolean): string {
    this.weights.push({ name, type, transposed });
    return name;
  }

  #widened(x: string): string {
    return this.#type === "F32" ? x : this.#op("Cast", [x], { to: ELEMENT_TYPE.f32 });
  }

  /** x [B, T, in] → [B, T, out] */
  #linear(x: string, name: string, biased = false): string {
    const matrix = this.#widened(this.#weight(`${name}.weight`, this.#type, true));
    const y = this.#op("MatMul", [x, matrix]);
    return biased ? this.#op("Add", [y, this.#weight(`${name}.bias`, "F32", false)]) : y;
  }

  /** Over the last axis. ONNX Runtime knows the pattern and fuses it. */
  #rmsNorm(x: string, name: string): string {
    const squared = this.#op("Pow", [x, this.nodes.floats([2], [])]);
    const mean = this.#op("ReduceMean", [squared, this.nodes.integers([-1])], { keepdims: 1 });
    const epsilon = this.nodes.floats([this.#config.rmsNormEpsilon], []);
    const size = this.#op("Sqrt", [this.#op("Add", [mean, epsilon])]);
    const normed = this.#op("Div", [x, size]);
    return this.#op("Mul", [normed, this.#weight(`${name}.weight`, "F32", false)]);
  }

  /** Cosines and sines of every new position, [B, T, 1, D/2]. */
  #rotation(): { readonly cos: string; readonly sin: string } {
    const { headDim: D, ropeTheta, ropeScaling } = this.#config;
    const frequencies = rotaryFrequencies(D, ropeTheta, ropeScaling);
    const perPair = this.nodes.floats([...frequencies], [D / 2]);
    const positions = this.#op("Cast", ["position_ids"], { to: ELEMENT_TYPE.f32 });
    const column = this.#op("Unsqueeze", [positions, this.nodes.integers([2, 3])]);
    const angles = this.#op("Mul", [column, perPair]);
    return { cos: this.#op("Cos", [angles]), sin: this.#op("Sin", [angles]) };
  }

  /** x [B, T, heads, D], whose pairs are i and i + D/2. */
  #rotate(x: string, { cos, sin }: { readonly cos: string; readonly sin: string }): string {
    const half = this.#config.headDim / 2;
    const [a, b] = [this.nodes.fresh(), this.nodes.fresh()];
    this.nodes.node("Split", [x, this.nodes.integers([half, half])], [a, b], { axis: 3 });
    const product = (left: string, right: string): string => this.#op("Mul", [left, right]);
    const first = this.#op("Sub", [product(a, cos), product(b, sin)]);
    const second = this.#op("Add", [product(b, cos), product(a, sin)]);
    return this.#op("Concat", [first, second], { axis: 3 });
  }

  /**
   * What is added to scores: 0 where a new token may look, a large negative number elsewhere. Token t of T looks at what is there and
   * is not padding, up to itself; the cache and the new tokens lie in one row of S.
   * @returns [B, 1, (H/Hk)·T, S], rows once for every query head of a key head
   */
  #bias(): string {
    const { heads, kvHeads } = this.#config;
    const size = (x: string): string => {
      const shape = this.#op("Shape", [x], { start: 1, end: 2 });
      return this.#op("Squeeze", [shape]);
    };
    const [T, S] = [size("input_ids"), size("attention_mask")];
    const [zero, one] = [this.nodes.integers([0], []), this.nodes.integers([1], [])];
    const keys = this.#op("Range", [zero, S, one]);
    const queries = this.#op("Range", [this.#op("Sub", [S, T]), S, one]);
    const column = this.#op("Unsqueeze", [queries, this.nodes.integers([1])]);
    const causal = this.#op("LessOrEqual", [keys, column]); // [T, S]
    const real = this.#op("Cast", ["attention_mask"], { to: ELEMENT_TYPE.bool });
    const seen = this.#op("And", [this.#op("Unsqueeze", [real, this.nodes.integers([1, 2])]), causal]);
    const bias = this.#op("Where", [seen, this.nodes.floats([0], []), this.nodes.floats([MASKED], [])]);
    if (heads === kvHeads) return bias;
    return this.#op("Tile", [bias, this.nodes.integers([1, 1, heads / kvHeads, 1])]);
  }

  /** Attention of one layer. @param x [B, T, C]; @returns [B, T, H·D] */
  #attend(
    x: string,
    layer: number,
    shared: { readonly cos: string; readonly sin: string; readonly bias: string },
  ): string {
    const { heads: H, kvHeads: Hk, headDim: D, modelType } = this.#config;
    const at = `model.layers.${layer}.self_attn`;
    const project = (name: string, count: number): string =>
      this.#reshape(this.#linear(x, `${at}.${name}_proj`, modelType === "qwen2"), [0, 0, count, D]);
    const q = this.#rotate(project("q", H), shared);
    const fresh = [this.#rotate(project("k", Hk), shared), project("v", Hk)];
    const [keys, values] = cachePorts(layer).map(({ past, present }, i) => {
      const added = this.#op("Transpose", [fresh[i]!], { perm: [0, 2, 1, 3] }); // [B, Hk, T, D]
      this.nodes.node("Concat", [past, added], [present], { axis: 2 });
      return present;
    }) as [string, string];

    // Query heads of one key head lie one after another, so that neither keys nor values are repeated.
    const grouped = this.#op("Transpose", [this.#reshape(q, [0, 0, Hk, H / Hk, D])], {
      perm: [0, 2, 3, 1, 4],
    });
    const scale = this.nodes.floats([1 / Math.sqrt(D)], []);
    const rows = this.#op("Mul", [this.#reshape(grouped, [0, Hk, -1, D]), scale]); // [B, Hk, (H/Hk)·T, D]
    const scores = this.#op("MatMul", [rows, this.#op("Transpose", [keys], { perm: [0, 1, 3, 2] })]);
    const weights = this.#op("Softmax", [this.#op("Add", [scores, shared.bias])], { axis: -1 });
    const attended = this.#reshape(this.#op("MatMul", [weights, values]), [0, Hk, H / Hk, -1, D]);
    return this.#reshape(this.#op("Transpose", [attended], { perm: [0, 3, 1, 2, 4] }), [0, 0, H * D]);
  }

  /** x·sigmoid(x) of the gate, times the other. */
  #feedForward(x: string, at: string): string {
    const gate = this.#linear(x, `${at}.gate_proj`);
    const activated = this.#op("Mul", [gate, this.#op("Sigmoid", [gate])]);
    return this.#linear(this.#op("Mul", [activated, this.#linear(x, `${at}.up_proj`)]), `${at}.down_proj`);
  }

  /** The output head. A tied one is the embedding itself, as it lies. @param x [B, T, C] */
  #head(x: string): void {
    const { tieEmbeddings, hiddenSize: C, vocabSize: V } = this.#config;
    if (!tieEmbeddings) {
      const matrix = this.#widened(this.#weight("lm_head.weight", this.#type, true));
      this.nodes.node("MatMul", [x, matrix], ["logits"]);
      return;
    }
    const rows = this.#reshape(x, [-1, C]);
    const logits = this.#op("Gemm", [rows, this.#widened(EMBEDDING)], { transB: 1 }); // [B·T, V]
    const sizes = this.#op("Concat", [this.#op("Shape", ["input_ids"]), this.nodes.integers([V])], {
      axis: 0,
    });
    this.nodes.node("Reshape", [logits, sizes], ["logits"]);
  }

  write(): void {
    const embedding = this.#weight(EMBEDDING, this.#type, false);
    let x = this.#widened(this.#op("Gather", [embedding, "input_ids"], { axis: 0 }));
    const shared = { ...this.#rotation(), bias: this.#bias() };
    for (let layer = 0; layer < this.#config.layers; layer++) {
      const at = `model.layers.${layer}`;
      const attended = this.#attend(this.#rmsNorm(x, `${at}.input_layernorm`), layer, shared);
      x = this.#op("Add", [x, this.#linear(attended, `${at}.self_attn.o_proj`)]);
      const hidden = this.#rmsNorm(x, `${at}.post_attention_layernorm`);
      x = this.#op("Add", [x, this.#feedForward(hidden, `${at}.mlp`)]);
    }
    this.#head(this.#rmsNorm(x, "model.norm"));
  }
}

/**
 * The graph.
 *
 * Inputs: `input_ids` i64[B, T], `attention_mask` i64[B, S], 1 for tokens and 0 for padding, of the cache and of what is new;
 * `position_ids` i64[B, T]; `past_key_values.N.key` and `.value` f32[B, Hk, S − T, D]. Outputs: `logits` f32[B, T, V] and
 * `present.N.key`, `present.N.value` f32[B, Hk, S, D].
 */
export function decoderGraph(config: LlamaConfig, type: OnnxType): DecoderGraph {
  const { layers, kvHeads, headDim, vocabSize } = config;
  const ports = Array.from({ length: layers }, (_, layer) => cachePorts(layer)).flat();
  const writer = new DecoderWriter(config, type);
  writer.write();
  const { nodes, initializers } = writer.nodes;
  return {
    weights: writer.weights,
    graph: {
      name: "decoder",
      node: nodes,
      initializer: initializers,
      input: [
        valueInfo("input_ids", "i64", [BATCH, NEW]),
        valueInfo("attention_mask", "i64", [BATCH, TOTAL]),
        valueInfo("position_ids", "i64", [BATCH, NEW]),
        ...ports.map(({ past }) => valueInfo(past, "f32", [BATCH, kvHeads, PAST, headDim])),
      ],
      output: [
        valueInfo("logits", "f32", [BATCH, NEW, vocabSize]),
        ...ports.map(({ present }) => valueInfo(present, "f32", [BATCH, kvHeads, TOTAL, headDim])),
      ],
    },
  };
}
