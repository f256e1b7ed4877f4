/**
 * `config.json` of a llama model, as transformers writes it.
 *
 * Transformers 5 keeps the rotary base in `rope_parameters`; older versions, llama.cpp and vLLM look for `rope_theta`. Both are
 * read, and both are written. A setting that would change what the model computes and that we do not compute is refused;
 * other keys are kept as they are.
 *
 * @source transformers 5.23, models/llama/configuration_llama.py and modeling_rope_utils.py (convert_rope_params_to_dict)
 */

import { z } from "zod";
import { ConfigError } from "../../base/errors.ts";
import type { LlamaConfig } from "../arch/llama.ts";

const count = z.int("must be a whole number").positive("must be positive");
const positive = z.number("must be a number").positive("must be positive");
const off = (what: string) => z.literal(false, `must be false: ${what} are not supported`).nullish();

const DEFAULT_ROPE_THETA = 10_000;

const Rope = z.looseObject(
  {
    rope_theta: positive.optional(),
    rope_type: z.literal("default", 'must be "default": no scaling of positions is supported').optional(),
    /** What `rope_type` was called before. */
    type: z.literal("default", 'must be "default": no scaling of positions is supported').optional(),
    partial_rotary_factor: z.literal(1, "must be 1: every pair of a head is rotated").optional(),
  },
  "must be an object",
);

/** The keys we understand; the rest passes through. Defaults are transformers'. */
const LlamaJson = z
  .looseObject(
    {
      model_type: z.literal("llama", 'must be "llama": no other architecture is supported'),
      architectures: z
        .array(z.string())
        .refine((names) => names.includes("LlamaForCausalLM"), "must name LlamaForCausalLM")
        .nullish(),
      vocab_size: count,
      hidden_size: count,
      intermediate_size: count,
      num_hidden_layers: count,
      num_attention_heads: count,
      num_key_value_heads: count.nullish(),
      head_dim: count.nullish(),
      hidden_act: z.literal("silu", 'must be "silu": no other activation is supported').default("silu"),
      max_position_embeddings: count.default(2048),
      rms_norm_eps: positive.default(1e-6),
      tie_word_embeddings: z.boolean("must be true or false").default(false),
      attention_bias: off("biases"),
      mlp_bias: off("biases"),
      rope_theta: positive.nullish(),
      rope_parameters: Rope.nullish(),
      rope_scaling: Rope.nullish(),
      partial_rotary_factor: z.literal(1, "must be 1: every pair of a head is rotated").nullish(),
      quantization_config: z.null("must be absent: quantized weights are not supported").optional(),
      // Any: weights are float32 once loaded, whatever they were in the file.
      dtype: z.unknown().optional(),
      torch_dtype: z.unknown().optional(),
    },
    "must be an object",
  )
  .superRefine((json, context) => {
    const fail = (key: string, message: string) => context.addIssue({ code: "custom", path: [key], message });
    const heads = json.num_attention_heads;
    const kvHeads = json.num_key_value_heads ?? heads;
    if (json.hidden_size % heads !== 0) {
      fail("hidden_size", `must be a multiple of num_attention_heads (${heads}), as transformers demands`);
    }
    if (heads % kvHeads !== 0) fail("num_key_value_heads", `must divide num_attention_heads (${heads})`);
    if ((json.head_dim ?? json.hidden_size / heads) % 2 !== 0) {
      fail("head_dim", "must be even, for rotary pairs");
    }
    const thetas = [json.rope_parameters, json.rope_scaling, json].map(
      (where) => where?.rope_theta ?? undefined,
    );
    if (new Set(thetas.filter((theta) => theta !== undefined)).size > 1) {
      fail("rope_theta", "must be the same wherever it is given");
    }
  });

/** What a `config.json` says. */
export interface ParsedLlamaConfig {
  readonly config: LlamaConfig;
  /** Keys that the architecture does not depend on, token ids among them. */
  readonly extra: Readonly<Record<string, unknown>>;
}

/** The value at a path of a JSON document; undefined where there is none. */
function valueAt(json: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (value, key) =>
      typeof value === "object" && value !== null ? (value as Record<PropertyKey, unknown>)[key] : undefined,
    json,
  );
}

/**
 * Reads a parsed `config.json`.
 * @param where names the file in errors
 * @throws ConfigError naming the key whose value is missing, malformed or not supported
 */
export function parseLlamaConfig(where: string, json: unknown): ParsedLlamaConfig {
  const parsed = LlamaJson.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    const path = issue?.path ?? [];
    const value = valueAt(json, path);
    throw new ConfigError({
      where: path.length === 0 ? where : `${where}: ${path.map(String).join(".")}`,
      rule: issue?.message ?? "must describe a llama model",
      got: value === undefined ? "nothing" : JSON.stringify(value),
    });
  }
  const it = parsed.data;
  return {
    config: {
      vocabSize: it.vocab_size,
      hiddenSize: it.hidden_size,
      intermediateSize: it.intermediate_size,
      layers: it.num_hidden_layers,
      heads: it.num_attention_heads,
      kvHeads: it.num_key_value_heads ?? it.num_attention_heads,
      headDim: it.head_dim ?? it.hidden_size / it.num_attention_heads,
      rmsNormEpsilon: it.rms_norm_eps,
      ropeTheta:
        it.rope_parameters?.rope_theta ?? it.rope_scaling?.rope_theta ?? it.rope_theta ?? DEFAULT_ROPE_THETA,
      maxPositions: it.max_position_embeddings,
      tieEmbeddings: it.tie_word_embeddings,
    },
    extra: Object.fromEntries(Object.entries(it).filter(([key]) => !Object.hasOwn(LlamaJson.shape, key))),
  };
}

/** The `config.json` of a float32 model; `extra` as {@link parseLlamaConfig} gave it. */
export function llamaConfigJson({ config, extra }: ParsedLlamaConfig): Record<string, unknown> {
  return {
    ...extra,
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
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
    rope_parameters: { rope_type: "default", rope_theta: config.ropeTheta },
    tie_word_embeddings: config.tieEmbeddings,
    attention_bias: false,
    mlp_bias: false,
    dtype: "float32",
  };
}
