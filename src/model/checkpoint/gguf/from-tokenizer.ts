/**
 * The vocabulary of a GGUF file out of a model's `tokenizer.json` and `tokenizer_config.json`, for the three kinds of byte-pair
 * encoding that models have: of bytes (GPT-2's), SentencePiece's, and of single characters (Pondera's own).
 *
 * @source github.com/ggml-org/llama.cpp, conversion/base.py (get_vocab_base, get_vocab_base_pre), src/llama-vocab.cpp
 */

import { z } from "zod";
import { ConfigError, FormatError } from "../../../base/errors.ts";
import { toByteCharacters, utf8 } from "../../text/byte-level.ts";
import { type GgufVocabulary, TOKEN_TYPES } from "../../text/gguf.ts";
import { prepends } from "../../text/post-processor.ts";
import {
  DEEPSEEK_CODER_PATTERNS,
  DEEPSEEK_LLM_PATTERNS,
  DEEPSEEK3_PATTERNS,
  GPT4O_PATTERN,
  LLAMA3_PATTERN,
  QWEN2_PATTERN,
  QWEN35_PATTERN,
  TEKKEN_PATTERN,
} from "../../text/pre-tokenizer.ts";
import { parseTokenizerJson, type TokenizerFiles } from "../../text/tokenizer-files.ts";

/** What llama.cpp calls the rules that split text, by their regular expressions one after another. */
const PRE_BY_PATTERNS: ReadonlyMap<string, string> = new Map(
  (
    [
      [[], "gpt-2"],
      [[LLAMA3_PATTERN], "llama-bpe"],
      [[QWEN2_PATTERN], "qwen2"],
      [[QWEN35_PATTERN], "qwen35"],
      [[TEKKEN_PATTERN], "tekken"],
      [[GPT4O_PATTERN], "gpt-4o"],
      [DEEPSEEK3_PATTERNS, "deepseek-v3"],
      [DEEPSEEK_LLM_PATTERNS, "deepseek-llm"],
      [DEEPSEEK_CODER_PATTERNS, "deepseek-coder"],
    ] as const
  ).map(([patterns, name]) => [JSON.stringify(patterns), name]),
);
/** GPT-2's, after digits have been set apart one by one. */
const PRE_OF_DIGITS = "smollm";

const Part = z.looseObject({ type: z.string() });
type Part = z.infer<typeof Part>;

const TokenizerJson = z.looseObject({
  added_tokens: z
    .array(z.looseObject({ id: z.int().nonnegative(), content: z.string(), special: z.boolean() }))
    .default([]),
  normalizer: Part.nullish(),
  pre_tokenizer: Part.nullish(),
  post_processor: Part.nullish(),
  decoder: Part.nullish(),
  model: z.looseObject({
    type: z.literal("BPE"),
    unk_token: z.string().nullish(),
    byte_fallback: z.boolean().nullish(),
    vocab: z.record(z.string(), z.int().nonnegative()),
    merges: z.array(z.union([z.string(), z.tuple([z.string(), z.string()])])),
  }),
});
type TokenizerJson = z.infer<typeof TokenizerJson>;

const Special = z
  .union([z.string(), z.object({ content: z.string() }).transform(({ content }) => content)])
  .nullish();
const Config = z.looseObject({
  bos_token: Special,
  eos_token: Special,
  pad_token: Special,
  unk_token: Special,
  add_bos_token: z.boolean().nullish(),
  add_eos_token: z.boolean().nullish(),
  chat_template: z
    .union([z.string(), z.array(z.object({ name: z.string(), template: z.string() }))])
    .nullish(),
});
type Config = z.infer<typeof Config>;

/** Far above any vocabulary; ids beyond it would make a table of nothing. */
const MAX_ID = 2 ** 22;

function parse<T>(path: string, text: string, schema: z.ZodType<T>): T {
  const parsed = schema.safeParse(parseTokenizerJson(path, text));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new FormatError({
    where: `${path}: ${issue?.path.join(".") || "content"}`,
    rule: "must be that of a byte-pair tokenizer, for a GGUF file to be written",
    got: issue?.message ?? "something else",
  });
}

/** A part of the tokenizer and, where it is a sequence, the parts it is made of. */
function partsOf(part: Part | null | undefined): readonly Part[] {
  if (part === null || part === undefined) return [];
  if (part.type !== "Sequence") return [part];
  const lists = [part["normalizers"], part["pretokenizers"], part["processors"], part["decoders"]];
  return lists.flatMap((list) => z.array(Part).safeParse(list).data ?? []);
}

/** The regular expression that a `Split` splits by. */
function patternOf(part: Part): string | undefined {
  return z.object({ Regex: z.string() }).safeParse(part["pattern"]).data?.Regex;
}

type Kind = "bytes" | "sentencepiece" | "characters";

function kindOf(json: TokenizerJson): Kind | undefined {
  const parts = [...partsOf(json.pre_tokenizer), ...partsOf(json.decoder)];
  if (parts.some(({ type }) => type === "ByteLevel")) return "bytes";
  if (json.model.byte_fallback) return "sentencepiece";
  const isPlain = json.model.merges.length === 0 && !json.normalizer && !json.pre_tokenizer;
  return isPlain ? "characters" : undefined;
}

function preOf(path: string, json: TokenizerJson): string {
  const parts = partsOf(json.pre_tokenizer);
  const patterns = parts.flatMap((part) => patternOf(part) ?? []);
  const digits = parts.find(({ type }) => type === "Digits");
  if (digits === undefined) {
    const name = PRE_BY_PATTERNS.get(JSON.stringify(patterns));
    if (name !== undefined) return name;
  } else if (patterns.length === 0 && digits["individual_digits"] === true) {
    return PRE_OF_DIGITS;
  }
  throw new ConfigError({
    where: `${path}: pre_tokenizer`,
    rule: "must split text by rules that llama.cpp has a name for",
    got: JSON.stringify(digits === undefined ? patterns : [digits, ...patterns]),
    remedy: "Give the name yourself if you know it",
  });
}

