/**
 * GGUF metadata as the `config.json` that Hugging Face would have for the same model. Only what the file says is written: which
 * settings are supported is for whoever parses the config to decide.
 *
 * @source github.com/ggml-org/llama.cpp, conversion/base.py, llama.py, deepseek.py (the same mapping, the other way)
 */

import type { GgufVocabulary } from "../../text/gguf.ts";
import type { Metadata } from "./metadata.ts";
import { GGUF_ARCHITECTURES, type GgufArchitecture, isGgufArchitecture } from "./names.ts";
import type { GgufTensorInfo } from "./reader.ts";

type Json = Record<string, unknown>;

/** What {@link ggufConfig} needs besides metadata. */
export interface ConfigSources {
  readonly tensors: ReadonlyMap<string, GgufTensorInfo>;
  readonly vocabulary: GgufVocabulary | undefined;
  /** `rope_freqs.weight`: what each rotary frequency is divided by. */
  readonly frequencyFactors: Float32Array | undefined;
}

const DEFAULT_ROPE_THETA = 10_000;
/** The sizes of Llama 3.1 to 3.3, whose files hold the factors that follow from them instead of the sizes. */
const LLAMA3 = { low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
/** Deepseek's YaRN, where a file does not say: llama.cpp's defaults too. */
const YARN = { beta_fast: 32, beta_slow: 1 };
/** Deepseek files hold a tenth of `mscale_all_dim`. */
export const LOG_MULTIPLIER_UNIT = 0.1;
/** Numbers of `expert_gating_func`. */
const SOFTMAX = 1;
export const SIGMOID = 2;

/** @throws FormatError when the file names none that we map */
export function architectureOf(metadata: Metadata): GgufArchitecture {
  const key = "general.architecture";
  const name = metadata.string(key);
  return isGgufArchitecture(name)
    ? name
    : metadata.fail(key, `must be one of ${GGUF_ARCHITECTURES.join(", ")}`);
}

/** Numbers of Llama 3's rotary scaling, as `config.json` has them. */
export interface Llama3Scaling {
  readonly factor: number;
  readonly low_freq_factor: number;
  readonly high_freq_factor: number;
  readonly original_max_position_embeddings: number;
}

/** What each rotary frequency is divided by, f32[D/2]. */
export function llama3Factors(headDim: number, theta: number, scaling: Llama3Scaling): Float32Array {
  const { factor, low_freq_factor: low, high_freq_factor: high } = scaling;
  const original = scaling.original_max_position_embeddings;
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const waveLength = 2 * Math.PI * theta ** ((2 * i) / headDim);
    if (waveLength < original / high) return 1;
    if (waveLength > original / low) return factor;
    const smooth = (original / waveLength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}

/** The scaling whose factors the file holds, if it is Llama 3's. */
function llama3Scaling(metadata: Metadata, factors: Float32Array, headDim: number, theta: number): Json {
  const factor = factors.reduce((a, b) => Math.max(a, b), 0);
  const expected = llama3Factors(headDim, theta, { factor, ...LLAMA3 });
  // The file's were made in float32, by another order of operations.
  const fits =
    factors.length === expected.length && factors.every((x, i) => Math.abs(x / expected[i]! - 1) < 1e-4);
  if (!fits) {
    metadata.fail("rope_freqs.weight", "must be the factors of Llama 3's rotary scaling", "others");
  }
  return { rope_type: "llama3", factor, ...LLAMA3 };
}

function ropeScaling(metadata: Metadata, prefix: string): Json | undefined {
  const type = metadata.string(`${prefix}.rope.scaling.type`, "none");
  if (type === "none") return undefined;
  const original = `${prefix}.rope.scaling.original_context_length`;
  return {
    rope_type: type,
    factor: metadata.number(`${prefix}.rope.scaling.factor`),
    ...(metadata.has(original) ? { original_max_position_embeddings: metadata.count(original) } : {}),
  };
}

/** What every architecture has. */
function common(metadata: Metadata, prefix: string, { tensors, vocabulary }: ConfigSources): Json {
  const embedding = tensors.get("token_embd.weight");
  if (embedding?.shape.length !== 2) {
    metadata.fail(
      "tensor token_embd.weight",
      "must be a matrix",
      embedding ? "another shape" : "no such tensor",
    );
  }
  const id = (name: string, value: number | undefined): Json =>
    value === undefined ? {} : { [name]: value };
  return {
    vocab_size: embedding.shape[0],
    hidden_size: metadata.count(`${prefix}.embedding_length`),
    intermediate_size: metadata.count(`${prefix}.feed_forward_length`),
    num_hidden_layers: metadata.count(`${prefix}.block_count`),
    num_attention_heads: metadata.count(`${prefix}.attention.head_count`),
    max_position_embeddings: metadata.count(`${prefix}.context_length`),
    rms_norm_eps: metadata.number(`${prefix}.attention.layer_norm_rms_epsilon`),
    rope_theta: metadata.number(`${prefix}.rope.freq_base`, DEFAULT_ROPE_THETA),
    hidden_act: "silu",
    tie_word_embeddings: !tensors.has("output.weight"),
    ...id("bos_token_id", vocabulary?.bosId),
    ...id("eos_token_id", vocabulary?.eosId),
    ...id("pad_token_id", vocabulary?.paddingId),
  };
}

function denseConfig(metadata: Metadata, prefix: "llama" | "qwen2", sources: ConfigSources): Json {
  const json = common(metadata, prefix, sources);
  const [heads, width] = [json["num_attention_heads"] as number, json["hidden_size"] as number];
  const headsKey = `${prefix}.attention.head_count`;
  if (heads < 1) metadata.fail(headsKey, "must be positive");
  const headDim = metadata.count(`${prefix}.attention.key_length`, width / heads);
  const rotated = `${prefix}.rope.dimension_count`;
  if (metadata.count(rotated, headDim) !== headDim)
    metadata.fail(rotated, `must be the head width ${headDim}`);
  const valueWidth = `${prefix}.attention.value_length`;
  if (metadata.count(valueWidth, headDim) !== headDim) {
    metadata.fail(valueWidth, `must be the head width ${headDim}`);
  }
  const experts = `${prefix}.expert_count`;
  if (metadata.count(experts, 0) !== 0)
    metadata.fail(experts, "must be 0 or absent: no mixture of experts is mapped");
  const theta = json["rope_theta"] as number;
  const scaling =
    sources.frequencyFactors === undefined
      ? ropeScaling(metadata, prefix)
      : llama3Scaling(metadata, sources.frequencyFactors, headDim, theta);
  return {
    architectures: [prefix === "llama" ? "LlamaForCausalLM" : "Qwen2ForCausalLM"],
    model_type: prefix,
    ...json,
    num_key_value_heads: metadata.count(`${prefix}.attention.head_count_kv`, heads),
    head_dim: headDim,
    ...(scaling === undefined ? {} : { rope_scaling: scaling }),
    ...(prefix === "llama" ? { attention_bias: false, mlp_bias: false } : { use_sliding_window: false }),
  };
}

function deepseekConfig(metadata: Metadata, sources: ConfigSources): Json {
  const prefix = "deepseek2";
  const json = common(metadata, prefix, sources);
  const count = (name: string, absent?: number) => metadata.count(`${prefix}.${name}`, absent);
  const rotated = count("rope.dimension_count");
  // Files since MLA became multi-query attention in llama.cpp hold the width of a decompressed head under names of its own.
  const keyWidth = count("attention.key_length_mla", metadata.count(`${prefix}.attention.key_length`));
  const valueWidth = count("attention.value_length_mla", metadata.count(`${prefix}.attention.value_length`));
  if (keyWidth <= rotated) {
    metadata.fail(`${prefix}.attention.key_length`, `must be above the ${rotated} rotated`, `${keyWidth}`);
  }
  const gatingKey = `${prefix}.expert_gating_func`;
  // V2's files say nothing.
  const gating = metadata.count(gatingKey, SOFTMAX);
  if (gating !== SOFTMAX && gating !== SIGMOID) metadata.fail(gatingKey, "must be 1, softmax, or 2, sigmoid");
  const isV3 = gating === SIGMOID;
  const scaling = ropeScaling(metadata, prefix);
  const mscale = metadata.number(`${prefix}.rope.scaling.yarn_log_multiplier`, 0) / LOG_MULTIPLIER_UNIT;
  const yarn = {
    beta_fast: metadata.number(`${prefix}.rope.scaling.yarn_beta_fast`, YARN.beta_fast),
    beta_slow: metadata.number(`${prefix}.rope.scaling.yarn_beta_slow`, YARN.beta_slow),
    // One number stands for both: where they are equal, as in every Deepseek model, only the softmax is scaled.
    mscale: Number(mscale.toPrecision(6)),
    mscale_all_dim: Number(mscale.toPrecision(6)),
  };
  const groups = count("expert_group_count", 1);
  return {
    architectures: [isV3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"],
    model_type: isV3 ? "deepseek_v3" : "deepseek_v2",
    ...json,
    num_key_value_heads: json["num_attention_heads"],
    q_lora_rank: metadata.has(`${prefix}.attention.q_lora_rank`) ? count("attention.q_lora_rank") : null,
    kv_lora_rank: count("attention.kv_lora_rank"),
    qk_nope_head_dim: keyWidth - rotated,
    qk_rope_head_dim: rotated,
    v_head_dim: valueWidth,
    moe_intermediate_size: count("expert_feed_forward_length"),
    first_k_dense_replace: count("leading_dense_block_count", 0),
    moe_layer_freq: 1,
    n_routed_experts: count("expert_count"),
    n_shared_experts: count("expert_shared_count", 0),
    num_experts_per_tok: count("expert_used_count"),
    // Older files leave the groups out, and llama.cpp then chooses among all experts.
    n_group: groups,
    topk_group: count("expert_group_used_count", groups),
    topk_method: isV3 ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy",
    scoring_func: isV3 ? "sigmoid" : "softmax",
    norm_topk_prob: metadata.boolean(`${prefix}.expert_weights_norm`, false),
    routed_scaling_factor: metadata.number(`${prefix}.expert_weights_scale`, 1),
    num_nextn_predict_layers: 0,
    attention_bias: false,
    ...(scaling === undefined
      ? {}
      : { rope_scaling: scaling["rope_type"] === "yarn" ? { ...scaling, ...yarn } : scaling }),
  };
}

/**
 * The `config.json` of a GGUF model.
 * @throws FormatError naming the metadata key that is missing, malformed or without a counterpart
 */
export function ggufConfig(metadata: Metadata, sources: ConfigSources): Json {
  const architecture = architectureOf(metadata);
  return architecture === "deepseek2"
    ? deepseekConfig(metadata, sources)
    : denseConfig(metadata, architecture, sources);
}
