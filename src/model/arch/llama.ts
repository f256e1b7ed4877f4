/**
 * The llama architecture: pre-norm decoder with RMSNorm, rotary embedding, grouped-query attention and SwiGLU.
 * Tensor names and layouts are those of Hugging Face's `LlamaForCausalLM`.
 *
 * Two forwards share every weight: `llamaTrain` on packed rows, differentiable, and `llamaDecode` over a cache.
 */

import { ConfigError } from "../../base/errors.ts";
import type { Value } from "../../compute/graph/ir.ts";
import {
  add,
  cachedAttention,
  constant,
  gatherRows,
  reshape,
  rmsNorm,
  rotary,
} from "../../compute/graph/primitives.ts";
import { attention } from "../../compute/ops/attention.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { Random } from "../../compute/tensor/random.ts";
import { type Shape, sizeOf, type TensorSpec } from "../../compute/tensor/shape.ts";
import { linear, packedCausalMask, rotaryTables, swiglu } from "../nn/layers.ts";

export interface LlamaConfig {
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
  /** Longest sequence. */
  readonly maxPositions: number;
  /** The output head is the embedding. */
  readonly tieEmbeddings: boolean;
}

const EMBEDDING = "model.embed_tokens.weight";

/** What a tensor is to the optimiser: matrices go to Muon, the rest to AdamW; norms are not decayed. */
export type ParameterKind = "matrix" | "embedding" | "head" | "norm";

export interface ParameterSpec {
  readonly name: string;
  readonly shape: Shape;
  readonly kind: ParameterKind;
  /** Standard deviation of the initial values; 1 everywhere for norms. */
  readonly initialStd: number;
}

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
}

/** Every tensor of the model, in order. */
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
    specs.push(
      norm("input_layernorm"),
      matrix("self_attn.q_proj", heads * D, C, into),
      matrix("self_attn.k_proj", kvHeads * D, C, into),
      matrix("self_attn.v_proj", kvHeads * D, C, into),
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
  return specs;
}

/** Number of weights. */
export function parameterCount(config: LlamaConfig): number {
  return llamaParameters(config).reduce((total, { shape }) => total + sizeOf(shape), 0);
}

/**
 * Fresh weights; each tensor has its own random stream, so adding one does not move the others.
 * @param options.numerals  ids of tokens that are whole numbers, and those numbers: their rows of embedding and head begin
 *   as {@link numeralFeatures}
 */
export function initializeLlama(
  config: LlamaConfig,
  seed: number,
  options: { readonly numerals?: ReadonlyMap<number, number> } = {},
): Record<string, HostArray<"f32">> {
  checkLlamaConfig(config);
  const entries = llamaParameters(config).map(({ name, shape, kind, initialStd }, index) => {
    const array = hostArray("f32", shape);
    const random = new Random(seed, 0x1417, index);
    for (let i = 0; i < array.data.length; i++)
      array.data[i] = kind === "norm" ? 1 : random.normal() * initialStd;
    if ((kind === "embedding" || kind === "head") && options.numerals !== undefined) {
      const std = kind === "embedding" ? 1 : 1 / Math.sqrt(config.hiddenSize);
      writeNumerals(array, options.numerals, new Random(seed, 0x1418, index), std);
    }
    return [name, array] as const;
  });
  return Object.fromEntries(entries);
}

/**
 * Replaces the rows of numerals by random combinations of their features.
 * @param std  of a row's elements: large beside a step of the optimizer, which would otherwise undo the circles at once
 */
function writeNumerals(
  { shape, data }: HostArray<"f32">,
  numerals: ReadonlyMap<number, number>,
  random: Random,
  std: number,
): void {
  const width = shape[1]!;
  const features = numeralFeatures(0).length;
  // Cosines and sines of the same angles: the squares of all features sum to half their number.
  const scale = std / Math.sqrt(features / 2);
  const directions = Float64Array.from({ length: features * width }, () => random.normal() * scale);
  for (const [id, number] of numerals) {
    const row = data.subarray(id * width, (id + 1) * width).fill(0);
    for (const [f, feature] of numeralFeatures(number).entries())
      for (let i = 0; i < width; i++) row[i]! += feature * directions[f * width + i]!;
  }
}

/** Turns of the circles on which numbers lie: in units of the number, and of its natural logarithm. */
const LINEAR_PERIODS = [2, 5, 10, 20, 50, 100, 200, 500];
const LOG_PERIODS = [0.25, 0.5, 1, 2, 4, 8];

/**
 * A number as points on circles, cosine and sine of each (FoNE, arXiv:2502.09741, has those of powers of ten). To add is to
 * turn a point by another's angle, which a gated layer can do: what is left to learn of a sum is a rotation and no table.
 * Circles of the logarithm do the same for products.
 */
export function numeralFeatures(number: number): number[] {
  // Nothing is lost by a zero beside the one: the linear circles tell them apart.
  const log = Math.log(Math.max(1, number));
  const turns = [...LINEAR_PERIODS.map((p) => number / p), ...LOG_PERIODS.map((p) => log / p)];
  return turns.flatMap((turn) => [Math.cos(2 * Math.PI * turn), Math.sin(2 * Math.PI * turn)]);
}

/** Weights by name, traced. */
export type Weights = Readonly<Record<string, Value>>;

/** Graph-input specs of the weights. */
export function weightSpecs(config: LlamaConfig): Record<string, TensorSpec> {
  return Object.fromEntries(
    llamaParameters(config).map(({ name, shape }) => [name, { dtype: "f32" as const, shape }]),
  );
}

