/** Adapters by hand, and a model with them against the same model with them taken into its matrices. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import {
  ADAPTER_TARGETS,
  type AdapterConfig,
  adapterNames,
  mergeAdapter,
} from "../../../src/model/arch/adapters.ts";
import { freshWeights } from "../../../src/model/arch/architecture.ts";
import { type LlamaConfig, llamaParameters, llamaTrain } from "../../../src/model/arch/llama.ts";
import { modelParameters } from "../../../src/model/arch/models.ts";
import { withAdaptersMerged } from "../../../src/model/checkpoint/adapter.ts";
import { linear } from "../../../src/model/nn/layers.ts";
import { createEngine, expectClose, runOnEngine, specsOf } from "../../compute/harness.ts";
import { opinionatedWeights, TINY } from "../models.ts";

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

const all: AdapterConfig = { rank: 3, alpha: 6, targets: ADAPTER_TARGETS };
const adapted: LlamaConfig = { ...TINY, adapters: all };

describe("an adapter", () => {
  // x = (1, 2), W = [[1, 0], [0, 1], [1, 1]], r = 1, A = [3, −1], B = (1, 0, 2), α/r = 1/2:
  // W·x = (1, 2, 3), A·x = 1, so that W·x + ½·B·1 = (1.5, 2, 4).
  const weight = f32([3, 2], [1, 0, 0, 1, 1, 1]);
  const a = f32([1, 2], [3, -1]);
  const b = f32([3, 1], [1, 0, 2]);

  it("adds (α/r)·B·(A·x)", () => {
    const arrays = { x: f32([1, 2], [1, 2]), weight, a, b };
    const graph = trace(specsOf(arrays), (inputs) => {
      const { x, weight, a, b } = inputs as Record<keyof typeof arrays, Value>;
      return { y: linear(x, { weight, a, b, scale: 0.5 }) };
    });
    expect([...interpret(graph, arrays)["y"]!.data]).toEqual([1.5, 2, 4]);
  });

  it("taken into its matrix, is W + (α/r)·B·A", () => {
    expect([...mergeAdapter(weight, a, b, 0.5).data]).toEqual([2.5, -0.5, 0, 1, 4, 0]);
    expect([...weight.data]).toEqual([1, 0, 0, 1, 1, 1]);
  });
});

describe("a model with adapters", () => {
  const specs = modelParameters(adapted).filter(({ kind }) => kind === "adapter");

  it("has two for each target, after its own tensors, B zeros and A not", () => {
    expect(llamaParameters(adapted).slice(0, llamaParameters(TINY).length)).toEqual(llamaParameters(TINY));
    expect(specs).toHaveLength(2 * ADAPTER_TARGETS.length * TINY.layers);
    const weights = freshWeights(specs, 1);
    for (const [name, { data }] of Object.entries(weights)) {
      expect(data.every((x) => x === 0)).toBe(name.includes("lora_B"));
    }
    expect(weights["model.layers.1.mlp.down_proj.lora_A.weight"]!.shape).toEqual([3, TINY.intermediateSize]);
    expect(weights["model.layers.1.mlp.down_proj.lora_B.weight"]!.shape).toEqual([TINY.hiddenSize, 3]);
  });

  it("has them for the targets alone", () => {
    const adapters = { ...all, targets: ["q_proj"] };
    const names = modelParameters({ ...TINY, adapters }).flatMap(({ name, kind }) =>
      kind === "adapter" ? [name] : [],
    );
    const { a, b } = adapterNames("model.layers.0.self_attn.q_proj.weight");
    expect(names.slice(0, 2)).toEqual([a, b]);
    expect(names).toHaveLength(2 * TINY.layers);
  });

  const base = opinionatedWeights(TINY, 3);
  const batch = {
    ids: i32([1, 6], [1, 2, 3, 4, 5, 6]),
    positions: i32([1, 6], [0, 1, 2, 3, 4, 5]),
    segments: i32([1, 6], [1, 1, 1, 1, 1, 1]),
  };
  const logitsOf = async (weights: Record<string, HostArray<"f32">>, config: LlamaConfig) => {
    const arrays = { ...weights, ...batch };
    const graph = trace(specsOf(arrays), (x) => ({
      logits: llamaTrain(x, x as Record<"ids" | "positions" | "segments", Value>, config),
    }));
    return (await runOnEngine(engine, graph, arrays))["logits"] as HostArray<"f32">;
  };

  it("begins as the model it adapts", async () => {
    const logits = await logitsOf({ ...base, ...freshWeights(specs, 1) }, adapted);
    expect(logits.data).toEqual((await logitsOf(base, TINY)).data);
  });

  it("is the same function as the model they are merged into", async () => {
    const random = new Random(8);
    const tensors = freshWeights(specs, 1);
    for (const { data } of Object.values(tensors))
      for (const i of data.keys()) data[i] = 0.3 * random.normal();
    const beside = await logitsOf({ ...base, ...tensors }, adapted);
    const merged = withAdaptersMerged("here", base, { tensors, scale: all.alpha / all.rank });
    const within = await logitsOf(merged, TINY);
    expectClose("logits", beside, within, { relative: 1e-4, floor: 1e-4 });
    // And no longer the model it was.
    const before = await logitsOf(base, TINY);
    expect(Math.max(...within.data.map((x, i) => Math.abs(x - before.data[i]!)))).toBeGreaterThan(0.1);
    // Tensors without an adapter are shared, not copied.
    expect(merged["model.norm.weight"]).toBe(base["model.norm.weight"]);
  });
});
