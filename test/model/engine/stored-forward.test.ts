import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { toHalfBits } from "../../../src/compute/tensor/half.ts";
import { type HostArray, hostArray } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { type Shape, sizeOf } from "../../../src/compute/tensor/shape.ts";
import { type LlamaConfig, llamaParameters } from "../../../src/model/arch/llama.ts";
import type { StoredSource, StoredWeight } from "../../../src/model/arch/stored.ts";
import { dequantizeInto } from "../../../src/model/checkpoint/gguf/dequantize.ts";
import { nBitsOperands } from "../../../src/model/checkpoint/gguf/matmul-nbits.ts";
import { layoutOf } from "../../../src/model/checkpoint/gguf/types.ts";
import { Engine, type EngineOptions, type GenerateRequest } from "../../../src/model/engine/engine.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { createEngine } from "../../compute/harness.ts";
import { BLOCKY } from "../models.ts";
import { held } from "./held-weights.ts";

const CONFIG: LlamaConfig = { ...BLOCKY, maxPositions: 400, tieEmbeddings: true };
const EMBEDDING = "model.embed_tokens.weight";

/** Blocks of random whole numbers under scales and minima of the size that weights have. */
function randomBlocks(
  type: "Q4_0" | "Q4_1" | "Q8_0",
  shape: Shape,
  std: number,
  seed: number,
): Uint8Array<ArrayBuffer> {
  const random = new Random(seed);
  const { block, bytes } = layoutOf(type);
  const blocks = Uint8Array.from({ length: (sizeOf(shape) / block) * bytes }, () => random.integer(256));
  const view = new DataView(blocks.buffer);
  for (let at = 0; at < blocks.length; at += bytes) {
    const step = (std * (0.5 + random.uniform())) / (type === "Q8_0" ? 64 : 4);
    view.setUint16(at, toHalfBits(step), true);
    if (type === "Q4_1") view.setUint16(at + 2, toHalfBits(-step * (5 + 5 * random.uniform())), true);
  }
  return blocks;
}

interface Twins {
  readonly stored: Record<string, StoredWeight>;
  /** The same weights as floats. */
  readonly floats: Record<string, HostArray<"f32">>;
}

function twins(config: LlamaConfig, typeOf: (name: string) => "Q4_0" | "Q4_1" | "Q8_0"): Twins {
  const stored: Record<string, StoredWeight> = {};
  const floats: Record<string, HostArray<"f32">> = {};
  for (const [i, { name, shape, kind }] of llamaParameters(config).entries()) {
    const array = hostArray("f32", shape);
    if (shape.length === 1) {
      for (const j of array.data.keys()) array.data[j] = kind === "norm" ? 1 : Math.sin(j);
      stored[name] = array;
    } else {
      const type = typeOf(name);
      // A tied embedding of a larger scale says what it reads, again and again, with a probability near 1.
      const std = kind === "embedding" ? 0.25 : 1.5 / Math.sqrt(shape[1]!);
      const blocks = randomBlocks(type, shape, std, i);
      dequantizeInto(type, blocks, array.data);
      stored[name] = nBitsOperands(name, { type, shape, blocks });
    }
    floats[name] = array;
  }
  return { stored, floats };
}

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

const engines: Engine[] = [];
afterEach(async () => {
  for (const engine of engines.splice(0)) await engine.dispose();
});

function pair(
  config: LlamaConfig,
  { stored, floats }: Twins,
  options: EngineOptions,
  activations?: "i8" | "f32",
) {
  const choice = activations === undefined ? {} : { activations };
  const ours = new Engine(runtime, config, {
    ...options,
    stored: { weights: held(stored, floats), ...choice },
  });
  const twin = new Engine(runtime, config, options);
  twin.adopt(deviceWeights(runtime, floats));
  engines.push(ours, twin);
  return { ours, twin };
}

/** Among them one that takes several pieces, and one whose last piece is a single token. */
const LENGTHS = [1, 5, 17, 300, 129];
const requests: GenerateRequest[] = LENGTHS.map((length, i) => {
  const random = new Random(i);
  const prompt = Array.from({ length }, () => random.integer(CONFIG.vocabSize));
  return { prompt, samples: i === 1 ? 3 : 1, seed: 3, path: [i] };
});
const OPTIONS = { maxNewTokens: 20, stopIds: [] };

/**
 * Where both chose the same up to there: how many tokens there are, how many of them both chose, and how far apart the
 * log-probabilities of those are, at worst and on average.
 */
