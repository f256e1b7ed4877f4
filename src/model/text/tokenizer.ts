/**
 * Tokenizers read from a model's folder. Byte-level byte-pair vocabularies and our own character ones have encoders of their
 * own; everything else is left to @huggingface/tokenizers.
 */

import { Tokenizer as Library } from "@huggingface/tokenizers";
import { z } from "zod";
import { FormatError } from "../../base/errors.ts";
import { parsedBy } from "../../base/json.ts";
import { isControl } from "./added-tokens.ts";
import { asBpeTokenizer } from "./bpe-tokenizer.ts";
import { asCharacterTokenizer } from "./character-tokenizer.ts";
import { prepends } from "./post-processor.ts";
import { withinTime } from "./time-limit.ts";
import {
  type EncodeOptions,
  parseTokenizerJson,
  readTokenizerFiles,
  type Tokenizer,
  type TokenizerFiles,
  type TokenRoles,
  tokenizerPaths,
  writeTokenizerFiles,
} from "./tokenizer-files.ts";

export { characterTokenizer } from "./character-tokenizer.ts";
export type { EncodeOptions, Tokenizer } from "./tokenizer-files.ts";

/** Longest that the library may take over a text: its patterns come from the model's files. */
const LONGEST_MS = 5_000;

/** The library, held to the contract of {@link Tokenizer}. */
class LibraryTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId?: number;
  readonly eosId: number;
  readonly padId: number;
  readonly addsBos: boolean;
  readonly #library: Library;
  readonly #files: TokenizerFiles;
  /** The library without control tokens, once it is needed. */
  #plain: Library | undefined;
  readonly #openPlain: () => Library;

  constructor(library: Library, openPlain: () => Library, roles: TokenRoles, files: TokenizerFiles) {
    let vocabSize = 0;
    for (const id of library.get_vocab().values()) vocabSize = Math.max(vocabSize, id + 1);
    this.vocabSize = vocabSize;
    if (roles.bosId !== undefined) this.bosId = roles.bosId;
    this.eosId = roles.eosId;
    this.padId = roles.padId;
    this.addsBos = roles.addsBos;
    this.#library = library;
    this.#openPlain = openPlain;
    this.#files = files;
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    if (options.allowSpecial === false) this.#plain ??= this.#openPlain();
    const library = options.allowSpecial === false ? this.#plain! : this.#library;
    const { ids, tokens } = withinTime(LONGEST_MS, "text to encode", () =>
      library.encode(text, { add_special_tokens: false }),
    );
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
    for (const id of ids) this.piece(id);
    return this.#library.decode([...ids], {
      skip_special_tokens: options.skipSpecial ?? false,
      // The text as the tokens spell it; the clean-up, made for WordPiece, would eat spaces before punctuation.
      clean_up_tokenization_spaces: false,
    });
  }

  /** The library knows no text of a single token, so it is spelled as in the vocabulary. */
  piece(id: number): string {
    const token = this.#library.id_to_token(id);
    if (token !== undefined) return token;
    throw new FormatError({
      where: "token ids to decode",
      rule: `must be in the vocabulary, below ${this.vocabSize}`,
      got: `${id}`,
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
  add_bos_token: z.boolean().nullish(),
});
type TokenizerConfig = z.infer<typeof TokenizerConfig>;

function parseConfig(path: string, text: string): TokenizerConfig {
  const parsed = TokenizerConfig.safeParse(parseTokenizerJson(path, text));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new FormatError({
    where: `${path}: ${issue?.path.join(".") || "content"}`,
    rule: "special tokens must be strings, and what is added true or false, in an object",
    got: issue?.message ?? "something else",
  });
}

/** Far above any vocabulary. The library goes through all ids up to the largest, and others make tables of them. */
const MOST_IDS = 2 ** 22;

const isId = (id: unknown): boolean =>
  Number.isInteger(id) && (id as number) >= 0 && (id as number) < MOST_IDS;

const WithIds = z.object(
  {
    added_tokens: z.array(
      z.object({ id: z.unknown().optional(), content: z.unknown().optional() }, "must be an object"),
      "must be a list of tokens",
    ),
    // Unigram's is a list of tokens, whose places are their ids.
    model: z.object({ vocab: z.unknown().optional() }, "must be an object"),
  },
  "must be an object",
);

/** @throws FormatError when an added token is no text, or an id no number, or larger than any vocabulary */
function checkTokens(path: string, json: unknown): asserts json is object {
  const { added_tokens, model } = parsedBy(WithIds, path, json);
  const mute = added_tokens.find(({ content }) => typeof content !== "string");
  if (mute !== undefined) {
    throw new FormatError({
      where: `${path}: added_tokens`,
      rule: "each must have its text as content",
      got: JSON.stringify(mute.content) ?? "nothing",
    });
  }
  const vocab = typeof model.vocab === "object" && !Array.isArray(model.vocab) ? (model.vocab ?? {}) : {};
  for (const [field, ids] of [
    ["added_tokens", added_tokens.map(({ id }) => id)],
    ["model.vocab", Object.values(vocab)],
  ] as const) {
    const wrong = ids.findIndex((id) => !isId(id));
    if (wrong === -1) continue;
    throw new FormatError({
      where: `${path}: ${field}`,
      rule: `ids must be whole numbers below ${MOST_IDS}`,
      got: JSON.stringify(ids[wrong]) ?? "nothing",
    });
  }
}

/** What a tokenizer can do without, for the library to take it. */
const PARTS = ["normalizer", "pre_tokenizer", "post_processor", "decoder"];

/** The part that the library trips over: without it, and those before it, it takes the rest. */
function culprit(path: string, json: object, config: object): string {
  const rest: Record<string, unknown> = { ...json };
  for (const part of PARTS) {
    rest[part] = null;
    try {
      withinTime(LONGEST_MS, path, () => new Library(rest, config));
      return part;
    } catch {
      // Another part, then.
    }
  }
  return "model";
}

function openLibrary(path: string, json: object, config: object): Library {
  try {
    return withinTime(LONGEST_MS, path, () => new Library(json, config));
  } catch (cause) {
    if (cause instanceof FormatError) throw cause;
    // The library's own errors, and whatever it trips over in JSON of another shape.
    throw new FormatError({
      where: `${path}: ${culprit(path, json, config)}`,
      rule: "must describe a tokenizer that @huggingface/tokenizers supports",
      got: cause instanceof Error ? cause.message : String(cause),
      cause,
    });
  }
}

/** @throws FormatError when a role's token is not in the vocabulary, or none ends a text */
function rolesOf(
  path: string,
  config: TokenizerConfig,
  addsBos: boolean,
  idOf: (token: string) => number | undefined,
): TokenRoles {
  const roleId = (role: "bos_token" | "eos_token" | "pad_token"): number | undefined => {
    const token = config[role];
    if (token === undefined || token === null) return undefined;
    const id = idOf(token);
    if (id !== undefined) return id;
    throw new FormatError({
      where: `${path}: ${role}`,
      rule: "must be in the vocabulary of tokenizer.json",
      got: JSON.stringify(token),
    });
  };
  const bosId = roleId("bos_token");
  const eosId = roleId("eos_token");
  if (eosId === undefined) {
    throw new FormatError({
      where: `${path}: eos_token`,
      rule: "must name the token that ends a text",
      got: "nothing",
    });
  }
  return {
    ...(bosId === undefined ? {} : { bosId }),
    eosId,
    padId: roleId("pad_token") ?? eosId,
    addsBos: addsBos && bosId !== undefined,
  };
}

/** `tokenizer.json` without the tokens that text must not be able to write. */
function withoutControl(json: object): object {
  const file = json as { added_tokens: { id: number; content: string; special: boolean }[] };
  return { ...file, added_tokens: file.added_tokens.filter((token) => !isControl(token)) };
}

/**
 * A tokenizer from the text of its two files. A model without a padding token pads with its end token, as is usual. Texts
 * begin with the begin token where `add_bos_token` says so or, where it says nothing, the post-processor.
 * @param paths what to call the files in errors
 * @throws FormatError when one breaks its format or names no end token
 */
export function parseTokenizer(files: TokenizerFiles, paths: TokenizerFiles): Tokenizer {
  const config = parseConfig(paths.config, files.config);
  const json = parseTokenizerJson(paths.tokenizer, files.tokenizer);
  checkTokens(paths.tokenizer, json);
  const postProcessor = "post_processor" in json ? json.post_processor : undefined;
  const addsBos = config.add_bos_token ?? prepends(config.bos_token ?? "", postProcessor);
  const byConfig = (idOf: (token: string) => number | undefined): TokenRoles =>
    rolesOf(paths.config, config, addsBos, idOf);
  const bpe = asBpeTokenizer(json, byConfig, files, paths.tokenizer);
  if (bpe !== undefined) return bpe;
  const library = openLibrary(paths.tokenizer, json, config);
  const roles = byConfig((token) => library.token_to_id(token));
  // The character form has begun every text with it from the first, and its files do not say so.
  const always = { ...roles, addsBos: config.add_bos_token ?? true };
  const openPlain = (): Library => openLibrary(paths.tokenizer, withoutControl(json), config);
  return asCharacterTokenizer(json, always, files) ?? new LibraryTokenizer(library, openPlain, roles, files);
}

/**
 * The tokenizer of a model's folder, from its `tokenizer.json` and `tokenizer_config.json`; see {@link parseTokenizer}.
 * @throws FileError when a file is missing; FormatError as {@link parseTokenizer}
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  return parseTokenizer(await readTokenizerFiles(folder), tokenizerPaths(folder));
}
