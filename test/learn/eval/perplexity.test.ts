import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { measurePerplexity, type TextWindow, textWindows } from "../../../src/learn/eval/perplexity.ts";

const scoredOf = ({ scoredFrom, end }: TextWindow): number[] =>
  Array.from({ length: end - scoredFrom }, (_, i) => scoredFrom + i);

describe("textWindows", () => {
  it("slides so that every token but the first is scored once, by the first window that holds it", () => {
    expect(textWindows(10, { convention: "sliding", context: 4 })).toEqual([
      { start: 0, end: 4, scoredFrom: 1 },
      { start: 2, end: 6, scoredFrom: 4 },
      { start: 4, end: 8, scoredFrom: 6 },
      { start: 6, end: 10, scoredFrom: 8 },
    ]);
    expect(textWindows(5, { convention: "sliding", context: 4, stride: 3 })).toEqual([
      { start: 0, end: 4, scoredFrom: 1 },
      { start: 3, end: 5, scoredFrom: 4 },
    ]);
    expect(textWindows(2, { convention: "sliding", context: 512 })).toEqual([
      { start: 0, end: 2, scoredFrom: 1 },
    ]);
  });

  it("scores the second half of windows side by side, as llama-perplexity does", () => {
    // n_ctx = 8: first = 4, and the logits at 4, 5, 6 are held against the tokens 5, 6, 7; count grows by n_ctx − first − 1.
    expect(textWindows(23, { convention: "llama.cpp", context: 8 })).toEqual([
      { start: 0, end: 8, scoredFrom: 5 },
      { start: 8, end: 16, scoredFrom: 13 },
    ]);
  });

  it("leaves no token out and counts none twice, whatever the sizes", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 300 }),
        fc.integer({ min: 2, max: 64 }),
        fc.integer({ min: 1, max: 63 }),
        (tokens, context, step) => {
          const stride = Math.min(step, context - 1);
          const windows = textWindows(tokens, { convention: "sliding", context, stride });
          expect(windows.flatMap(scoredOf)).toEqual(Array.from({ length: tokens - 1 }, (_, i) => i + 1));
          for (const { start, end, scoredFrom } of windows) {
            expect(end - start).toBeLessThanOrEqual(context);
            expect(scoredFrom).toBeGreaterThan(start);
            // Past the first window, as much context as was promised.
            if (start > 0) expect(scoredFrom - start).toBeGreaterThanOrEqual(context - stride);
          }
        },
      ),
    );
  });

  it.each([
    [{ convention: "sliding", context: 1 }, 9, /context: must be a whole number from 2; got 1/],
    [{ convention: "llama.cpp", context: 3 }, 9, /context: must be a whole number from 4; got 3/],
    [{ convention: "sliding", context: 4, stride: 4 }, 9, /stride: .*below the context of 4; got 4/],
    [{ convention: "sliding", context: 4, stride: 0 }, 9, /stride: must be a whole number from 1/],
    [{ convention: "llama.cpp", context: 4, stride: 2 }, 9, /stride: is for the convention sliding/],
    [{ convention: "sliding", context: 4 }, 1, /text: must have at least 2 tokens; got 1/],
    [{ convention: "llama.cpp", context: 8 }, 7, /text: must have at least 8 tokens; got 7.*smaller context/],
  ] as const)("refuses %o", (options, tokens, rule) => {
    expect(() => textWindows(tokens, options)).toThrow(rule);
  });
});

/** Token i of a window has the probability 2^−(its id), whatever stands before it. */
const score = async (ids: readonly number[]): Promise<number[]> => ids.slice(1).map((id) => -id * Math.LN2);

describe("measurePerplexity", () => {
  it("is exp of the mean negative log-likelihood, on numbers worked out by hand", async () => {
    const measured = await measurePerplexity(score, [7, 1, 2, 3], {
      convention: "sliding",
      context: 2,
      bytes: 8,
    });
    // Bits 1, 2 and 3 of the three scored tokens: 2 on average, with the variance 2/3, over three windows of two.
    expect(measured).toMatchObject({ scored: 3, evaluated: 6, windows: 3, tokens: 4, bytes: 8 });
    expect(measured.bitsPerToken).toBeCloseTo(2, 12);
    expect(measured.perplexity).toBeCloseTo(4, 12);
    expect(measured.bitsPerByte).toBeCloseTo(1, 12);
    expect(measured.standardError).toBeCloseTo(4 * Math.LN2 * Math.sqrt(2 / 3 / 2), 12);
  });

  it("does not count the begin token among the text's", async () => {
    const ids = [9, 1, 1, 1];
    const measured = await measurePerplexity(score, ids, {
      convention: "sliding",
      context: 8,
      bosId: 9,
      bytes: 3,
    });
    expect(measured).toMatchObject({ scored: 3, tokens: 3, evaluated: 4 });
    expect(measured.bitsPerByte).toBeCloseTo(1, 12);
  });

  it("begins each window of llama.cpp's with the begin token", async () => {
    const seen: number[][] = [];
    const ids = [9, 1, 2, 3, 4, 5, 6, 7];
    const measured = await measurePerplexity(
      (window) => {
        seen.push([...window]);
        return score(window);
      },
      ids,
      { convention: "llama.cpp", context: 4, bosId: 9, bytes: 7 },
    );
    expect(seen).toEqual([
      [9, 1, 2, 3],
      [9, 5, 6, 7],
    ]);
    expect(measured.scored).toBe(2);
    expect(measured.perplexity).toBeCloseTo(2 ** 5, 9);
  });

  it("tells how far it has come, and stops when asked", async () => {
    const controller = new AbortController();
    const told: number[] = [];
    const stopped = measurePerplexity(score, [0, 1, 2, 3], {
      convention: "sliding",
      context: 2,
      bytes: 1,
      signal: controller.signal,
      onWindow({ windows, totalWindows, perplexity }) {
        told.push(windows, totalWindows, Math.round(perplexity));
        controller.abort();
      },
    });
    await expect(stopped).rejects.toThrow(/aborted/);
    expect(told).toEqual([1, 3, 2]);
  });
});
