/** The architecture against transformers' LlamaForCausalLM, from test/reference/llama.py and architectures.py. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, ShapeError } from "../../../src/base/errors.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { compile } from "../../../src/compute/runtime/jit.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { sizeOf } from "../../../src/compute/tensor/shape.ts";
import {
  cacheShape,
  checkLlamaConfig,
  initializeLlama,
  type LlamaConfig,
  llamaDecode,
  llamaParameters,
  llamaTrain,
} from "../../../src/model/arch/llama.ts";
import { parameterCount, weightSpecs } from "../../../src/model/arch/models.ts";
import { numeralFeatures } from "../../../src/model/arch/numerals.ts";
import { loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { readSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { toF32 } from "../../../src/model/checkpoint/widen.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { createEngine, expectClose, runOnEngine, specsOf, type Tolerance } from "../../compute/harness.ts";
import { fixturePath, readFixture, type StoredArray, toHost } from "../../fixture.ts";
import { TINY } from "../models.ts";

/** What expected.json holds; of a model that decodes, the logits lie in expected.safetensors. */
interface Expected {
  readonly inputIds: StoredArray<"i32">;
  readonly logits: StoredArray<"f32">;
}

/** Largest logits are near 8; float32 rounding through three layers leaves some 1e-6 of that. */
const LOGITS: Tolerance = { relative: 0, floor: 1e-5 };

/** A fixture's config and weights. */
async function loadLlama(name: string) {
  const { config, tensors } = await loadModelWeights(fixturePath(name));
  if (config.modelType === "deepseek_v3") throw new Error(`${name} is no llama`);
  return { config, tensors };
}

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

/** Positions 0 … T − 1 in every row, all of one segment. */
function plainBatch(ids: HostArray<"i32">): Record<"ids" | "positions" | "segments", HostArray<"i32">> {
  const positions = i32(
    ids.shape,
    Array.from(ids.data, (_, i) => i % ids.shape[1]!),
  );
  return { ids, positions, segments: i32(ids.shape, new Int32Array(ids.data.length).fill(1)) };
}

async function trainLogits(
  weights: Readonly<Record<string, HostArray>>,
  batch: Readonly<Record<string, HostArray>>,
  config: LlamaConfig,
): Promise<HostArray> {
  const arrays = { ...weights, ...batch };
  const graph = trace(specsOf(arrays), (x: Record<string, Value>) => ({
    logits: llamaTrain(x, { ids: x["ids"]!, positions: x["positions"]!, segments: x["segments"]! }, config),
  }));
  return (await runOnEngine(engine, graph, arrays))["logits"]!;
}

/**
 * Logits [B, T, V] of the decoding forward: the first `prompt` tokens at once, then one at a time over the cache.
 * Logits of the prompt but its last token are not computed, and left NaN.
 */
async function decodeLogits(
  weights: Readonly<Record<string, HostArray<"f32">>>,
  ids: HostArray<"i32">,
  prompt: number,
  config: LlamaConfig,
): Promise<Float32Array> {
  const [B, T] = ids.shape as readonly [number, number];
  const V = config.vocabSize;
  const tensors = deviceWeights(engine, weights);
  const cache = cacheShape(config, B, T);
  const caches = Array.from({ length: config.layers }, () => ({
    keys: engine.tensor("f32", cache),
    values: engine.tensor("f32", cache),
  }));
  const result = new Float32Array(B * T * V).fill(Number.NaN);
  for (let at = 0; at < T; ) {
    const width = at === 0 ? prompt : 1;
    const specs = {
      ...weightSpecs(config),
      ids: { dtype: "i32", shape: [B, width] },
      lengths: { dtype: "i32", shape: [B] },
      total: { dtype: "i32", shape: [1] },
      last: { dtype: "i32", shape: [B] },
      ...Object.fromEntries(
        caches.flatMap((_, layer) =>
          ["keys", "values"].map((part) => [`${part}${layer}`, { dtype: "f32" as const, shape: cache }]),
        ),
      ),
    } as const;
    const graph = trace(specs, (x: Record<string, Value>) => {
      const inputs = { ids: x["ids"]!, lengths: x["lengths"]!, total: x["total"]!, last: x["last"]! };
      const past = caches.map((_, layer) => ({ keys: x[`keys${layer}`]!, values: x[`values${layer}`]! }));
      const { logits, caches: next } = llamaDecode(x, inputs, past, config);
      const outputs = next.flatMap(({ keys, values }, layer) => [
        [`nextKeys${layer}`, keys] as const,
        [`nextValues${layer}`, values] as const,
      ]);
      return { logits, ...Object.fromEntries(outputs) };
    });
    const { program } = await compile(engine, graph, {
      inPlace: caches.flatMap((_, layer) => [
        [`keys${layer}`, `nextKeys${layer}`] as const,
        [`values${layer}`, `nextValues${layer}`] as const,
      ]),
    });
    const slice = Array.from({ length: B }, (_, b) => [
      ...ids.data.subarray(b * T + at, b * T + at + width),
    ]).flat();
    const logits = engine.tensor("f32", [B, V]);
    const memory = caches.flatMap(({ keys, values }, layer) => [
      [`keys${layer}`, keys] as const,
      [`values${layer}`, values] as const,
    ]);
    const call = program.bind(
      {
        ...tensors,
        ids: engine.tensor("i32", [B, width], slice),
        lengths: engine.tensor("i32", [B], new Array<number>(B).fill(at + width - 1)),
        total: engine.tensor("i32", [1], [at + width]),
        last: engine.tensor(
          "i32",
          [B],
          Array.from({ length: B }, (_, b) => b * width + width - 1),
        ),
        ...Object.fromEntries(memory),
      },
      {
        logits,
        ...Object.fromEntries(
          memory.map(([name, tensor]) => [`next${name[0]!.toUpperCase()}${name.slice(1)}`, tensor]),
        ),
      },
    );
    await call.run();
    program.dispose();
    at += width;
    for (let b = 0; b < B; b++) result.set(logits.data.subarray(b * V, (b + 1) * V), (b * T + at - 1) * V);
  }
  return result;
}

