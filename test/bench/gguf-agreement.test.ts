/** What we make of a GGUF file beside what llama.cpp makes of it; and what llama.cpp makes of a file of ours. */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type Agreement,
  agreedShare,
  agreementLines,
  agreementOf,
  type Speaker,
} from "../../bench/gguf-agreement.ts";
import { LlamaCppSide } from "../../bench/gguf-llamacpp.ts";
import { PonderaSide } from "../../bench/gguf-pondera.ts";
import { BEGINNINGS, TEXT } from "../../bench/gguf-texts.ts";
import { Runtime } from "../../src/compute/runtime/runtime.ts";
import { initializeLlama, type LlamaConfig } from "../../src/model/arch/llama.ts";
import { parseLlamaConfig } from "../../src/model/arch/llama-json.ts";
import { readWeights } from "../../src/model/checkpoint/folder.ts";
import { saveGguf, saveModelGguf } from "../../src/model/checkpoint/gguf/save.ts";
import { openLlama2c, readLlama2cTokenizer } from "../../src/model/checkpoint/llama2c.ts";
import { closing, loadModel, loadStoredModel } from "../../src/model/checkpoint/load.ts";
import { TokenScorer } from "../../src/model/engine/token-scorer.ts";
import { deviceWeights } from "../../src/model/engine/weights.ts";
import { characterTokenizer } from "../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../base/temporary-folder.ts";

const stories = (file: string): string =>
  fileURLToPath(new URL(`../../../shared/data/weights/stories260K/${file}`, import.meta.url));
const STORIES = stories("stories260K.bin");
/** SmolLM2-135M-Instruct as Q4_1. */
const SMOLLM2 = process.env["PONDERA_SMOLLM2"] ?? "";

/** Whether node-llama-cpp has a binary for this machine. */
async function startsLlamaCpp(): Promise<boolean> {
  const side = new LlamaCppSide();
  const started = await side.start(1).then(
    () => true,
    () => false,
  );
  await side.dispose();
  return started;
}
const hasLlamaCpp = await startsLlamaCpp();

describe.skipIf(!(existsSync(STORIES) && hasLlamaCpp))(
  "llama.cpp, of stories260K as a GGUF file of ours",
  () => {
    const llamaCpp = new LlamaCppSide();
    afterAll(() => llamaCpp.dispose());

    it("writes both published stories, token for token", async () => {
      const file = join(await temporaryFolder(), "stories.gguf");
      await using source = await openLlama2c(STORIES);
      const vocabulary = await readLlama2cTokenizer(stories("tok512.bin"), 512);
      const { config } = parseLlamaConfig(STORIES, source.config);
      const tensors = await readWeights(source, config);
      const model = { config: source.config, tensors, vocabulary };
      await saveGguf(file, model, { type: "F32", name: "stories260K" });
      await llamaCpp.start(1);
      await llamaCpp.load({ file, threads: 1, sequences: 1, positions: 512 });
      const expected = JSON.parse(readFileSync(stories("expected.json"), "utf8")) as { greedy_ids: number[] };
      const [begin, ...written] = expected.greedy_ids;
      const { ids } = await llamaCpp.generate([[begin!]], written.length);
      expect(written.length).toBe(256);
      expect(ids).toEqual([written]);
    });
  },
);

describe.skipIf(!hasLlamaCpp)("llama.cpp, of a model that was trained from nothing", () => {
  const alphabet = "0123456789+-*/=(),.: \n÷é€";
  const tokenizer = characterTokenizer({ alphabet });
  const text = "<think>12÷4 = 3,\n(5-3)*7: é€</think>";
  const config: LlamaConfig = {
    ...{
      vocabSize: tokenizer.vocabSize + 3,
      hiddenSize: 32,
      intermediateSize: 64,
      layers: 2,
      heads: 2,
      kvHeads: 1,
    },
    ...{ headDim: 16, rmsNormEpsilon: 1e-5, ropeTheta: 10_000, maxPositions: 64, tieEmbeddings: false },
  };
  const runtimes: Runtime[] = [];
  afterAll(() => {
    for (const runtime of runtimes) runtime.dispose();
  });

  it.each(["F16", "Q8_0", "Q4_0"] as const)("reads text and runs weights as we do: %s", async (type) => {
    const file = join(await temporaryFolder(), "run.gguf");
    const model = { config, extra: {}, tensors: initializeLlama(config, 3), tokenizer };
    await saveModelGguf(file, model, { type });
    const llamaCpp = new LlamaCppSide();
    await llamaCpp.start(1);
    await llamaCpp.load({ file, threads: 1, sequences: 1, positions: 64 });
    const ids = tokenizer.encode(text);
    const ours = await loadModel(file);
    expect(ours.tokenizer.encode(text)).toEqual(ids);
    expect(ours.tokenizer.decode(ids)).toBe(text);
    expect(llamaCpp.tokenize(text)).toEqual(ids);
    // What is outside the alphabet is passed over, as transformers does.
    expect(llamaCpp.tokenize("A1ß")).toEqual(tokenizer.encode("1"));
    const runtime = await Runtime.create({ threads: 1 });
    runtimes.push(runtime);
    const scorer = new TokenScorer(runtime, config, { maxPositions: 64 });
    scorer.adopt(deviceWeights(runtime, ours.tensors));
    const [scores, theirs] = [await scorer.score(ids), await llamaCpp.score(ids)];
    await scorer.dispose();
    await llamaCpp.dispose();
    // llama.cpp rounds activations to bytes beside quantised matrices, and keeps its cache in halves.
    for (const [i, score] of scores.entries()) expect(Math.abs(theirs[i]! - score)).toBeLessThan(0.05);
  });
});

