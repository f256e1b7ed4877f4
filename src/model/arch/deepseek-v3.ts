/**
 * DeepSeek-V3 (arXiv:2412.19437): pre-norm decoder with multi-head latent attention, dense layers first and then mixtures of
 * experts, and a module that predicts the token after next. Tensor names and layouts are those of its published checkpoints.
 *
 * Departures, and what the paper leaves open: the module takes the hidden state after the final norm, and its projection
 * takes the embedding first, as transformers and vLLM do with the published weights; embedding and head of the module are
 * the model's own, and are not stored again.
 */

import { ConfigError } from "../../base/errors.ts";
import type { Value } from "../../compute/graph/ir.ts";
import {
  add,
  concat,
  constant,
  equal,
  gatherRows,
  reshape,
  rmsNorm,
  sub,
  where,
} from "../../compute/graph/primitives.ts";
import { i32 } from "../../compute/tensor/host.ts";
import { type Shape, sizeOf } from "../../compute/tensor/shape.ts";
import { embed, linear, packedCausalMask, swiglu } from "../nn/layers.ts";
import {
  absorbedAttention,
  type LatentSizes,
  type LatentWeights,
  latentAttention,
  type Rotation,
} from "../nn/mla.ts";
import { countedTokens, type Experts, expertLoad, gate, mixture, sequenceBalance } from "../nn/moe.ts";
import { rotaryTables, type YarnScaling, yarnMagnitude } from "../nn/rope.ts";
import {
  type Architecture,
  type CacheSpec,
  type DecodeInputs,
  type DecodeOutputs,
  type Draft,
  type PackedRows,
  type ParameterKind,
  type ParameterSpec,
  type Routing,
  type TrainOutputs,
  type Weights,
  weightOf as weightFor,
} from "./architecture.ts";

export interface DeepseekV3Config {
  readonly modelType: "deepseek_v3";
  readonly vocabSize: number;
  /** Model width C. */
  readonly hiddenSize: number;
  /** Hidden width of the dense layers' feed-forward. */
  readonly intermediateSize: number;
  /** Hidden width F of an expert. */
  readonly expertSize: number;
  readonly layers: number;
  /** Layers, from the first, whose feed-forward is dense. */
  readonly denseLayers: number;
  readonly heads: number;
  /** Width of the queries' latent; absent: queries come from the model's width at once. */
  readonly queryRank?: number;
  /** Width K of the latent of keys and values. */
  readonly kvRank: number;
  /** Width of a head's query and key that know no position. */
  readonly nopeHeadDim: number;
  /** Width of those that do; even. */
  readonly ropeHeadDim: number;
  readonly valueHeadDim: number;
  readonly routedExperts: number;
  readonly sharedExperts: number;
  readonly expertsPerToken: number;
  readonly expertGroups: number;
  /** Groups that a token's experts may be in. */
  readonly groupsPerToken: number;
  /** Whether a token's expert weights are made to add up to 1 before they are scaled. */
  readonly normalizeExperts: boolean;
  readonly expertScale: number;
  /** Modules that predict the token after next: 0 or 1. */
  readonly draftLayers: number;
  readonly rmsNormEpsilon: number;
  readonly ropeTheta: number;
  readonly ropeScaling?: YarnScaling;
  /** Longest sequence. */
  readonly maxPositions: number;
  /** The output head is the embedding. */
  readonly tieEmbeddings: boolean;
}

const EMBEDDING = "model.embed_tokens.weight";

/** The attention kernel takes caches whose width is a multiple of this. */
const CACHE_STEP = 8;

