/**
 * The llama architecture: pre-norm decoder with RMSNorm, rotary embedding, grouped-query attention and SwiGLU; and qwen2,
 * which is llama with biases on queries, keys and values. Tensor names and layouts are those of Hugging Face's
 * `LlamaForCausalLM` and `Qwen2ForCausalLM`.
 *
 * Two forwards share every weight: `llamaTrain` on packed rows, differentiable, and `llamaDecode` over a cache.
 */

import { ConfigError, invariant } from "../../base/errors.ts";
import type { Value } from "../../compute/graph/ir.ts";
import {
  add,
  cachedAttention,
  constant,
  gatherRows,
  reshape,
  rmsNorm,
  rotary,
  slice,
} from "../../compute/graph/primitives.ts";
import { attention } from "../../compute/ops/attention.ts";
import { gatedSilu } from "../../compute/ops/stable.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import { type Shape, sizeOf } from "../../compute/tensor/shape.ts";
import { embed, linear, type Matrix, packedCausalMask } from "../nn/layers.ts";
import { type Llama3Scaling, rotaryTables } from "../nn/rope.ts";
import { type AdapterConfig, adapterNames, adapterParameters, checkAdapters, isAdapted } from "./adapters.ts";
import {
  type Architecture,
  type CacheSpec,
  type DecodeInputs,
  type FreshOptions,
  freshWeights,
  type PackedRows,
  type ParameterSpec,
  type TrainOutputs,
  type Weights,
  weightOf as weightFor,
} from "./architecture.ts";

export interface LlamaConfig {
  /** @default "llama" */
  readonly modelType?: "llama" | "qwen2";
  readonly vocabSize: number;
  /** Model width C. */
  readonly hiddenSize: number;
  /** Hidden width F of the feed-forward. */
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Head width D; even. */
  readonly headDim: number;
  readonly rmsNormEpsilon: number;
  readonly ropeTheta: number;
  /** How rotations slow down for texts longer than those first trained on. */
  readonly ropeScaling?: Llama3Scaling;
  /** Longest sequence. */
  readonly maxPositions: number;
  /** The output head is the embedding. */
  readonly tieEmbeddings: boolean;
  /** Adapters beside the matrices: what is trained where they are. No file's config has any. @default none */
  readonly adapters?: AdapterConfig;
}

export const EMBEDDING = "model.embed_tokens.weight";

/** Head widths that ONNX Runtime's GroupQueryAttention rotates are multiples of this. */
export const HEAD_STEP = 16;

/** @throws ConfigError naming the field that breaks its rule */
export function checkLlamaConfig(config: LlamaConfig): void {
  const fail = (field: keyof LlamaConfig, rule: string, remedy?: string): never => {
    throw new ConfigError({
      where: `llama config: ${field}`,
      rule,
      got: String(config[field]),
      ...(remedy ? { remedy } : {}),
    });
  };
  const sizes = [
    "vocabSize",
    "hiddenSize",
    "intermediateSize",
    "layers",
    "heads",
    "kvHeads",
    "headDim",
    "maxPositions",
  ] as const;
  for (const field of sizes) {
    if (!Number.isSafeInteger(config[field]) || config[field] < 1) fail(field, "must be a positive integer");
  }
  if (config.heads % config.kvHeads !== 0) {
    const divisors = Array.from({ length: config.heads }, (_, i) => i + 1).filter(
      (n) => config.heads % n === 0,
    );
    fail("kvHeads", `must divide heads (${config.heads})`, `Set it to ${divisors.join(", ")}`);
  }
  if (config.headDim % 2 !== 0) fail("headDim", "must be even, for rotary pairs");
  if (!(config.rmsNormEpsilon > 0)) fail("rmsNormEpsilon", "must be positive");
  if (!(config.ropeTheta > 0)) fail("ropeTheta", "must be positive");
  if (config.adapters !== undefined) checkAdapters(config.adapters);
}

/** @throws ConfigError when heads have a width that the attention kernel does not take */
function checkLlamaDecoding({ headDim }: LlamaConfig): void {
  if (headDim % HEAD_STEP === 0) return;
  throw new ConfigError({
    where: "engine: headDim",
    rule: `must be a multiple of ${HEAD_STEP}, which the attention kernel asks for`,
    got: String(headDim),
    remedy: "Train a model with wider heads",
  });
}

