/**
 * The tokenizer of a model trained from nothing on a small game: one token per character, and one for each tag.
 *
 * Its `tokenizer.json` is a byte-pair encoding without merges, which transformers and @huggingface/tokenizers both load and
 * read as we do, but for one thing: they pass over a character that is not in the vocabulary, where this is an error, since a
 * model must not be taught a text with holes. That check, and speed, are why the form has an encoder of its own.
 */

import { z } from "zod";
import { ConfigError, FormatError } from "../../base/errors.ts";
import { jsonText } from "../../base/json.ts";
import { beginsWith } from "./post-processor.ts";
import { THINK_TAGS } from "./think.ts";
import {
  type EncodeOptions,
  type Tokenizer,
  type TokenizerFiles,
  type TokenRoles,
  writeTokenizerFiles,
} from "./tokenizer-files.ts";

const PAD = "<pad>";
const BOS = "<bos>";
const EOS = "<eos>";

/** A token recognised in text before characters are. */
interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Left out of decoded text by `skipSpecial`. */
  readonly special: boolean;
}

interface Vocabulary {
  /** Added tokens and characters; ids count from 0 without gaps. */
  readonly ids: ReadonlyMap<string, number>;
  readonly added: readonly AddedToken[];
}

/** `"÷" (U+00F7)` */
function showCharacter(character: string): string {
  const point = character.codePointAt(0) ?? 0;
  return `${JSON.stringify(character)} (U+${point.toString(16).toUpperCase().padStart(4, "0")})`;
}

class CharacterTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId: number;
  readonly eosId: number;
  readonly padId: number;
  readonly addsBos: boolean;
  readonly #files: TokenizerFiles;
  /** Id by code point. */
  readonly #characters = new Map<number, number>();
  /** Added tokens by their first UTF-16 unit, longest first, so that the longest wins as in the reference. */
  readonly #added = new Map<number, AddedToken[]>();
  readonly #tokens: string[] = [];
  readonly #special = new Set<number>();

  constructor(vocabulary: Vocabulary, roles: TokenRoles & { readonly bosId: number }, files: TokenizerFiles) {
    this.vocabSize = vocabulary.ids.size;
    this.bosId = roles.bosId;
    this.eosId = roles.eosId;
    this.padId = roles.padId;
    this.addsBos = roles.addsBos;
    this.#files = files;
    for (const token of vocabulary.added) {
      const first = token.content.charCodeAt(0);
      const siblings = [...(this.#added.get(first) ?? []), token];
      this.#added.set(
        first,
        siblings.sort((a, b) => b.content.length - a.content.length),
      );
      if (token.special) this.#special.add(token.id);
    }
    for (const [token, id] of vocabulary.ids) {
      this.#tokens[id] = token;
      if (isCharacter(token)) this.#characters.set(token.codePointAt(0)!, id);
    }
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const ids: number[] = [];
    for (let i = 0; i < text.length; ) {
      // Every added token of this form is a control token.
      const added =
        options.allowSpecial === false
          ? undefined
          : this.#added.get(text.charCodeAt(i))?.find(({ content }) => text.startsWith(content, i));
      if (added !== undefined) {
        ids.push(added.id);
        i += added.content.length;
        continue;
      }
      const point = text.codePointAt(i)!;
      const id = this.#characters.get(point);
      if (id === undefined) {
        throw new FormatError({
          where: `text to encode, position ${i}`,
          rule: "every character must be in the tokenizer's alphabet",
          got: showCharacter(String.fromCodePoint(point)),
          remedy: "Add it to the alphabet of the task, or leave it out of the text",
        });
      }
      ids.push(id);
      i += point > 0xffff ? 2 : 1;
    }
    return ids;
  }

  decode(ids: readonly number[], options: { readonly skipSpecial?: boolean } = {}): string {
    let text = "";
    for (const id of ids) {
      const token = this.#tokens[id];
      if (token === undefined) {
        throw new FormatError({
          where: "token ids to decode",
          rule: `must be from 0 to ${this.vocabSize - 1}`,
          got: `${id}`,
        });
      }
      if (!(options.skipSpecial && this.#special.has(id))) text += token;
    }
    return text;
  }

  piece(id: number): string {
    return this.decode([id]);
  }

  save(folder: string): Promise<void> {
    return writeTokenizerFiles(folder, this.#files);
  }
}

function isCharacter(token: string): boolean {
  return token !== "" && token.length === (token.codePointAt(0)! > 0xffff ? 2 : 1);
}

/** Lone surrogates have no UTF-8, so no file could hold them. */
function isWellFormed(text: string): boolean {
  return !/\p{Surrogate}/u.test(text);
}

function checkOptions(alphabet: readonly string[], special: readonly string[]): void {
  const where = "characterTokenizer";
  if (alphabet.length === 0) {
    throw new ConfigError({ where: `${where}: alphabet`, rule: "must hold a character", got: "none" });
  }
  const broken = alphabet.find((character) => !isWellFormed(character));
  if (broken !== undefined) {
    throw new ConfigError({
      where: `${where}: alphabet`,
      rule: "must be whole characters, not halves of surrogate pairs",
      got: showCharacter(broken),
    });
  }
  for (const [i, token] of special.entries()) {
    if (token.length < 2 || isCharacter(token) || !isWellFormed(token) || special.indexOf(token) !== i) {
      throw new ConfigError({
        where: `${where}: special`,
        rule: "tokens must be longer than a character and differ from each other, from <pad>, <bos> and <eos>",
        got: JSON.stringify(token),
      });
    }
  }
}

/**
 * A tokenizer for the characters of a task. The same characters give the same ids, in whatever order they come: `<pad>` is 0,
 * then `<bos>`, `<eos>`, the special tokens in the order given, and the characters by code point.
 * @param options.alphabet every character that texts may have; repetitions do not matter
 * @param options.special  further tokens, each recognised as one in text and kept by `skipSpecial`.
 *   @default the think and answer tags
 * @param options.modelMaxLength longest sequence of the model, for other programs to read
 * @throws ConfigError on an empty alphabet, or a special token that is a character or occurs twice
 */
export function characterTokenizer(options: {
  readonly alphabet: string;
  readonly special?: readonly string[];
  readonly modelMaxLength?: number;
}): Tokenizer {
  const alphabet = [...new Set(options.alphabet)].sort((a, b) => a.codePointAt(0)! - b.codePointAt(0)!);
  const roles = [PAD, BOS, EOS];
  const special = [...roles, ...(options.special ?? THINK_TAGS)];
  checkOptions(alphabet, special);
  const added = special.map((content, id) => ({ id, content, special: roles.includes(content) }));
  const ids = new Map([...special, ...alphabet].map((token, id) => [token, id]));
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added.map((token) => ({
      id: token.id,
      content: token.content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: token.special,
    })),
    normalizer: null,
    pre_tokenizer: null,
    post_processor: beginsWith(BOS, ids.get(BOS)!),
    decoder: { type: "Fuse" },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(ids),
      merges: [],
    },
  };
  const config = {
    tokenizer_class: "PreTrainedTokenizerFast",
    bos_token: BOS,
    eos_token: EOS,
    pad_token: PAD,
    add_bos_token: true,
    ...(options.modelMaxLength === undefined ? {} : { model_max_length: options.modelMaxLength }),
    clean_up_tokenization_spaces: false,
  };
  return new CharacterTokenizer(
    { ids, added },
    { padId: 0, bosId: 1, eosId: 2, addsBos: true },
    { tokenizer: jsonText(tokenizer), config: jsonText(config) },
  );
}

/** What `tokenizer.json` says in this form. */
const CharacterForm = z.object({
  added_tokens: z.array(
    z.object({
      id: z.int(),
      content: z.string().min(2),
      special: z.boolean(),
      single_word: z.literal(false),
      lstrip: z.literal(false),
      rstrip: z.literal(false),
      normalized: z.literal(false),
    }),
  ),
  normalizer: z.null(),
  pre_tokenizer: z.null(),
  // The post-processor may be any: it only adds special tokens, and `encode` adds none.
  decoder: z.object({ type: z.literal("Fuse") }),
  model: z.object({
    type: z.literal("BPE"),
    unk_token: z.null().optional(),
    continuing_subword_prefix: z.null().optional(),
    end_of_word_suffix: z.null().optional(),
    byte_fallback: z.literal(false).optional(),
    vocab: z.record(z.string(), z.int()),
    merges: z.array(z.never()),
  }),
});

/**
 * The fast form of a tokenizer read from files, or undefined when the files are not of this form.
 * @param json  `tokenizer.json`, parsed
 * @param roles ids that `tokenizer_config.json` gives
 */
export function asCharacterTokenizer(
  json: unknown,
  roles: TokenRoles,
  files: TokenizerFiles,
): Tokenizer | undefined {
  const form = CharacterForm.safeParse(json);
  if (!form.success || roles.bosId === undefined) return undefined;
  const added = form.data.added_tokens;
  const ids = new Map(Object.entries(form.data.model.vocab));
  const tokens = new Set(added.map((token) => token.content));
  const inOrder = [...ids.values()].sort((a, b) => a - b);
  const fits =
    inOrder.every((id, i) => id === i) &&
    added.every((token) => ids.get(token.content) === token.id) &&
    [...ids.keys()].every((token) => tokens.has(token) || isCharacter(token));
  if (!fits) return undefined;
  return new CharacterTokenizer({ ids, added }, { ...roles, bosId: roles.bosId }, files);
}
