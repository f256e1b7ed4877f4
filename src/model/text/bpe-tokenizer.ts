/**
 * Byte-level byte-pair tokenizers, as GPT-2, Llama 3, Qwen, SmolLM and DeepSeek have them, from their `tokenizer.json`.
 *
 * @huggingface/tokenizers reads these too, but its `Digits` knows 0 to 9 alone, its patterns see white space as JavaScript
 * does, and two behaviours of its `Split` are others than the reference's; and a long word takes it quadratic time. So the
 * form has an encoder of its own, and the library is what the tests compare it with.
 */

import { z } from "zod";
import { FormatError } from "../../base/errors.ts";
import { type AddedToken, AddedTokenMatcher, isControl, type Segment } from "./added-tokens.ts";
import { BpeModel, type BpeVocabulary, isMergePair, type MergePair, mergesOfPairs } from "./bpe-model.ts";
import { concatBytes, fromByteCharacters, fromUtf8, spellBytes, utf8 } from "./byte-level.ts";
import { byteLevelPreTokenizer, type PreTokenizer } from "./pre-tokenizer.ts";
import { StringIndex, StringTable } from "./strings.ts";
import {
  type EncodeOptions,
  type Tokenizer,
  type TokenizerFiles,
  type TokenRoles,
  writeTokenizerFiles,
} from "./tokenizer-files.ts";

type Normalize = (text: string) => string;

export interface BpeParts {
  readonly vocabulary: BpeVocabulary;
  readonly added: readonly AddedToken[];
  readonly normalize: Normalize;
  readonly preTokenizer: PreTokenizer;
}