/** Every tensor of the model, in order; those of adapters come last. */
export function llamaParameters(config: LlamaConfig): ParameterSpec[] {
  const { hiddenSize: C, intermediateSize: F, heads, kvHeads, headDim: D, vocabSize: V, layers: L } = config;
  // Matrices keep the scale of their input; those that write to the residual stream are smaller, by depth (GPT-2).
  const into = 1 / Math.sqrt(C);
  const residual = 1 / Math.sqrt(2 * L);
  const specs: ParameterSpec[] = [
    { name: EMBEDDING, shape: [V, C], kind: "embedding", initialStd: 0.5 * into },
  ];
  for (let layer = 0; layer < L; layer++) {
    const at = `model.layers.${layer}`;
    const matrix = (name: string, rows: number, columns: number, initialStd: number): ParameterSpec => ({
      name: `${at}.${name}.weight`,
      shape: [rows, columns],
      kind: "matrix",
      initialStd,
    });
    const norm = (name: string): ParameterSpec => ({
      name: `${at}.${name}.weight`,
      shape: [C],
      kind: "norm",
      initialStd: 0,
    });
    const biases = (["q", "k", "v"] as const).map(
      (name): ParameterSpec => ({
        name: `${at}.self_attn.${name}_proj.bias`,
        shape: [(name === "q" ? heads : kvHeads) * D],
        kind: "bias",
        initialStd: 0,
      }),
    );
    specs.push(
      norm("input_layernorm"),
      matrix("self_attn.q_proj", heads * D, C, into),
      matrix("self_attn.k_proj", kvHeads * D, C, into),
      matrix("self_attn.v_proj", kvHeads * D, C, into),
      ...(config.modelType === "qwen2" ? biases : []),
      matrix("self_attn.o_proj", C, heads * D, residual / Math.sqrt(heads * D)),
      norm("post_attention_layernorm"),
      matrix("mlp.gate_proj", F, C, into),
      matrix("mlp.up_proj", F, C, into),
      matrix("mlp.down_proj", C, F, residual / Math.sqrt(F)),
    );
  }
  specs.push({ name: "model.norm.weight", shape: [C], kind: "norm", initialStd: 0 });
  if (!config.tieEmbeddings)
    specs.push({ name: "lm_head.weight", shape: [V, C], kind: "head", initialStd: 0.1 * into });
  if (config.adapters !== undefined) specs.push(...adapterParameters(specs, config.adapters));
  return specs;
}

/** As {@link freshWeights}. @throws ConfigError naming the field that breaks its rule */
export function initializeLlama(
  config: LlamaConfig,
  seed: number,
  options: FreshOptions = {},
): Record<string, HostArray<"f32">> {
  checkLlamaConfig(config);
  return freshWeights(llamaParameters(config), seed, options);
}

const layerWeight = (layer: number, name: string): string => `model.layers.${layer}.${name}.weight`;

const weightOf = (weights: Weights, name: string): Value => weightFor(weights, name, "llama");

/** The tensors of one layer, by name without the layer's; biases and adapters only where the model has them. */
interface LayerWeights {
  readonly norm: (name: string) => Value;
  readonly matrix: (name: string) => Matrix;
  /** A matrix of several joined, where the weights have it so. */
  readonly joined: (name: string) => Value | undefined;
  readonly bias: (name: string) => Value | undefined;
}

function layerWeights(weights: Weights, layer: number, config: LlamaConfig): LayerWeights {
  const { adapters } = config;
  return {
    norm: (name) => weightOf(weights, layerWeight(layer, name)),
    matrix(name) {
      const full = layerWeight(layer, name);
      const weight = weightOf(weights, full);
      if (adapters === undefined || !isAdapted(full, adapters)) return weight;
      const { a, b } = adapterNames(full);
      const scale = adapters.alpha / adapters.rank;
      return { weight, a: weightOf(weights, a), b: weightOf(weights, b), scale };
    },
    joined(name) {
      const weight = weights[layerWeight(layer, name)];
      invariant(
        weight === undefined || adapters === undefined,
        "adapters are beside matrices that stand apart",
      );
      return weight;
    },
    bias: (name) =>
      config.modelType === "qwen2" && name.startsWith("self_attn")
        ? weightOf(weights, `model.layers.${layer}.${name}.bias`)
        : undefined,
  };
}

/** Matrices of one layer that have the same input, and the rows of each; what they are called as one. */
interface Joint {
  readonly parts: readonly (readonly [name: string, rows: number])[];
  readonly joined: string;
}

