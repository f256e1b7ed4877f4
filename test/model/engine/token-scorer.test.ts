import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, NumericError } from "../../../src/base/errors.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import type { HostArray } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { Scorer } from "../../../src/learn/optim/score.ts";
import { initializeModel, type ModelConfig } from "../../../src/model/arch/models.ts";
import { loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { TokenScorer, type TokenScorerOptions } from "../../../src/model/engine/token-scorer.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { createEngine } from "../../compute/harness.ts";
import { fixturePath } from "../../fixture.ts";
import { batchOf } from "../../learn/train/batches.ts";
import { opinionatedWeights, TINY } from "../models.ts";

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

type Tensors = Readonly<Record<string, HostArray<"f32">>>;

async function scoreOf(
  config: ModelConfig,
  tensors: Tensors,
  ids: readonly number[],
  options?: TokenScorerOptions,
): Promise<number[]> {
  const scorer = new TokenScorer(runtime, config, options);
  scorer.adopt(deviceWeights(runtime, tensors));
  try {
    return [...(await scorer.score(ids))];
  } finally {
    await scorer.dispose();
  }
}

const textOf = (config: ModelConfig, length: number): number[] => {
  const random = new Random(3);
  return Array.from({ length }, () => random.integer(config.vocabSize));
};

/** Float32 sums of differently shaped products; of a thousand random texts none was further off than 2e-5. */
const DIGITS = 4;

describe.each([
  ["llama", async () => ({ config: TINY as ModelConfig, tensors: opinionatedWeights(TINY, 2) as Tensors })],
  ["deepseek_v3", () => loadModelWeights(fixturePath("arch-deepseek-yarn"))],
  ["qwen2", () => loadModelWeights(fixturePath("arch-qwen2"))],
])("token scorer of %s", (_name, open) => {
  it("gives what the model gives token by token, and what the training forward gives", async () => {
    const { config, tensors } = await open();
    const ids = textOf(config, 27);
    const single = await scoreOf(config, tensors, ids, { chunk: 1 });
    for (const chunk of [7, 13, 26, 256]) {
      const chunked = await scoreOf(config, tensors, ids, { chunk });
      for (const [i, logp] of chunked.entries()) expect(logp).toBeCloseTo(single[i]!, DIGITS);
    }
    const scorer = new Scorer(runtime, config);
    const batch = batchOf([{ ids, weights: ids.map(() => 1) }], [[0]], ids.length);
    const trained = await scorer.score(deviceWeights(runtime, tensors), batch, 1);
    await scorer.dispose();
    expect(single).toHaveLength(ids.length - 1);
    for (const [i, logp] of single.entries()) expect(logp).toBeCloseTo(trained[i]!, DIGITS);
  });
});

describe("token scorer", () => {
  it("remembers nothing of the text before", async () => {
    const scorer = new TokenScorer(runtime, TINY, { chunk: 4 });
    scorer.adopt(deviceWeights(runtime, opinionatedWeights(TINY, 2)));
    const [long, short] = [textOf(TINY, 30), textOf(TINY, 9).reverse()];
    const first = [...(await scorer.score(short))];
    await scorer.score(long);
    expect([...(await scorer.score(short))]).toEqual(first);
    await scorer.dispose();
  });

  it("finds every token equally likely where the head says nothing", async () => {
    const tensors = initializeModel(TINY, 1);
    tensors["lm_head.weight"]!.data.fill(0);
    for (const logp of await scoreOf(TINY, tensors, [1, 2, 3])) expect(logp).toBeCloseTo(-Math.log(11), 6);
  });

  it("scores as many tokens as the model has positions", async () => {
    const ids = textOf(TINY, TINY.maxPositions);
    expect(await scoreOf(TINY, initializeModel(TINY, 1), ids, { chunk: 10 })).toHaveLength(ids.length - 1);
  });

  it("refuses texts that are no texts, and weights that are no numbers", async () => {
    const tensors = initializeModel(TINY, 1);
    const fails = (ids: readonly number[], options?: TokenScorerOptions) =>
      expect(scoreOf(TINY, tensors, ids, options)).rejects;
    await fails([1]).toThrow(/from 2 to 64 tokens; got 1/);
    await fails(textOf(TINY, 9), { maxPositions: 8 }).toThrow(/from 2 to 8 tokens; got 9/);
    await fails([1, 11]).toThrow(/below the vocabulary's 11; got 11/);
    await fails([1, 2], { maxPositions: 65 }).toThrow(ConfigError);
    tensors["model.norm.weight"]!.data[0] = Number.NaN;
    await fails([1, 2]).toThrow(NumericError);
  });
});
