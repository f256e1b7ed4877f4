/** Byte-pair encoding of words: bytes first, then the merges that the vocabulary learned, in the order it learned them. */

import { FormatError } from "../../base/errors.ts";
import { BYTE_CHARACTERS, concatBytes, toByteCharacters, utf8 } from "./byte-level.ts";
import { MergeTable, MOST_RANKS, mergeSymbols } from "./merging.ts";
import { type StringIndex, StringTable, sameBytes } from "./strings.ts";

/** Two tokens, or a text of them with one space between. */
export type MergePair = string | readonly [left: string, right: string];

export function isMergePair(pair: unknown): pair is MergePair {
  if (typeof pair !== "string")
    return Array.isArray(pair) && pair.length === 2 && pair.every((token) => typeof token === "string");
  const space = pair.indexOf(" ");
  return space >= 0 && !pair.includes(" ", space + 1);
}

const SPACE = 0x20;

/** Pairs of tokens, the sooner merged first. */
export interface Merges {
  /** Both tokens of each. */
  readonly texts: StringTable;
  /** Where in its bytes the left token of each ends and the right one begins. */
  readonly leftEnds: Uint32Array;
  readonly rightStarts: Uint32Array;
}

/** Merges as texts with one space each. @param odd  called with the first that has none, or more than one */
export function mergesOfTexts(texts: StringTable, odd: (index: number) => never): Merges {
  const { bytes, starts, ends } = texts;
  const [leftEnds, rightStarts] = [new Uint32Array(texts.length), new Uint32Array(texts.length)];
  for (let i = 0; i < texts.length; i++) {
    let spaces = 0;
    for (let at = starts[i]!; at < ends[i]!; at++) {
      if (bytes[at] !== SPACE) continue;
      spaces++;
      leftEnds[i] = at;
      rightStarts[i] = at + 1;
    }
    if (spaces !== 1) odd(i);
  }
  return { texts, leftEnds, rightStarts };
}

/** Merges of either form; tokens of pairs may have spaces. */
export function mergesOfPairs(pairs: readonly MergePair[]): Merges {
  const lefts = new Uint32Array(pairs.length);
  const texts = StringTable.ofPieces(
    pairs.map((pair, i) => {
      const tokens = typeof pair === "string" ? pair.split(" ") : pair;
      const [left, right] = tokens.map(utf8) as [Uint8Array, Uint8Array];
      lefts[i] = left.length;
      return concatBytes([left, right]);
    }),
  );
  const middles = lefts.map((length, i) => texts.starts[i]! + length);
  return { texts, leftEnds: middles, rightStarts: middles };
}

export interface BpeVocabulary {
  /** In byte characters. */
  readonly tokens: StringIndex;
  /** The id of each. @default its index */
  readonly ids?: Int32Array;
  readonly merges: Merges;
  /** Whether a word that is a token is that token, whatever the merges say. */
  readonly ignoreMerges: boolean;
}

/** Longest word worth remembering, in UTF-16 units, and how many are. */
const WORD_LENGTH = 32;
const WORDS = 20_000;

export class BpeModel {
  readonly #vocabulary: Omit<BpeVocabulary, "merges">;
  /** The id of each byte; undefined where the vocabulary lacks it. */
  readonly #bytes: readonly (number | undefined)[];
  readonly #merges: MergeTable;
  readonly #words = new Map<string, readonly number[]>();

  /**
   * @param where the file, for errors
   * @throws FormatError when a merge has a token that the vocabulary lacks
   */
  constructor({ merges, ...vocabulary }: BpeVocabulary, where: string) {
    this.#vocabulary = vocabulary;
    this.#bytes = BYTE_CHARACTERS.map((character) => this.#idOf(vocabulary.tokens.indexOf(character)));
    const { length } = merges.texts;
    if (length > MOST_RANKS) {
      throw new FormatError({
        where: `${where}: merges`,
        rule: `must be at most ${MOST_RANKS}`,
        got: `${length}`,
      });
    }
    this.#merges = this.#mergeTable(merges, where);
  }

  #idOf(index: number): number | undefined {
    return index < 0 ? undefined : (this.#vocabulary.ids?.[index] ?? index);
  }

  #mergeTable({ texts, leftEnds, rightStarts }: Merges, where: string): MergeTable {
    const { tokens } = this.#vocabulary;
    const { bytes } = texts;
    const { table } = tokens;
    const found = new MergeTable(texts.length);
    let made = -1;
    for (let rank = 0; rank < texts.length; rank++) {
      const start = texts.starts[rank]!;
      const leftEnd = leftEnds[rank]!;
      const rightStart = rightStarts[rank]!;
      const end = texts.ends[rank]!;
      const left = tokens.find(bytes, start, leftEnd);
      const right = tokens.find(bytes, rightStart, end);
      // Most often tokens are in the order of their merges, and a look is quicker than looking up.
      const next = made + 1 < table.length ? table.starts[made + 1]! : 0;
      const isNext =
        made + 1 < table.length &&
        table.ends[made + 1]! - next === leftEnd - start + (end - rightStart) &&
        sameBytes(bytes, start, leftEnd, table.bytes, next) &&
        sameBytes(bytes, rightStart, end, table.bytes, next + leftEnd - start);
      if (isNext) made++;
      else {
        const both = new Uint8Array(leftEnd - start + (end - rightStart));
        both.set(bytes.subarray(start, leftEnd));
        both.set(bytes.subarray(rightStart, end), leftEnd - start);
        made = tokens.find(both);
      }
      if (left < 0 || right < 0 || made < 0) {
        const text = (from: number, to: number): string => Buffer.from(bytes.subarray(from, to)).toString();
        throw new FormatError({
          where: `${where}: merge ${rank}`,
          rule: "must be of two tokens of the vocabulary, and make a third",
          got: JSON.stringify(`${text(start, leftEnd)} ${text(rightStart, end)}`),
        });
      }
      found.add(this.#idOf(left)!, this.#idOf(right)!, this.#idOf(made)!);
    }
    return found;
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
    if (this.#vocabulary.ignoreMerges) {
      const whole = this.#idOf(this.#vocabulary.tokens.indexOf(toByteCharacters(bytes)));
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
