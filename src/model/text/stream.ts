/** Text from tokens as they come, one piece at a time. */

import type { Tokenizer } from "./tokenizer-files.ts";

/** What decoders put in place of bytes that are no whole character yet. */
const INCOMPLETE = "\ufffd";

/**
 * Decodes a stream of tokens: `push` each, then `end`. The pieces together are the decoded text. Tokens that mark begin, end
 * and padding are left out.
 *
 * A token may hold half of a character, and some decoders write a token differently at the start of a text. So a piece is
 * the difference between two texts that begin with the same tokens, and waits while it ends within a character.
 */
export class TextStream {
  readonly #tokenizer: Pick<Tokenizer, "decode">;
  /** The tokens of the last piece, and those since. */
  #window: number[] = [];
  /** How many of the window's tokens have been given out. */
  #given = 0;

  constructor(tokenizer: Pick<Tokenizer, "decode">) {
    this.#tokenizer = tokenizer;
  }

  /** @returns the text that has become certain, often none */
  push(id: number): string {
    this.#window.push(id);
    return this.#take(false);
  }

  /** The rest, whole or not. */
  end(): string {
    return this.#take(true);
  }

  #take(last: boolean): string {
    const decode = (ids: readonly number[]): string => this.#tokenizer.decode(ids, { skipSpecial: true });
    const before = decode(this.#window.slice(0, this.#given));
    const now = decode(this.#window);
    if (now.length <= before.length || (!last && now.endsWith(INCOMPLETE))) return "";
    this.#window = this.#window.slice(this.#given);
    this.#given = this.#window.length;
    return now.slice(before.length);
  }
}