describe("heads 8 wide", () => {
  it("have transformers' logits in training", async () => {
    const { config, tensors } = await loadLlama("llama-gqa");
    const { inputIds, logits } = readFixture<Expected>("llama-gqa/expected.json");
    const ours = await trainLogits(tensors, plainBatch(toHost(inputIds)), config);
    const flat = { ...toHost(logits), shape: ours.shape };
    expectClose("logits", ours, flat, LOGITS);
  });
});

describe.each(["arch-llama-wide", "arch-llama-tied"])("%s", (name) => {
  it.each([1, 4])("computes transformers' logits over a cache, %i tokens first", async (prompt) => {
    const { config, tensors } = await loadLlama(name);
    const { inputIds } = readFixture<Pick<Expected, "inputIds">>(`${name}/expected.json`);
    const { tensors: stored } = await readSafetensors(fixturePath(`${name}/expected.safetensors`));
    const logits = toF32(stored.get("logits")!, "logits");
    const ours = await decodeLogits(tensors, toHost(inputIds), prompt, config);
    const known = Array.from(ours, (x) => (Number.isNaN(x) ? 0 : 1));
    expect(known.filter((k) => k === 0)).toHaveLength(inputIds.shape[0]! * (prompt - 1) * config.vocabSize);
    expectClose("logits", f32(logits.shape, ours), logits, LOGITS, known);
  });
});

describe("packing", () => {
  const ids = [3, 1, 4, 1, 5, 9, 2, 6];
  const rows = { ...TINY, vocabSize: 11 };
  const weights = initializeLlama(rows, 5);

  it("does not change the logits, whatever the neighbours and the padding", async () => {
    const V = rows.vocabSize;
    const alone = await trainLogits(weights, plainBatch(i32([1, 5], ids.slice(0, 5))), rows);
    const other = await trainLogits(weights, plainBatch(i32([1, 3], ids.slice(5))), rows);
    const packed = await trainLogits(
      weights,
      {
        ids: i32([1, 12], [7, 8, ...ids, 0, 0]),
        positions: i32([1, 12], [0, 1, 0, 1, 2, 3, 4, 0, 1, 2, 0, 0]),
        segments: i32([1, 12], [1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 0, 0]),
      },
      rows,
    );
    const part = (from: number, to: number) =>
      f32([to - from, V], packed.data.subarray(from * V, to * V) as Float32Array);
    expectClose("first", part(2, 7), alone, LOGITS);
    expectClose("second", part(7, 10), other, LOGITS);
  });

  it("goes into rows longer than the longest sequence the model takes", async () => {
    const batch = plainBatch(i32([1, 12], [...ids, 7, 8, 3, 1]));
    const packed = {
      ...batch,
      positions: i32([1, 12], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]),
      segments: i32([1, 12], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]),
    };
    const short = await trainLogits(weights, packed, { ...rows, maxPositions: 6 });
    const long = await trainLogits(weights, packed, rows);
    expectClose("logits", short as HostArray<"f32">, long as HostArray<"f32">, LOGITS);
  });

  it("lets a token see no later one", async () => {
    const before = await trainLogits(weights, plainBatch(i32([1, 5], ids.slice(0, 5))), rows);
    const after = await trainLogits(weights, plainBatch(i32([1, 5], [...ids.slice(0, 4), 10])), rows);
    const V = rows.vocabSize;
    expect([...after.data.subarray(0, 4 * V)]).toEqual([...before.data.subarray(0, 4 * V)]);
    expect([...after.data.subarray(4 * V)]).not.toEqual([...before.data.subarray(4 * V)]);
  });
});