describe.skipIf(!(existsSync(SMOLLM2) && hasLlamaCpp))("SmolLM2-135M-Instruct, Q4_1", () => {
  const [ours, theirs] = [new PonderaSide(), new LlamaCppSide()];
  let agreement: Agreement;
  beforeAll(async () => {
    // One thread each: llama.cpp's wait for each other by spinning, which takes for ever where there is one core for two.
    for (const side of [ours, theirs]) {
      await side.start(1);
      await side.load({ file: SMOLLM2, threads: 1, sequences: 1, positions: 704 });
    }
    const model = await loadStoredModel(SMOLLM2);
    await using _ = closing(model);
    const { tokenizer } = model;
    agreement = await agreementOf(tokenizer, ours, theirs);
  }, 600_000);
  afterAll(async () => {
    for (const side of [ours, theirs]) await side.dispose();
  });

  it("writes what llama.cpp does in 95 % of the tokens, each after the same text", () => {
    expect(agreedShare(agreement), agreementLines(agreement).join("\n")).toBeGreaterThanOrEqual(0.95);
  });

  it("is as surprised by a text as its weights are in float32, to 0.3 %", async () => {
    const { config, tensors, tokenizer } = await loadModel(SMOLLM2);
    const runtime = await Runtime.create({ threads: 1 });
    const scorer = new TokenScorer(runtime, config, { maxPositions: 512 });
    scorer.adopt(deviceWeights(runtime, tensors));
    const logp = await scorer.score(tokenizer.encode(TEXT));
    await scorer.dispose();
    runtime.dispose();
    const exact = Math.exp(-logp.reduce((sum, x) => sum + x, 0) / logp.length);
    expect(Math.abs(agreement.perplexity.ours / exact - 1)).toBeLessThan(0.003);
  }, 120_000);

  // Both round what they multiply to bytes, each in its own way, and llama.cpp's cache is of halves.
  it("is as surprised by a text as llama.cpp is, to half a per cent", () => {
    const { perplexity } = agreement;
    expect(Math.abs(perplexity.ours / perplexity.theirs - 1)).toBeLessThan(0.005);
  });
});

describe("agreementOf", () => {
  const tokenizer = characterTokenizer({
    alphabet: [...new Set(TEXT + BEGINNINGS.join(""))].filter((c) => c !== "<").join(""),
  });
  /** Writes what `at` says for each place; tokens are as likely as they are small. */
  const speaker = (at: (i: number) => number, surprise = 1): Speaker => ({
    generate: async ([prompt], newTokens) => {
      const ids = [Array.from({ length: newTokens }, (_, i) => at(prompt!.length + i))];
      return { ids, first: 0, all: 0 };
    },
    score: async (ids) => ids.slice(1).map((id) => -surprise - id / 100),
  });

  it("finds nothing between the same", async () => {
    const agreement = await agreementOf(
      tokenizer,
      speaker(() => 3),
      speaker(() => 3),
    );
    expect(agreement).toMatchObject({ texts: 20, written: 20 * 64, divergences: [] });
    expect(agreement.perplexity.ours).toBe(agreement.perplexity.theirs);
    expect(agreement.textTokens).toBe(tokenizer.encode(TEXT).length - 1);
    expect(agreedShare(agreement)).toBe(1);
  });

  it("compares every token after the same text", async () => {
    const first = tokenizer.encode(BEGINNINGS[0]!).length;
    // Another token in two places of every text, which for the longer beginnings are before it.
    const theirs = speaker((i) => (i === first + 10 || i === first + 12 ? 9 : 3));
    const agreement = await agreementOf(
      tokenizer,
      speaker(() => 3),
      theirs,
    );
    const own = agreement.divergences.filter(({ beginning }) => beginning === 0);
    expect(own.map(({ after }) => after)).toEqual([10, 12]);
    for (const { gap } of own) expect(gap).toBeCloseTo(0.06);
    const { length } = agreement.divergences;
    expect(agreedShare(agreement)).toBe(1 - length / 1280);
    const [all, differ] = agreementLines(agreement);
    expect(all).toMatch(/% of 1280 tokens are the same after the same text; \d+ of 20 texts/);
    expect(differ).toBe(`  ${length} tokens differ, 0 of them by a logit gap under 0.05`);
  });

  it("says it in lines", async () => {
    const agreement = await agreementOf(
      tokenizer,
      speaker(() => 3, 2),
      speaker(() => 3, 1),
    );
    expect(agreementLines(agreement)).toEqual([
      "greedy texts: 100.00 % of 1280 tokens are the same after the same text; 20 of 20 texts are the same throughout",
      "  0 tokens differ, 0 of them by a logit gap under 0.05",
      expect.stringMatching(/^perplexity on \d+ tokens: Pondera [\d.]+, llama.cpp [\d.]+ \(171\.83 %\)$/),
    ]);
  });
});
