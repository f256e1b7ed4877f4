/**
 * Perplexity of a text: exp of the mean negative log-likelihood of its tokens, each given what stands before it in its window.
 *
 * A model sees `context` tokens at most, so a longer text is read in windows. Which tokens of a window count is a convention,
 * and figures compare only under the same one:
 * - `sliding`: windows begin `stride` tokens apart and each scores what none before it has, so that every token but the
 *   first is scored once, with at least context − stride tokens before it once the first window is past;
 * - `llama.cpp`: windows lie side by side, what is left over at the end is dropped, and of each window n long the tokens from
 *   ⌊n/2⌋ + 1 on are scored. Each begins with the begin token, in place of what stood there, where the model's texts do.
 *
 * @source huggingface.co/docs/transformers/perplexity (sliding); github.com/ggml-org/llama.cpp, tools/perplexity/perplexity.cpp
 */

import { ConfigError } from "../../base/errors.ts";

export const CONVENTIONS = ["sliding", "llama.cpp"] as const;
export type PerplexityConvention = (typeof CONVENTIONS)[number];

/** A window of a text, and the first of its tokens that counts; all after it do, too. */
export interface TextWindow {
  readonly start: number;
  readonly end: number;
  /** Index in the text, above `start`. */
  readonly scoredFrom: number;
}

export interface WindowOptions {
  readonly convention: PerplexityConvention;
  /** Longest window, in tokens. */
  readonly context: number;
  /** From one window's start to the next, for `sliding`. @default half the context */
  readonly stride?: number;
}

function check({ convention, context, stride }: WindowOptions): void {
  const least = convention === "sliding" ? 2 : 4;
  if (!Number.isSafeInteger(context) || context < least) {
    throw new ConfigError({
      where: "perplexity: context",
      rule: `must be a whole number from ${least}`,
      got: `${context}`,
    });
  }
  if (stride === undefined) return;
  if (convention !== "sliding") {
    throw new ConfigError({
      where: "perplexity: stride",
      rule: `is for the convention sliding: windows of ${convention} lie side by side`,
      got: `${stride}`,
      remedy: "Leave it out",
    });
  }
  if (Number.isSafeInteger(stride) && stride >= 1 && stride < context) return;
  throw new ConfigError({
    where: "perplexity: stride",
    rule: `must be a whole number from 1, below the context of ${context}`,
    got: `${stride}`,
    remedy: "A window needs a token before the first that it scores",
  });
}

/**
 * The windows of a text of `tokens` tokens.
 * @throws ConfigError when an option breaks its rule, or the text has too few tokens for one window
 */
export function textWindows(tokens: number, options: WindowOptions): TextWindow[] {
  check(options);
  const { convention, context } = options;
  const least = convention === "sliding" ? 2 : context;
  if (tokens < least) {
    throw new ConfigError({
      where: "perplexity: text",
      rule: `must have at least ${least} tokens`,
      got: `${tokens}`,
      remedy: convention === "sliding" ? "Take a longer text" : "Take a longer text, or a smaller context",
    });
  }
  const windows: TextWindow[] = [];
  if (convention === "llama.cpp") {
    for (let start = 0; start + context <= tokens; start += context) {
      windows.push({ start, end: start + context, scoredFrom: start + Math.floor(context / 2) + 1 });
    }
    return windows;
  }
  const stride = options.stride ?? Math.floor(context / 2);
  let scored = 1;
  for (let start = 0; scored < tokens; start += stride) {
    const end = Math.min(start + context, tokens);
    windows.push({ start, end, scoredFrom: scored });
    scored = end;
  }
  return windows;
}

/** Log-probabilities, nats, of every token but the first, given those before it. */
export type ScoreTokens = (ids: readonly number[]) => Promise<ArrayLike<number>>;

export interface PerplexityOptions extends WindowOptions {
  /** The token that texts of the model begin with; `ids` then begins with it. */
  readonly bosId?: number;
  /** Bytes of the text in UTF-8. */
  readonly bytes: number;
  /** Told after each window. */
  readonly onWindow?: (done: PerplexityProgress) => void;
  readonly signal?: AbortSignal;
}

export interface PerplexityProgress {
  readonly windows: number;
  readonly totalWindows: number;
  /** Of the tokens scored so far. */
  readonly perplexity: number;
}

export interface Perplexity {
  readonly perplexity: number;
  /**
   * Half a 68 % interval of the perplexity, as if the tokens were independent of each other; they are not, so it is too
   * small. llama-perplexity prints the same after ±.
   */
  readonly standardError: number;
  /** Mean negative log-likelihood of a scored token, nats. */
  readonly meanNll: number;
  readonly bitsPerToken: number;
  /** Bits a scored token × tokens of the text / its bytes: comparable between models with different vocabularies. */
  readonly bitsPerByte: number;
  /** Of the text, a begin token not counted. */
  readonly tokens: number;
  readonly bytes: number;
  /** Tokens whose probability counted. */
  readonly scored: number;
  /** Tokens that ran through the model, those of overlapping windows each time. */
  readonly evaluated: number;
  readonly windows: number;
}

/**
 * @param ids  the whole text; begins with the begin token where the model's texts do
 * @throws ConfigError as {@link textWindows}; what the signal is aborted with
 */
export async function measurePerplexity(
  score: ScoreTokens,
  ids: readonly number[],
  options: PerplexityOptions,
): Promise<Perplexity> {
  const { bosId, bytes, onWindow, signal, convention } = options;
  const windows = textWindows(ids.length, options);
  let [sum, squares, scored, evaluated] = [0, 0, 0, 0];
  for (const [i, { start, end, scoredFrom }] of windows.entries()) {
    signal?.throwIfAborted();
    const window = ids.slice(start, end);
    if (convention === "llama.cpp" && bosId !== undefined) window[0] = bosId;
    const logp = await score(window);
    for (let at = scoredFrom; at < end; at++) {
      const nll = -logp[at - start - 1]!;
      sum += nll;
      squares += nll * nll;
    }
    scored += end - scoredFrom;
    evaluated += end - start;
    onWindow?.({ windows: i + 1, totalWindows: windows.length, perplexity: Math.exp(sum / scored) });
  }
  const meanNll = sum / scored;
  const variance = Math.max(0, squares / scored - meanNll ** 2);
  const perplexity = Math.exp(meanNll);
  const bitsPerToken = meanNll / Math.LN2;
  const tokens = ids.length - (bosId !== undefined && ids[0] === bosId ? 1 : 0);
  return {
    perplexity,
    standardError: scored > 1 ? perplexity * Math.sqrt(variance / (scored - 1)) : 0,
    meanNll,
    bitsPerToken,
    bitsPerByte: (bitsPerToken * tokens) / bytes,
    tokens,
    bytes,
    scored,
    evaluated,
    windows: windows.length,
  };
}
