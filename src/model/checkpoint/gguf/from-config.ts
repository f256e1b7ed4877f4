/**
 * A Hugging Face `config.json` as GGUF metadata: llama, qwen2, and deepseek_v3 as llama.cpp's `deepseek2`.
 *
 * @source github.com/ggml-org/llama.cpp, conversion/base.py, llama.py, qwen.py, deepseek.py
 */

import { z } from "zod";
import { ConfigError } from "../../../base/errors.ts";
import { parseDeepseekConfig } from "../../arch/deepseek-json.ts";
import type { DeepseekV3Config } from "../../arch/deepseek-v3.ts";
import { LOG_MULTIPLIER_UNIT, llama3Factors, SIGMOID } from "./config.ts";
import type { GgufArchitecture } from "./names.ts";
import type { WritableValue } from "./writer.ts";

const count = z.int().positive();

const Rope = z.looseObject({
  rope_type: z.enum(["default", "linear", "llama3"]).optional(),
  type: z.enum(["default", "linear", "llama3"]).optional(),
  rope_theta: z.number().optional(),
  factor: z.number().positive().optional(),
  low_freq_factor: z.number().positive().optional(),
  high_freq_factor: z.number().positive().optional(),
  original_max_position_embeddings: count.optional(),
});

/** What of a `config.json` a file takes. */
const Config = z.looseObject({
  model_type: z.enum(["llama", "qwen2"]),
  vocab_size: count,
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  num_key_value_heads: count.nullish(),
  head_dim: count.nullish(),
  max_position_embeddings: count,
  rms_norm_eps: z.number(),
  rope_theta: z.number().nullish(),
  rope_scaling: Rope.nullish(),
  rope_parameters: Rope.nullish(),
});
type Config = z.infer<typeof Config>;

/** What a file takes of a config. */
export interface GgufHeader {
  readonly architecture: GgufArchitecture;
  readonly metadata: readonly (readonly [string, WritableValue])[];
  readonly vocabSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** What rotary frequencies are divided by, where that is a tensor of the file. */
  readonly factors?: Float32Array;
  /** Width of a head's keys before rotation, where keys and values are decompressed together. */
  readonly nopeHeadDim?: number;
}

function parseConfig(json: unknown): Config {
  const parsed = Config.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new ConfigError({
    where: `config.json: ${issue?.path.join(".") || "content"}`,
    rule: "must be that of a llama, qwen2 or deepseek_v3 model, for a GGUF file to be written",
    got: issue?.message ?? "something else",
  });
}

interface Rotary {
  readonly theta: number;
  readonly metadata: readonly [string, WritableValue][];
  readonly factors?: Float32Array;
}

function rotaryOf(config: Config, headDim: number): Rotary {
  const scaling = config.rope_parameters ?? config.rope_scaling ?? {};
  const theta = scaling.rope_theta ?? config.rope_theta ?? 10_000;
  const type = scaling.rope_type ?? scaling.type ?? "default";
  if (type === "default") return { theta, metadata: [] };
  const need = (
    key: "factor" | "low_freq_factor" | "high_freq_factor" | "original_max_position_embeddings",
  ) => {
    const value = scaling[key];
    if (value !== undefined) return value;
    throw new ConfigError({
      where: `config.json: rope_scaling.${key}`,
      rule: `must be given for ${type}`,
      got: "nothing",
    });
  };
  if (type === "linear") {
    const at = `${config.model_type}.rope.scaling`;
    return {
      theta,
      metadata: [
        [`${at}.type`, ["string", "linear"]],
        [`${at}.factor`, ["float32", need("factor")]],
      ],
    };
  }
  const numbers = {
    factor: need("factor"),
    low_freq_factor: need("low_freq_factor"),
    high_freq_factor: need("high_freq_factor"),
    original_max_position_embeddings: need("original_max_position_embeddings"),
  };
  return { theta, metadata: [], factors: llama3Factors(headDim, theta, numbers) };
}