function joints({ heads, kvHeads, headDim, intermediateSize: F }: LlamaConfig): {
  qkv: Joint;
  gateUp: Joint;
} {
  const [H, Hk] = [heads * headDim, kvHeads * headDim];
  const [q, k, v] = ["q", "k", "v"].map((name) => `self_attn.${name}_proj`) as [string, string, string];
  return {
    qkv: {
      parts: [
        [q, H],
        [k, Hk],
        [v, Hk],
      ],
      joined: "self_attn.qkv_proj",
    },
    gateUp: {
      parts: [
        ["mlp.gate_proj", F],
        ["mlp.up_proj", F],
      ],
      joined: "mlp.gate_up_proj",
    },
  };
}

/** The products of rows with matrices, which may be joined. @param x […, rows, C]; @returns […, rows, N] of each */
function products(x: Value, joint: Joint, { matrix, joined, bias }: LayerWeights): Value[] {
  const { parts } = joint;
  const whole = joined(joint.joined);
  if (whole === undefined) return parts.map(([name]) => linear(x, matrix(name), bias(name)));
  const product = linear(x, whole);
  let start = 0;
  return parts.map(([name, rows]) => {
    const part = slice(product, -1, start, start + rows);
    const added = bias(name);
    start += rows;
    return added === undefined ? part : add(part, added);
  });
}

/**
 * One residual block on rows […, C]. `attend` maps q, k and v, each […, heads·D], to […, H·D].
 */
function block(
  x: Value,
  weights: LayerWeights,
  config: LlamaConfig,
  attend: (q: Value, k: Value, v: Value) => Value,
): Value {
  const { norm, matrix } = weights;
  const epsilon = config.rmsNormEpsilon;
  const { qkv, gateUp } = joints(config);
  const normed = rmsNorm(x, norm("input_layernorm"), { epsilon });
  const [q, k, v] = products(normed, qkv, weights) as [Value, Value, Value];
  const attended = add(x, linear(attend(q, k, v), matrix("self_attn.o_proj")));
  const hidden = rmsNorm(attended, norm("post_attention_layernorm"), { epsilon });
  const [gate, up] = products(hidden, gateUp, weights) as [Value, Value];
  return add(attended, linear(gatedSilu(gate, up), matrix("mlp.down_proj")));
}

/** Final norm. @param x […, C] */
function finalNorm(x: Value, weights: Weights, config: LlamaConfig): Value {
  return rmsNorm(x, weightOf(weights, "model.norm.weight"), { epsilon: config.rmsNormEpsilon });
}

/** The output head, [V, C]. */
function headOf(weights: Weights, config: LlamaConfig): Value {
  return weightOf(weights, config.tieEmbeddings ? EMBEDDING : "lm_head.weight");
}

/**
 * The training forward, on rows in which several sequences may be packed.
 * @returns logits [B·T, V]
 */
export function llamaTrain(weights: Weights, batch: PackedRows, config: LlamaConfig): Value {
  return trainOutputs(weights, batch, config).logits;
}

function trainOutputs(weights: Weights, batch: PackedRows, config: LlamaConfig): TrainOutputs {
  const { heads, kvHeads } = config;
  const [B, T] = batch.ids.shape as readonly [number, number];
  // The kernel wants a table as long as a row, though no position of a packed sequence reaches that far.
  const longest = Math.max(config.maxPositions, T);
  const tables = rotaryTables(longest, config.headDim, config.ropeTheta, config.ropeScaling);
  const [cos, sin] = [constant(batch.ids, tables.cos), constant(batch.ids, tables.sin)];
  const mask = packedCausalMask(batch);
  let x = reshape(embed(weightOf(weights, EMBEDDING), batch.ids), [B * T, config.hiddenSize]);
  for (let layer = 0; layer < config.layers; layer++) {
    x = block(x, layerWeights(weights, layer, config), config, (q, k, v) => {
      const [q3, k3, v3] = [q, k, v].map((y) => reshape(y, [B, T, y.shape[1]!])) as [Value, Value, Value];
      const rotated = [q3, k3].map((y) => rotary(y, batch.positions, cos, sin)) as [Value, Value];
      return reshape(attention(...rotated, v3, mask, { heads, kvHeads, causal: true }), [
        B * T,
        heads * config.headDim,
      ]);
    });
  }
  const hidden = finalNorm(x, weights, config);
  const head = headOf(weights, config);
  return { logits: linear(hidden, head), hidden, head, routing: [] };
}

