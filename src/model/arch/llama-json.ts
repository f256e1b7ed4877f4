/**
 * `config.json` of llama and qwen2 models, as transformers writes it.
 *
 * Transformers 5 keeps the rotary base and scaling in `rope_parameters`; older versions, llama.cpp and vLLM look for
 * `rope_theta` and `rope_scaling`. All are read, and all are written. A setting that would change what the model computes
 * and that we do not compute is refused; other keys are kept as they are.
 *
 * @source transformers 5.23, models/llama/configuration_llama.py, models/qwen2/configuration_qwen2.py and
 *   modeling_rope_utils.py (convert_rope_params_to_dict)
 */

import { z } from "zod";
import type { Llama3Scaling } from "../nn/rope.ts";
import {
  commonKeys,
  count,
  identityKeys,
  off,
  parseJson,
  positive,
  ropeKeys,
  ropeTheta,
  scaledRope,
  unknownKeys,
} from "./json.ts";
import type { LlamaConfig } from "./llama.ts";

const MODELS = { llama: "LlamaForCausalLM", qwen2: "Qwen2ForCausalLM" } as const;
type Name = keyof typeof MODELS;

const Rope = ropeKeys(["llama3"]);

/** The keys we understand; the rest passes through. Defaults are transformers'. */
const keys = (name: Name) => ({
  ...identityKeys(name, MODELS[name]),
  ...commonKeys,
  num_key_value_heads: count.nullish(),
  head_dim: count.nullish(),
  max_position_embeddings: count.default(name === "llama" ? 2048 : 32_768),
  rope_parameters: Rope.nullish(),
  rope_scaling: Rope.nullish(),
  quantization_config: z.null("must be absent: quantized weights are not supported").optional(),
  attention_bias: name === "llama" ? off("biases") : z.unknown().optional(),
  mlp_bias: off("biases"),
  use_sliding_window: off("windows of attention"),
  layer_types: z
    .array(
      z.literal("full_attention", 'must be "full_attention": windows of attention are not supported'),
      "must be a list",
    )
    .nullish(),
});

/** Numbers of llama 3's scaling; all are needed. */
const Llama3Json = z.object({
  factor: z.number("must be a number").min(1, "must be at least 1"),
  low_freq_factor: positive,
  high_freq_factor: positive,
  original_max_position_embeddings: count,
});

const schema = (name: Name) =>
  z.looseObject(keys(name), "must be an object").superRefine((json, context) => {
    const fail = (path: PropertyKey[], message: string) =>
      context.addIssue({ code: "custom", path, message });
    const heads = json.num_attention_heads;
    const kvHeads = json.num_key_value_heads ?? heads;
    if (json.hidden_size % heads !== 0) {
      fail(["hidden_size"], `must be a multiple of num_attention_heads (${heads}), as transformers demands`);
    }
    if (heads % kvHeads !== 0) fail(["num_key_value_heads"], `must divide num_attention_heads (${heads})`);
    if ((json.head_dim ?? json.hidden_size / heads) % 2 !== 0) {
      fail(["head_dim"], "must be even, for rotary pairs");
    }
    if (!ropeTheta(json).agree) fail(["rope_theta"], "must be the same wherever it is given");
    const scaled = scaledRope(json);
    if (scaled === undefined) return;
    const numbers = Llama3Json.safeParse(scaled.rope);
    if (!numbers.success) {
      const issue = numbers.error.issues[0]!;
      fail([scaled.key, ...issue.path], issue.message);
    } else if (numbers.data.low_freq_factor >= numbers.data.high_freq_factor) {
      fail([scaled.key, "high_freq_factor"], "must be larger than low_freq_factor");
    }
  });

const SCHEMAS = { llama: schema("llama"), qwen2: schema("qwen2") };

/** What a `config.json` says. */
export interface ParsedLlamaConfig {
  readonly config: LlamaConfig;
  /** Keys that the architecture does not depend on, token ids among them. */
  readonly extra: Readonly<Record<string, unknown>>;
}

function scalingOf(rope: Readonly<Record<string, unknown>>): Llama3Scaling {
  const it = Llama3Json.parse(rope);
  return {
    type: "llama3",
    factor: it.factor,
    lowFrequencyFactor: it.low_freq_factor,
    highFrequencyFactor: it.high_freq_factor,
    originalPositions: it.original_max_position_embeddings,
  };
}

/**
 * Reads a parsed `config.json` of one of the two.
 * @param where names the file in errors
 * @throws ConfigError naming the key whose value is missing, malformed or not supported
 */
export function parseLlamaConfig(where: string, json: unknown, name: Name = "llama"): ParsedLlamaConfig {
  const it = parseJson(where, json, SCHEMAS[name]);
  const scaled = scaledRope(it);
  return {
    config: {
      ...(name === "llama" ? {} : { modelType: name }),
      vocabSize: it.vocab_size,
      hiddenSize: it.hidden_size,
      intermediateSize: it.intermediate_size,
      layers: it.num_hidden_layers,
      heads: it.num_attention_heads,
      kvHeads: it.num_key_value_heads ?? it.num_attention_heads,
      headDim: it.head_dim ?? it.hidden_size / it.num_attention_heads,
      rmsNormEpsilon: it.rms_norm_eps,
      ropeTheta: ropeTheta(it).theta,
      ...(scaled === undefined ? {} : { ropeScaling: scalingOf(scaled.rope) }),
      maxPositions: it.max_position_embeddings,
      tieEmbeddings: it.tie_word_embeddings,
    },
    extra: unknownKeys(it, keys(name)),
  };
}

/** The `config.json` of a float32 model; `extra` as {@link parseLlamaConfig} gave it. */
export function llamaConfigJson({ config, extra }: ParsedLlamaConfig): Record<string, unknown> {
  const name = config.modelType ?? "llama";
  const { ropeScaling } = config;
  const scaling = ropeScaling && {
    rope_type: "llama3",
    factor: ropeScaling.factor,
    low_freq_factor: ropeScaling.lowFrequencyFactor,
    high_freq_factor: ropeScaling.highFrequencyFactor,
    original_max_position_embeddings: ropeScaling.originalPositions,
  };
  return {
    ...extra,
    architectures: [MODELS[name]],
    model_type: name,
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headDim,
    hidden_act: "silu",
    max_position_embeddings: config.maxPositions,
    rms_norm_eps: config.rmsNormEpsilon,
    rope_theta: config.ropeTheta,
    rope_parameters: { rope_type: "default", ...scaling, rope_theta: config.ropeTheta },
    ...(scaling === undefined ? {} : { rope_scaling: scaling }),
    tie_word_embeddings: config.tieEmbeddings,
    ...(name === "llama" ? { attention_bias: false, mlp_bias: false } : { use_sliding_window: false }),
    dtype: "float32",
  };
}
