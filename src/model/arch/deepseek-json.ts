/**
 * `config.json` of DeepSeek-V3 and R1 models, as published and as transformers writes it.
 *
 * A setting that would change what the model computes and that we do not compute is refused; other keys are kept.
 *
 * @source transformers 5.23, models/deepseek_v3/configuration_deepseek_v3.py
 */

import { z } from "zod";
import type { YarnScaling } from "../nn/rope.ts";
import type { DeepseekV3Config } from "./deepseek-v3.ts";
import {
  commonKeys,
  count,
  countOrNone,
  expertCount,
  identityKeys,
  MOST_EXPERTS_IN_ALL,
  off,
  parseJson,
  positive,
  ropeKeys,
  ropeTheta,
  scaledRope,
  unknownKeys,
} from "./json.ts";

const MODEL = "DeepseekV3ForCausalLM";
const Rope = ropeKeys(["yarn"]);

const keys = {
  ...identityKeys("deepseek_v3", MODEL),
  ...commonKeys,
  moe_intermediate_size: count,
  num_key_value_heads: count.nullish(),
  q_lora_rank: count.nullish(),
  kv_lora_rank: count,
  qk_nope_head_dim: count,
  qk_rope_head_dim: count,
  v_head_dim: count,
  n_routed_experts: expertCount,
  n_shared_experts: countOrNone.nullish(),
  num_experts_per_tok: count,
  n_group: count.nullish(),
  topk_group: count.nullish(),
  first_k_dense_replace: countOrNone.default(0),
  norm_topk_prob: z.boolean("must be true or false").default(true),
  routed_scaling_factor: positive.default(1),
  num_nextn_predict_layers: countOrNone.max(1, "must be 0 or 1").default(0),
  max_position_embeddings: count.default(4096),
  rope_parameters: Rope.nullish(),
  rope_scaling: Rope.nullish(),
  rope_interleave: z.literal(true, "must be true: pairs are adjacent").nullish(),
  topk_method: z.literal("noaux_tc", 'must be "noaux_tc": no other choice of experts is supported').nullish(),
  scoring_func: z.literal("sigmoid", 'must be "sigmoid": no other gate is supported').nullish(),
  moe_layer_freq: z.literal(1, "must be 1: every layer after the dense ones has experts").nullish(),
  attention_bias: off("biases"),
  // Follow from the others.
  head_dim: z.unknown().optional(),
  qk_head_dim: z.unknown().optional(),
  // How the file's tensors are stored, not what the model computes.
  quantization_config: z.unknown().optional(),
};

const YarnJson = z
  .looseObject({
    factor: z.number("must be a number").min(1, "must be at least 1"),
    beta_fast: positive.default(32),
    beta_slow: positive.default(1),
    original_max_position_embeddings: count,
    mscale: positive,
    mscale_all_dim: positive,
    attention_factor: z.null("must be absent").optional(),
    truncate: z.literal(true, "must be true").optional(),
  })
  .superRefine((json, context) => {
    const fail = (key: string, message: string) => context.addIssue({ code: "custom", path: [key], message });
    if (json.mscale !== json.mscale_all_dim) {
      fail("mscale", "must equal mscale_all_dim: cosines and sines are not scaled");
    }
    if (json.beta_fast <= json.beta_slow) fail("beta_fast", "must be larger than beta_slow");
  });

const Schema = z.looseObject(keys, "must be an object").superRefine((json, context) => {
  const fail = (path: PropertyKey[], message: string) => context.addIssue({ code: "custom", path, message });
  const heads = json.num_attention_heads;
  const groups = json.n_group ?? 1;
  const chosen = json.topk_group ?? groups;
  if ((json.num_key_value_heads ?? heads) !== heads) {
    fail(["num_key_value_heads"], `must equal num_attention_heads (${heads})`);
  }
  if (json.qk_rope_head_dim % 2 !== 0) fail(["qk_rope_head_dim"], "must be even, for rotary pairs");
  if (json.n_routed_experts % groups !== 0) {
    fail(["n_group"], `must divide n_routed_experts (${json.n_routed_experts})`);
  }
  if (chosen > groups) fail(["topk_group"], `must be at most n_group (${groups})`);
  if (json.num_hidden_layers * json.n_routed_experts > MOST_EXPERTS_IN_ALL) {
    fail(["n_routed_experts"], `must be at most ${MOST_EXPERTS_IN_ALL} in all layers together`);
  }
  if (json.num_experts_per_tok > (json.n_routed_experts / groups) * chosen) {
    fail(["num_experts_per_tok"], "must be at most the experts of topk_group groups");
  }
  if (json.first_k_dense_replace > json.num_hidden_layers) {
    fail(["first_k_dense_replace"], `must be at most num_hidden_layers (${json.num_hidden_layers})`);
  }
  if (!ropeTheta(json).agree) fail(["rope_theta"], "must be the same wherever it is given");
  const scaled = scaledRope(json);
  if (scaled === undefined) return;
  const issue = YarnJson.safeParse(scaled.rope).error?.issues[0];
  if (issue !== undefined) fail([scaled.key, ...issue.path], issue.message);
});

