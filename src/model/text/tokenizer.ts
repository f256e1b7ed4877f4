/** Tokenizers read from a model's folder: any that @huggingface/tokenizers knows. */

import { Tokenizer as Library } from "@huggingface/tokenizers";
import { z } from "zod";
import { FormatError } from "../../base/errors.ts";
import { asCharacterTokenizer } from "./character-tokenizer.ts";
import {
  readTokenizerFiles,
  type Tokenizer,
  type TokenizerFiles,
  tokenizerPaths,
  writeTokenizerFiles,
} from "./tokenizer-files.ts";

export { characterTokenizer } from "./character-tokenizer.ts";
export type { Tokenizer } from "./tokenizer-files.ts";

interface Roles {
  readonly bosId?: number;
  readonly eosId: number;
  readonly padId: number;
}

/** The library, held to the contract of {@link Tokenizer}. */
class LibraryTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId?: number;
  readonly eosId: number;
  readonly padId: number;
  readonly #library: Library;
  readonly #files: TokenizerFiles;

  constructor(library: Library, roles: Roles, files: TokenizerFiles) {
    let vocabSize = 0;
    for (const id of library.get_vocab().values()) vocabSize = Math.max(vocabSize, id + 1);
    this.vocabSize = vocabSize;
    if (roles.bosId !== undefined) this.bosId = roles.bosId;
    this.eosId = roles.eosId;
    this.padId = roles.padId;
    this.#library = library;
    this.#files = files;
  }

  encode(text: string): number[] {
    const { ids, tokens } = this.#library.encode(text, { add_special_tokens: false });
    // The library leaves a hole where the vocabulary has neither the token nor one for the unknown.
    const unknown = ids.findIndex((id: number | undefined) => id === undefined);
    if (unknown !== -1) {
      throw new FormatError({
        where: "text to encode",
        rule: "must be expressible in the tokenizer's vocabulary",
        got: JSON.stringify(tokens[unknown]),
      });
    }
    return ids;
  }

  decode(ids: readonly number[], options: { readonly skipSpecial?: boolean } = {}): string {
    if (ids.length === 0) return ""; // The library takes no empty list.
    for (const id of ids) {
      if (this.#library.id_to_token(id) === undefined) {
        throw new FormatError({
          where: "token ids to decode",
          rule: `must be in the vocabulary, below ${this.vocabSize}`,
          got: `${id}`,
        });
      }
    }
    return this.#library.decode([...ids], {
      skip_special_tokens: options.skipSpecial ?? false,
      // The text as the tokens spell it; the clean-up, made for WordPiece, would eat spaces before punctuation.
      clean_up_tokenization_spaces: false,
    });
  }

  save(folder: string): Promise<void> {
    return writeTokenizerFiles(folder, this.#files);
  }
}

/** A special token, as a string or as transformers' older serialised object. */
const SpecialToken = z
  .union([z.string(), z.object({ content: z.string() }).transform((token) => token.content)])
  .nullish();

const TokenizerConfig = z.looseObject({
  bos_token: SpecialToken,
  eos_token: SpecialToken,
  pad_token: SpecialToken,
});

function parseJson(path: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FormatError({ where: path, rule: "must be JSON", got: String(cause), cause });
  }
}

function parseConfig(path: string, text: string): z.infer<typeof TokenizerConfig> {
  const parsed = TokenizerConfig.safeParse(parseJson(path, text));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new FormatError({
    where: `${path}: ${issue?.path.join(".") || "content"}`,
    rule: "special tokens must be strings in an object",
    got: issue?.message ?? "something else",
  });
}

function openLibrary(path: string, json: unknown, config: object): Library {
  try {
    return new Library(json as object, config);
  } catch (cause) {
    // The library's own errors, and whatever it trips over in JSON of another shape.
    throw new FormatError({
      where: path,
      rule: "must describe a tokenizer that @huggingface/tokenizers supports",
      got: cause instanceof Error ? cause.message : String(cause),
      cause,
    });
  }
}

/**
 * The tokenizer of a model's folder, from its `tokenizer.json` and `tokenizer_config.json`. A model without a padding token
 * pads with its end token, as is usual.
 * @throws FileError when a file is missing; FormatError when one breaks its format or names no end token
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  const files = await readTokenizerFiles(folder);
  const paths = tokenizerPaths(folder);
  const config = parseConfig(paths.config, files.config);
  const json = parseJson(paths.tokenizer, files.tokenizer);
  const library = openLibrary(paths.tokenizer, json, config);
  const idOf = (role: "bos_token" | "eos_token" | "pad_token"): number | undefined => {
    const token = config[role];
    if (token === undefined || token === null) return undefined;
    const id = library.token_to_id(token);
    if (id !== undefined) return id;
    throw new FormatError({
      where: `${paths.config}: ${role}`,
      rule: "must be in the vocabulary of tokenizer.json",
      got: JSON.stringify(token),
    });
  };
  const bosId = idOf("bos_token");
  const eosId = idOf("eos_token");
  if (eosId === undefined) {
    throw new FormatError({
      where: `${paths.config}: eos_token`,
      rule: "must name the token that ends a text",
      got: "nothing",
    });
  }
  const roles: Roles = {
    ...(bosId === undefined ? {} : { bosId }),
    eosId,
    padId: idOf("pad_token") ?? eosId,
  };
  return asCharacterTokenizer(json, roles, files) ?? new LibraryTokenizer(library, roles, files);
}
