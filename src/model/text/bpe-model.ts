/** Byte-pair encoding of words: bytes first, then the merges that the vocabulary learned, in the order it learned them. */

import { FormatError } from "../../base/errors.ts";
import { BYTE_CHARACTERS, toByteCharacters, utf8 } from "./byte-level.ts";
import { type Merge, MOST_RANKS, mergeSymbols } from "./merging.ts";

export interface BpeVocabulary {
  /** Tokens in byte characters. */
  readonly ids: ReadonlyMap<string, number>;
  /** Pairs of tokens, the sooner merged first. */
  readonly merges: readonly (readonly [left: string, right: string])[];
  /** Whether a word that is a token is that token, whatever the merges say. */
  readonly ignoreMerges: boolean;
}

/** Longest word worth remembering, in UTF-16 units, and how many are. */
const WORD_LENGTH = 32;
const WORDS = 20_000;

export class BpeModel {
  readonly #ids: ReadonlyMap<string, number>;
  readonly #ignoreMerges: boolean;
  /** The id of each byte; undefined where the vocabulary lacks it. */
  readonly #bytes: readonly (number | undefined)[];
  readonly #merges = new Map<number, Merge>();
  /** One more than the largest id: a pair's key is left · span + right. */
  readonly #span: number;
  readonly #words = new Map<string, readonly number[]>();

  /**
   * @param where the file, for errors
   * @throws FormatError when a merge has a token that the vocabulary lacks
   */
  constructor(vocabulary: BpeVocabulary, where: string) {
    const { ids, merges, ignoreMerges } = vocabulary;
    this.#ids = ids;
    this.#ignoreMerges = ignoreMerges;
    this.#bytes = BYTE_CHARACTERS.map((character) => ids.get(character));
    let largest = 0;
    for (const id of ids.values()) largest = Math.max(largest, id);
    this.#span = largest + 1;
    if (merges.length > MOST_RANKS) {
      throw new FormatError({
        where,
        rule: `must have at most ${MOST_RANKS} merges`,
        got: `${merges.length}`,
      });
    }
    for (const [rank, [left, right]] of merges.entries()) {
      const [a, b, id] = [ids.get(left), ids.get(right), ids.get(left + right)];
      if (a === undefined || b === undefined || id === undefined) {
        throw new FormatError({
          where: `${where}: merge ${rank}`,
          rule: "must be of two tokens of the vocabulary, and make a third",
          got: JSON.stringify(`${left} ${right}`),
        });
      }
      this.#merges.set(a * this.#span + b, { rank, id });
    }
  }

  /** @throws FormatError when the vocabulary lacks one of its bytes */
  encode(word: string): readonly number[] {
    const known = this.#words.get(word);
    if (known !== undefined) return known;
    const ids = this.#encode(word);
    if (word.length <= WORD_LENGTH) {
      if (this.#words.size >= WORDS) this.#words.clear();
      this.#words.set(word, ids);
    }
    return ids;
  }

  #encode(word: string): readonly number[] {
    const bytes = utf8(word);
    if (this.#ignoreMerges) {
      const whole = this.#ids.get(toByteCharacters(bytes));
      if (whole !== undefined) return [whole];
    }
    const symbols: number[] = [];
    for (const byte of bytes) {
      const id = this.#bytes[byte];
      if (id === undefined) {
        throw new FormatError({
          where: "text to encode",
          rule: "must be expressible in the tokenizer's vocabulary",
          got: JSON.stringify(word),
        });
      }
      symbols.push(id);
    }
    return mergeSymbols(symbols, (left, right) => this.#merges.get(left * this.#span + right));
  }
}