describe("parameters", () => {
  it("are counted as by hand", () => {
    // Embedding and head 2·20·32; a layer: norms 2·32, q and o 2·32·32, k and v 2·16·32, feed-forward 3·48·32; norm 32.
    const gqa: LlamaConfig = {
      ...TINY,
      vocabSize: 20,
      hiddenSize: 32,
      intermediateSize: 48,
      heads: 4,
      kvHeads: 2,
      headDim: 8,
      layers: 2,
    };
    expect(parameterCount(gqa)).toBe(2 * 640 + 2 * (64 + 2048 + 1024 + 4608) + 32);
    expect(parameterCount({ ...gqa, tieEmbeddings: true })).toBe(640 + 2 * (64 + 2048 + 1024 + 4608) + 32);
    // SmolLM-135M's shape, as its model card counts it: 134.5 M.
    const smol: LlamaConfig = {
      vocabSize: 49_152,
      hiddenSize: 576,
      intermediateSize: 1536,
      layers: 30,
      heads: 9,
      kvHeads: 3,
      headDim: 64,
      rmsNormEpsilon: 1e-5,
      ropeTheta: 1e4,
      maxPositions: 2048,
      tieEmbeddings: true,
    };
    expect(parameterCount(smol)).toBe(134_515_008);
  });

  it("are those of the files, by name and shape", async () => {
    for (const name of ["llama-gqa", "arch-llama-tied", "arch-llama-wide"]) {
      const { config, tensors } = await loadLlama(name);
      expect(Object.entries(tensors).map(([n, { shape }]) => [n, shape])).toEqual(
        llamaParameters(config).map(({ name: n, shape }) => [n, shape]),
      );
    }
  });

  it("start from their standard deviation, norms from 1, and depend on the seed alone", () => {
    const config: LlamaConfig = {
      ...TINY,
      hiddenSize: 64,
      intermediateSize: 128,
      heads: 4,
      layers: 3,
      vocabSize: 100,
    };
    const weights = initializeLlama(config, 3);
    for (const { name, shape, kind, initialStd } of llamaParameters(config)) {
      const { data } = weights[name]!;
      if (kind === "norm") {
        expect([...new Set(data)]).toEqual([1]);
        continue;
      }
      const n = sizeOf(shape);
      const mean = data.reduce((a, b) => a + b, 0) / n;
      const std = Math.sqrt(data.reduce((a, b) => a + b * b, 0) / n);
      // Five standard errors of the mean and of the deviation of n normal numbers.
      expect(Math.abs(mean) / initialStd, name).toBeLessThan(5 / Math.sqrt(n));
      expect(Math.abs(std / initialStd - 1), name).toBeLessThan(5 / Math.sqrt(2 * n));
    }
    expect(initializeLlama(config, 3)).toEqual(weights);
    expect(initializeLlama(config, 4)["lm_head.weight"]).not.toEqual(weights["lm_head.weight"]);
  });
});