/** @throws ConfigError naming the field that breaks its rule */
export function checkDeepseekV3Config(config: DeepseekV3Config): void {
  const fail = (field: keyof DeepseekV3Config, rule: string): never => {
    throw new ConfigError({ where: `deepseek_v3 config: ${field}`, rule, got: String(config[field]) });
  };
  const positive = [
    ...(["vocabSize", "hiddenSize", "intermediateSize", "expertSize", "layers", "heads", "kvRank"] as const),
    ...(["nopeHeadDim", "ropeHeadDim", "valueHeadDim", "routedExperts", "expertsPerToken"] as const),
    ...(["expertGroups", "groupsPerToken", "maxPositions"] as const),
    ...(config.queryRank === undefined ? [] : (["queryRank"] as const)),
  ];
  for (const field of positive) {
    if (!Number.isSafeInteger(config[field]) || config[field]! < 1) fail(field, "must be a positive integer");
  }
  for (const field of ["denseLayers", "sharedExperts", "draftLayers"] as const) {
    if (!Number.isSafeInteger(config[field]) || config[field] < 0) fail(field, "must be a whole number");
  }
  const { routedExperts: E, expertGroups: G, groupsPerToken } = config;
  if (config.ropeHeadDim % 2 !== 0) fail("ropeHeadDim", "must be even, for rotary pairs");
  if (E % G !== 0) fail("expertGroups", `must divide routedExperts (${E})`);
  if (groupsPerToken > G) fail("groupsPerToken", `must be at most expertGroups (${G})`);
  if (config.expertsPerToken > (E / G) * groupsPerToken) {
    fail(
      "expertsPerToken",
      `must be at most the ${(E / G) * groupsPerToken} experts of groupsPerToken groups`,
    );
  }
  if (config.denseLayers > config.layers) fail("denseLayers", `must be at most layers (${config.layers})`);
  if (config.draftLayers > 1) fail("draftLayers", "must be 0 or 1");
  for (const field of ["rmsNormEpsilon", "ropeTheta", "expertScale"] as const) {
    if (!(config[field] > 0)) fail(field, "must be positive");
  }
}

function checkDecoding({ kvRank, ropeHeadDim }: DeepseekV3Config): void {
  if ((kvRank + ropeHeadDim) % CACHE_STEP === 0) return;
  throw new ConfigError({
    where: "engine: kvRank and ropeHeadDim",
    rule: `must add up to a multiple of ${CACHE_STEP}, which the attention kernel asks for`,
    got: `${kvRank} + ${ropeHeadDim}`,
    remedy: "Train a model of another latent width",
  });
}

/** Whether a layer has experts; the drafting module, after the last layer, does. */
const isMixture = (layer: number, { denseLayers }: DeepseekV3Config): boolean => layer >= denseLayers;

/** Every tensor of the model, in order. */
export function deepseekV3Parameters(config: DeepseekV3Config): ParameterSpec[] {
  const { hiddenSize: C, vocabSize: V, heads: H, kvRank: K, layers: L } = config;
  const { nopeHeadDim: N, ropeHeadDim: R, valueHeadDim: Dv } = config;
  // Matrices keep the scale of their input; those that write to the residual stream are smaller, by depth (GPT-2).
  const into = (width: number): number => 1 / Math.sqrt(width);
  const residual = (width: number): number => into(width) / Math.sqrt(2 * L);
  const specs: ParameterSpec[] = [];
  const put = (name: string, shape: Shape, kind: ParameterKind, initialStd: number): void => {
    specs.push({ name, shape, kind, initialStd });
  };
  const feedForward = (at: string, width: number): void => {
    put(`${at}.gate_proj.weight`, [width, C], "matrix", into(C));
    put(`${at}.up_proj.weight`, [width, C], "matrix", into(C));
    put(`${at}.down_proj.weight`, [C, width], "matrix", residual(width));
  };
  const block = (layer: number): void => {
    const at = `model.layers.${layer}`;
    const attention = `${at}.self_attn`;
    put(`${at}.input_layernorm.weight`, [C], "norm", 0);
    if (config.queryRank === undefined) {
      put(`${attention}.q_proj.weight`, [H * (N + R), C], "matrix", into(C));
    } else {
      put(`${attention}.q_a_proj.weight`, [config.queryRank, C], "matrix", into(C));
      put(`${attention}.q_a_layernorm.weight`, [config.queryRank], "norm", 0);
      put(`${attention}.q_b_proj.weight`, [H * (N + R), config.queryRank], "matrix", into(config.queryRank));
    }
    put(`${attention}.kv_a_proj_with_mqa.weight`, [K + R, C], "matrix", into(C));
    put(`${attention}.kv_a_layernorm.weight`, [K], "norm", 0);
    put(`${attention}.kv_b_proj.weight`, [H * (N + Dv), K], "matrix", into(K));
    put(`${attention}.o_proj.weight`, [C, H * Dv], "matrix", residual(H * Dv));
    put(`${at}.post_attention_layernorm.weight`, [C], "norm", 0);
    if (!isMixture(layer, config)) {
      feedForward(`${at}.mlp`, config.intermediateSize);
      return;
    }
    put(`${at}.mlp.gate.weight`, [config.routedExperts, C], "matrix", into(C));
    put(correctionName(layer), [config.routedExperts], "correction", 0);
    for (let e = 0; e < config.routedExperts; e++) feedForward(`${at}.mlp.experts.${e}`, config.expertSize);
    if (config.sharedExperts > 0) {
      feedForward(`${at}.mlp.shared_experts`, config.sharedExperts * config.expertSize);
    }
  };
  put(EMBEDDING, [V, C], "embedding", 0.5 * into(C));
  for (let layer = 0; layer < L; layer++) block(layer);
  put("model.norm.weight", [C], "norm", 0);
  if (!config.tieEmbeddings) put("lm_head.weight", [V, C], "head", 0.1 * into(C));
  if (config.draftLayers > 0) {
    const at = `model.layers.${L}`;
    put(`${at}.enorm.weight`, [C], "norm", 0);
    put(`${at}.hnorm.weight`, [C], "norm", 0);
    put(`${at}.eh_proj.weight`, [C, 2 * C], "matrix", into(2 * C));
    block(L);
    put(`${at}.shared_head.norm.weight`, [C], "norm", 0);
  }
  return specs;
}

