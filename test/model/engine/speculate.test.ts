import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, NumericError } from "../../../src/base/errors.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import { initializeModel, type ModelConfig } from "../../../src/model/arch/models.ts";
import { loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { type Completion, Engine, type WeightTensors } from "../../../src/model/engine/engine.ts";
import { acceptance, SpeculatingEngine, Speculator } from "../../../src/model/engine/speculate.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { createEngine } from "../../compute/harness.ts";
import { fixturePath } from "../../fixture.ts";
import { batchOf } from "../../learn/train/batches.ts";
import { DRAFTING as MODEL, TINY } from "../models.ts";

/** A sentence said over and over: what comes next is easy to learn, and what comes after that too. */
const SENTENCE = [1, 2, 3, 4, 5, 6, 7, 8, 2, 4];

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

async function greedy(
  config: ModelConfig,
  weights: WeightTensors,
  prompt: readonly number[],
  options: object,
) {
  const engine = new Engine(runtime, config, { slots: 1 });
  engine.adopt(weights);
  const settings = { temperature: 0, maxNewTokens: 40, stopIds: [] as number[], ...options };
  const completions = await engine.generate([{ prompt: [...prompt], samples: 1, seed: 0 }], settings);
  await engine.dispose();
  const { ids, finish } = completions[0]![0]!;
  return { ids, finish };
}

async function speculated(
  config: ModelConfig,
  weights: WeightTensors,
  prompt: readonly number[],
  options: object,
) {
  const speculator = new Speculator(runtime, config);
  speculator.adopt(weights);
  const result = await speculator.generate(prompt, { maxNewTokens: 40, stopIds: [], ...options });
  await speculator.dispose();
  return result;
}

describe("a head that has learnt", () => {
  let trainer: Trainer;
  let weights: WeightTensors;
  beforeAll(async () => {
    trainer = Trainer.create(runtime, MODEL, initializeModel(MODEL, 1), {}, { draft: 0.5 });
    const text = Array.from({ length: 60 }, (_, i) => SENTENCE[i % SENTENCE.length]!);
    const sequences = [0, 3, 7, 9].map((from) => ({
      ids: text.slice(from, from + 48),
      weights: new Array<number>(48).fill(1 / (4 * 47)),
    }));
    const batch = batchOf(sequences, [[0], [1], [2], [3]], 48);
    for (let step = 0; step < 60; step++) {
      await trainer.accumulate(CROSS_ENTROPY, batch);
      await trainer.apply({ adamW: 0.005, muon: 0.02 });
    }
    weights = trainer.weights();
  }, 60_000);
  afterAll(() => trainer.dispose());

  it("gives the same greedy text in little more than half the passes", async () => {
    const known = await greedy(MODEL, weights, [1, 2, 3, 4, 5], {});
    const { ids, finish, passes, drafted, accepted } = await speculated(MODEL, weights, [1, 2, 3, 4, 5], {});
    expect({ ids, finish }).toEqual(known);
    expect(acceptance({ drafted, accepted })).toBeGreaterThan(0.8);
    // One pass for the prompt gives the first token; every other gives one, and one more for each right guess.
    expect(passes).toBeLessThan(0.65 * ids.length);
    expect(drafted).toBe(passes - 1);
    expect(passes + accepted - ids.length).toBeLessThanOrEqual(1);
    expect(passes + accepted).toBeGreaterThanOrEqual(ids.length);
  });

  it("stops where greedy decoding stops: at a stop token, at the limit, where the positions end", async () => {
    const prompt = [1, 2, 3];
    for (const options of [
      { stopIds: [7] },
      { stopIds: [8] },
      { maxNewTokens: 1 },
      { maxNewTokens: 2 },
      { maxNewTokens: 3 },
      { maxNewTokens: 1000 },
    ]) {
      const { ids, finish } = await speculated(MODEL, weights, prompt, options);
      expect({ ids, finish }, JSON.stringify(options)).toEqual(await greedy(MODEL, weights, prompt, options));
    }
  });

  it("writes none of the rows that stand for no token, as the engine does", async () => {
    const options = { maxPositions: 64, tokens: 6 };
    const engine = new Engine(runtime, MODEL, { slots: 1, ...options });
    engine.adopt(weights);
    const request = { prompt: [1, 2, 3], samples: 1, seed: 0 };
    const settings = { temperature: 0, maxNewTokens: 20, stopIds: [] };
    const [[expected]] = (await engine.generate([request], settings)) as [[Completion]];
    await engine.dispose();
    const speculator = new Speculator(runtime, MODEL, options);
    speculator.adopt(weights);
    const { ids } = await speculator.generate(request.prompt, settings);
    await speculator.dispose();
    expect(Math.max(...ids)).toBeLessThan(6);
    expect(ids).toEqual(expected.ids);
  });

  it("takes the engine's place, and adds up what its guesses came to", async () => {
    const engine = new SpeculatingEngine(new Speculator(runtime, MODEL));
    engine.adopt(weights);
    const requests = [
      [1, 2, 3, 4, 5],
      [1, 2, 3],
    ].map((prompt) => ({ prompt, samples: 1, seed: 0 }));
    const seen: [number, number, number][] = [];
    const completions = await engine.generate(requests, {
      temperature: 0,
      maxNewTokens: 20,
      stopIds: [],
      onToken: (...told) => seen.push(told),
    });
    for (const [i, { prompt }] of requests.entries()) {
      const known = await greedy(MODEL, weights, prompt, { maxNewTokens: 20 });
      expect(completions[i]).toEqual([known]);
      expect(seen.filter(([request]) => request === i)).toEqual(known.ids.map((id) => [i, 0, id]));
    }
    const alone = await Promise.all(
      requests.map(({ prompt }) => speculated(MODEL, weights, prompt, { maxNewTokens: 20 })),
    );
    for (const count of ["passes", "drafted", "accepted"] as const) {
      expect(engine.guesses[count]).toBe(alone.reduce((sum, one) => sum + one[count], 0));
    }
    await engine.dispose();
  });

  it("refuses what is not greedy, or more than one of a kind, in the engine's place", async () => {
    const engine = new SpeculatingEngine(new Speculator(runtime, MODEL));
    engine.adopt(weights);
    const asked = (samples: number, temperature: number) =>
      engine.generate([{ prompt: [1], samples, seed: 0 }], { temperature, maxNewTokens: 2, stopIds: [] });
    await expect(asked(1, 1)).rejects.toThrow(/temperature: must be 0.*got 1/);
    await expect(asked(2, 0)).rejects.toThrow(/samples: must be 1.*got 2/);
    await engine.dispose();
  });

  it("goes on with other weights once they are adopted", async () => {
    const other = deviceWeights(runtime, initializeModel(MODEL, 5));
    const speculator = new Speculator(runtime, MODEL);
    speculator.adopt(other);
    await speculator.generate([1, 2], { maxNewTokens: 5, stopIds: [] });
    speculator.adopt(weights);
    const { ids } = await speculator.generate([1, 2, 3, 4, 5], { maxNewTokens: 40, stopIds: [] });
    expect(ids).toEqual((await greedy(MODEL, weights, [1, 2, 3, 4, 5], {})).ids);
    await speculator.dispose();
  });
});

describe("a head that guesses at random", () => {
  it("changes nothing in the text, whatever the prompt", async () => {
    const { config, tensors } = await loadModelWeights(fixturePath("arch-deepseek-mtp"));
    const weights = deviceWeights(runtime, tensors);
    for (const prompt of [[3], [5, 9, 2], Array.from({ length: 17 }, (_, i) => (i * 7) % 24)]) {
      const known = await greedy(config, weights, prompt, { maxNewTokens: 60 });
      const { ids, finish, drafted, accepted } = await speculated(config, weights, prompt, {
        maxNewTokens: 60,
      });
      expect({ ids, finish }, `${prompt}`).toEqual(known);
      expect(accepted).toBeLessThanOrEqual(drafted);
    }
  });
});

describe("what cannot be decoded so", () => {
  it("is refused by name", async () => {
    expect(() => new Speculator(runtime, TINY)).toThrow(ConfigError);
    expect(() => new Speculator(runtime, TINY)).toThrow(
      /head for the token after next; got a llama without one/,
    );
    expect(() => new Speculator(runtime, MODEL, { maxPositions: 65 })).toThrow("from 1 to the model's 64");
    const speculator = new Speculator(runtime, MODEL);
    speculator.adopt(deviceWeights(runtime, initializeModel(MODEL, 1)));
    const options = { maxNewTokens: 4, stopIds: [] };
    await expect(speculator.generate([], options)).rejects.toThrow("must have from 1 to 63 tokens; got 0");
    await expect(speculator.generate([9], options)).rejects.toThrow("below the vocabulary's 9; got 9");
    await expect(speculator.generate([1], { ...options, maxNewTokens: 0 })).rejects.toThrow(
      "must be a positive integer; got 0",
    );
    await speculator.dispose();
  });

  it("is said where weights are not numbers", async () => {
    const tensors = initializeModel(MODEL, 1);
    tensors["model.norm.weight"]!.data[0] = Number.NaN;
    const run = speculated(MODEL, deviceWeights(runtime, tensors), [1], {});
    await expect(run).rejects.toThrow(NumericError);
  });
});
