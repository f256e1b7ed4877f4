/** Text from tokens as they come, one piece at a time. */

import type { Tokenizer } from "./tokenizer-files.ts";

/** What decoders put in place of bytes that are no whole character yet. */
const INCOMPLETE = "\ufffd";

/** Tokens that wait for the rest of a character, at most: more than have its bytes, so that what is none comes out. */
const MOST_WAITING = 16;
/** Tokens looked at for a context, and kept without text of their own. */
const MOST_CONTEXT = 32;

/** Where the marks of incomplete characters at a text's end begin. */
function certainLength(text: string): number {
  let length = text.length;
  while (length > 0 && text[length - 1] === INCOMPLETE) length--;
  return length;
}

/**
 * Decodes a stream of tokens: `push` each, then `end`. The pieces together are the decoded text. Tokens that mark begin, end
 * and padding are left out.
 *
 * A token may hold half of a character, and some decoders write a token differently at the start of a text. So a piece is
 * what a text has grown by that begins with the tokens of the piece before, and the first bytes of a character wait for the
 * others.
 */
export class TextStream {
  readonly #tokenizer: Pick<Tokenizer, "decode">;
  /** The tokens of the last piece, and those since. */
  #window: readonly number[] = [];
  /** How many of the window's tokens, and how much of its text, have been given out. */
  #givenTokens = 0;
  #givenLength = 0;

  /** @param after the tokens that the stream continues, such as a prompt's; their text is not given out. @default none */
  constructor(tokenizer: Pick<Tokenizer, "decode">, after: readonly number[] = []) {
    this.#tokenizer = tokenizer;
    for (let count = 1; count <= Math.min(after.length, MOST_CONTEXT); count++) {
      const context = after.slice(-count);
      const text = this.#decode(context);
      // A context must not begin within a character.
      if (text.includes(INCOMPLETE)) continue;
      this.#keep(context);
      if (text !== "") break;
    }
  }

  /** @returns the text that has become certain, often none */
  push(id: number): string {
    this.#window = [...this.#window, id];
    const waiting = this.#window.length - this.#givenTokens;
    return this.#take(waiting > MOST_WAITING);
  }

  /** The rest, whole or not. */
  end(): string {
    return this.#take(true);
  }

  #decode(ids: readonly number[]): string {
    return this.#tokenizer.decode(ids, { skipSpecial: true });
  }

  /** Makes tokens the window, all of them given out. */
  #keep(ids: readonly number[]): void {
    this.#window = ids;
    this.#givenTokens = ids.length;
    this.#givenLength = this.#decode(ids).length;
  }

  #take(all: boolean): string {
    const text = this.#decode(this.#window);
    const certain = all ? text.length : certainLength(text);
    const piece = text.slice(this.#givenLength, Math.max(this.#givenLength, certain));
    this.#givenLength += piece.length;
    if (certain < text.length) return piece;
    const since = this.#window.slice(this.#givenTokens);
    // Tokens without text leave the context as it is, for the next token's sake.
    if (piece !== "" || this.#window.length > MOST_CONTEXT) this.#keep(since);
    else this.#givenTokens = this.#window.length;
    return piece;
  }
}