/** What a `config.json` says. */
export interface ParsedDeepseekConfig {
  readonly config: DeepseekV3Config;
  /** Keys that the architecture does not depend on, token ids among them. */
  readonly extra: Readonly<Record<string, unknown>>;
}

function scalingOf(rope: Readonly<Record<string, unknown>>): YarnScaling {
  const it = YarnJson.parse(rope);
  return {
    type: "yarn",
    factor: it.factor,
    betaFast: it.beta_fast,
    betaSlow: it.beta_slow,
    originalPositions: it.original_max_position_embeddings,
    mscale: it.mscale_all_dim,
  };
}

/**
 * Reads a parsed `config.json`.
 * @param where names the file in errors
 * @throws ConfigError naming the key whose value is missing, malformed or not supported
 */
export function parseDeepseekConfig(where: string, json: unknown): ParsedDeepseekConfig {
  const it = parseJson(where, json, Schema);
  const scaled = scaledRope(it);
  const groups = it.n_group ?? 1;
  return {
    config: {
      modelType: "deepseek_v3",
      vocabSize: it.vocab_size,
      hiddenSize: it.hidden_size,
      intermediateSize: it.intermediate_size,
      expertSize: it.moe_intermediate_size,
      layers: it.num_hidden_layers,
      denseLayers: it.first_k_dense_replace,
      heads: it.num_attention_heads,
      ...(it.q_lora_rank == null ? {} : { queryRank: it.q_lora_rank }),
      kvRank: it.kv_lora_rank,
      nopeHeadDim: it.qk_nope_head_dim,
      ropeHeadDim: it.qk_rope_head_dim,
      valueHeadDim: it.v_head_dim,
      routedExperts: it.n_routed_experts,
      sharedExperts: it.n_shared_experts ?? 0,
      expertsPerToken: it.num_experts_per_tok,
      expertGroups: groups,
      groupsPerToken: it.topk_group ?? groups,
      normalizeExperts: it.norm_topk_prob,
      expertScale: it.routed_scaling_factor,
      draftLayers: it.num_nextn_predict_layers,
      rmsNormEpsilon: it.rms_norm_eps,
      ropeTheta: ropeTheta(it).theta,
      ...(scaled === undefined ? {} : { ropeScaling: scalingOf(scaled.rope) }),
      maxPositions: it.max_position_embeddings,
      tieEmbeddings: it.tie_word_embeddings,
    },
    extra: unknownKeys(it, keys),
  };
}

/** The `config.json` of a float32 model; `extra` as {@link parseDeepseekConfig} gave it. */
export function deepseekConfigJson({ config, extra }: ParsedDeepseekConfig): Record<string, unknown> {
  const { ropeScaling } = config;
  const scaling = ropeScaling && {
    type: "yarn",
    rope_type: "yarn",
    factor: ropeScaling.factor,
    beta_fast: ropeScaling.betaFast,
    beta_slow: ropeScaling.betaSlow,
    mscale: ropeScaling.mscale,
    mscale_all_dim: ropeScaling.mscale,
    original_max_position_embeddings: ropeScaling.originalPositions,
  };
  return {
    ...extra,
    architectures: [MODEL],
    model_type: "deepseek_v3",
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    moe_intermediate_size: config.expertSize,
    num_hidden_layers: config.layers,
    first_k_dense_replace: config.denseLayers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.heads,
    q_lora_rank: config.queryRank ?? null,
    kv_lora_rank: config.kvRank,
    qk_nope_head_dim: config.nopeHeadDim,
    qk_rope_head_dim: config.ropeHeadDim,
    v_head_dim: config.valueHeadDim,
    n_routed_experts: config.routedExperts,
    n_shared_experts: config.sharedExperts,
    num_experts_per_tok: config.expertsPerToken,
    n_group: config.expertGroups,
    topk_group: config.groupsPerToken,
    topk_method: "noaux_tc",
    scoring_func: "sigmoid",
    norm_topk_prob: config.normalizeExperts,
    routed_scaling_factor: config.expertScale,
    moe_layer_freq: 1,
    num_nextn_predict_layers: config.draftLayers,
    hidden_act: "silu",
    max_position_embeddings: config.maxPositions,
    rms_norm_eps: config.rmsNormEpsilon,
    rope_theta: config.ropeTheta,
    rope_parameters: { rope_type: "default", ...scaling, rope_theta: config.ropeTheta },
    ...(scaling === undefined ? {} : { rope_scaling: scaling }),
    tie_word_embeddings: config.tieEmbeddings,
    attention_bias: false,
    dtype: "float32",
  };
}
