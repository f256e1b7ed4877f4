/**
 * Tokenizers from the vocabulary of a GGUF file.
 *
 * Such a file names its pre-tokenizer instead of describing it, so the names that llama.cpp's converter gives are known here,
 * with the pre-tokenizer that the model's own `tokenizer.json` has. An unknown name is an error: with another's rules the
 * model would see tokens it was not trained on.
 * @source github.com/ggml-org/ggml, docs/gguf.md, "Tokenizer"; github.com/ggml-org/llama.cpp, src/llama-vocab.cpp
 */

import { ConfigError, expectKnown, FormatError } from "../../base/errors.ts";
import { jsonText } from "../../base/json.ts";
import type { AddedToken } from "./added-tokens.ts";
import { mergesOfTexts } from "./bpe-model.ts";
import { BpeTokenizer, normalizerOf } from "./bpe-tokenizer.ts";
import {
  byteLevelPreTokenizer,
  DEEPSEEK_CODER_PATTERNS,
  DEEPSEEK_LLM_PATTERNS,
  DEEPSEEK3_PATTERNS,
  GPT4O_PATTERN,
  LLAMA3_PATTERN,
  QWEN2_PATTERN,
  QWEN35_PATTERN,
  TEKKEN_PATTERN,
} from "./pre-tokenizer.ts";
import { SPACE, SpmTokenizer, type SpmVocabulary } from "./spm-tokenizer.ts";
import { StringIndex, type Strings, StringTable } from "./strings.ts";
import type { Tokenizer, TokenizerFiles, TokenRoles } from "./tokenizer-files.ts";

/** What a token is; `tokenTypes` holds these numbers. */
export const TOKEN_TYPES = {
  normal: 1,
  unknown: 2,
  control: 3,
  userDefined: 4,
  unused: 5,
  byte: 6,
} as const;

/** The metadata under `tokenizer.` of a GGUF file. */
export interface GgufVocabulary {
  /** `gpt2`: byte-level byte-pair encoding; `llama`: SentencePiece's; others exist. */
  readonly model: string;
  /** Which pre-tokenizer (`llama-bpe`, `qwen2`, `deepseek-r1-qwen`, …); `gpt2` alone has one. */
  readonly pre?: string;
  /** By id: in byte characters (`gpt2`), or with ▁ for spaces (`llama`). */
  readonly tokens: Strings;
  /** By id, log-probabilities; needed by `llama`. */
  readonly scores?: Float32Array;
  /** By id, numbers of {@link TOKEN_TYPES}. @default all normal */
  readonly tokenTypes?: Int32Array;
  /** Two tokens each with a space between, the first merged first; needed by `gpt2`. */
  readonly merges?: Strings;
  readonly bosId?: number;
  readonly eosId?: number;
  /** Ends a turn of a chat. */
  readonly eotId?: number;
  readonly unknownId?: number;
  /** @default the end token */
  readonly paddingId?: number;
  /** @default true of `llama` and of Llama 3's kind */
  readonly addBos?: boolean;
  readonly addEos?: boolean;
  /** Whether text begins with a space, for `llama`. @default true */
  readonly addSpacePrefix?: boolean;
  /** A Jinja template. */
  readonly chatTemplate?: string;
}

/** Where errors say that a vocabulary is, when it comes from no file. */
const WHERE = "tokenizer.ggml";

interface PreRules {
  readonly preTokenizer: object;
  readonly normalizer?: object;
  readonly ignoreMerges?: boolean;
  readonly addBos?: boolean;
}

const byteLevel = (use_regex: boolean): object => ({
  type: "ByteLevel",
  add_prefix_space: false,
  trim_offsets: true,
  use_regex,
});
const splits = (patterns: readonly string[]): object => ({
  type: "Sequence",
  pretokenizers: [
    ...patterns.map((Regex) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false })),
    byteLevel(false),
  ],
});

function named(names: readonly string[], rules: PreRules): Record<string, PreRules> {
  return Object.fromEntries(names.map((name) => [name, rules]));
}

const GPT2: PreRules = { preTokenizer: byteLevel(true) };
const DIGITS: PreRules = {
  preTokenizer: {
    type: "Sequence",
    pretokenizers: [{ type: "Digits", individual_digits: true }, byteLevel(true)],
  },
};
const NFC = { type: "NFC" };
const QWEN2: PreRules = { preTokenizer: splits([QWEN2_PATTERN]), normalizer: NFC };
const LLAMA3: PreRules = { preTokenizer: splits([LLAMA3_PATTERN]), ignoreMerges: true, addBos: true };
/** Llama 3's words, whose vocabulary is merged as any other: the one that Phi-4 has. */
const CL100K: PreRules = { preTokenizer: splits([LLAMA3_PATTERN]) };
const GPT4O: PreRules = { preTokenizer: splits([GPT4O_PATTERN]) };