function weightOf(weights: Weights, name: string): Value {
  const weight = weights[name];
  if (weight === undefined) throw new ConfigError({ where: "llama", rule: `needs the weight ${name}` });
  return weight;
}

function layerWeights(weights: Weights, layer: number): (name: string) => Value {
  return (name) => weightOf(weights, `model.layers.${layer}.${name}.weight`);
}

/**
 * One residual block on rows [B·T, C]. `attend` maps q, k and v, each [B·T, heads·D], to [B·T, H·D].
 */
function block(
  x: Value,
  w: (name: string) => Value,
  epsilon: number,
  attend: (q: Value, k: Value, v: Value) => Value,
): Value {
  const normed = rmsNorm(x, w("input_layernorm"), { epsilon });
  const [q, k, v] = ["q", "k", "v"].map((name) => linear(normed, w(`self_attn.${name}_proj`))) as [
    Value,
    Value,
    Value,
  ];
  const attended = add(x, linear(attend(q, k, v), w("self_attn.o_proj")));
  const hidden = rmsNorm(attended, w("post_attention_layernorm"), { epsilon });
  const weights = { gate: w("mlp.gate_proj"), up: w("mlp.up_proj"), down: w("mlp.down_proj") };
  return add(attended, swiglu(hidden, weights));
}

/** Final norm and output head. @param x [rows, C]; @returns logits [rows, V] */
function head(x: Value, weights: Weights, config: LlamaConfig): Value {
  const normed = rmsNorm(x, weightOf(weights, "model.norm.weight"), { epsilon: config.rmsNormEpsilon });
  return linear(normed, weightOf(weights, config.tieEmbeddings ? EMBEDDING : "lm_head.weight"));
}

/**
 * The training forward, on rows in which several sequences may be packed.
 * @param batch.ids        i32[B, T]
 * @param batch.positions  i32[B, T], position of each token in its own sequence
 * @param batch.segments   i32[B, T], which sequence of the row a token belongs to
 * @returns logits [B·T, V]
 */
export function llamaTrain(
  weights: Weights,
  batch: { readonly ids: Value; readonly positions: Value; readonly segments: Value },
  config: LlamaConfig,
): Value {
  const { heads, kvHeads, hiddenSize: C } = config;
  const [B, T] = batch.ids.shape as readonly [number, number];
  // The kernel wants a table as long as a row, though no position of a packed sequence reaches that far.
  const tables = rotaryTables(Math.max(config.maxPositions, T), config.headDim, config.ropeTheta);
  const [cos, sin] = [constant(batch.ids, tables.cos), constant(batch.ids, tables.sin)];
  const mask = packedCausalMask(batch.segments);
  let x = reshape(gatherRows(weightOf(weights, EMBEDDING), batch.ids), [B * T, C]);
  for (let layer = 0; layer < config.layers; layer++) {
    x = block(x, layerWeights(weights, layer), config.rmsNormEpsilon, (q, k, v) => {
      const [q3, k3, v3] = [q, k, v].map((y) => reshape(y, [B, T, y.shape[1]!])) as [Value, Value, Value];
      const rotated = [q3, k3].map((y) => rotary(y, batch.positions, cos, sin)) as [Value, Value];
      return reshape(attention(...rotated, v3, mask, { heads, kvHeads }), [B * T, heads * config.headDim]);
    });
  }
  return head(x, weights, config);
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
 * @param inputs.ids      i32[B, T]
 * @param inputs.lengths  i32[B], valid positions after this call minus one
 * @param inputs.total    i32[1], the largest of them plus one
 * @param inputs.last     i32[B], row of the flattened [B·T] whose logits are wanted; absent: every row (T = 1)
 * @param caches          keys and values per layer, [B, Hk, S, D]
 * @returns logits [B, V] and the extended caches
 */
export function llamaDecode(
  weights: Weights,
  inputs: { readonly ids: Value; readonly lengths: Value; readonly total: Value; readonly last?: Value },
  caches: readonly { readonly keys: Value; readonly values: Value }[],
  config: LlamaConfig,
): { logits: Value; caches: { keys: Value; values: Value }[] } {
  const { heads, kvHeads, hiddenSize: C, headDim: D } = config;
  const [B, T] = inputs.ids.shape as readonly [number, number];
  const S = caches[0]!.keys.shape[2]!;
  const tables = rotaryTables(S, D, config.ropeTheta);
  const [cos, sin] = [constant(inputs.ids, tables.cos), constant(inputs.ids, tables.sin)];
  const extended: { keys: Value; values: Value }[] = [];
  let x = reshape(gatherRows(weightOf(weights, EMBEDDING), inputs.ids), [B * T, C]);
  for (const [layer, cache] of caches.entries()) {
    x = block(x, layerWeights(weights, layer), config.rmsNormEpsilon, (q, k, v) => {
      const [q3, k3, v3] = [q, k, v].map((y) => reshape(y, [B, T, y.shape[1]!])) as [Value, Value, Value];
      const { lengths, total } = inputs;
      const past = { pastKeys: cache.keys, pastValues: cache.values };
      const options = { heads, kvHeads, scale: 1 / Math.sqrt(D) };
      const next = cachedAttention({ q: q3, k: k3, v: v3, ...past, lengths, total, cos, sin }, options);
      extended.push({ keys: next.keys, values: next.values });
      return reshape(next.attended, [B * T, heads * D]);
    });
  }
  const wanted = inputs.last === undefined ? x : gatherRows(x, inputs.last);
  return { logits: head(wanted, weights, config), caches: extended };
}
