/**
 * A model as a folder in Hugging Face layout: `config.json`, `generation_config.json`, `model.safetensors` (or its shards and
 * their index), `tokenizer.json`, `tokenizer_config.json`.
 */

import { access } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { ConfigError, FileError, FormatError } from "../../base/errors.ts";
import { readJson, recoverFolder, writeFileAtomic, writeFolderAtomic } from "../../base/files.ts";
import { jsonText } from "../../base/json.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import { type Shape, sameShape } from "../../compute/tensor/shape.ts";
import { isDeepseekArgs } from "../arch/deepseek-args.ts";
import {
  type ModelConfig,
  modelConfigJson,
  modelParameters,
  type ParsedModelConfig,
  parseModelConfig,
} from "../arch/models.ts";
import { writeBeginToken } from "../text/begin-token.ts";
import type { ChatTemplate } from "../text/chat-template.ts";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer.ts";
import { tokenizerPaths } from "../text/tokenizer-files.ts";
import type { FloatSource } from "./float-source.ts";
import { openSafetensors, openSharded, type TensorSource, writeSharded } from "./safetensors.ts";
import { SCALE_BLOCK, safetensorsFloats } from "./safetensors-floats.ts";

/** The part of a model's folder that needs no tokenizer. */
export interface ModelWeights extends ParsedModelConfig {
  /** By Hugging Face name; all of {@link modelParameters}, in that order, and no others. */
  readonly tensors: Readonly<Record<string, HostArray<"f32">>>;
}

export interface ModelFolder extends ModelWeights {
  readonly tokenizer: Tokenizer;
  /** `generation_config.json`; empty where there is none. */
  readonly generationConfig: Readonly<Record<string, unknown>>;
  /** The tokens that end a text: as the generation config says, or the model's config, or the tokenizer. */
  readonly stopIds: readonly number[];
}

const CONFIG = "config.json";
const GENERATION = "generation_config.json";
const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";
/** As much as others put in a file. */
const MAX_SHARD_BYTES = 5e9;
const HEAD = "lm_head.weight";
const EMBEDDING = "model.embed_tokens.weight";

const fileExists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/**
 * The weights of a folder, as they are stored, of whatever model.
 * @returns undefined where the folder holds none
 * @throws FileError when they cannot be read; FormatError naming the field that breaks the format
 */
export async function openTensors(
  folder: string,
): Promise<{ readonly file: string; readonly source: TensorSource } | undefined> {
  const file = join(folder, WEIGHTS);
  if (await fileExists(file)) return { file, source: await openSafetensors(file) };
  const index = join(folder, INDEX);
  return (await fileExists(index)) ? { file: index, source: await openSharded(index) } : undefined;
}

async function openWeights(folder: string): Promise<FloatSource> {
  const found = await openTensors(folder);
  if (found !== undefined) return safetensorsFloats(found.file, found.source);
  throw new FileError({
    where: folder,
    rule: `must hold ${WEIGHTS} or ${INDEX}`,
    got: "neither",
    remedy: "Other formats of weights must be converted to safetensors first",
  });
}

/**
 * Copies of the embedding and the head that published checkpoints of DeepSeek-V3 hold for the module that predicts the token
 * after next, which shares the model's (arXiv:2412.19437 §2.2): `model.layers.61.embed_tokens.weight` and
 * `model.layers.61.shared_head.head.weight`. They are not read.
 */
function sharedCopies(config: ModelConfig): string[] {
  if (config.modelType !== "deepseek_v3") return [];
  const { layers, draftLayers } = config;
  return Array.from({ length: draftLayers }, (_, i) => `model.layers.${layers + i}`).flatMap((at) => [
    `${at}.embed_tokens.weight`,
    `${at}.shared_head.head.weight`,
  ]);
}

/**
 * Names a file may hold beyond the model's own: rotary frequencies, which old conversions stored though they follow from the
 * config, the head of a tied model, which must equal the embedding, and copies of what is shared.
 */
function isRedundant(name: string, config: ModelConfig): boolean {
  return (
    name.endsWith(".rotary_emb.inv_freq") ||
    (config.tieEmbeddings && name === HEAD) ||
    sharedCopies(config).includes(name)
  );
}

/** @throws FormatError unless the tensor is there with that shape */
function checkShape(file: string, name: string, found: Shape | undefined, shape: Shape): void {
  if (found !== undefined && sameShape(found, shape)) return;
  throw new FormatError({
    where: `${file}: ${name}`,
    rule: `must have the shape [${shape.join(",")}] that the config asks for`,
    got: found === undefined ? "no such tensor" : `[${found.join(",")}]`,
  });
}