/** By the name under `tokenizer.ggml.pre`; names of one row are one to llama.cpp, too. */
const PRE_TOKENIZERS: Readonly<Record<string, PreRules>> = {
  ...named(["gpt-2", "mpt", "olmo", "phi-2", "jais", "exaone4", "mellum", "gigachat"], GPT2),
  ...named(["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"], DIGITS),
  "command-r": { ...DIGITS, normalizer: NFC },
  ...named(["qwen2", "deepseek-r1-qwen", "megrez"], QWEN2),
  qwen35: { preTokenizer: splits([QWEN35_PATTERN]), normalizer: NFC },
  ...named(["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"], LLAMA3),
  ...named(["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], CL100K),
  tekken: { preTokenizer: splits([TEKKEN_PATTERN]), ignoreMerges: true, addBos: true },
  ...named(["gpt-4o", "llama4"], GPT4O),
  "deepseek-llm": { preTokenizer: splits(DEEPSEEK_LLM_PATTERNS) },
  "deepseek-coder": { preTokenizer: splits(DEEPSEEK_CODER_PATTERNS) },
  ...named(["deepseek-v3", "hunyuan-dense"], { preTokenizer: splits(DEEPSEEK3_PATTERNS) }),
};

/** Files that are put together when a model is saved, which few are. */
function lazyFiles(tokenizer: () => object, config: object): TokenizerFiles {
  return {
    get tokenizer() {
      return `${JSON.stringify(tokenizer(), undefined, 1)}\n`;
    },
    get config() {
      return jsonText(config);
    },
  };
}

/** @throws FormatError when an id lies beyond the tokens, or none ends a text */
function rolesOf(vocabulary: GgufVocabulary, addBos: boolean, where: string): TokenRoles {
  const { tokens, bosId, eosId, paddingId } = vocabulary;
  for (const [name, id] of Object.entries({ bos: bosId, eos: eosId, padding: paddingId })) {
    if (id === undefined ? name !== "eos" : id >= 0 && tokens.at(id) !== undefined) continue;
    throw new FormatError({
      where: `${where}.${name}_token_id`,
      rule: `must be one of the ${tokens.length} tokens`,
      got: id === undefined ? "nothing" : `${id}`,
    });
  }
  return {
    ...(bosId === undefined ? {} : { bosId }),
    eosId: eosId!,
    padId: paddingId ?? eosId!,
    addsBos: (vocabulary.addBos ?? addBos) && bosId !== undefined,
  };
}

function configOf({ tokens }: GgufVocabulary, roles: TokenRoles, extra: object): object {
  return {
    ...extra,
    add_bos_token: roles.addsBos,
    ...(roles.bosId === undefined ? {} : { bos_token: tokens.at(roles.bosId) }),
    eos_token: tokens.at(roles.eosId),
    pad_token: tokens.at(roles.padId),
    clean_up_tokenization_spaces: false,
  };
}

function addedTokens({ tokens, tokenTypes }: GgufVocabulary): AddedToken[] {
  const { unknown, control, userDefined } = TOKEN_TYPES;
  const added: AddedToken[] = [];
  for (let id = 0; id < tokens.length; id++) {
    const type = tokenTypes?.[id];
    if (type !== unknown && type !== control && type !== userDefined) continue;
    added.push({ id, content: tokens.at(id)!, special: type !== userDefined });
  }
  return added;
}

const addedJson = (token: AddedToken): object => ({
  id: token.id,
  content: token.content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: token.special,
});

function bpeFromGguf(vocabulary: GgufVocabulary, index: StringIndex, where: string): Tokenizer {
  const { pre, tokens, merges: texts } = vocabulary;
  const known = Object.keys(PRE_TOKENIZERS);
  expectKnown(`${where}.pre`, pre ?? "nothing", known);
  const rules = PRE_TOKENIZERS[pre!]!;
  if (texts === undefined) {
    throw new FormatError({ where: `${where}.merges`, rule: "must be there for gpt2", got: "nothing" });
  }
  const roles = rolesOf(vocabulary, rules.addBos === true, where);
  const merges = mergesOfTexts(StringTable.from(texts), (odd) => {
    throw new FormatError({
      where: `${where}.merges`,
      rule: "must each be two tokens with one space between",
      got: JSON.stringify(texts.at(odd)),
    });
  });
  const added = addedTokens(vocabulary);
  const { preTokenizer, normalizer = null, ignoreMerges = false } = rules;
  const json = () => ({
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added.map(addedJson),
    normalizer,
    pre_tokenizer: preTokenizer,
    post_processor: null,
    decoder: byteLevel(true),
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: ignoreMerges,
      vocab: Object.fromEntries([...tokens].map((token, id) => [token, id])),
      merges: [...texts],
    },
  });
  const files = lazyFiles(json, configOf(vocabulary, roles, { tokenizer_class: "PreTrainedTokenizerFast" }));
  const parts = {
    vocabulary: { tokens: index, merges, ignoreMerges },
    added,
    // Every row of the table above has such ones.
    normalize: normalizerOf(normalizer)!,
    preTokenizer: byteLevelPreTokenizer(preTokenizer)!,
  };
  return new BpeTokenizer(parts, roles, files, where);
}

/**
 * `tokenizer.json` of a SentencePiece vocabulary, in the form that transformers converts it to: every way to put a piece
 * together from two is a merge, in the order of scores. Where several ways to one piece overlap in a text, the lower merge
 * wins there and the left one here.
 */
function spmJson(spm: SpmVocabulary): object {
  const { tokens, scores, pieces, added, addSpacePrefix, unknownId } = spm;
  const ids = new Map(pieces.map((id) => [tokens[id]!, id]));
  const byScore = [...pieces].sort((a, b) => scores[b]! - scores[a]! || a - b);
  const merges = byScore.flatMap((id) => {
    const characters = [...tokens[id]!];
    return characters.slice(1).flatMap((_, i) => {
      const pair = [characters.slice(0, i + 1).join(""), characters.slice(i + 1).join("")];
      return pair.every((part) => ids.has(part)) ? [pair] : [];
    });
  });
  const replace = (from: string, content: string): object => ({
    type: "Replace",
    pattern: { String: from },
    content,
  });
  const prefix = addSpacePrefix ? [{ type: "Prepend", prepend: SPACE }] : [];
  const strip = addSpacePrefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : [];
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added.map(addedJson),
    normalizer: { type: "Sequence", normalizers: [...prefix, replace(" ", SPACE)] },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [replace(SPACE, " "), { type: "ByteFallback" }, { type: "Fuse" }, ...strip],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: unknownId === undefined ? null : tokens[unknownId],
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  };
}

