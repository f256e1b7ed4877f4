/** Which tokens of a vocabulary are whole numbers. */

import type { Tokenizer } from "./tokenizer.ts";

/** Ids of the tokens that are written in decimal digits alone, with the numbers they say. */
export function numeralsOf(tokenizer: Tokenizer): Map<number, number> {
  const numerals = new Map<number, number>();
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    const text = tokenizer.decode([id]);
    if (/^\d+$/.test(text)) numerals.set(id, Number(text));
  }
  return numerals;
}
