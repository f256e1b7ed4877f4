import { describe, expect, it } from "vitest";
import { TaskError } from "../../../src/base/errors.ts";
import type { Random } from "../../../src/compute/tensor/random.ts";
import { causalKeys, trainFlops } from "../../../src/learn/cost/flops.ts";
import type { Trace } from "../../../src/learn/tasks/task.ts";
import {
  languageBatch,
  ratesAt,
  traceSequence,
  trainingFlops,
} from "../../../src/learn/train/language-stage.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";
import { TINY } from "./tiny.ts";

const tokenizer = characterTokenizer({ alphabet: "ab=" });

/** A prompt of 2 and a completion of 1 to `most` characters. */
const draw =
  (most: number) =>
  (random: Random): Trace => ({ prompt: "a=", completion: "b".repeat(1 + random.integer(most)) });

const batchAt = (step: number, options: { rows?: number; rowLength?: number; most?: number } = {}) => {
  const { rows = 4, rowLength = 24, most = 12 } = options;
  return languageBatch({ tokenizer, draw: draw(most), seed: 5, path: [1, step], rows, rowLength });
};

describe("a trace as a training sequence", () => {
  it("begins with the begin token, ends with the end token, and is to be predicted from the completion on", () => {
    const { ids, weights } = traceSequence(tokenizer, { prompt: "a=", completion: "bb" });
    const [a, b, equals] = ["a", "b", "="].map((text) => tokenizer.encode(text)[0]);
    expect(ids).toEqual([tokenizer.bosId, a, equals, b, b, tokenizer.eosId]);
    expect(weights).toEqual([0, 0, 0, 1, 1, 1]);
  });
});

describe("a batch of text", () => {
  it("weighs every predicted token alike, and all of them together 1", () => {
    const { batch, lengths } = batchAt(1);
    const weights = [...batch.weights.data].filter((w) => w !== 0);
    // Begin, a and = are not predicted.
    expect(weights).toHaveLength(lengths.reduce((n, length) => n + length - 3, 0));
    expect(new Set(weights).size).toBe(1);
    expect(weights.reduce((a, b) => a + b)).toBeCloseTo(1, 5);
    expect(batch.tokens).toBe(lengths.reduce((a, b) => a + b));
  });

  it("is a function of seed and step alone", () => {
    expect(batchAt(3)).toEqual(batchAt(3));
    expect(batchAt(3).batch.ids.data).not.toEqual(batchAt(4).batch.ids.data);
  });

  it("is nearly full", () => {
    for (let step = 0; step < 20; step++) {
      const { batch } = batchAt(step, { rows: 8, rowLength: 48 });
      expect(batch.tokens).toBeGreaterThan(0.9 * 8 * 48);
    }
  });

  it("holds the first texts drawn, whatever their length: what does not fit is given up from the end", () => {
    const drawn: number[] = [];
    const { lengths } = languageBatch({
      tokenizer,
      draw: (random) => {
        const trace = draw(12)(random);
        drawn.push(trace.completion.length + 4);
        return trace;
      },
      ...{ seed: 1, path: [0], rows: 2, rowLength: 21 },
    });
    expect(lengths).toEqual(drawn.slice(0, lengths.length));
    expect(lengths.length).toBeLessThan(drawn.length);
  });

  it("leaves out texts that are longer than a row, and says so when all are", () => {
    const { lengths } = batchAt(1, { rowLength: 8 });
    expect(Math.max(...lengths)).toBeLessThanOrEqual(8);
    const long = { draw: (): Trace => ({ prompt: "a", completion: "b".repeat(50) }) };
    const build = () => languageBatch({ tokenizer, ...long, seed: 1, path: [], rows: 2, rowLength: 24 });
    expect(build).toThrow(TaskError);
    expect(build).toThrow(/must fit rows of 24 tokens; got 1000 longer ones in a row, the last of 53/);
  });
});

describe("rates and operations of a step", () => {
  it("follow the stage's schedule", () => {
    const stage = {
      ...TINY.pretrain,
      steps: 10,
      rates: { adamW: 1, muon: 2 },
      schedule: { warmup: 4, decay: 0.5, final: 0 },
    };
    expect(ratesAt(stage, 1)).toEqual({ adamW: 0.25, muon: 0.5 });
    expect(ratesAt(stage, 4)).toEqual({ adamW: 1, muon: 2 });
    expect(ratesAt(stage, 10).adamW).toBeLessThan(0.3);
  });

  it("count each sequence with its own mean number of keys", () => {
    const sizes = { layers: 1, width: 8, heads: 2, kvHeads: 1, headWidth: 4, hidden: 16, vocab: 10 };
    const expected = 3 * trainFlops(sizes, causalKeys(3)) + 5 * trainFlops(sizes, causalKeys(5));
    expect(
      trainingFlops(
        sizes,
        [3, 5].map((tokens) => ({ tokens, before: 0 })),
      ),
    ).toBe(expected);
  });
});
