import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, NumericError } from "../../../src/base/errors.ts";
import type { DeviceTensor } from "../../../src/compute/runtime/device-tensor.ts";
import type { Call } from "../../../src/compute/runtime/program.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import type { LlamaConfig } from "../../../src/model/arch/llama.ts";
import {
  type Completion,
  Engine,
  type EngineOptions,
  type GenerateRequest,
} from "../../../src/model/engine/engine.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { createEngine } from "../../compute/harness.ts";
import { opinionatedWeights, TINY } from "../models.ts";

const STOP = 0;

/** Names of the programs that ran, `decode:rows x new tokens`, in order. */
const runs: string[] = [];

/** The runtime, with every run written down. */
function watched(runtime: Runtime): Runtime {
  return new Proxy(runtime, {
    get(target, property) {
      if (property !== "load") {
        const value: unknown = Reflect.get(target, property);
        return typeof value === "function" ? value.bind(target) : value;
      }
      return async (...[model, io]: Parameters<Runtime["load"]>) => {
        const program = await target.load(model, io);
        const bind = (...tensors: Parameters<typeof program.bind>): Call => {
          const call = program.bind(...tensors);
          const noted = <T>(run: () => T): T => {
            runs.push(io.name ?? "");
            return run();
          };
          return {
            run: () => noted(() => call.run()),
            runSync: () => noted(() => call.runSync()),
            dispose: () => call.dispose(),
            [Symbol.dispose]: () => call.dispose(),
          };
        };
        return { ...program, bind, dispose: () => program.dispose() };
      };
    },
  });
}

let runtime: Runtime;
let weights: Record<string, DeviceTensor<"f32">>;
beforeAll(async () => {
  runtime = await createEngine();
  weights = deviceWeights(runtime, opinionatedWeights(TINY, 7));
});
afterAll(() => runtime.dispose());

const engines: Engine[] = [];
afterEach(async () => {
  for (const engine of engines.splice(0)) await engine.dispose();
  runs.length = 0;
});

function engineOf(options: EngineOptions, config: LlamaConfig = TINY): Engine {
  const engine = new Engine(watched(runtime), config, options);
  engine.adopt(weights);
  engines.push(engine);
  return engine;
}

/** Prompts of different lengths, one of them longer than a step of prefill. */
const PROMPTS = [
  [3, 1, 4],
  [1],
  [5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2],
  [2, 7, 1, 8],
  [10, 10],
];
const requests: GenerateRequest[] = PROMPTS.map((prompt, i) => ({ prompt, samples: 4, seed: 5, path: [i] }));
const OPTIONS = { maxNewTokens: 20, stopIds: [STOP] };

const texts = (completions: readonly (readonly Completion[])[]) =>
  completions.map((samples) => samples.map(({ ids, finish }) => `${ids.join(" ")} ${finish}`));

describe("what a sequence says", () => {
  it("is the same whatever the number of slots", async () => {
    const alone = await engineOf({ slots: 1 }).generate(requests, OPTIONS);
    // Not one text twenty times, and not all of one length: otherwise the comparison would say little.
    expect(new Set(texts(alone).flat()).size).toBeGreaterThan(12);
    expect(new Set(alone.flat().map(({ ids }) => ids.length)).size).toBeGreaterThan(5);
    for (const slots of [3, 8, 64]) {
      const together = await engineOf({ slots }).generate(requests, OPTIONS);
      expect(texts(together), `${slots} slots`).toEqual(texts(alone));
      for (const [i, completion] of together.flat().entries()) {
        for (const [t, logp] of completion.logp.entries()) {
          // Products of other shapes add up in another order; these logits are near 10.
          expect(Math.abs(logp - alone.flat()[i]!.logp[t]!)).toBeLessThan(1e-4);
        }
      }
    }
  });

  it("is the same to the bit when it is asked for again, and with fresh memory", async () => {
    const engine = engineOf({ slots: 8 });
    const first = await engine.generate(requests, OPTIONS);
    expect(await engine.generate(requests, OPTIONS)).toEqual(first);
    expect(await engineOf({ slots: 8 }).generate(requests, OPTIONS)).toEqual(first);
  });

  it("depends on its own prompt and stream, not on who else is served", async () => {
    const all = await engineOf({ slots: 4 }).generate(requests, OPTIONS);
    const [two] = await engineOf({ slots: 4 }).generate([requests[2]!], OPTIONS);
    expect(texts([two!])).toEqual(texts([all[2]!]));
    // Samples 0 and 1 of two are samples 0 and 1 of four.
    const [fewer] = await engineOf({ slots: 4 }).generate([{ ...requests[2]!, samples: 2 }], OPTIONS);
    expect(texts([fewer!])[0]).toEqual(texts([all[2]!])[0]!.slice(0, 2));
  });

  it("changes with the seed, the path and the sample", async () => {
    const request = requests[0]!;
    const others = await engineOf({ slots: 8 }).generate(
      [request, { ...request, seed: 6 }, { ...request, path: [1] }, { ...request, path: [] }],
      { ...OPTIONS, stopIds: [] },
    );
    expect(new Set(texts(others).flat()).size).toBe(16);
  });

  it("is one text at temperature 0, whatever the seed", async () => {
    const [a, b] = await engineOf({ slots: 8 }).generate([requests[0]!, { ...requests[0]!, seed: 99 }], {
      ...OPTIONS,
      temperature: 0,
    });
    expect(new Set(texts([a!, b!]).flat()).size).toBe(1);
  });
});

