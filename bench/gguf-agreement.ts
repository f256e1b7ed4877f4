/** Whether two programs say the same with the same file: greedy texts token by token, and how surprised both are by a text. */

import type { Tokenizer } from "../src/model/text/tokenizer.ts";
import type { GgufSide } from "./gguf-side.ts";
import { BEGINNINGS, TEXT } from "./gguf-texts.ts";

const WRITTEN = 64;

/** What each side must be able to do. */
export type Speaker = Pick<GgufSide, "generate" | "score">;

export interface Divergence {
  readonly beginning: number;
  /** Tokens that both wrote alike before. */
  readonly after: number;
  /** By how much the logit of the token taken is above that of the other's, by our own numbers. */
  readonly gap: number;
}

export interface Agreement {
  readonly texts: number;
  readonly written: number;
  readonly divergences: readonly Divergence[];
  /** e to the mean surprise, by side. */
  readonly perplexity: { readonly ours: number; readonly theirs: number };
  readonly textTokens: number;
}

/** Two tokens whose logits are nearer than this are a matter of rounding. */
export const CLOSE_GAP = 0.05;

/**
 * Share of the tokens that agree: of those up to the first that differs in each text, that one included unless its gap is close.
 * After it the texts are different ones.
 */
export function agreedShare({ texts, written, divergences }: Agreement): number {
  const differing = divergences.filter(({ gap }) => gap >= CLOSE_GAP).length;
  const alike =
    (texts - divergences.length) * written + divergences.reduce((sum, { after }) => sum + after, 0);
  return alike / (alike + differing);
}

const perplexityOf = (logp: readonly number[]): number =>
  Math.exp(-logp.reduce((sum, x) => sum + x, 0) / logp.length);

export async function agreementOf(tokenizer: Tokenizer, ours: Speaker, theirs: Speaker): Promise<Agreement> {
  const divergences: Divergence[] = [];
  for (const [beginning, text] of BEGINNINGS.entries()) {
    const prompt = tokenizer.encode(text);
    const [a, b] = [await ours.generate([prompt], WRITTEN), await theirs.generate([prompt], WRITTEN)].map(
      ({ ids }) => ids[0]!,
    ) as [readonly number[], readonly number[]];
    const after = a.findIndex((id, i) => id !== b[i]);
    if (after === -1) continue;
    const common = [...prompt, ...a.slice(0, after)];
    const own = (await ours.score([...common, a[after]!])).at(-1)!;
    const other = (await ours.score([...common, b[after]!])).at(-1)!;
    divergences.push({ beginning, after, gap: Math.abs(own - other) });
  }
  const ids = tokenizer.encode(TEXT);
  const perplexity = {
    ours: perplexityOf(await ours.score(ids)),
    theirs: perplexityOf(await theirs.score(ids)),
  };
  const textTokens = ids.length - 1;
  return { texts: BEGINNINGS.length, written: WRITTEN, divergences, perplexity, textTokens };
}

export function agreementLines(agreement: Agreement): string[] {
  const { texts, written, divergences, perplexity, textTokens } = agreement;
  const { ours, theirs } = perplexity;
  return [
    `greedy texts: ${texts - divergences.length} of ${texts} alike for ${written} tokens, ${(100 * agreedShare(agreement)).toFixed(2)} % of tokens agree`,
    ...divergences.map(
      ({ beginning, after, gap }) =>
        `  ${JSON.stringify(BEGINNINGS[beginning])}: differ after ${after}, by a logit gap of ${gap.toFixed(3)}`,
    ),
    `perplexity on ${textTokens} tokens: Pondera ${ours.toFixed(4)}, llama.cpp ${theirs.toFixed(4)} (${(100 * (ours / theirs - 1)).toFixed(2)} %)`,
  ];
}
