/** A model from whatever a person has: a folder in Hugging Face layout, a GGUF file, or a folder of adapters to a model. */

import { FormatError } from "../../base/errors.ts";
import { parseModelConfig } from "../arch/models.ts";
import { type ChatTemplate, loadChatTemplate } from "../text/chat-template.ts";
import { isAdapterFolder, loadAdapterFolder, withAdaptersMerged } from "./adapter.ts";
import { checkVocabulary, loadModelFolder, type ModelFolder, readWeights } from "./folder.ts";
import { openGgufModel } from "./gguf/model.ts";
import { ggufText, isModelFolder } from "./model-text.ts";

export interface LoadedModel extends ModelFolder {
  /** How the model reads a conversation; absent where its files do not say. */
  readonly chatTemplate?: ChatTemplate;
}

async function loadGguf(file: string): Promise<LoadedModel> {
  await using model = await openGgufModel(file);
  const { vocabulary } = model;
  const { tokenizer, chatTemplate } = ggufText(file, vocabulary);
  const { config, extra } = parseModelConfig(file, model.config);
  checkVocabulary(file, config, tokenizer);
  const stops = [tokenizer.eosId, vocabulary?.eotId];
  return {
    config,
    extra,
    tensors: await readWeights(model, config),
    tokenizer,
    generationConfig: {},
    stopIds: [...new Set(stops.filter((id) => id !== undefined))],
    ...(chatTemplate === undefined ? {} : { chatTemplate }),
  };
}

async function loadFolder(folder: string): Promise<LoadedModel> {
  const model = await loadModelFolder(folder);
  const chatTemplate = await loadChatTemplate(folder);
  return chatTemplate === undefined ? model : { ...model, chatTemplate };
}

/** The base of adapters with the adapters taken in. */
async function loadAdapted(folder: string): Promise<LoadedModel> {
  const adapters = await loadAdapterFolder(folder);
  if ((await isModelFolder(adapters.base)) && (await isAdapterFolder(adapters.base))) {
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

const loadPlain = async (path: string): Promise<LoadedModel> =>
  (await isModelFolder(path)) ? loadFolder(path) : loadGguf(path);

/**
 * A whole model.
 * @param path a folder, or a GGUF file
 * @throws FileError when there is none; otherwise as {@link loadModelFolder}, {@link loadChatTemplate}, {@link openGgufModel},
 *   {@link ggufText} and {@link loadAdapterFolder}
 */
export async function loadModel(path: string): Promise<LoadedModel> {
  const adapted = (await isModelFolder(path)) && (await isAdapterFolder(path));
  return adapted ? loadAdapted(path) : loadPlain(path);
}