function compare(
  a: readonly (readonly { ids: number[]; logp: number[] }[])[],
  b: typeof a,
): { readonly worst: number; readonly mean: number; readonly same: number; readonly all: number } {
  let [worst, sum, same, all] = [0, 0, 0, 0];
  const others = b.flat();
  for (const [i, { ids, logp }] of a.flat().entries()) {
    const other = others[i]!;
    for (const [t, id] of ids.entries()) {
      all++;
      if (id !== other.ids[t]) break;
      same++;
      const difference = Math.abs(logp[t]! - other.logp[t]!);
      sum += difference;
      worst = Math.max(worst, difference);
    }
  }
  return { worst, mean: sum / same, same, all };
}

describe("an engine of stored weights", () => {
  it.each([
    ["four bits", "Q4_0", CONFIG],
    ["four bits and minima", "Q4_1", CONFIG],
    ["biases", "Q4_1", { ...CONFIG, modelType: "qwen2", tieEmbeddings: false }],
  ] as const)("says what their floats say, exactly: %s", async (_, type, config) => {
    const weights = twins(config, () => type);
    const { ours, twin } = pair(config, weights, { slots: 4 }, "f32");
    const [a, b] = [await ours.generate(requests, OPTIONS), await twin.generate(requests, OPTIONS)];
    const { worst, same, all } = compare(a, b);
    expect(same).toBe(all);
    // Sums of other orders; log-probabilities are near −2.
    expect(worst).toBeLessThan(1e-4);
    expect(new Set(a.flat().map(({ ids }) => ids.join())).size).toBe(a.flat().length);
  });

  it("says nearly the same where activations are rounded to bytes", async () => {
    const weights = twins(CONFIG, (name) => (name === EMBEDDING ? "Q8_0" : "Q4_1"));
    const { ours, twin } = pair(CONFIG, weights, { slots: 4 });
    const [a, b] = [await ours.generate(requests, OPTIONS), await twin.generate(requests, OPTIONS)];
    const { mean, same, all } = compare(a, b);
    // A byte is off by up to 1/254 of the largest of its block: about 0.5 % of what rows are like. Errors of 14 products add
    // up to 2 % of logits, whose spread is 2.
    expect(mean).toBeLessThan(0.05);
    expect(mean).toBeGreaterThan(1e-4);
    expect(same / all).toBeGreaterThan(0.85);
  });

  it("is the same whatever the number of slots", async () => {
    const weights = twins(CONFIG, () => "Q4_0");
    const alone = await pair(CONFIG, weights, { slots: 1 }, "f32").ours.generate(requests, OPTIONS);
    const together = await pair(CONFIG, weights, { slots: 7 }, "f32").ours.generate(requests, OPTIONS);
    expect(together.flat().map(({ ids }) => ids)).toEqual(alone.flat().map(({ ids }) => ids));
  });

  it("decodes within few positions, too", async () => {
    const { ours } = pair(
      CONFIG,
      twins(CONFIG, () => "Q4_0"),
      { slots: 2, maxPositions: 8 },
      "f32",
    );
    const short = [{ prompt: [1, 2, 3], samples: 3, seed: 1 }];
    const [completions] = await ours.generate(short, OPTIONS);
    expect(completions!.map(({ ids, finish }) => [ids.length, finish])).toEqual(Array(3).fill([5, "length"]));
  });

  it.each([1, 4])(
    "runs no piece again that the last prompt began with, and says the same to the bit: %s slots",
    async (slots) => {
      const { stored, floats } = twins(CONFIG, () => "Q4_1");
      let pieces = 0;
      const load = runtime.load.bind(runtime);
      const spy = vi.spyOn(runtime, "load").mockImplementation(async (model, io) => {
        const program = await load(model, io);
        const bind = program.bind.bind(program);
        program.bind = (inputs, outputs) => {
          // Prompts are run one at a time, their samples together; the last stage has what comes of it.
          if (outputs["logits"]?.shape[0] === 1) pieces++;
          return bind(inputs, outputs);
        };
        return program;
      });
      const engine = () => {
        const made = new Engine(runtime, CONFIG, { slots, stored: { weights: held(stored, floats) } });
        engines.push(made);
        return made;
      };
      const random = new Random(9);
      const long = Array.from({ length: 384 }, () => random.integer(CONFIG.vocabSize));
      const other = (at: number) => long.map((id, i) => (i === at ? (id + 1) % CONFIG.vocabSize : id));
      // The prompt, and the pieces of it that are run after the one before it.
      const turns = [
        { prompt: long.slice(0, 300), runs: 3 },
        { prompt: long.slice(0, 380), runs: 1 },
        { prompt: long.slice(0, 380), runs: 1 },
        { prompt: other(200).slice(0, 300), runs: 2 },
        { prompt: long.slice(0, 256), runs: 1 },
        { prompt: long.slice(0, 128), runs: 1 },
        { prompt: other(0).slice(0, 20), runs: 1 },
        { prompt: long.slice(0, 129), runs: 2 },
      ];
      try {
        const going = engine();
        // Binds what decodes, which is not to be counted.
        await going.generate([{ prompt: [1], samples: 2, seed: 1 }], OPTIONS);
        for (const { prompt, runs } of turns) {
          const asked = [{ prompt, samples: 2, seed: 1 }];
          pieces = 0;
          const said = await going.generate(asked, OPTIONS);
          expect(pieces, `${prompt.length} tokens`).toBe(runs);
          expect(said).toEqual(await engine().generate(asked, OPTIONS));
        }
      } finally {
        spy.mockRestore();
      }
    },
  );

  it("adopts no other weights", () => {
    const { ours } = pair(
      CONFIG,
      twins(CONFIG, () => "Q4_0"),
      { slots: 1 },
    );
    expect(() => ours.adopt({})).toThrow("an engine of stored weights adopts no others");
  });
});

