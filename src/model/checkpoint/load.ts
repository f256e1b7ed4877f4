/** A model from whatever a person has: a folder in Hugging Face layout, a GGUF file, or a folder of adapters to a model. */

import { FormatError } from "../../base/errors.ts";
import { architectureOf, type ModelConfig, parseModelConfig } from "../arch/models.ts";
import type { QuantizedForm, StoredForm, StoredSource } from "../arch/stored.ts";
import { type ChatTemplate, loadChatTemplate } from "../text/chat-template.ts";
import { adapterPaths, isAdapterFolder, loadAdapterFolder, withAdaptersMerged } from "./adapter.ts";
import { checkVocabulary, checkWeights, loadModelFolder, type ModelFolder, readWeights } from "./folder.ts";
import { emptyMatrix, fillRows, formOf } from "./gguf/matmul-nbits.ts";
import { type GgufModel, openGgufModel } from "./gguf/model.ts";
import { isBlockMatrix, wideningReason } from "./gguf/running.ts";
import type { QuantizedType } from "./gguf/unpack.ts";
import { ggufText, isModelFolder, type ModelText } from "./model-text.ts";

export interface LoadedModel extends ModelFolder {
  /** How the model reads a conversation; absent where its files do not say. */
  readonly chatTemplate?: ChatTemplate;
}

/** A model whose weights are still in its file. Its text side is made when it is asked for, and is found wrong then. */
export interface SourcedModel extends Omit<LoadedModel, "tensors"> {
  /** An engine of these weights closes it when it is disposed of. */
  readonly source: StoredSource;
}

/** A model for an engine alone. */
export type StoredModel = LoadedModel | SourcedModel;

/** Larger matrices get memory of their own. */
const MAX_BLOCK_BYTES = 2 ** 22;

/** All of a GGUF file's model but its weights. */
function describeGguf(file: string, { config: json, vocabulary }: GgufModel): Omit<LoadedModel, "tensors"> {
  const { config, extra } = parseModelConfig(file, json);
  let made: ModelText | undefined;
  const text = (): ModelText => {
    if (made !== undefined) return made;
    const text = ggufText(file, vocabulary);
    checkVocabulary(file, config, text.tokenizer);
    made = text;
    return text;
  };
  const described = {
    config,
    extra,
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
  if (vocabulary?.chatTemplate === undefined) return described;
  const template = { enumerable: true, get: () => text().chatTemplate };
  return Object.defineProperty(described, "chatTemplate", template);
}

async function loadFolder(folder: string): Promise<LoadedModel> {
  const model = await loadModelFolder(folder);
  const chatTemplate = await loadChatTemplate(folder);
  return chatTemplate === undefined ? model : { ...model, chatTemplate };
}

/** The base of adapters with the adapters taken in. */
async function loadAdapted(folder: string): Promise<LoadedModel> {
  const adapters = await loadAdapterFolder(folder);
  const paths = adapterPaths(folder);
  if (await isAdapterFolder(adapters.base)) {
    throw new FormatError({
      where: `${paths.config}: base_model_name_or_path`,
      rule: "must name a model",
      got: "adapters to another",
      remedy: "Merge those first: pondera export",
    });
  }
  const model = await loadPlain(adapters.base);
  const generationConfig = { ...model.generationConfig, ...adapters.generationConfig };
  return { ...model, generationConfig, tensors: withAdaptersMerged(paths.weights, model.tensors, adapters) };
}

async function loadPlain(path: string): Promise<LoadedModel> {
  if (await isModelFolder(path)) return loadFolder(path);
  await using model = await openGgufModel(path);
  // All of its text side as well: whoever widens weights waits longer for them.
  const described = { ...describeGguf(path, model) };
  return { ...described, tensors: await readWeights(model, described.config) };
}

/** The type of a matrix of whole numbers, and undefined for anything else. */
function quantizedType(model: GgufModel, name: string): QuantizedType | undefined {
  const type = model.typeOf(name);
  return isBlockMatrix(type, model.shapes.get(name)!) ? type : undefined;
}

/** Whether a model may stay in its file: where a matrix is of whole numbers, and the engine takes such. */
const mayStay = (model: GgufModel, config: ModelConfig): boolean =>
  wideningReason(config) === undefined &&
  [...model.shapes.keys()].some((name) => quantizedType(model, name) !== undefined);

/** Weights as the file has them, matrices of whole numbers left so and joined where the architecture takes them so. */
async function openStored(model: GgufModel, config: ModelConfig): Promise<StoredSource> {
  const forms: Record<string, StoredForm> = {};
  /** Matrices of whole numbers, and the names of those whose rows each has. */
  const matrices = new Map<string, { type: QuantizedType; form: QuantizedForm; parts: readonly string[] }>();
  const joinOf = new Map(
    architectureOf(config)
      .joins(config)
      .flatMap((join) => join.parts.map((name) => [name, join] as const)),
  );
  const rowsOf = (name: string): number => model.shapes.get(name)![0]!;
  for (const name of await checkWeights(model, config)) {
    const type = quantizedType(model, name);
    const shape = model.shapes.get(name)!;
    if (type === undefined) {
      forms[name] = { shape };
      continue;
    }
    const join = joinOf.get(name);
    const joins = join?.parts.every((part) => quantizedType(model, part) === type);
    const [own, parts] = joins ? [join!.joined, join!.parts] : [name, [name]];
    if (matrices.has(own)) continue;
    const rows = parts.reduce((sum, part) => sum + rowsOf(part), 0);
    const form = formOf(type, rows, shape[1]!);
    matrices.set(own, { type, form, parts });
    forms[own] = form;
  }
  /** Blocks of one matrix after another: taken from the system once for each that is being read. */
  const spare: ArrayBuffer[] = [];
  return {
    forms,
    async read(name, room) {
      const known = matrices.get(name);
      if (known === undefined) return model.readF32(name);
      const { type, form, parts } = known;
      const memory = spare.pop() ?? new ArrayBuffer(MAX_BLOCK_BYTES);
      const matrix = emptyMatrix(form, room);
      let [row, rounding] = [0, 0];
      for (const part of parts) {
        const { blocks } = await model.readBlocks(part, memory);
        rounding = Math.max(rounding, fillRows(matrix, row, type, blocks));
        row += rowsOf(part);
      }
      spare.push(memory);
      return { ...matrix, rounding };
    },
    readRow: (name, row, into) => model.readRow(name, row, into),
    close: () => model.close(),
  };
}

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
 * A whole model for an engine: what a GGUF file has as blocks of whole numbers stays there until an engine reads it. Where no engine
 * may, it is to be closed: {@link closing}.
 * @param path a folder, or a GGUF file, whose text side is made when it is asked for, and is found wrong then
 * @throws as {@link loadModel}
 */
export async function loadStoredModel(path: string): Promise<StoredModel> {
  if (await isModelFolder(path)) return loadModel(path);
  const model = await openGgufModel(path);
  try {
    const described = describeGguf(path, model);
    const { config } = described;
    // Properties of the same object, whose text side stays to be made.
    if (mayStay(model, config)) return Object.assign(described, { source: await openStored(model, config) });
    const read = Object.assign(described, { tensors: await readWeights(model, config) });
    await model.close();
    return read;
  } catch (error) {
    await model.close();
    throw error;
  }
}

/** Closes the file that a model is still in, if it is, when it is disposed of; an engine may have closed it before. */
export function closing(model: StoredModel): AsyncDisposable {
  return {
    async [Symbol.asyncDispose]() {
      if ("source" in model) await model.source.close();
    },
  };
}