const correctionName = (layer: number): string => `model.layers.${layer}.mlp.gate.e_score_correction_bias`;

const weightOf = (weights: Weights, name: string): Value => weightFor(weights, name, "deepseek_v3");

/** The tensors of one layer, by name without the layer's. */
type LayerWeights = (name: string) => Value;

const layerWeights =
  (weights: Weights, layer: number): LayerWeights =>
  (name) =>
    weightOf(weights, `model.layers.${layer}.${name}`);

function attentionWeights(w: LayerWeights, config: DeepseekV3Config): LatentWeights {
  const at = (name: string): Value => w(`self_attn.${name}.weight`);
  return {
    query:
      config.queryRank === undefined
        ? at("q_proj")
        : { down: at("q_a_proj"), norm: at("q_a_layernorm"), up: at("q_b_proj") },
    kvDown: at("kv_a_proj_with_mqa"),
    kvNorm: at("kv_a_layernorm"),
    kvUp: at("kv_b_proj"),
    output: at("o_proj"),
  };
}

function latentSizes(config: DeepseekV3Config): LatentSizes {
  const { heads, nopeHeadDim: nope, ropeHeadDim: rope, valueHeadDim: value, kvRank: latent } = config;
  const magnitude = config.ropeScaling === undefined ? 1 : yarnMagnitude(config.ropeScaling);
  return { heads, nope, rope, value, latent, scale: magnitude ** 2 / Math.sqrt(nope + rope) };
}

const feedForwardWeights = (w: LayerWeights, at: string) => ({
  gate: w(`${at}.gate_proj.weight`),
  up: w(`${at}.up_proj.weight`),
  down: w(`${at}.down_proj.weight`),
});

/** The feed-forward of a layer. @param x [N, C]; @returns [N, C], and what the gate did if there is one */
function feedForward(x: Value, w: LayerWeights, layer: number, config: DeepseekV3Config) {
  if (!isMixture(layer, config)) return { y: swiglu(x, feedForwardWeights(w, "mlp")), gated: undefined };
  const gated = gate(x, w("mlp.gate.weight"), w("mlp.gate.e_score_correction_bias"), {
    chosen: config.expertsPerToken,
    groups: config.expertGroups,
    chosenGroups: config.groupsPerToken,
    normalized: config.normalizeExperts,
    scale: config.expertScale,
  });
  const each = (part: string): Value[] =>
    Array.from({ length: config.routedExperts }, (_, e) => w(`mlp.experts.${e}.${part}_proj.weight`));
  const experts: Experts = { gate: each("gate"), up: each("up"), down: each("down") };
  const routed = mixture(x, gated, experts);
  const shared =
    config.sharedExperts > 0 ? swiglu(x, feedForwardWeights(w, "mlp.shared_experts")) : undefined;
  return { y: shared === undefined ? routed : add(routed, shared), gated };
}

type Attend = (normed: Value, w: LayerWeights, layer: number) => Value;