describe("work", () => {
  const prefills = () => runs.filter((name) => !name.endsWith("x1"));
  const steps = () =>
    runs.filter((name) => name.endsWith("x1")).map((name) => Number(/:(\d+)x1$/.exec(name)![1]));

  it("on a prompt is done once for all of its samples", async () => {
    await engineOf({ slots: 4 }).generate(
      [
        { prompt: [3, 1, 4], samples: 16, seed: 1 },
        { prompt: [1, 5], samples: 16, seed: 2 },
      ],
      OPTIONS,
    );
    expect(prefills()).toEqual(["decode:2x16"]);
  });

  it("on many prompts is done in batches, when their first sample is due, padded to steps of 16", async () => {
    const many = Array.from({ length: 40 }, (_, i) => ({ prompt: [1 + (i % 9)], samples: 1, seed: i }));
    await engineOf({ slots: 4 }).generate(many, OPTIONS);
    expect(prefills()).toEqual(["decode:32x16", "decode:8x16"]);
    expect(runs.indexOf("decode:8x16")).toBeGreaterThan(10);
    runs.length = 0;
    await engineOf({ slots: 4 }).generate([requests[2]!], OPTIONS);
    expect(prefills()).toEqual(["decode:1x32"]);
  });

  it("shrinks with the rows that are left, and is no step longer than the longest needs", async () => {
    const options = { ...OPTIONS, maxNewTokens: 40 };
    const results = (await engineOf({ slots: 16 }).generate(requests.slice(0, 4), options)).flat();
    const lengths = results.map(({ ids }) => ids.length);
    const sizes = steps();
    expect(sizes).toHaveLength(Math.max(...lengths) - 1);
    // In step i, the sequences that have more than i + 1 tokens are decoded, in the next larger batch there is.
    const expected = sizes.map((_, i) => lengths.filter((n) => n > i + 1).length);
    for (const [i, size] of sizes.entries()) {
      const batch = [1, 2, 4, 8, 12, 16].find((n) => n >= expected[i]!);
      expect(size, `step ${i}`).toBe(batch);
    }
    expect(new Set(sizes).size).toBeGreaterThan(2);
  });

  it("keeps all slots busy while sequences wait", async () => {
    const results = (await engineOf({ slots: 3 }).generate(requests, OPTIONS)).flat();
    const tokens = results.reduce((total, { ids }) => total + ids.length - 1, 0);
    const capacity = steps().reduce((total, size) => total + size, 0);
    // Slots idle only at the very end, when fewer than three sequences are left, and where two of three round up.
    expect(capacity - tokens).toBeLessThan(3 * OPTIONS.maxNewTokens);
  });
});

