/**
 * Writes a model in Hugging Face's naming as a GGUF file that llama.cpp runs: llama, qwen2 and deepseek_v3.
 *
 * @source github.com/ggml-org/llama.cpp, conversion/base.py, llama.py, qwen.py, deepseek.py
 */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FormatError } from "../../../base/errors.ts";
import type { HostArray } from "../../../compute/tensor/host.ts";
import { modelConfigJson, type ParsedModelConfig } from "../../arch/models.ts";
import type { ChatTemplate } from "../../text/chat-template.ts";
import { type GgufVocabulary, TOKEN_TYPES } from "../../text/gguf.ts";
import type { Tokenizer } from "../../text/tokenizer.ts";
import { readTokenizerFiles, tokenizerPaths } from "../../text/tokenizer-files.ts";
import { arrangeTensors } from "./arrange.ts";
import { ggufHeader } from "./from-config.ts";
import { vocabularyFromTokenizer } from "./from-tokenizer.ts";
import { FREQUENCY_FACTORS } from "./names.ts";
import { quantize, typeForRow, type WritableType } from "./quantize.ts";
import { vocabularyMetadata } from "./vocabulary.ts";
import { type WritableTensor, type WritableValue, writeGguf } from "./writer.ts";

/** Numbers of llama.cpp's file types. */
const FILE_TYPE: { readonly [T in WritableType]: number } = { F32: 0, F16: 1, Q4_0: 2, Q8_0: 7 };
const QUANTIZATION_VERSION = 2;
/** Lower than any real token's. */
const UNUSED_SCORE = -10_000;

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
  const header = ggufHeader(model.config);
  const metadata = new Map<string, WritableValue>([
    ["general.architecture", ["string", header.architecture]],
    ...(options.name === undefined
      ? []
      : ([["general.name", ["string", options.name]]] as [string, WritableValue][])),
    ["general.file_type", ["uint32", FILE_TYPE[options.type]]],
    ["general.quantization_version", ["uint32", QUANTIZATION_VERSION]],
    ...header.metadata,
    ...vocabularyMetadata(filledUp(model.vocabulary, header.vocabSize)),
  ]);
  const tensors = new Map<string, WritableTensor>();
  const { factors } = header;
  if (factors !== undefined) {
    const blocks = () => [quantize(FREQUENCY_FACTORS, "F32", factors)];
    tensors.set(FREQUENCY_FACTORS, { type: "F32", shape: [factors.length], blocks });
  }
  for (const [name, { shape, parts, exact }] of arrangeTensors(header, model.tensors)) {
    const type = exact || shape.length === 1 ? "F32" : typeForRow(options.type, shape.at(-1)!);
    tensors.set(name, {
      type,
      shape,
      *blocks() {
        for (const { from, data } of parts) yield quantize(from, type, data());
      },
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
 * @throws moreover what {@link vocabularyFromTokenizer} throws
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
