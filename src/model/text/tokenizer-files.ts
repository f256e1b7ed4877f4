/** What a tokenizer is to the rest of the program, and the two files it is kept in. */

import { join } from "node:path";
import { makeFolders, parseJson, readText, writeFileAtomic } from "../../base/files.ts";

export interface EncodeOptions {
  /**
   * Whether control tokens written out in the text, such as `<｜User｜>` or `<think>`, become those tokens. False takes them
   * for the characters they are, as befits text from people who must not speak for the model. @default true
   */
  readonly allowSpecial?: boolean;
}

/** The tokens of a tokenizer that have a part of their own. */
export interface TokenRoles {
  readonly bosId?: number;
  readonly eosId: number;
  readonly padId: number;
  readonly addsBos: boolean;
}

/** Text to token ids and back. */
export interface Tokenizer {
  /** Ids are below this. */
  readonly vocabSize: number;
  readonly bosId?: number;
  readonly eosId: number;
  readonly padId: number;
  /** Whether a text of this model begins with {@link bosId}: as its files say. `encode` does not add it. */
  readonly addsBos: boolean;
  /**
   * Added tokens written out in the text are recognised; none is added.
   * @throws FormatError when the text has something the vocabulary cannot express
   */
  encode(text: string, options?: EncodeOptions): number[];
  /**
   * @param options.skipSpecial leaves out the tokens that mark begin, end and padding; think and answer tags are not among
   *   them. @default false
   * @throws FormatError on an id outside the vocabulary
   */
  decode(ids: readonly number[], options?: { readonly skipSpecial?: boolean }): string;
  /**
   * A token as it is spelled inside a text, its leading space included; bytes that are no whole characters as `<0xE2>` each.
   * @throws FormatError on an id outside the vocabulary
   */
  piece(id: number): string;
  /** Writes `tokenizer.json` and `tokenizer_config.json`. @throws FileError when the folder may not be written to */
  save(folder: string): Promise<void>;
}

/** The text of `tokenizer.json` and of `tokenizer_config.json`. */
export interface TokenizerFiles {
  readonly tokenizer: string;
  readonly config: string;
}

const TOKENIZER = "tokenizer.json";
const CONFIG = "tokenizer_config.json";

// Far above what tokenizers have: that of Gemma 3, among the largest, takes 33 MB and some 1.5 million values.
const MOST_BYTES = { tokenizer: 128 * 2 ** 20, config: 16 * 2 ** 20 };
const MOST_VALUES = 2 ** 23;

/** The paths of a folder's tokenizer files, for reading and for errors. */
export function tokenizerPaths(folder: string): TokenizerFiles {
  return { tokenizer: join(folder, TOKENIZER), config: join(folder, CONFIG) };
}

/** @throws FileError when one of them cannot be read; FormatError when one is larger than any tokenizer's */
export async function readTokenizerFiles(folder: string): Promise<TokenizerFiles> {
  const paths = tokenizerPaths(folder);
  return {
    tokenizer: await readText(paths.tokenizer, MOST_BYTES.tokenizer),
    config: await readText(paths.config, MOST_BYTES.config),
  };
}

/** The value of one of them. @throws FormatError when it is not JSON, or more of it than any tokenizer has */
export function parseTokenizerJson(path: string, text: string): unknown {
  return parseJson(path, text, MOST_VALUES);
}

/** Makes the folder where it is missing. @throws FileError when it may not be written to */
export async function writeTokenizerFiles(folder: string, files: TokenizerFiles): Promise<void> {
  await makeFolders(folder);
  const paths = tokenizerPaths(folder);
  await writeFileAtomic(paths.tokenizer, files.tokenizer);
  await writeFileAtomic(paths.config, files.config);
}