describe("a sequence ends", () => {
  it("at a stop token, which it includes", async () => {
    const results = (await engineOf({ slots: 8 }).generate(requests, OPTIONS)).flat();
    const stopped = results.filter(({ finish }) => finish === "stop");
    expect(stopped.length).toBeGreaterThan(3);
    for (const { ids, logp } of stopped) {
      expect(ids.indexOf(STOP)).toBe(ids.length - 1);
      expect(logp).toHaveLength(ids.length);
    }
    for (const { ids, finish } of results) if (finish === "length") expect(ids).not.toContain(STOP);
  });

  it("at any of several stop tokens, at the first token too", async () => {
    const every = Array.from({ length: TINY.vocabSize }, (_, id) => id);
    const results = await engineOf({ slots: 2 }).generate(requests, { ...OPTIONS, stopIds: every });
    for (const { ids, finish } of results.flat()) {
      expect(ids).toHaveLength(1);
      expect(finish).toBe("stop");
    }
    expect(
      runs.filter((name) => name.endsWith("x1")),
      "nothing is decoded",
    ).toEqual([]);
  });

  it.each([1, 2, 7])("after %i tokens, when there may be no more", async (maxNewTokens) => {
    const results = await engineOf({ slots: 3 }).generate(requests, { maxNewTokens, stopIds: [] });
    for (const { ids, finish } of results.flat()) {
      expect(ids).toHaveLength(maxNewTokens);
      expect(finish).toBe("length");
    }
  });

  it("where the positions do, prompt and completion together", async () => {
    const engine = engineOf({ slots: 4, maxPositions: 24 });
    const prompts = [[1, 2], new Array<number>(20).fill(3), new Array<number>(23).fill(4)];
    const results = await engine.generate(
      prompts.map((prompt) => ({ prompt, samples: 2, seed: 1 })),
      { maxNewTokens: 100, stopIds: [] },
    );
    expect(results.map(([first]) => first!.ids.length)).toEqual([22, 4, 1]);
    for (const { finish } of results.flat()) expect(finish).toBe("length");
    // What it says there is what it says with more room.
    const roomy = await engineOf({ slots: 4 }).generate(
      prompts.map((prompt) => ({ prompt, samples: 2, seed: 1 })),
      { maxNewTokens: 100, stopIds: [] },
    );
    for (const [i, { ids }] of results.flat().entries()) {
      expect(roomy.flat()[i]!.ids.slice(0, ids.length)).toEqual(ids);
    }
  });

  it("having told of every token as it came", async () => {
    const told: Record<string, number[]> = {};
    const results = await engineOf({ slots: 3 }).generate(requests, {
      ...OPTIONS,
      onToken: (request, sample, id) => {
        told[`${request}.${sample}`] ??= [];
        told[`${request}.${sample}`]!.push(id);
      },
    });
    for (const [request, samples] of results.entries()) {
      for (const [sample, { ids }] of samples.entries()) expect(told[`${request}.${sample}`]).toEqual(ids);
    }
  });
});

describe("generation", () => {
  it("stops when it is aborted, and serves the next as if nothing had been", async () => {
    const engine = engineOf({ slots: 4 });
    const expected = await engine.generate(requests, OPTIONS);
    const abort = new AbortController();
    let tokens = 0;
    const call = engine.generate(requests, {
      ...OPTIONS,
      signal: abort.signal,
      onToken: () => {
        if (++tokens === 9) abort.abort(new Error("enough"));
      },
    });
    await expect(call).rejects.toThrow("enough");
    expect(tokens).toBeLessThan(9 + 4);
    expect(await engine.generate(requests, OPTIONS)).toEqual(expected);
  });

  it("does not begin when it is aborted before", async () => {
    const call = engineOf({ slots: 4 }).generate(requests, {
      ...OPTIONS,
      signal: AbortSignal.abort(new Error("no")),
    });
    await expect(call).rejects.toThrow("no");
    expect(runs).toEqual([]);
  });

  it("is one at a time", async () => {
    const engine = engineOf({ slots: 2 });
    const first = engine.generate(requests, OPTIONS);
    await expect(engine.generate(requests, OPTIONS)).rejects.toThrow("one generation at a time");
    await first;
    await engine.generate(requests.slice(0, 1), OPTIONS);
  });

  it("of nothing is nothing", async () => {
    expect(await engineOf({ slots: 2 }).generate([], OPTIONS)).toEqual([]);
    expect(runs).toEqual([]);
  });

  it("reads adopted weights in place, and others once they are adopted", async () => {
    const engine = engineOf({ slots: 4 });
    const own = deviceWeights(runtime, opinionatedWeights(TINY, 8));
    engine.adopt(own);
    const before = await engine.generate(requests, OPTIONS);
    const head = own["lm_head.weight"]!.data;
    for (const i of head.keys()) head[i]! *= -1;
    const after = await engine.generate(requests, OPTIONS);
    expect(texts(after)).not.toEqual(texts(before));
    engine.adopt(weights);
    expect(await engine.generate(requests, OPTIONS)).toEqual(
      await engineOf({ slots: 4 }).generate(requests, OPTIONS),
    );
  });

  it("from weights that are no numbers is a NumericError", async () => {
    const engine = engineOf({ slots: 2 });
    const broken = deviceWeights(runtime, opinionatedWeights(TINY, 7));
    broken["model.norm.weight"]!.data[3] = Number.NaN;
    engine.adopt(broken);
    const call = engine.generate(requests, OPTIONS);
    await expect(call).rejects.toThrow(NumericError);
    await expect(call).rejects.toThrow("generate: logits must be finite. Check the weights for NaN.");
  });
});

