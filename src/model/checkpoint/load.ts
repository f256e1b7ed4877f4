/** A model from whatever a person has: a folder in Hugging Face layout, or a GGUF file. */

import { stat } from "node:fs/promises";
import { FormatError } from "../../base/errors.ts";
import { fileError, recoverFolder } from "../../base/files.ts";
import { parseModelConfig } from "../arch/models.ts";
import { tokenizerFromGguf } from "../text/gguf.ts";
import { checkVocabulary, loadModelFolder, type ModelFolder, readWeights } from "./folder.ts";
import { openGgufModel } from "./gguf/model.ts";

export interface LoadedModel extends ModelFolder {
  /** A GGUF file's Jinja template; a folder keeps its own in `tokenizer_config.json`. */
  readonly chatTemplate?: string;
}

async function loadGguf(file: string): Promise<LoadedModel> {
  await using model = await openGgufModel(file);
  const { vocabulary } = model;
  if (vocabulary === undefined) {
    throw new FormatError({
      where: `${file}: tokenizer.ggml.model`,
      rule: "must be given, for the model to read and write text",
      got: "nothing",
    });
  }
  const { config, extra } = parseModelConfig(file, model.config);
  const tokenizer = tokenizerFromGguf(vocabulary);
  checkVocabulary(file, config, tokenizer);
  const stops = [vocabulary.eosId ?? tokenizer.eosId, vocabulary.eotId];
  return {
    config,
    extra,
    tensors: await readWeights(model, config),
    tokenizer,
    generationConfig: {},
    stopIds: [...new Set(stops.filter((id) => id !== undefined))],
    ...(vocabulary.chatTemplate === undefined ? {} : { chatTemplate: vocabulary.chatTemplate }),
  };
}

/**
 * A whole model.
 * @param path a folder, or a GGUF file
 * @throws FileError when there is none; otherwise as {@link loadModelFolder}, {@link openGgufModel} and {@link tokenizerFromGguf}
 */
export async function loadModel(path: string): Promise<LoadedModel> {
  const isThere = await stat(path).then(
    () => true,
    () => false,
  );
  // A folder may be away for the moment in which it is replaced.
  if (!isThere) await recoverFolder(path);
  let isFolder: boolean;
  try {
    isFolder = (await stat(path)).isDirectory();
  } catch (error) {
    throw fileError(path, "readable", error);
  }
  return isFolder ? await loadModelFolder(path) : await loadGguf(path);
}