const pairOf = (merge: string | [string, string]): [string, string] => {
  if (typeof merge !== "string") return merge;
  const space = merge.indexOf(" ", 1);
  return [merge.slice(0, space), merge.slice(space + 1)];
};

/**
 * Scores under which SentencePiece joins what the merges join, first merges first. Tokens that no merge makes come last.
 * @returns by id
 */
function scoresOf(tokens: readonly string[], json: TokenizerJson): Float32Array {
  const ranks = new Map<string, number>();
  for (const merge of json.model.merges) {
    const made = pairOf(merge).join("");
    if (!ranks.has(made)) ranks.set(made, ranks.size);
  }
  return Float32Array.from(tokens, (token) => -(ranks.get(token) ?? ranks.size));
}

/**
 * @param files the text of both, @param paths what to call them in errors
 * @param pre   what llama.cpp calls the rules that split text. @default found by them
 * @throws FormatError when a file is not JSON or of another form, or names a token that is not there; ConfigError on rules
 *   that llama.cpp has no name for
 */
export function vocabularyFromTokenizer(
  files: TokenizerFiles,
  paths: TokenizerFiles,
  pre?: string,
): GgufVocabulary {
  const json = parse(paths.tokenizer, files.tokenizer, TokenizerJson);
  const config = parse(paths.config, files.config, Config);
  const kind = kindOf(json);
  if (kind === undefined) {
    throw new FormatError({
      where: `${paths.tokenizer}: model`,
      rule: "must encode bytes, fall back to bytes, or have no merges",
      got: "another kind of byte-pair encoding",
    });
  }
  const ids = new Map([
    ...Object.entries(json.model.vocab),
    ...json.added_tokens.map((it) => [it.content, it.id] as const),
  ]);
  const size = [...ids.values()].reduce((most, id) => Math.max(most, id + 1), 0);
  if (size > MAX_ID) {
    throw new FormatError({
      where: `${paths.tokenizer}: model.vocab`,
      rule: `ids must be below ${MAX_ID}`,
      got: `${size - 1}`,
    });
  }
  const tokens = Array.from({ length: size }, (_, id) => `[PAD${id}]`);
  const tokenTypes = new Int32Array(size).fill(TOKEN_TYPES.unused);
  for (const [token, id] of ids) {
    if (kind === "characters") {
      // Characters that are one byte are that byte's, others stand in text as added tokens do: so there are no merges. In a vocabulary
      // of SentencePiece's llama.cpp would want a token for each byte, and stop the process at a character that has none.
      const bytes = utf8(token);
      tokens[id] = bytes.length === 1 ? toByteCharacters(bytes) : token;
      tokenTypes[id] = bytes.length === 1 ? TOKEN_TYPES.normal : TOKEN_TYPES.userDefined;
      continue;
    }
    tokens[id] = token;
    const isByte = kind === "sentencepiece" && /^<0x[0-9A-F]{2}>$/.test(token);
    tokenTypes[id] = isByte ? TOKEN_TYPES.byte : TOKEN_TYPES.normal;
  }
  for (const { id, special } of json.added_tokens) {
    tokenTypes[id] = special ? TOKEN_TYPES.control : TOKEN_TYPES.userDefined;
  }
  const idOf = (role: string, token: string | null | undefined): number | undefined => {
    if (token === null || token === undefined) return undefined;
    const id = ids.get(token);
    if (id !== undefined) return id;
    throw new FormatError({
      where: `${paths.config}: ${role}`,
      rule: "must be in the vocabulary of tokenizer.json",
      got: JSON.stringify(token),
    });
  };
  const unknownId = idOf("unk_token", config.unk_token ?? json.model.unk_token);
  if (unknownId !== undefined && kind === "sentencepiece") tokenTypes[unknownId] = TOKEN_TYPES.unknown;
  const optional = {
    bosId: idOf("bos_token", config.bos_token),
    eosId: idOf("eos_token", config.eos_token),
    unknownId,
    paddingId: idOf("pad_token", config.pad_token),
    chatTemplate: templateOf(config),
  };
  const addBos =
    config.add_bos_token ?? (kind === "characters" || prepends(config.bos_token ?? "", json.post_processor));
  return {
    ...(kind === "sentencepiece"
      ? { model: "llama", scores: scoresOf(tokens, json), addSpacePrefix: addsSpace(json) }
      : {
          model: "gpt2",
          // Nothing is merged of characters, wherever they are split.
          pre: pre ?? (kind === "characters" ? "gpt-2" : preOf(paths.tokenizer, json)),
          merges: json.model.merges.map((merge) => pairOf(merge).join(" ")),
        }),
    tokens,
    tokenTypes,
    ...(Object.fromEntries(
      Object.entries(optional).filter(([, value]) => value !== undefined),
    ) as Partial<GgufVocabulary>),
    addBos: addBos && optional.bosId !== undefined,
    addEos: config.add_eos_token ?? false,
  };
}

function templateOf({ chat_template: template }: Config): string | undefined {
  if (template === null || template === undefined || typeof template === "string")
    return template ?? undefined;
  return template.find(({ name }) => name === "default")?.template;
}

/** Whether text begins with a space of its own. */
function addsSpace(json: TokenizerJson): boolean {
  return (
    partsOf(json.normalizer).some(({ type }) => type === "Prepend") ||
    partsOf(json.pre_tokenizer).some(
      (part) => part.type === "Metaspace" && part["prepend_scheme"] !== "never",
    )
  );
}
