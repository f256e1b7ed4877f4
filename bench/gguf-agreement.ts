/** Whether two programs say the same with the same file: greedy texts token by token, and how surprised both are by a text. */

import type { Tokenizer } from "../src/model/text/tokenizer.ts";
import type { GgufSide } from "./gguf-side.ts";
import { BEGINNINGS, TEXT } from "./gguf-texts.ts";

const WRITTEN = 64;

/** What each side must be able to do. */
export type Speaker = Pick<GgufSide, "generate" | "score">;

/** A place where both would write another token after the same text. */
export interface Divergence {
  readonly beginning: number;
  /** Tokens of the text before it. */
  readonly after: number;
  /** By how much the logit of the token taken is above that of the other's, by our own numbers. */
  readonly gap: number;
}

export interface Agreement {
  readonly texts: number;
  /** Tokens of all of them. */
  readonly written: number;
  readonly divergences: readonly Divergence[];
  /** e to the mean surprise, by side. */
  readonly perplexity: { readonly ours: number; readonly theirs: number };
  readonly textTokens: number;
}

/** Two tokens whose logits are nearer than this are a matter of rounding. */
export const CLOSE_GAP = 0.05;

/** Share of the tokens of the other's greedy texts that we would have written, each after the same text; close ones count as different. */
export const agreedShare = ({ written, divergences }: Agreement): number => 1 - divergences.length / written;

const perplexityOf = (logp: readonly number[]): number =>
  Math.exp(-logp.reduce((sum, x) => sum + x, 0) / logp.length);

/** Ours goes on after each difference with what theirs wrote, so that every token is compared. */
export async function agreementOf(tokenizer: Tokenizer, ours: Speaker, theirs: Speaker): Promise<Agreement> {
  const divergences: Divergence[] = [];
  let written = 0;
  for (const [beginning, text] of BEGINNINGS.entries()) {
    const prompt = tokenizer.encode(text);
    const [b] = (await theirs.generate([prompt], WRITTEN)).ids as readonly number[][];
    written += b!.length;
    for (let done = 0; done < b!.length; ) {
      const rest = b!.slice(done);
      const [a] = (await ours.generate([[...prompt, ...b!.slice(0, done)]], rest.length)).ids;
      const alike = rest.findIndex((id, i) => id !== a![i]);
      if (alike === -1) break;
      const after = done + alike;
      const common = [...prompt, ...b!.slice(0, after)];
      const own = (await ours.score([...common, a![alike]!])).at(-1)!;
      const other = (await ours.score([...common, b![after]!])).at(-1)!;
      divergences.push({ beginning, after, gap: Math.abs(own - other) });
      done = after + 1;
    }
  }
  const ids = tokenizer.encode(TEXT);
  const perplexity = {
    ours: perplexityOf(await ours.score(ids)),
    theirs: perplexityOf(await theirs.score(ids)),
  };
  const textTokens = ids.length - 1;
  return { texts: BEGINNINGS.length, written, divergences, perplexity, textTokens };
}

export function agreementLines(agreement: Agreement): string[] {
  const { texts, written, divergences, perplexity, textTokens } = agreement;
  const { ours, theirs } = perplexity;
  const alike = texts - new Set(divergences.map(({ beginning }) => beginning)).size;
  const close = divergences.filter(({ gap }) => gap < CLOSE_GAP).length;
  return [
    `greedy texts: ${(100 * agreedShare(agreement)).toFixed(2)} % of ${written} tokens are the same after the same text; ${alike} of ${texts} texts are the same throughout`,
    `  ${divergences.length} tokens differ, ${close} of them by a logit gap under ${CLOSE_GAP}`,
    ...divergences.map(
      ({ beginning, after, gap }) =>
        `  ${JSON.stringify(BEGINNINGS[beginning])}: differ after ${after}, by a logit gap of ${gap.toFixed(3)}`,
    ),
    `perplexity on ${textTokens} tokens: Pondera ${ours.toFixed(4)}, llama.cpp ${theirs.toFixed(4)} (${(100 * (ours / theirs - 1)).toFixed(2)} %)`,
  ];
}