describe("the weights", () => {
  const { stored, floats } = twins(CONFIG, (name) => (name.includes("mlp") ? "Q8_0" : "Q4_1"));
  const engineOver = (weights: StoredSource): Engine => {
    const engine = new Engine(runtime, CONFIG, { slots: 2, stored: { weights } });
    engines.push(engine);
    return engine;
  };

  it("are read once each, into memory that is another's as soon as they are laid out, and are right", async () => {
    const wide = { ...CONFIG, hiddenSize: 128, intermediateSize: 256, layers: 6, headDim: 32, vocabSize: 96 };
    const large = twins(wide, () => "Q4_0");
    const source = held(large.stored, large.floats);
    const read = new Set<string>();
    const rooms: Uint8Array[] = [];
    const counting: StoredSource = {
      ...source,
      async read(name, room) {
        expect(read.has(name), name).toBe(false);
        read.add(name);
        return source.read(name, (bytes) => {
          const given = room!(bytes);
          rooms.push(given);
          return given;
        });
      },
    };
    // What is laid out late is still as it was read.
    const load = runtime.load.bind(runtime);
    const spy = vi.spyOn(runtime, "load").mockImplementation(async (model, io) => {
      await new Promise((resolve) => setTimeout(resolve, 50));
      return load(model, io);
    });
    const stored = { weights: counting, activations: "f32" } as const;
    const engine = new Engine(runtime, wide, { slots: 2, stored });
    const twin = new Engine(runtime, wide, { slots: 2 });
    twin.adopt(deviceWeights(runtime, large.floats));
    engines.push(engine, twin);
    const short = requests.slice(0, 3);
    const said = await engine.generate(short, OPTIONS).finally(() => spy.mockRestore());
    const expected = await twin.generate(short, OPTIONS);
    expect(said.flat().map(({ ids }) => ids)).toEqual(expected.flat().map(({ ids }) => ids));
    expect([...read].sort()).toEqual(Object.keys(large.stored).sort());
    // Of four stages no more than three are under way: more is read into the memory of stages than there is of it.
    const shared = rooms.filter(({ buffer, byteLength }) => buffer.byteLength > byteLength);
    const memory = [...new Set(shared.map(({ buffer }) => buffer))];
    expect([rooms.length, memory.length <= 3]).toEqual([6 * 7 + 1, true]);
    const bytes = (all: readonly { readonly byteLength: number }[]): number =>
      all.reduce((sum, { byteLength }) => sum + byteLength, 0);
    expect(bytes(shared)).toBeGreaterThan(bytes(memory));
  });

  it("are all read, or one is found wrong, by the time that others may do their part", async () => {
    const source = held(stored, floats);
    let [read, fails] = [0, false];
    const counting: StoredSource = {
      ...source,
      async read(name, room) {
        if (fails && name === "model.norm.weight") throw new Error("gone");
        const weight = await source.read(name, room);
        read++;
        return weight;
      },
    };
    const sound = engineOver(counting);
    await sound.allRead;
    expect(read).toBe(Object.keys(stored).length);
    await sound.generate(requests.slice(0, 1), OPTIONS);
    expect(read).toBe(Object.keys(stored).length);
    fails = true;
    const engine = engineOver(counting);
    await engine.allRead;
    await expect(engine.generate(requests, OPTIONS)).rejects.toThrow("gone");
  });

  it("are closed with the engine, after what is being read", async () => {
    const source = held(stored, floats);
    const told: string[] = [];
    const engine = engineOver({
      ...source,
      async read(name) {
        const weight = await source.read(name);
        told.push(name);
        return weight;
      },
      async close() {
        told.push("closed");
      },
    });
    await engine.dispose();
    expect([told.length, told.at(-1)]).toEqual([Object.keys(stored).length + 1, "closed"]);
  });
});
