/** Byte-pair encoding of words: bytes first, then the merges that the vocabulary learned, in the order it learned them. */

import { FormatError } from "../../base/errors.ts";
import { BYTE_CHARACTERS, toByteCharacters, utf8 } from "./byte-level.ts";
import { MergeTable, MOST_RANKS, mergeSymbols } from "./merging.ts";

/** Two tokens, or a text of them with one space between. */
export type MergePair = string | readonly [left: string, right: string];

export function isMergePair(pair: unknown): pair is MergePair {
  if (typeof pair !== "string")
    return Array.isArray(pair) && pair.length === 2 && pair.every((token) => typeof token === "string");
  const space = pair.indexOf(" ");
  return space >= 0 && !pair.includes(" ", space + 1);
}

function tokensOf(pair: MergePair): readonly [left: string, right: string] {
  if (typeof pair !== "string") return pair;
  const space = pair.indexOf(" ");
  return [pair.slice(0, space), pair.slice(space + 1)];
}

export interface BpeVocabulary {
  /** By id, in byte characters; some ids may have none. */
  readonly tokens: readonly (string | undefined)[];
  /** The same, the other way. */
  readonly ids: ReadonlyMap<string, number>;
  /** The sooner merged first. */
  readonly merges: readonly MergePair[];
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
  readonly #merges: MergeTable;
  readonly #words = new Map<string, readonly number[]>();

  /**
   * @param where the file, for errors
   * @throws FormatError when a merge has a token that the vocabulary lacks
   */
  constructor(vocabulary: BpeVocabulary, where: string) {
    const { tokens, ids, merges, ignoreMerges } = vocabulary;
    this.#ids = ids;
    this.#ignoreMerges = ignoreMerges;
    this.#bytes = BYTE_CHARACTERS.map((character) => ids.get(character));
    if (merges.length > MOST_RANKS) {
      throw new FormatError({
        where,
        rule: `must have at most ${MOST_RANKS} merges`,
        got: `${merges.length}`,
      });
    }
    this.#merges = new MergeTable(merges.length);
    let made: number | undefined;
    for (let rank = 0; rank < merges.length; rank++) {
      const [left, right] = tokensOf(merges[rank]!);
      const [a, b] = [ids.get(left), ids.get(right)];
      // Most often tokens are in the order of their merges, and a look is quicker than looking up.
      const next: string = (made !== undefined && tokens[made + 1]) || "";
      const isNext =
        next.length === left.length + right.length && next.startsWith(left) && next.endsWith(right);
      const id = isNext ? made! + 1 : ids.get(left + right);
      made = id;
      if (a === undefined || b === undefined || id === undefined) {
        throw new FormatError({
          where: `${where}: merge ${rank}`,
          rule: "must be of two tokens of the vocabulary, and make a third",
          got: JSON.stringify(`${left} ${right}`),
        });
      }
      this.#merges.add(a, b, id);
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
    return mergeSymbols(symbols, (left, right) => this.#merges.find(left, right));
  }
}