/** One residual block on rows [B·T, C]. */
function block(x: Value, weights: Weights, layer: number, config: DeepseekV3Config, attend: Attend) {
  const w = layerWeights(weights, layer);
  const epsilon = config.rmsNormEpsilon;
  const attended = add(x, attend(rmsNorm(x, w("input_layernorm.weight"), { epsilon }), w, layer));
  const normed = rmsNorm(attended, w("post_attention_layernorm.weight"), { epsilon });
  const { y, gated } = feedForward(normed, w, layer, config);
  return { x: add(attended, y), gated };
}

/** @param x [rows, C] */
function normed(x: Value, weights: Weights, name: string, config: DeepseekV3Config): Value {
  return rmsNorm(x, weightOf(weights, name), { epsilon: config.rmsNormEpsilon });
}

/** The output head, [V, C]. */
function headOf(weights: Weights, config: DeepseekV3Config): Value {
  return weightOf(weights, config.tieEmbeddings ? EMBEDDING : "lm_head.weight");
}

/** @param ids i32[B, T]; @returns [B·T, C] */
function embeddedRows(ids: Value, weights: Weights, { hiddenSize }: DeepseekV3Config): Value {
  return reshape(embed(weightOf(weights, EMBEDDING), ids), [sizeOf(ids.shape), hiddenSize]);
}

/** What the drafting module's block takes. @param next i32[B, T], the token after each; @param hidden [B·T, C] */
function draftInput(next: Value, hidden: Value, weights: Weights, config: DeepseekV3Config): Value {
  const at = `model.layers.${config.layers}`;
  const embedded = normed(embeddedRows(next, weights, config), weights, `${at}.enorm.weight`, config);
  const state = normed(hidden, weights, `${at}.hnorm.weight`, config);
  return linear(concat([embedded, state], 1), weightOf(weights, `${at}.eh_proj.weight`));
}

const draftNorm = ({ layers }: DeepseekV3Config): string => `model.layers.${layers}.shared_head.norm.weight`;

/** The training forward of layers `from` … `to` − 1. @param x [B·T, C] */
function trainLayers(
  x: Value,
  weights: Weights,
  batch: PackedRows,
  config: DeepseekV3Config,
  layers: readonly number[],
): { x: Value; routing: Routing[] } {
  const T = batch.ids.shape[1]!;
  const sizes = latentSizes(config);
  // The kernel wants a table as long as a row, though no position of a packed sequence reaches that far.
  const longest = Math.max(config.maxPositions, T);
  const tables = rotaryTables(longest, sizes.rope, config.ropeTheta, config.ropeScaling);
  const rotation: Rotation = {
    positions: batch.positions,
    cos: constant(batch.ids, tables.cos),
    sin: constant(batch.ids, tables.sin),
  };
  const mask = packedCausalMask(batch);
  const counted = countedTokens(batch.segments);
  const routing: Routing[] = [];
  let rows = x;
  for (const layer of layers) {
    const done = block(rows, weights, layer, config, (y, w) =>
      latentAttention(y, attentionWeights(w, config), mask, sizes, rotation),
    );
    rows = done.x;
    if (done.gated === undefined) continue;
    routing.push({
      correction: correctionName(layer),
      load: expertLoad(done.gated.chosen, counted, config.routedExperts),
      balance: sequenceBalance(done.gated.scores, batch.segments, config.expertsPerToken),
    });
  }
  return { x: rows, routing };
}

const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

function train(weights: Weights, batch: PackedRows, config: DeepseekV3Config): TrainOutputs {
  const start = embeddedRows(batch.ids, weights, config);
  const { x, routing } = trainLayers(start, weights, batch, config, upTo(config.layers));
  const hidden = normed(x, weights, "model.norm.weight", config);
  const head = headOf(weights, config);
  return { logits: linear(hidden, head), hidden, head, routing };
}

function layerCache(layer: number, { kvRank, ropeHeadDim }: DeepseekV3Config): CacheSpec {
  const name = `cache.${layer}.latent`;
  return {
    name,
    groups: 1,
    width: kvRank + ropeHeadDim,
    outputs: [`next.${name}`, `next.${name}.values`],
  };
}