/** Names of the cache tensors of a layer: graph inputs, and with `Next` the outputs that share their memory. */
export function cacheNames(layer: number): { keys: string; values: string } {
  return { keys: `cache.${layer}.keys`, values: `cache.${layer}.values` };
}

/** Shape of each cache tensor: [B, Hk, S, D]. */
export function cacheShape(config: LlamaConfig, batch: number, positions: number): Shape {
  return [batch, config.kvHeads, positions, config.headDim];
}

/**
 * The decoding forward: T new tokens a row (right-padded when rows differ), attending to the cache and extending it.
 * @param caches  keys and values per layer, [B, Hk, S, D]
 * @returns logits [B, V] (every row's where `inputs.last` is absent), hidden states [B·T, C] and the extended caches
 */
export function llamaDecode(
  weights: Weights,
  inputs: DecodeInputs,
  caches: readonly { readonly keys: Value; readonly values: Value }[],
  config: LlamaConfig,
): { logits: Value; hidden: Value; caches: { keys: Value; values: Value }[] } {
  const { heads, kvHeads, headDim: D } = config;
  const S = caches[0]!.keys.shape[2]!;
  const tables = rotaryTables(S, D, config.ropeTheta, config.ropeScaling);
  const [cos, sin] = [constant(inputs.ids, tables.cos), constant(inputs.ids, tables.sin)];
  const extended: { keys: Value; values: Value }[] = [];
  let x = inputs.ids.dtype === "f32" ? inputs.ids : embed(weightOf(weights, EMBEDDING), inputs.ids);
  for (const [layer, cache] of caches.entries()) {
    x = block(x, layerWeights(weights, layer, config), config, (q, k, v) => {
      const { lengths, total } = inputs;
      const past = { pastKeys: cache.keys, pastValues: cache.values };
      const options = { heads, kvHeads, scale: 1 / Math.sqrt(D) };
      const next = cachedAttention({ q, k, v, ...past, lengths, total, cos, sin }, options);
      extended.push({ keys: next.keys, values: next.values });
      return next.attended;
    });
  }
  const rows = reshape(x, [sizeOf(x.shape.slice(0, -1)), config.hiddenSize]);
  // The norm is of rows, so that those not wanted cost little, and nothing where nobody reads `hidden`.
  const wanted = inputs.last === undefined ? rows : gatherRows(rows, inputs.last);
  const logits = linear(finalNorm(wanted, weights, config), headOf(weights, config));
  return { logits, hidden: finalNorm(rows, weights, config), caches: extended };
}

const nextName = (name: string): string => `next.${name}`;

function llamaCaches({ layers, kvHeads, headDim }: LlamaConfig): CacheSpec[] {
  return Array.from({ length: layers }, (_, layer) => cacheNames(layer)).flatMap(({ keys, values }) =>
    [keys, values].map((name) => ({ name, groups: kvHeads, width: headDim, outputs: [nextName(name)] })),
  );
}

/** llama and qwen2 differ in name alone: the config says which. */
const family = (name: "llama" | "qwen2"): Architecture<LlamaConfig> => ({
  name,
  check: checkLlamaConfig,
  checkDecoding: checkLlamaDecoding,
  parameters: llamaParameters,
  train: trainOutputs,
  caches: llamaCaches,
  decode(weights, inputs, caches, config) {
    const names = Array.from({ length: config.layers }, (_, layer) => cacheNames(layer));
    const past = names.map(({ keys, values }) => ({ keys: caches[keys]!, values: caches[values]! }));
    const decoded = llamaDecode(weights, inputs, past, config);
    const extended = decoded.caches.flatMap(({ keys, values }, layer) => [
      [nextName(names[layer]!.keys), keys] as const,
      [nextName(names[layer]!.values), values] as const,
    ]);
    return { ...decoded, caches: Object.fromEntries(extended) };
  },
  joins: (config) =>
    Array.from({ length: config.layers }, (_, layer) =>
      Object.values(joints(config)).map(({ parts, joined }) => ({
        parts: parts.map(([name]) => layerWeight(layer, name)),
        joined: layerWeight(layer, joined),
      })),
    ).flat(),
  activeParameters(config) {
    const total = llamaParameters(config).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
    return config.tieEmbeddings ? total : total - config.vocabSize * config.hiddenSize;
  },
  draft: () => undefined,
});

export const LLAMA = family("llama");
export const QWEN2 = family("qwen2");