/** @throws FormatError naming the first tensor that is missing, of another shape or not the model's */
function checkTensors(file: string, shapes: ReadonlyMap<string, Shape>, config: ModelConfig): void {
  const expected = new Map(modelParameters(config).map(({ name, shape }) => [name, shape]));
  for (const [name, shape] of expected) checkShape(file, name, shapes.get(name), shape);
  for (const name of shapes.keys()) {
    if (!expected.has(name)) {
      throw new FormatError({
        where: `${file}: ${name}`,
        rule: "must be a tensor of the model that the config describes",
        got: "another",
      });
    }
  }
}

/** A tied model whose file holds a head of its own, other than the embedding, would change its answers on the way. */
async function checkTiedHead(source: FloatSource): Promise<void> {
  const [embedding, head] = [await source.readF32(EMBEDDING), await source.readF32(HEAD)];
  const bytes = ({ data }: HostArray<"f32">) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (sameShape(head.shape, embedding.shape) && Buffer.compare(bytes(head), bytes(embedding)) === 0) return;
  throw new FormatError({
    where: `${source.file}: ${HEAD}`,
    rule: `must equal ${EMBEDDING} where tie_word_embeddings is true`,
    got: "other values",
    remedy: "Set tie_word_embeddings to false in config.json if the head is meant to differ",
  });
}

/**
 * Every weight of a model, from whatever file. The source stays open.
 * @throws FormatError when its tensors are not those of the config
 */
export async function readWeights(
  source: FloatSource,
  config: ModelConfig,
): Promise<Record<string, HostArray<"f32">>> {
  const tensors: Record<string, HostArray<"f32">> = {};
  for (const name of await checkWeights(source, config)) tensors[name] = await source.readF32(name);
  return tensors;
}

/**
 * The names of a model's weights, all of which the source has.
 * @throws FormatError when its tensors are not those of the config
 */
export async function checkWeights(source: FloatSource, config: ModelConfig): Promise<string[]> {
  const own = [...source.shapes].filter(([name]) => !isRedundant(name, config));
  checkTensors(source.file, new Map(own), config);
  for (const name of sharedCopies(config)) {
    const copy = source.shapes.get(name);
    if (copy !== undefined) checkShape(source.file, name, copy, [config.vocabSize, config.hiddenSize]);
  }
  if (config.tieEmbeddings && source.shapes.has(HEAD)) await checkTiedHead(source);
  return modelParameters(config).map(({ name }) => name);
}

/** How DeepSeek-V3 and R1 say that their matrices are 8-bit floats with a scale a block; other keys do not matter to weights. */
const Fp8Blocks = z.looseObject({
  quant_method: z.literal("fp8"),
  weight_block_size: z.tuple([z.literal(SCALE_BLOCK), z.literal(SCALE_BLOCK)]),
});

/**
 * A config without its note of 8-bit floats: weights are float32 once they are read. Any other quantisation stays, for whoever
 * parses the config to refuse.
 */
function withoutFp8(json: unknown): unknown {
  if (typeof json !== "object" || json === null || !("quantization_config" in json)) return json;
  const { quantization_config: quantization, ...rest } = json;
  return Fp8Blocks.safeParse(quantization).success ? rest : json;
}

/**
 * A model's configuration and weights, widened to float32.
 * @throws FileError when a file is missing; ConfigError on an unsupported setting; FormatError when a file breaks its format or
 *   its tensors are not those of the config
 */
export async function loadModelWeights(folder: string): Promise<ModelWeights> {
  await recoverFolder(folder);
  const configFile = join(folder, CONFIG);
  const json = await readJson(configFile);
  const { config, extra } = parseModelConfig(configFile, withoutFp8(json));
  if (isDeepseekArgs(json as object)) {
    throw new ConfigError({
      where: configFile,
      rule: "must be a config.json in Hugging Face's form, for weights to be loaded",
      got: "the arguments of DeepSeek's reference inference, whose weights have other names",
      remedy:
        "Take config.json and weights as they are published, or look at the sizes alone: pondera inspect",
    });
  }
  await using source = await openWeights(folder);
  return { config, extra, tensors: await readWeights(source, config) };
}

const TokenIds = z.union([
  z
    .int()
    .nonnegative()
    .transform((id) => [id]),
  z.array(z.int().nonnegative()).nonempty(),
]);

/** @throws ConfigError when they are given and are no token ids */
function stopIdsOf(file: string, json: Readonly<Record<string, unknown>>): readonly number[] | undefined {
  const ids = json["eos_token_id"] ?? undefined;
  if (ids === undefined) return undefined;
  const parsed = TokenIds.safeParse(ids);
  if (parsed.success) return parsed.data;
  throw new ConfigError({
    where: `${file}: eos_token_id`,
    rule: "must be a token id or a list of them",
    got: JSON.stringify(ids),
  });
}

/** @throws ConfigError when the tokenizer has ids beyond the model's */
export function checkVocabulary(where: string, config: ModelConfig, tokenizer: Tokenizer): void {
  if (tokenizer.vocabSize <= config.vocabSize) return;
  throw new ConfigError({
    where: `${where}: vocab_size`,
    rule: `must be at least the tokenizer's ${tokenizer.vocabSize} tokens`,
    got: `${config.vocabSize}`,
  });
}

