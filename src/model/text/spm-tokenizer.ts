/**
 * SentencePiece's byte-pair tokenizers, as Llama 2 has them: characters are merged while the two neighbours make a piece of
 * the vocabulary, the piece of the highest score first; a character that is in no piece is spelled in bytes. Spaces are `▁`, and
 * text begins with one.
 *
 * @source github.com/google/sentencepiece, src/bpe_model.cc; special tokens part the text as in github.com/ggml-org/llama.cpp,
 *   src/llama-vocab.cpp: the text after each begins with a space of its own. Decoding takes that space away again, so that
 *   text comes back as it was.
 */

import { FormatError } from "../../base/errors.ts";
import { type AddedToken, AddedTokenMatcher, isControl } from "./added-tokens.ts";
import { concatBytes, fromUtf8, spellBytes, utf8 } from "./byte-level.ts";
import { type Merge, MOST_RANKS, mergeSymbols } from "./merging.ts";
import {
  type EncodeOptions,
  type Tokenizer,
  type TokenizerFiles,
  type TokenRoles,
  writeTokenizerFiles,
} from "./tokenizer-files.ts";

export const SPACE = "\u2581";

export interface SpmVocabulary {
  /** By id. */
  readonly tokens: readonly string[];
  /** By id; the higher, the sooner merged. */
  readonly scores: ArrayLike<number>;
  /** The ids that text is made of. */
  readonly pieces: readonly number[];
  /** The id of each byte; empty when the vocabulary has none. */
  readonly bytes: ReadonlyMap<number, number>;
  readonly added: readonly AddedToken[];
  readonly unknownId?: number;
  readonly addSpacePrefix: boolean;
}

/** Pairs whose merges are remembered. */
const MOST_PAIRS = 2 ** 18;

/** Ranks from scores: 0 is the highest score; equal scores, equal ranks. */
function ranksOf(scores: ArrayLike<number>, ids: readonly number[]): Map<number, number> {
  const sorted = [...new Set(ids.map((id) => scores[id]!))].sort((a, b) => b - a);
  const rankOf = new Map(sorted.map((score, rank) => [score, rank]));
  return new Map(ids.map((id) => [id, rankOf.get(scores[id]!)!]));
}