export class BpeTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId?: number;
  readonly eosId: number;
  readonly padId: number;
  readonly addsBos: boolean;
  readonly #vocabulary: Omit<BpeVocabulary, "merges">;
  readonly #normalize: Normalize;
  readonly #preTokenizer: PreTokenizer;
  readonly #model: BpeModel;
  readonly #files: TokenizerFiles;
  readonly #added = new Map<number, AddedToken>();
  /** Where in the vocabulary each id is, where the vocabulary says ids. */
  readonly #indices = new Map<number, number>();
  readonly #bytes: Uint8Array[] = [];
  /** Matchers before and after the normalizer: of all added tokens, and of those that are no control tokens. */
  readonly #matchers: Readonly<Record<"all" | "plain", readonly [AddedTokenMatcher, AddedTokenMatcher]>>;

  /**
   * @param where the file, for errors
   * @throws FormatError when merges and vocabulary do not fit together
   */
  constructor(parts: BpeParts, roles: TokenRoles, files: TokenizerFiles, where: string) {
    const { merges: _, ...vocabulary } = parts.vocabulary;
    this.#vocabulary = vocabulary;
    this.#normalize = parts.normalize;
    this.#preTokenizer = parts.preTokenizer;
    this.#model = new BpeModel(parts.vocabulary, where);
    this.#files = files;
    const { tokens, ids } = vocabulary;
    let size = ids === undefined ? tokens.table.length : 0;
    for (const [index, id] of ids?.entries() ?? []) {
      this.#indices.set(id, index);
      size = Math.max(size, id + 1);
    }
    for (const token of parts.added) {
      this.#added.set(token.id, token);
      size = Math.max(size, token.id + 1);
    }
    const matchers = (tokens: readonly AddedToken[]) =>
      [
        new AddedTokenMatcher(
          tokens.filter((token) => token.normalized !== true),
          where,
        ),
        new AddedTokenMatcher(
          tokens.filter((token) => token.normalized === true),
          where,
        ),
      ] as const;
    this.#matchers = {
      all: matchers(parts.added),
      plain: matchers(parts.added.filter((token) => !isControl(token))),
    };
    this.vocabSize = size;
    if (roles.bosId !== undefined) this.bosId = roles.bosId;
    this.eosId = roles.eosId;
    this.padId = roles.padId;
    this.addsBos = roles.addsBos;
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const [before, after] = this.#matchers[options.allowSpecial === false ? "plain" : "all"];
    const ids: number[] = [];
    const each = (segments: readonly Segment[], encode: (text: string) => void): void => {
      for (const segment of segments) {
        if ("id" in segment) ids.push(segment.id);
        else encode(segment.text);
      }
    };
    each(before.split(text), (part) =>
      each(after.split(this.#normalize(part)), (plain) => {
        for (const word of this.#preTokenizer.split(plain)) {
          for (const id of this.#model.encode(word)) ids.push(id);
        }
      }),
    );
    return ids;
  }

  decode(ids: readonly number[], options: { readonly skipSpecial?: boolean } = {}): string {
    const parts: Uint8Array[] = [];
    for (const id of ids) {
      const bytes = this.#bytesOf(id);
      if (options.skipSpecial !== true || this.#added.get(id)?.special !== true) parts.push(bytes);
    }
    return fromUtf8(concatBytes(parts));
  }

  #bytesOf(id: number): Uint8Array {
    let bytes = this.#bytes[id];
    if (bytes === undefined) {
      const added = this.#added.get(id);
      const { tokens, ids } = this.#vocabulary;
      const index = ids === undefined ? id : (this.#indices.get(id) ?? -1);
      const token = added?.content ?? tokens.table.at(index);
      if (token === undefined) {
        throw new FormatError({
          where: "token ids to decode",
          rule: `must be in the vocabulary, below ${this.vocabSize}`,
          got: `${id}`,
        });
      }
      // An added token is written as it is: the reference takes the "ü" that DeepSeek-LLM added for a byte's character.
      bytes = added === undefined ? fromByteCharacters(token) : utf8(token);
      this.#bytes[id] = bytes;
    }
    return bytes;
  }

  piece(id: number): string {
    return spellBytes(this.#bytesOf(id));
  }

  save(folder: string): Promise<void> {
    return writeTokenizerFiles(folder, this.#files);
  }
}

/** Checked by hand, since a schema's record drops the token `__proto__`. */
const Vocab = z.custom<Record<string, number>>(
  (value) =>
    typeof value === "object" &&
    value !== null &&
    !Array.isArray(value) &&
    Object.values(value).every((id) => Number.isInteger(id) && id >= 0 && id < 2 ** 26),
  "must give each token its id",
);

/** By hand as well: there are as many as tokens. */
const Merges = z.custom<readonly MergePair[]>(
  (merges) => Array.isArray(merges) && merges.every(isMergePair),
  "must be pairs of tokens",
);

/** What `tokenizer.json` says in this form. */
const BpeForm = z.object({
  added_tokens: z.array(
    z.object({
      id: z
        .int()
        .nonnegative()
        .lt(2 ** 26),
      content: z.string(),
      special: z.boolean(),
      single_word: z.boolean().default(false),
      lstrip: z.boolean().default(false),
      rstrip: z.boolean().default(false),
      normalized: z.boolean().default(false),
    }),
  ),
  normalizer: z.unknown(),
  pre_tokenizer: z.unknown(),
  // The post-processor may be any: it only adds special tokens, and `encode` adds none.
  decoder: z.object({ type: z.literal("ByteLevel") }),
  model: z.object({
    type: z.literal("BPE").optional(),
    unk_token: z.null().optional(),
    continuing_subword_prefix: z.union([z.null(), z.literal("")]).optional(),
    end_of_word_suffix: z.union([z.null(), z.literal("")]).optional(),
    byte_fallback: z.literal(false).optional(),
    // Dropout is for training a tokenizer's model; a file that asks for it would not encode alike twice.
    dropout: z.union([z.null(), z.literal(0)]).optional(),
    ignore_merges: z.boolean().default(false),
    vocab: Vocab,
    merges: Merges,
  }),
});

const NFC = z.object({ type: z.literal("NFC") });
const NoNormalizer = z.union([
  z.null(),
  z.undefined(),
  z.object({ type: z.literal("Sequence"), normalizers: z.tuple([]) }),
]);

/** What the `normalizer` of a `tokenizer.json` does, where it is of a kind that byte-level tokenizers have. */
export function normalizerOf(json: unknown): Normalize | undefined {
  if (NoNormalizer.safeParse(json).success) return (text) => text;
  return NFC.safeParse(json).success ? (text) => text.normalize("NFC") : undefined;
}

/**
 * A tokenizer of this form, or undefined when the JSON is of another.
 * @param json  `tokenizer.json`, parsed
 * @param roles told the id of each token, gives those that the config names
 * @param where the file, for errors
 * @throws FormatError when merges and vocabulary do not fit together
 */
export function asBpeTokenizer(
  json: unknown,
  roles: (idOf: (token: string) => number | undefined) => TokenRoles,
  files: TokenizerFiles,
  where: string,
): Tokenizer | undefined {
  const form = BpeForm.safeParse(json);
  if (!form.success) return undefined;
  const { model, added_tokens, normalizer, pre_tokenizer } = form.data;
  const normalize = normalizerOf(normalizer);
  const preTokenizer = byteLevelPreTokenizer(pre_tokenizer);
  if (normalize === undefined || preTokenizer === undefined) return undefined;
  const idOf = new Map(Object.entries(model.vocab));
  const added = added_tokens.map(({ single_word, ...token }) => ({ ...token, singleWord: single_word }));
  const byContent = new Map(added.map((token) => [token.content, token.id]));
  const parts: BpeParts = {
    vocabulary: {
      tokens: new StringIndex(StringTable.from([...idOf.keys()])),
      ids: Int32Array.from(idOf.values()),
      merges: mergesOfPairs(model.merges),
      ignoreMerges: model.ignore_merges,
    },
    added,
    normalize,
    preTokenizer,
  };
  return new BpeTokenizer(
    parts,
    roles((token) => byContent.get(token) ?? idOf.get(token)),
    files,
    where,
  );
}
