/** Small models for tests. */

import type { HostArray } from "../../src/compute/tensor/host.ts";
import type { DeepseekV3Config } from "../../src/model/arch/deepseek-v3.ts";
import { initializeLlama, type LlamaConfig } from "../../src/model/arch/llama.ts";
import { parseModelConfig } from "../../src/model/arch/models.ts";

/** A model that the interpreter can run and the engine can decode. */
export const TINY: LlamaConfig = {
  vocabSize: 11,
  hiddenSize: 16,
  intermediateSize: 24,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  headDim: 16,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 1e4,
  maxPositions: 64,
  tieEmbeddings: false,
};

/** Wide enough for blocks of whole numbers. */
export const BLOCKY: LlamaConfig = {
  vocabSize: 40,
  hiddenSize: 64,
  intermediateSize: 96,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 1e4,
  maxPositions: 64,
  tieEmbeddings: false,
};

/** A DeepSeek-V3 with a head for the token after next. */
export const DRAFTING: DeepseekV3Config = {
  modelType: "deepseek_v3",
  vocabSize: 9,
  hiddenSize: 32,
  intermediateSize: 32,
  expertSize: 16,
  layers: 2,
  denseLayers: 1,
  heads: 2,
  kvRank: 16,
  nopeHeadDim: 8,
  ropeHeadDim: 8,
  valueHeadDim: 8,
  routedExperts: 4,
  sharedExperts: 1,
  expertsPerToken: 2,
  expertGroups: 1,
  groupsPerToken: 1,
  normalizeExperts: true,
  expertScale: 1,
  draftLayers: 1,
  rmsNormEpsilon: 1e-6,
  ropeTheta: 1e4,
  maxPositions: 64,
  tieEmbeddings: false,
};

/** DeepSeek-V3 and R1 as published, their `config.json` (deepseek-ai/DeepSeek-V3, inference/configs/config_671B.json). */
export const DEEPSEEK_V3_JSON = {
  architectures: ["DeepseekV3ForCausalLM"],
  attention_bias: false,
  bos_token_id: 0,
  eos_token_id: 1,
  ep_size: 1,
  first_k_dense_replace: 3,
  hidden_act: "silu",
  hidden_size: 7168,
  initializer_range: 0.02,
  intermediate_size: 18432,
  kv_lora_rank: 512,
  max_position_embeddings: 163840,
  model_type: "deepseek_v3",
  moe_intermediate_size: 2048,
  moe_layer_freq: 1,
  n_group: 8,
  n_routed_experts: 256,
  n_shared_experts: 1,
  norm_topk_prob: true,
  num_attention_heads: 128,
  num_experts_per_tok: 8,
  num_hidden_layers: 61,
  num_key_value_heads: 128,
  num_nextn_predict_layers: 1,
  q_lora_rank: 1536,
  qk_nope_head_dim: 128,
  qk_rope_head_dim: 64,
  quantization_config: {
    activation_scheme: "dynamic",
    fmt: "e4m3",
    quant_method: "fp8",
    weight_block_size: [128, 128],
  },
  rms_norm_eps: 1e-6,
  rope_scaling: {
    beta_fast: 32,
    beta_slow: 1,
    factor: 40,
    mscale: 1,
    mscale_all_dim: 1,
    original_max_position_embeddings: 4096,
    type: "yarn",
  },
  rope_theta: 10000,
  routed_scaling_factor: 2.5,
  scoring_func: "sigmoid",
  tie_word_embeddings: false,
  topk_group: 4,
  topk_method: "noaux_tc",
  torch_dtype: "bfloat16",
  v_head_dim: 128,
  vocab_size: 129280,
};
export const DEEPSEEK_V3_671B = parseModelConfig("config.json", DEEPSEEK_V3_JSON).config;

/** The same in DeepSeek's own form: the sizes of that file. */
export const DEEPSEEK_V3_ARGS = {
  vocab_size: 129280,
  dim: 7168,
  inter_dim: 18432,
  moe_inter_dim: 2048,
  n_layers: 61,
  n_dense_layers: 3,
  n_heads: 128,
  n_routed_experts: 256,
  n_shared_experts: 1,
  n_activated_experts: 8,
  n_expert_groups: 8,
  n_limited_groups: 4,
  route_scale: 2.5,
  score_func: "sigmoid",
  q_lora_rank: 1536,
  kv_lora_rank: 512,
  qk_nope_head_dim: 128,
  qk_rope_head_dim: 64,
  v_head_dim: 128,
  dtype: "fp8",
};

/** Fresh weights, matrices and head scaled so that logits differ by whole nats: a model with opinions. */
export function opinionatedWeights(config: LlamaConfig, seed: number): Record<string, HostArray<"f32">> {
  const weights = initializeLlama(config, seed);
  for (const [name, { shape, data }] of Object.entries(weights)) {
    if (shape.length < 2) continue;
    const scale = name.startsWith("lm_head") ? 15 : name.includes("embed") ? 4 : 1.5;
    for (const i of data.keys()) data[i]! *= scale;
  }
  return weights;
}