/** Positions of the new tokens, i32[B, T]: those of a first prompt count from 0, any others go on from the cache. */
function newPositions({ ids, lengths, total }: DecodeInputs): Value {
  const [B, T] = ids.shape as readonly [number, number];
  if (T === 1) return reshape(lengths, [B, 1]);
  const steps = constant(ids, i32([1, T], upTo(T)));
  const after = add(sub(reshape(lengths, [B, 1]), T - 1), steps);
  return where(equal(reshape(total, [1, 1]), T), steps, after);
}

/** The decoding forward of some layers. @param x [B·T, C] */
function decodeLayers(
  x: Value,
  weights: Weights,
  inputs: DecodeInputs,
  caches: Readonly<Record<string, Value>>,
  config: DeepseekV3Config,
  layers: readonly number[],
): { x: Value; caches: Record<string, Value> } {
  const sizes = latentSizes(config);
  const S = caches[layerCache(layers[0]!, config).name]!.shape[2]!;
  const tables = rotaryTables(S, sizes.rope, config.ropeTheta, config.ropeScaling);
  const rotation: Rotation = {
    positions: newPositions(inputs),
    cos: constant(inputs.ids, tables.cos),
    sin: constant(inputs.ids, tables.sin),
  };
  const { lengths, total } = inputs;
  const extended: Record<string, Value> = {};
  let rows = x;
  for (const layer of layers) {
    const { name, outputs } = layerCache(layer, config);
    rows = block(rows, weights, layer, config, (y, w) => {
      const cache = { past: caches[name]!, lengths, total };
      const next = absorbedAttention(y, attentionWeights(w, config), cache, sizes, rotation);
      extended[outputs[0]!] = next.keys;
      extended[outputs[1]!] = next.values;
      return next.attended;
    }).x;
  }
  return { x: rows, caches: extended };
}

/** Logits of the rows that are wanted, and the normed states of all. */
function decoded(
  x: Value,
  { last }: DecodeInputs,
  caches: Record<string, Value>,
  weights: Weights,
  norm: string,
  config: DeepseekV3Config,
): DecodeOutputs {
  const wanted = last === undefined ? x : gatherRows(x, last);
  const logits = linear(normed(wanted, weights, norm, config), headOf(weights, config));
  return { logits, hidden: normed(x, weights, norm, config), caches };
}

const DRAFT: Draft<DeepseekV3Config> = {
  caches: (config) => [layerCache(config.layers, config)],
  train(weights, hidden, batch, config) {
    const start = draftInput(batch.next, hidden, weights, config);
    const { x, routing } = trainLayers(start, weights, batch, config, [config.layers]);
    const state = normed(x, weights, draftNorm(config), config);
    const head = headOf(weights, config);
    return { logits: linear(state, head), hidden: state, head, routing };
  },
  decode(weights, inputs, caches, config) {
    const start = draftInput(inputs.ids, inputs.hidden, weights, config);
    const done = decodeLayers(start, weights, inputs, caches, config, [config.layers]);
    return decoded(done.x, inputs, done.caches, weights, draftNorm(config), config);
  },
};

export const DEEPSEEK_V3: Architecture<DeepseekV3Config> = {
  name: "deepseek_v3",
  check: checkDeepseekV3Config,
  checkDecoding,
  parameters: deepseekV3Parameters,
  train,
  caches: (config) => upTo(config.layers).map((layer) => layerCache(layer, config)),
  decode(weights, inputs, caches, config) {
    const start = embeddedRows(inputs.ids, weights, config);
    const done = decodeLayers(start, weights, inputs, caches, config, upTo(config.layers));
    return decoded(done.x, inputs, done.caches, weights, "model.norm.weight", config);
  },
  joins: () => [],
  activeParameters(config) {
    const idle = config.routedExperts - config.expertsPerToken;
    const mixtures = Math.max(0, config.layers - config.denseLayers);
    const main = deepseekV3Parameters({ ...config, draftLayers: 0 });
    const total = main.reduce((sum, { shape }) => sum + sizeOf(shape), 0);
    const lookup = config.tieEmbeddings ? 0 : config.vocabSize * config.hiddenSize;
    return total - mixtures * idle * 3 * config.hiddenSize * config.expertSize - lookup;
  },
  draft: ({ draftLayers }) => (draftLayers > 0 ? DRAFT : undefined),
};
