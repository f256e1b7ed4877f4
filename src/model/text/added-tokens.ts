/**
 * Tokens that are recognised in the text before anything else looks at it: marks such as `<｜User｜>`, and whatever a
 * vocabulary was given after it was learned.
 * @source github.com/huggingface/tokenizers, tokenizers/src/tokenizer/added_vocabulary.rs
 */

import { FormatError } from "../../base/errors.ts";

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Left out of decoded text by `skipSpecial`. */
  readonly special: boolean;
  /** Only where no letter, digit or underscore stands beside it. @default false */
  readonly singleWord?: boolean;
  /** Takes the white space on its left, or right, with it. @default false */
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  /** Looked for in normalized text, after the others. @default false */
  readonly normalized?: boolean;
}

/**
 * Whether a token speaks to the model rather than for itself: special ones, and those that look like markup, since DeepSeek
 * does not call `<｜User｜>` or `<think>` special. Text that is not trusted must not be able to write these.
 */
export function isControl(token: AddedToken): boolean {
  return token.special || /^(?:<.+>|\[.+\])$/s.test(token.content);
}

/** A part of a text: an added token, or text to be encoded. */
export type Segment = { readonly id: number } | { readonly text: string };

/** Units of distinct beginnings of tokens; models have some thousands, and each takes some hundred bytes. */
const MOST_NODES = 2 ** 16;

interface Node {
  readonly next: Map<number, Node>;
  token?: AddedToken;
}

const isWordUnit = (text: string, at: number): boolean =>
  /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]/u.test(text[at] ?? "");

/** Finds added tokens in text: the leftmost first, the longest of those that begin at one place. */
export class AddedTokenMatcher {
  readonly #root: Node = { next: new Map() };

  /**
   * @param where the file, for errors
   * @throws FormatError when the tokens are longer, together, than those of any model
   */
  constructor(tokens: readonly AddedToken[], where: string) {
    let nodes = 0;
    for (const token of tokens) {
      if (token.content === "") continue;
      let node = this.#root;
      for (let i = 0; i < token.content.length; i++) {
        const unit = token.content.charCodeAt(i);
        let next = node.next.get(unit);
        if (next === undefined) {
          if (++nodes > MOST_NODES) {
            throw new FormatError({
              where: `${where}: added_tokens`,
              rule: `must have at most ${MOST_NODES} characters that differ`,
              got: "more",
            });
          }
          next = { next: new Map() };
          node.next.set(unit, next);
        }
        node = next;
      }
      node.token = token;
    }
  }

  split(text: string): Segment[] {
    const segments: Segment[] = [];
    let done = 0;
    for (let at = 0; at < text.length; ) {
      const token = this.#longestAt(text, at);
      if (token === undefined) {
        at++;
        continue;
      }
      let start = at;
      let end = at + token.content.length;
      at = end;
      if (token.singleWord && (isWordUnit(text, start - 1) || isWordUnit(text, end))) continue;
      if (token.lstrip) while (start > done && /\p{White_Space}/u.test(text[start - 1]!)) start--;
      if (token.rstrip) while (end < text.length && /\p{White_Space}/u.test(text[end]!)) end++;
      if (start > done) segments.push({ text: text.slice(done, start) });
      segments.push({ id: token.id });
      done = end;
      at = end;
    }
    if (done < text.length) segments.push({ text: text.slice(done) });
    return segments;
  }

  #longestAt(text: string, at: number): AddedToken | undefined {
    let found: AddedToken | undefined;
    let node = this.#root.next.get(text.charCodeAt(at));
    for (let i = at + 1; node !== undefined; i++) {
      if (node.token !== undefined) found = node.token;
      node = i < text.length ? node.next.get(text.charCodeAt(i)) : undefined;
    }
    return found;
  }
}