describe("a configuration", () => {
  it.each([
    [
      { kvHeads: 3, heads: 8 },
      /llama config: kvHeads: must divide heads \(8\); got 3\. Set it to 1, 2, 4, 8\./,
    ],
    [{ headDim: 7 }, /headDim: must be even, for rotary pairs; got 7/],
    [{ layers: 0 }, /layers: must be a positive integer; got 0/],
    [{ vocabSize: 2.5 }, /vocabSize: must be a positive integer; got 2\.5/],
    [{ rmsNormEpsilon: 0 }, /rmsNormEpsilon: must be positive; got 0/],
    [{ ropeTheta: Number.NaN }, /ropeTheta: must be positive; got NaN/],
  ])("%o is refused, with the rule", (change, message) => {
    const check = () => checkLlamaConfig({ ...TINY, ...change });
    expect(check).toThrow(ConfigError);
    expect(check).toThrow(message);
    expect(() => initializeLlama({ ...TINY, ...change }, 1)).toThrow(message);
  });

  it("of narrow heads trains, but the decoding kernel refuses it by name", async () => {
    const { config } = await loadLlama("llama-gqa");
    const decode = () =>
      trace(
        {
          ...weightSpecs(config),
          ids: { dtype: "i32", shape: [1, 1] },
          lengths: { dtype: "i32", shape: [1] },
          total: { dtype: "i32", shape: [1] },
          keys: { dtype: "f32", shape: cacheShape(config, 1, 8) },
          values: { dtype: "f32", shape: cacheShape(config, 1, 8) },
        },
        (x: Record<string, Value>) => {
          const caches = Array.from({ length: config.layers }, () => ({
            keys: x["keys"]!,
            values: x["values"]!,
          }));
          const inputs = { ids: x["ids"]!, lengths: x["lengths"]!, total: x["total"]! };
          return { logits: llamaDecode(x, inputs, caches, config).logits };
        },
      );
    expect(decode).toThrow(ShapeError);
    expect(decode).toThrow(/D must be a multiple of 16; got D=8/);
  });

  it.each([
    "model.embed_tokens.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
  ])("is refused without %s", (missing) => {
    const specs = Object.fromEntries(Object.entries(weightSpecs(TINY)).filter(([name]) => name !== missing));
    const build = () =>
      trace({ ...specs, ids: { dtype: "i32", shape: [1, 2] } }, (x: Record<string, Value>) => ({
        logits: llamaTrain(x, { ids: x["ids"]!, positions: x["ids"]!, segments: x["ids"]! }, TINY),
      }));
    expect(build).toThrow(ConfigError);
    expect(build).toThrow(`llama: needs the weight ${missing}`);
  });
});

describe("numerals", () => {
  const config: LlamaConfig = {
    ...TINY,
    hiddenSize: 256,
    heads: 4,
    kvHeads: 4,
    vocabSize: 60,
    tieEmbeddings: false,
  };
  // Token 10 + n says n.
  const numerals = new Map(Array.from({ length: 50 }, (_, n) => [10 + n, n]));
  const plain = initializeLlama(config, 3);
  const weights = initializeLlama(config, 3, { numerals });
  const row = (name: string, id: number) => weights[name]!.data.subarray(id * 256, (id + 1) * 256);
  const cosine = (a: Float32Array, b: Float32Array) => {
    const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, value, i) => sum + value * y[i]!, 0);
    return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  };

  it("are points on circles", () => {
    // 5 is half a turn of the period 10, and a quarter turn of the period 20.
    const features = numeralFeatures(5);
    expect(features.slice(4, 6)).toEqual([expect.closeTo(-1, 12), expect.closeTo(0, 12)]);
    expect(features.slice(6, 8)).toEqual([expect.closeTo(0, 12), expect.closeTo(1, 12)]);
    // log 1 = 0 stands at the beginning of every circle of the logarithm.
    expect(numeralFeatures(1).slice(-12)).toEqual([1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]);
  });

  it("begin with the angles between them that their features have", () => {
    const squared = numeralFeatures(0).length / 2;
    for (const [m, n] of [
      [3, 4],
      [3, 13],
      [20, 40],
      [7, 49],
    ] as const) {
      const features = numeralFeatures(m);
      const expected = numeralFeatures(n).reduce((sum, value, f) => sum + value * features[f]!, 0) / squared;
      for (const name of ["model.embed_tokens.weight", "lm_head.weight"]) {
        // Random directions of width 256 are at right angles within about 1/16.
        expect(Math.abs(cosine(row(name, 10 + m), row(name, 10 + n)) - expected), name).toBeLessThan(0.2);
      }
    }
  });

  it("leave every other weight as it was", () => {
    for (const [name, { data }] of Object.entries(plain)) {
      const touched = name === "model.embed_tokens.weight" || name === "lm_head.weight";
      const kept = touched ? 10 * 256 : data.length;
      expect(weights[name]!.data.subarray(0, kept)).toEqual(data.subarray(0, kept));
    }
    const spread = (name: string) =>
      Math.sqrt(row(name, 31).reduce((sum, value) => sum + value * value, 0) / 256);
    expect(spread("model.embed_tokens.weight")).toBeGreaterThan(0.7);
    expect(spread("model.embed_tokens.weight")).toBeLessThan(1.3);
    expect(spread("lm_head.weight")).toBeCloseTo(1 / 16, 1);
  });
});