describe("a request", () => {
  const refused: [string, Partial<GenerateRequest>, Record<string, unknown>, string][] = [
    ["without a prompt", { prompt: [] }, {}, "generate: prompt: must have from 1 to 23 tokens; got 0."],
    [
      "without room",
      { prompt: new Array<number>(24).fill(1) },
      {},
      "must have from 1 to 23 tokens; got 24. Shorten it",
    ],
    [
      "with a foreign token",
      { prompt: [1, 11] },
      {},
      "token ids must be whole numbers below the vocabulary's 11; got 11.",
    ],
    ["with no token", { prompt: [1, -1] }, {}, "below the vocabulary's 11; got -1."],
    ["for no sample", { samples: 0 }, {}, "generate: samples: must be a positive integer; got 0."],
    ["for no token", {}, { maxNewTokens: 0 }, "generate: maxNewTokens: must be a positive integer; got 0."],
    [
      "with an odd temperature",
      {},
      { temperature: -1 },
      "sampling: temperature: must be a number ≥ 0; got -1.",
    ],
  ];
  it.each(refused)("%s is refused, and the engine still serves", async (_, change, options, message) => {
    const engine = engineOf({ slots: 2, maxPositions: 24 });
    const call = engine.generate([requests[0]!, { ...requests[0]!, ...change }], { ...OPTIONS, ...options });
    await expect(call).rejects.toThrow(ConfigError);
    await expect(call).rejects.toThrow(message);
    expect(await engine.generate([requests[0]!], OPTIONS)).toHaveLength(1);
  });

  it("before any weights is a mistake of ours", async () => {
    const engine = new Engine(runtime, TINY, { slots: 1 });
    await expect(engine.generate(requests, OPTIONS)).rejects.toThrow("adopt weights before generating");
    await engine.dispose();
  });
});

describe("an engine", () => {
  it.each([
    [{ slots: 0 }, {}, "engine: slots: must be a positive integer; got 0."],
    [{ slots: 1, maxPositions: 65 }, {}, "engine: maxPositions: must be from 1 to the model's 64; got 65."],
    [{ slots: 1, maxPositions: 0 }, {}, "engine: maxPositions: must be from 1 to the model's 64; got 0."],
    [{ slots: 1, tokens: 0 }, {}, "engine: tokens: must be from 1 to the vocabulary's"],
    [{ slots: 1, tokens: 1e9 }, {}, "engine: tokens: must be from 1 to the vocabulary's"],
    [
      { slots: 1 },
      { headDim: 8 },
      "engine: headDim: must be a multiple of 16, which the attention kernel asks for; got 8.",
    ],
  ])("of %o and %o is refused", (options, change, message) => {
    const make = () => new Engine(runtime, { ...TINY, ...change }, options);
    expect(make).toThrow(ConfigError);
    expect(make).toThrow(message);
  });
});