export class SpmTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId?: number;
  readonly eosId: number;
  readonly padId: number;
  readonly addsBos: boolean;
  readonly #vocabulary: SpmVocabulary;
  readonly #files: TokenizerFiles;
  readonly #pieces: ReadonlyMap<string, number>;
  readonly #ranks: ReadonlyMap<number, number>;
  /** Characters of pieces that are no pieces themselves, with ids beyond the vocabulary: they may yet be merged. */
  readonly #loose = new Map<string, number>();
  /** Texts of all ids, loose ones too. */
  readonly #texts: string[];
  readonly #merges = new Map<number, Merge | undefined>();
  readonly #matchers: Readonly<Record<"all" | "plain", AddedTokenMatcher>>;
  readonly #addedIds: ReadonlySet<number>;
  readonly #specialIds: ReadonlySet<number>;
  readonly #byteOf: ReadonlyMap<number, number>;

  /** @param where the file, for errors. @throws FormatError when a score is no number, or there are too many pieces */
  constructor(vocabulary: SpmVocabulary, roles: TokenRoles, files: TokenizerFiles, where: string) {
    const { tokens, scores, pieces, added } = vocabulary;
    const broken = pieces.find((id) => !Number.isFinite(scores[id]));
    if (broken !== undefined || pieces.length > MOST_RANKS) {
      throw new FormatError({
        where: `${where}: scores`,
        rule: `must be a number for each of at most ${MOST_RANKS} pieces`,
        got: broken === undefined ? `${pieces.length} pieces` : `${scores[broken]} for token ${broken}`,
      });
    }
    this.#vocabulary = vocabulary;
    this.#files = files;
    this.#pieces = new Map(pieces.map((id) => [tokens[id]!, id]));
    this.#ranks = ranksOf(scores, pieces);
    this.#texts = [...tokens];
    for (const id of pieces) {
      for (const character of tokens[id]!) {
        if (this.#pieces.has(character) || this.#loose.has(character)) continue;
        this.#loose.set(character, this.#texts.length);
        this.#texts.push(character);
      }
    }
    this.#matchers = {
      all: new AddedTokenMatcher(added, where),
      plain: new AddedTokenMatcher(
        added.filter((token) => !isControl(token)),
        where,
      ),
    };
    this.#addedIds = new Set(added.map(({ id }) => id));
    this.#specialIds = new Set(added.filter(({ special }) => special).map(({ id }) => id));
    this.#byteOf = new Map([...vocabulary.bytes].map(([byte, id]) => [id, byte]));
    this.vocabSize = tokens.length;
    if (roles.bosId !== undefined) this.bosId = roles.bosId;
    this.eosId = roles.eosId;
    this.padId = roles.padId;
    this.addsBos = roles.addsBos;
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const matcher = this.#matchers[options.allowSpecial === false ? "plain" : "all"];
    const ids: number[] = [];
    const push = (id: number): void => void ids.push(id);
    for (const segment of matcher.split(text)) {
      if ("id" in segment) push(segment.id);
      else this.#encode((this.#vocabulary.addSpacePrefix ? " " : "") + segment.text, push);
    }
    return ids;
  }

  #encode(text: string, push: (id: number) => void): void {
    let run: number[] = [];
    const flush = (): void => {
      for (const id of mergeSymbols(run, (left, right) => this.#mergeOf(left, right))) {
        if (id < this.vocabSize) push(id);
        else this.#spell(this.#texts[id]!, push);
      }
      run = [];
    };
    for (const written of text) {
      const character = written === " " ? SPACE : written;
      const id = this.#pieces.get(character) ?? this.#loose.get(character);
      if (id !== undefined) {
        run.push(id);
        continue;
      }
      // It is in no piece, so nothing merges across it.
      flush();
      this.#spell(character, push);
    }
    flush();
  }

  #mergeOf(left: number, right: number): Merge | undefined {
    const key = left * this.#texts.length + right;
    const known = this.#merges.get(key);
    if (known !== undefined || this.#merges.has(key)) return known;
    const id = this.#pieces.get(this.#texts[left]! + this.#texts[right]!);
    const merge = id === undefined ? undefined : { rank: this.#ranks.get(id)!, id };
    if (this.#merges.size >= MOST_PAIRS) this.#merges.clear();
    this.#merges.set(key, merge);
    return merge;
  }

  /** A character in bytes or, in a vocabulary without them, as the unknown token. */
  #spell(character: string, push: (id: number) => void): void {
    const { bytes, unknownId } = this.#vocabulary;
    const spelled = [...utf8(character === SPACE ? " " : character)].map(
      (byte) => bytes.get(byte) ?? unknownId,
    );
    if (spelled.includes(undefined)) {
      throw new FormatError({
        where: "text to encode",
        rule: "must be expressible in the tokenizer's vocabulary",
        got: JSON.stringify(character),
      });
    }
    const ids = spelled as number[];
    if (ids.includes(unknownId!)) push(unknownId!);
    else for (const id of ids) push(id);
  }

  decode(ids: readonly number[], options: { readonly skipSpecial?: boolean } = {}): string {
    const parts: Uint8Array[] = [];
    let begins = this.#vocabulary.addSpacePrefix;
    for (const id of ids) {
      const token = this.#token(id);
      const byte = this.#byteOf.get(id);
      if (this.#addedIds.has(id)) {
        if (options.skipSpecial !== true || !this.#specialIds.has(id)) parts.push(utf8(token));
        begins = this.#vocabulary.addSpacePrefix;
        continue;
      }
      if (byte !== undefined) {
        parts.push(Uint8Array.of(byte));
      } else {
        const text = token.replaceAll(SPACE, " ");
        parts.push(utf8(begins && text.startsWith(" ") ? text.slice(1) : text));
      }
      begins = false;
    }
    return fromUtf8(concatBytes(parts));
  }

  piece(id: number): string {
    const byte = this.#byteOf.get(id);
    if (byte !== undefined) return spellBytes(Uint8Array.of(byte));
    const token = this.#token(id);
    return this.#addedIds.has(id) ? token : token.replaceAll(SPACE, " ");
  }

  #token(id: number): string {
    const token = this.#vocabulary.tokens[id];
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
