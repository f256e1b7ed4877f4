/** A model from whatever a person has: a folder in Hugging Face layout, or a GGUF file. */

import { parseModelConfig } from "../arch/models.ts";
import { type ChatTemplate, loadChatTemplate } from "../text/chat-template.ts";
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

/**
 * A whole model.
 * @param path a folder, or a GGUF file
 * @throws FileError when there is none; otherwise as {@link loadModelFolder}, {@link loadChatTemplate}, {@link openGgufModel}
 *   and {@link ggufText}
 */
export async function loadModel(path: string): Promise<LoadedModel> {
  return (await isModelFolder(path)) ? await loadFolder(path) : await loadGguf(path);
}
