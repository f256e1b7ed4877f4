/** What a model reads and writes: its tokenizer and its chat template, from its files, without its weights. */

import { stat } from "node:fs/promises";
import { FormatError } from "../../base/errors.ts";
import { exists, fileError, recoverFolder } from "../../base/files.ts";
import { ChatTemplate, loadChatTemplate } from "../text/chat-template.ts";
import { type GgufVocabulary, tokenizerFromGguf } from "../text/gguf.ts";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer.ts";
import { baseOfAdapters, isAdapterFolder } from "./adapter.ts";
import { Metadata } from "./gguf/metadata.ts";
import { openGguf } from "./gguf/reader.ts";
import { readVocabulary } from "./gguf/vocabulary.ts";

export interface ModelText {
  readonly tokenizer: Tokenizer;
  /** Absent where the model has none. */
  readonly chatTemplate?: ChatTemplate;
}

/** Whether a model is a folder; otherwise it is a file. @throws FileError when there is neither */
export async function isModelFolder(path: string): Promise<boolean> {
  // A folder may be away for the moment in which it is replaced.
  if (!(await exists(path))) await recoverFolder(path);
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    throw fileError(path, "readable", error);
  }
}

/** The text side of a GGUF file's vocabulary. @throws as {@link tokenizerFromGguf}; FormatError where the file has none */
export function ggufText(file: string, vocabulary: GgufVocabulary | undefined): ModelText {
  if (vocabulary === undefined) {
    throw new FormatError({
      where: `${file}: tokenizer.ggml.model`,
      rule: "must be given, for the model to read and write text",
      got: "nothing",
    });
  }
  const tokenizer = tokenizerFromGguf(vocabulary, `${file}: tokenizer.ggml`);
  const { chatTemplate, tokens } = vocabulary;
  if (chatTemplate === undefined) return { tokenizer };
  const token = (role: string, id: number | undefined): Record<string, string> =>
    id === undefined ? {} : { [role]: tokens.at(id)! };
  const variables = {
    ...token("bos_token", tokenizer.bosId),
    ...token("eos_token", tokenizer.eosId),
    ...token("pad_token", tokenizer.padId),
    ...token("unk_token", vocabulary.unknownId),
  };
  const where = `${file}: tokenizer.chat_template`;
  return { tokenizer, chatTemplate: new ChatTemplate(chatTemplate, { variables, where }) };
}

/**
 * The text side of a model, whatever its architecture.
 * @param path a folder, or a GGUF file, of which the header alone is read
 * @throws FileError when there is none; FormatError or ConfigError as {@link loadTokenizer}, {@link loadChatTemplate} and
 *   {@link tokenizerFromGguf}
 */
export async function loadModelText(path: string): Promise<ModelText> {
  if (!(await isModelFolder(path))) {
    await using gguf = await openGguf(path);
    return ggufText(path, readVocabulary(new Metadata(gguf)));
  }
  // Adapters read and write as their base does.
  if (!(await isAdapterFolder(path))) return folderText(path);
  const base = await baseOfAdapters(path);
  return (await isModelFolder(base)) ? folderText(base) : loadModelText(base);
}

async function folderText(folder: string): Promise<ModelText> {
  const tokenizer = await loadTokenizer(folder);
  const chatTemplate = await loadChatTemplate(folder);
  return { tokenizer, ...(chatTemplate === undefined ? {} : { chatTemplate }) };
}