async function readGenerationConfig(file: string): Promise<Record<string, unknown>> {
  if (!(await fileExists(file))) return {};
  const parsed = z.record(z.string(), z.unknown()).safeParse(await readJson(file));
  if (parsed.success) return parsed.data;
  throw new FormatError({ where: file, rule: "must be a JSON object", got: "something else" });
}

/**
 * A whole model.
 * @throws as {@link loadModelWeights} and {@link loadTokenizer}; ConfigError when the tokenizer has ids beyond the model's
 */
export async function loadModelFolder(folder: string): Promise<ModelFolder> {
  const weights = await loadModelWeights(folder);
  const tokenizer = await loadTokenizer(folder);
  const [configFile, generationFile] = [join(folder, CONFIG), join(folder, GENERATION)];
  checkVocabulary(configFile, weights.config, tokenizer);
  const generationConfig = await readGenerationConfig(generationFile);
  const stopIds = stopIdsOf(generationFile, generationConfig) ??
    stopIdsOf(configFile, weights.extra) ?? [tokenizer.eosId];
  return { ...weights, tokenizer, generationConfig, stopIds };
}

/** What a model's folder is written from. */
export interface WritableModel {
  readonly config: ModelConfig;
  /** Exactly the tensors of {@link modelParameters}. */
  readonly tensors: Readonly<Record<string, HostArray<"f32">>>;
  readonly tokenizer: Tokenizer;
  /** Further keys of `config.json`. The tokenizer's ids for begin, end and padding are added. */
  readonly extra?: Readonly<Record<string, unknown>>;
  /** Written over the same ids. @default nothing more */
  readonly generationConfig?: Readonly<Record<string, unknown>>;
  /** The tokens that end a text, where `generationConfig` names none. @default the tokenizer's end token */
  readonly stopIds?: readonly number[];
  /** How the model reads a conversation. @default the tokenizer's files say */
  readonly chatTemplate?: Pick<ChatTemplate, "source">;
}

function tokenIds({ bosId, eosId, padId }: Tokenizer): Record<string, number> {
  return {
    ...(bosId === undefined ? {} : { bos_token_id: bosId }),
    eos_token_id: eosId,
    pad_token_id: padId,
  };
}

const configJsonOf = ({ config, tokenizer, extra }: WritableModel): Record<string, unknown> =>
  modelConfigJson({ config, extra: { ...tokenIds(tokenizer), ...extra } });

/**
 * What is wrong with a model is said before anything is written.
 * @throws ConfigError when the config is one that {@link loadModelFolder} or transformers would refuse; FormatError when the
 *   tensors are not those of the config
 */
export function checkModelFiles(model: WritableModel): void {
  parseModelConfig(CONFIG, configJsonOf(model));
  checkVocabulary(CONFIG, model.config, model.tokenizer);
  const shapes = new Map(Object.entries(model.tensors).map(([name, { shape }]) => [name, shape]));
  checkTensors(WEIGHTS, shapes, model.config);
}

/** Writes all but the weights into a folder that is there. @throws FileError when it cannot be written */
export async function writeModelFiles(folder: string, model: WritableModel): Promise<void> {
  const { stopIds = [] } = model;
  const ends = stopIds.length === 0 ? {} : { eos_token_id: stopIds.length === 1 ? stopIds[0] : stopIds };
  const generation = { ...tokenIds(model.tokenizer), ...ends, ...model.generationConfig };
  await writeFileAtomic(join(folder, CONFIG), jsonText(configJsonOf(model)));
  await writeFileAtomic(join(folder, GENERATION), jsonText(generation));
  await model.tokenizer.save(folder);
  await writeBeginToken(folder, model.tokenizer);
  if (model.chatTemplate === undefined) return;
  const file = tokenizerPaths(folder).config;
  const config = { ...((await readJson(file)) as object), chat_template: model.chatTemplate.source };
  await writeFileAtomic(file, jsonText(config));
}

/**
 * Writes a model's folder whole or not at all, replacing one that is there. Transformers, vLLM and llama.cpp load it.
 * @param model.maxShardBytes     weights beyond that are written as several files. @default 5 GB
 * @throws as {@link checkModelFiles}; FileError when the folder cannot be written
 */
export async function saveModelFolder(
  folder: string,
  model: WritableModel & { readonly maxShardBytes?: number },
): Promise<void> {
  checkModelFiles(model);
  await writeFolderAtomic(folder, async (partial) => {
    await writeModelFiles(partial, model);
    // Transformers refuses a file that does not name its framework.
    await writeSharded(partial, model.tensors, { format: "pt" }, model.maxShardBytes ?? MAX_SHARD_BYTES);
  });
}