function denseHeader(config: Config): GgufHeader {
  const architecture = config.model_type;
  const heads = config.num_attention_heads;
  const kvHeads = config.num_key_value_heads ?? heads;
  const headDim = config.head_dim ?? config.hidden_size / heads;
  const rotary = rotaryOf(config, headDim);
  const sizes: [string, number][] = [
    ["context_length", config.max_position_embeddings],
    ["embedding_length", config.hidden_size],
    ["block_count", config.num_hidden_layers],
    ["feed_forward_length", config.intermediate_size],
    ["attention.head_count", heads],
    ["attention.head_count_kv", kvHeads],
    ["attention.key_length", headDim],
    ["attention.value_length", headDim],
    ["rope.dimension_count", headDim],
    ["vocab_size", config.vocab_size],
  ];
  return {
    architecture,
    metadata: [
      ...sizes.map(([key, value]): [string, WritableValue] => [`${architecture}.${key}`, ["uint32", value]]),
      [`${architecture}.attention.layer_norm_rms_epsilon`, ["float32", config.rms_norm_eps]],
      [`${architecture}.rope.freq_base`, ["float32", rotary.theta]],
      ...rotary.metadata,
    ],
    vocabSize: config.vocab_size,
    layers: config.num_hidden_layers,
    heads,
    kvHeads,
    ...(rotary.factors === undefined ? {} : { factors: rotary.factors }),
  };
}

/** Latent attention is multi-query attention to llama.cpp: one key head, as wide as the latent and the rotated part. */
function deepseekHeader(config: DeepseekV3Config): GgufHeader {
  const { kvRank, ropeHeadDim, nopeHeadDim, valueHeadDim, ropeScaling: yarn } = config;
  const whole: [string, number][] = [
    ["context_length", config.maxPositions],
    ["embedding_length", config.hiddenSize],
    ["block_count", config.layers],
    ["feed_forward_length", config.intermediateSize],
    ["attention.head_count", config.heads],
    ["attention.head_count_kv", 1],
    ["leading_dense_block_count", config.denseLayers],
    ["vocab_size", config.vocabSize],
    ...(config.queryRank === undefined
      ? []
      : ([["attention.q_lora_rank", config.queryRank]] as [string, number][])),
    ["attention.kv_lora_rank", kvRank],
    ["attention.key_length", kvRank + ropeHeadDim],
    ["attention.value_length", kvRank],
    ["attention.key_length_mla", nopeHeadDim + ropeHeadDim],
    ["attention.value_length_mla", valueHeadDim],
    ["rope.dimension_count", ropeHeadDim],
    ["expert_feed_forward_length", config.expertSize],
    ["expert_count", config.routedExperts],
    ["expert_used_count", config.expertsPerToken],
    ["expert_shared_count", config.sharedExperts],
    ["expert_group_count", config.expertGroups],
    ["expert_group_used_count", config.groupsPerToken],
    ["expert_gating_func", SIGMOID],
    ...(yarn === undefined
      ? []
      : ([["rope.scaling.original_context_length", yarn.originalPositions]] as [string, number][])),
  ];
  const real: [string, number][] = [
    ["attention.layer_norm_rms_epsilon", config.rmsNormEpsilon],
    ["rope.freq_base", config.ropeTheta],
    ["expert_weights_scale", config.expertScale],
    ...(yarn === undefined
      ? []
      : ([
          ["rope.scaling.factor", yarn.factor],
          ["rope.scaling.yarn_beta_fast", yarn.betaFast],
          ["rope.scaling.yarn_beta_slow", yarn.betaSlow],
          ["rope.scaling.yarn_log_multiplier", LOG_MULTIPLIER_UNIT * yarn.mscale],
        ] as [string, number][])),
  ];
  const at = (key: string): string => `deepseek2.${key}`;
  return {
    architecture: "deepseek2",
    metadata: [
      ...whole.map(([key, value]): [string, WritableValue] => [at(key), ["uint32", value]]),
      ...real.map(([key, value]): [string, WritableValue] => [at(key), ["float32", value]]),
      [at("expert_weights_norm"), ["bool", config.normalizeExperts]],
      ...(yarn === undefined
        ? []
        : ([[at("rope.scaling.type"), ["string", "yarn"]]] as [string, WritableValue][])),
    ],
    vocabSize: config.vocabSize,
    layers: config.layers,
    heads: config.heads,
    kvHeads: 1,
    nopeHeadDim,
  };
}

/** @throws ConfigError when the config is of another architecture, or none that a file can describe */
export function ggufHeader(json: Readonly<Record<string, unknown>>): GgufHeader {
  return json["model_type"] === "deepseek_v3"
    ? deepseekHeader(parseDeepseekConfig("config.json", json).config)
    : denseHeader(parseConfig(json));
}
