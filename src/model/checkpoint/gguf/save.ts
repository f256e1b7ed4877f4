/**
 * Writes a model in Hugging Face's naming as a GGUF file that llama.cpp runs: llama and qwen2.
 *
 * @source github.com/ggml-org/llama.cpp, conversion/base.py, llama.py, qwen.py
 */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { ConfigError, FormatError } from "../../../base/errors.ts";
import type { HostArray } from "../../../compute/tensor/host.ts";
import { modelConfigJson, type ParsedModelConfig } from "../../arch/models.ts";
import type { ChatTemplate } from "../../text/chat-template.ts";
import { type GgufVocabulary, TOKEN_TYPES } from "../../text/gguf.ts";
import type { Tokenizer } from "../../text/tokenizer.ts";
import { readTokenizerFiles, tokenizerPaths } from "../../text/tokenizer-files.ts";
import { pairsTogether } from "../rotary-rows.ts";
import { llama3Factors } from "./config.ts";
import { vocabularyFromTokenizer } from "./from-tokenizer.ts";
import { FREQUENCY_FACTORS, ggufNameOf } from "./names.ts";
import { quantize, typeForRow, type WritableType } from "./quantize.ts";
import { vocabularyMetadata } from "./vocabulary.ts";
import { type WritableTensor, type WritableValue, writeGguf } from "./writer.ts";

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

/** Numbers of llama.cpp's file types. */
const FILE_TYPE: { readonly [T in WritableType]: number } = { F32: 0, F16: 1, Q4_0: 2, Q8_0: 7 };
const QUANTIZATION_VERSION = 2;
/** Lower than any real token's. */
const UNUSED_SCORE = -10_000;

function parseConfig(json: unknown): Config {
  const parsed = Config.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new ConfigError({
    where: `config.json: ${issue?.path.join(".") || "content"}`,
    rule: "must be that of a llama or qwen2 model, for a GGUF file to be written",
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

/** Tokens for every row of the embedding: where a model has more rows than tokens, unused ones. */
function filledUp(vocabulary: GgufVocabulary, size: number): GgufVocabulary {
  const { tokens, scores, tokenTypes } = vocabulary;
  if (tokens.length > size) {
    throw new FormatError({
      where: "tokenizer.ggml.tokens",
      rule: `must be at most the embedding's ${size} rows`,
      got: `${tokens.length}`,
    });
  }
  const missing = size - tokens.length;
  const types = new Int32Array(size).fill(TOKEN_TYPES.unused);
  if (tokenTypes === undefined) types.fill(TOKEN_TYPES.normal, 0, tokens.length);
  else types.set(tokenTypes);
  const filled = new Float32Array(size).fill(UNUSED_SCORE);
  filled.set(scores ?? []);
  return {
    ...vocabulary,
    tokens: [...tokens, ...Array.from({ length: missing }, (_, i) => `[PAD${tokens.length + i}]`)],
    tokenTypes: types,
    ...(scores === undefined ? {} : { scores: filled }),
  };
}

export interface GgufOptions {
  /** What matrices are stored as. Vectors stay float32, and rows that are no whole number of blocks become F16. */
  readonly type: WritableType;
  /** What the model is called. @default nothing */
  readonly name?: string;
}

/**
 * Writes a model whole or not at all.
 * @param model.config     as in `config.json`
 * @param model.tensors    by Hugging Face name
 * @throws ConfigError when the config is of another architecture; FormatError on a tensor that such a model has not;
 *   NumericError on a value that the type has no number for; FileError when the file cannot be written
 */
export async function saveGguf(
  file: string,
  model: {
    readonly config: Readonly<Record<string, unknown>>;
    readonly tensors: Readonly<Record<string, HostArray<"f32">>>;
    readonly vocabulary: GgufVocabulary;
  },
  options: GgufOptions,
): Promise<void> {
  const config = parseConfig(model.config);
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
  const metadata = new Map<string, WritableValue>([
    ["general.architecture", ["string", architecture]],
    ...(options.name === undefined
      ? []
      : ([["general.name", ["string", options.name]]] as [string, WritableValue][])),
    ["general.file_type", ["uint32", FILE_TYPE[options.type]]],
    ["general.quantization_version", ["uint32", QUANTIZATION_VERSION]],
    ...sizes.map(([key, value]): [string, WritableValue] => [`${architecture}.${key}`, ["uint32", value]]),
    [`${architecture}.attention.layer_norm_rms_epsilon`, ["float32", config.rms_norm_eps]],
    [`${architecture}.rope.freq_base`, ["float32", rotary.theta]],
    ...rotary.metadata,
    ...vocabularyMetadata(filledUp(model.vocabulary, config.vocab_size)),
  ]);

  const tensors = new Map<string, WritableTensor>();
  const { factors } = rotary;
  if (factors !== undefined) {
    const blocks = () => quantize(FREQUENCY_FACTORS, "F32", factors);
    tensors.set(FREQUENCY_FACTORS, { type: "F32", shape: [factors.length], blocks });
  }
  for (const [hfName, { shape, data }] of Object.entries(model.tensors)) {
    const found = ggufNameOf(hfName);
    if (found === undefined) {
      throw new FormatError({
        where: hfName,
        rule: `must be a tensor of a ${architecture} model`,
        got: "another",
      });
    }
    const type = shape.length === 1 ? "F32" : typeForRow(options.type, shape.at(-1)!);
    const pairs = found.part === "attn_q" ? heads : kvHeads;
    const reordered = architecture === "llama" && found.part !== undefined;
    tensors.set(found.name, {
      type,
      shape,
      blocks: () => quantize(hfName, type, reordered ? pairsTogether(data, shape[0]!, pairs) : data),
    });
  }
  await writeGguf(file, metadata, tensors);
}

/** The vocabulary of a tokenizer, by way of the files that it writes. */
async function vocabularyOf(tokenizer: Tokenizer): Promise<GgufVocabulary> {
  const folder = await mkdtemp(join(tmpdir(), "pondera-"));
  try {
    await tokenizer.save(folder);
    return vocabularyFromTokenizer(await readTokenizerFiles(folder), tokenizerPaths(folder));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/**
 * As {@link saveGguf}, of a model that has been loaded or trained.
 * @throws moreover what {@link vocabularyFromTokenizer} throws; ConfigError on a DeepSeek model
 */
export async function saveModelGguf(
  file: string,
  model: ParsedModelConfig & {
    readonly tensors: Readonly<Record<string, HostArray<"f32">>>;
    readonly tokenizer: Tokenizer;
    /** Written instead of the one in the tokenizer's files. */
    readonly chatTemplate?: Pick<ChatTemplate, "source">;
  },
  options: GgufOptions,
): Promise<void> {
  const { chatTemplate, tensors } = model;
  const vocabulary = await vocabularyOf(model.tokenizer);
  const template = chatTemplate?.source ?? vocabulary.chatTemplate;
  await saveGguf(
    file,
    {
      config: modelConfigJson(model),
      tensors,
      vocabulary: { ...vocabulary, ...(template === undefined ? {} : { chatTemplate: template }) },
    },
    options,
  );
}