function spmFromGguf(vocabulary: GgufVocabulary, where: string): Tokenizer {
  const { scores, tokenTypes, unknownId } = vocabulary;
  const tokens = [...vocabulary.tokens];
  if (scores === undefined) {
    throw new FormatError({ where: `${where}.scores`, rule: "must be there for llama", got: "nothing" });
  }
  const roles = rolesOf(vocabulary, true, where);
  const typeOf = (id: number): number => tokenTypes?.[id] ?? TOKEN_TYPES.normal;
  const bytes = new Map<number, number>();
  const pieces: number[] = [];
  for (const [id, token] of tokens.entries()) {
    const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(token)?.[1];
    const type = typeOf(id);
    if (byte !== undefined && (type === TOKEN_TYPES.byte || tokenTypes === undefined)) {
      bytes.set(Number.parseInt(byte, 16), id);
    } else if (type === TOKEN_TYPES.normal || type === TOKEN_TYPES.unused) pieces.push(id);
  }
  const spm: SpmVocabulary = {
    tokens,
    scores,
    pieces,
    bytes,
    added: addedTokens(vocabulary),
    ...(unknownId === undefined ? {} : { unknownId }),
    addSpacePrefix: vocabulary.addSpacePrefix ?? true,
  };
  const config = configOf(vocabulary, roles, {
    tokenizer_class: "PreTrainedTokenizerFast",
    ...(unknownId === undefined ? {} : { unk_token: tokens[unknownId] }),
  });
  return new SpmTokenizer(
    spm,
    roles,
    lazyFiles(() => spmJson(spm), config),
    where,
  );
}

/** The tokens by their text. @throws FormatError naming two ids of one token */
function indexOf({ tokens }: GgufVocabulary, where: string): StringIndex {
  const index = new StringIndex(StringTable.from(tokens));
  if (index.repeated === undefined) return index;
  const [first, again] = index.repeated;
  throw new FormatError({
    where: `${where}.tokens`,
    rule: "must differ from each other",
    got: `${JSON.stringify(tokens.at(again))} for ${first} and ${again}`,
  });
}

/**
 * The tokenizer of a GGUF file's vocabulary. Saved, it is a `tokenizer.json` that transformers loads.
 * @param where the file and its `tokenizer.ggml`, for errors
 * @throws ConfigError on a kind of vocabulary, or a pre-tokenizer, that is not known; FormatError when its parts do not fit
 *   together
 */
export function tokenizerFromGguf(vocabulary: GgufVocabulary, where = WHERE): Tokenizer {
  const index = indexOf(vocabulary, where);
  switch (vocabulary.model) {
    case "gpt2":
      return bpeFromGguf(vocabulary, index, where);
    case "llama":
      return spmFromGguf(vocabulary, where);
    default:
      throw new ConfigError({
        where: `${where}.model`,
        rule: "must be gpt2 or llama",
        got: JSON.stringify(vocabulary.model),
      });
  }
}
