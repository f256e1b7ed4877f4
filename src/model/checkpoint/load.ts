/** A model from whatever a person has: a folder in Hugging Face layout, a GGUF file, or a folder of adapters to a model. */

import { FormatError } from "../../base/errors.ts";
import { HEAD_STEP } from "../arch/llama.ts";
import { architectureOf, type ModelConfig, parseModelConfig } from "../arch/models.ts";
import type { QuantizedMatrix, StoredWeight, StoredWeights } from "../arch/stored.ts";
import { type ChatTemplate, loadChatTemplate } from "../text/chat-template.ts";
import { isAdapterFolder, loadAdapterFolder, withAdaptersMerged } from "./adapter.ts";
import { checkVocabulary, loadModelFolder, type ModelFolder, readEach, readWeights } from "./folder.ts";
import { emptyMatrix, fillRows, isQuantized } from "./gguf/matmul-nbits.ts";
import { type GgufModel, openGgufModel } from "./gguf/model.ts";
import type { QuantizedType } from "./gguf/unpack.ts";
import { ggufText, isModelFolder, type ModelText } from "./model-text.ts";

export interface LoadedModel extends ModelFolder {
  /** How the model reads a conversation; absent where its files do not say. */
  readonly chatTemplate?: ChatTemplate;
}

/**
 * A model whose matrices may be as their file has them, for an engine alone. The text side of a GGUF file is made when it is asked
 * for, and is found wrong then.
 */
export interface StoredModel extends Omit<LoadedModel, "tensors"> {
  readonly weights: StoredWeights;
}

/** Larger matrices get memory of their own. */
const MAX_BLOCK_BYTES = 2 ** 22;

type Reader<Weight> = (model: GgufModel, config: ModelConfig) => Promise<Record<string, Weight>>;

async function loadGguf<Weight>(
  file: string,
  read: Reader<Weight>,
): Promise<Omit<LoadedModel, "tensors"> & { readonly weights: Record<string, Weight> }> {
  await using model = await openGgufModel(file);
  const { vocabulary } = model;
  const { config, extra } = parseModelConfig(file, model.config);
  let made: ModelText | undefined;
  const text = (): ModelText => {
    if (made !== undefined) return made;
    const text = ggufText(file, vocabulary);
    checkVocabulary(file, config, text.tokenizer);
    made = text;
    return text;
  };
  const loaded = {
    config,
    extra,
    weights: await read(model, config),
    generationConfig: {},
    // A third of the time that loading takes, which may pass while weights are laid out for the processor.
    get tokenizer() {
      return text().tokenizer;
    },
    get stopIds() {
      const stops = [text().tokenizer.eosId, vocabulary?.eotId];
      return [...new Set(stops.filter((id) => id !== undefined))];
    },
  };
  if (vocabulary?.chatTemplate === undefined) return loaded;
  const template = { enumerable: true, get: () => text().chatTemplate };
  return Object.defineProperty(loaded, "chatTemplate", template);
}

async function loadFolder(folder: string): Promise<LoadedModel> {
  const model = await loadModelFolder(folder);
  const chatTemplate = await loadChatTemplate(folder);
  return chatTemplate === undefined ? model : { ...model, chatTemplate };
}

/** The base of adapters with the adapters taken in. */
async function loadAdapted(folder: string): Promise<LoadedModel> {
  const adapters = await loadAdapterFolder(folder);
  if (await isAdapterFolder(adapters.base)) {
    throw new FormatError({
      where: `${folder}: base_model_name_or_path`,
      rule: "must name a model",
      got: "adapters to another",
      remedy: "Merge those first: pondera export",
    });
  }
  const model = await loadPlain(adapters.base);
  const generationConfig = { ...model.generationConfig, ...adapters.generationConfig };
  return { ...model, generationConfig, tensors: withAdaptersMerged(folder, model.tensors, adapters) };
}

async function loadPlain(path: string): Promise<LoadedModel> {
  if (await isModelFolder(path)) return loadFolder(path);
  // All of its text side as well: whoever widens weights waits longer for them.
  const { weights: tensors, ...model } = { ...(await loadGguf(path, readWeights)) };
  return { ...model, tensors };
}

/**
 * Weights as the file has them, matrices of whole numbers left so and joined where the architecture takes them so. Those of
 * DeepSeek-V3 are widened: its experts and latents take matrices apart. So are those of heads that an engine cannot decode before
 * they are widened.
 */
const readStored: Reader<StoredWeight> = async (model, config) => {
  if (config.modelType === "deepseek_v3" || config.headDim % HEAD_STEP !== 0)
    return readWeights(model, config);
  /** Blocks of one matrix after another: taken from the system once. */
  const memory = new ArrayBuffer(MAX_BLOCK_BYTES);
  const quantizedType = (name: string): QuantizedType | undefined => {
    const type = model.typeOf(name);
    return type !== undefined && isQuantized(type) && model.shapes.get(name)!.length === 2 ? type : undefined;
  };
  const joined: Record<string, StoredWeight> = {};
  const joins = architectureOf(config).joins(config);
  const joinOf = new Map(joins.flatMap((join) => join.parts.map((name) => [name, join] as const)));
  const readMatrix = async (type: QuantizedType, names: readonly string[]): Promise<QuantizedMatrix> => {
    const rows = names.map((name) => model.shapes.get(name)![0]!);
    const all = rows.reduce((sum, n) => sum + n, 0);
    const matrix = emptyMatrix(type, all, model.shapes.get(names[0]!)![1]!);
    let [row, rounding] = [0, 0];
    for (const [i, name] of names.entries()) {
      const { blocks } = await model.readBlocks(name, memory);
      rounding = Math.max(rounding, fillRows(matrix, row, type, blocks));
      row += rows[i]!;
    }
    return { ...matrix, rounding };
  };
  const apart = await readEach(model, config, async (name): Promise<StoredWeight | undefined> => {
    const type = quantizedType(name);
    if (type === undefined) return model.readF32(name);
    const join = joinOf.get(name);
    if (join === undefined || !join.parts.every((part) => quantizedType(part) === type)) {
      return readMatrix(type, [name]);
    }
    joined[join.joined] ??= await readMatrix(type, join.parts);
    return undefined;
  });
  const own = Object.entries(apart).filter(
    (entry): entry is [string, StoredWeight] => entry[1] !== undefined,
  );
  return { ...Object.fromEntries(own), ...joined };
};

/**
 * A whole model, its weights as float32.
 * @param path a folder, or a GGUF file
 * @throws FileError when there is none; otherwise as {@link loadModelFolder}, {@link loadChatTemplate}, {@link openGgufModel},
 *   {@link ggufText} and {@link loadAdapterFolder}
 */
export async function loadModel(path: string): Promise<LoadedModel> {
  const adapted = (await isModelFolder(path)) && (await isAdapterFolder(path));
  return adapted ? loadAdapted(path) : loadPlain(path);
}

/**
 * A whole model for an engine: what a GGUF file has as blocks of whole numbers stays so.
 * @param path a folder, or a GGUF file
 * @throws as {@link loadModel}
 */
export async function loadStoredModel(path: string): Promise<StoredModel> {
  if (!(await isModelFolder(path))) return loadGguf(path, readStored);
  const { tensors: weights, ...model } = await loadModel(path);
  return { ...model, weights };
}
