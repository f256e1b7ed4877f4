/**
 * Known traps, each a silent wrong result of the engine on some device: the lowered models are searched for them.
 * Every search is first shown a model with the trap in it.
 */

import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { grad } from "../../../src/compute/grad/reverse.ts";
import type { Graph, Value } from "../../../src/compute/graph/ir.ts";
import { exp, scatterAddLast, scatterAddRows, slice, sum } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { lowerToOnnx } from "../../../src/compute/onnx/lower.ts";
import {
  decodeModel,
  encodeModel,
  type ModelProto,
  type NodeProto,
} from "../../../src/compute/onnx/proto.ts";
import { compile } from "../../../src/compute/runtime/jit.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, hostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import { policyLoss } from "../../../src/learn/losses/grpo.ts";
import type { Loss } from "../../../src/learn/losses/loss.ts";
import { POLICY_LOSSES } from "../../../src/learn/losses/settings.ts";
import type { PackedBatch } from "../../../src/learn/optim/rows.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import { initializeLlama, type LlamaConfig } from "../../../src/model/arch/llama.ts";
import { type Arrays, createEngine, differentiableInputs, inputsOf, lossGraph } from "../harness.ts";
import { COMPOSITE_ROWS, PRIMITIVE_ROWS } from "../rows.ts";

/** A trap: which node of a training graph falls into it. */
const TRAPS: Readonly<Record<string, (node: NodeProto) => boolean>> = {
  // On two threads its additions at repeated indices race, and updates are lost.
  "ScatterND loses updates": ({ opType }) => opType === "ScatterND",
  // On WebGPU nothing ever writes the inverse deviation, the second output.
  "the second output of SimplifiedLayerNormalization is garbage": ({ opType, output }) =>
    opType === "SimplifiedLayerNormalization" && output.length > 1,
  // The gradient of a slice is a Concat with zeros, which every device has.
  "Pad is not portable": ({ opType }) => opType === "Pad",
  // Operators outside ONNX are for the engine's own optimiser to choose. Rotary embedding, which opset 18 lacks, exists
  // on every device.
  "com.microsoft operators are not portable": ({ domain, opType }) =>
    domain !== "" && opType !== "RotaryEmbedding",
};

function trapsIn({ graph }: ModelProto): string[] {
  return Object.entries(TRAPS).flatMap(([trap, isCaught]) => (graph.node.some(isCaught) ? [trap] : []));
}

const CONFIG: LlamaConfig = {
  vocabSize: 7,
  hiddenSize: 16,
  intermediateSize: 24,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  headDim: 8,
  rmsNormEpsilon: 1e-6,
  ropeTheta: 1e4,
  maxPositions: 8,
  tieEmbeddings: true,
};

const LOSSES: readonly Loss[] = [
  CROSS_ENTROPY,
  ...POLICY_LOSSES.map((loss) => policyLoss({ loss, kl: true, dualClip: true })),
];

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

/** The models a trainer really loads: two micro-batches of a loss, then an update. */
async function trainingModels(loss: Loss, matrices: "muon" | "adamw"): Promise<ModelProto[]> {
  const load = vi.spyOn(Runtime.prototype, "load");
  const trainer = Trainer.create(engine, CONFIG, initializeLlama(CONFIG, 1), { matrices });
  try {
    const ones = f32([1, 4], [1, 1, 1, 1]);
    const batch: PackedBatch = {
      ids: i32([1, 4], [1, 2, 3, 4]),
      positions: i32([1, 4], [0, 1, 0, 1]),
      segments: i32([1, 4], [0, 0, 1, 1]),
      targets: i32([1, 4], [2, 3, 4, 5]),
      weights: ones,
      extra: Object.fromEntries(loss.tokenInputs.map((name) => [name, ones])),
      tokens: 4,
    };
    const scalars = Object.fromEntries(loss.scalars.map((name) => [name, 1]));
    await trainer.accumulate(loss, batch, scalars);
    await trainer.accumulate(loss, batch, scalars);
    await trainer.apply({ adamW: 1e-3, muon: 1e-3 });
    return load.mock.calls.map(([model]) => model as ModelProto);
  } finally {
    await trainer.dispose();
    load.mockRestore();
  }
}

describe("the search", () => {
  const node = (opType: string, output: string[] = ["y"], domain = ""): NodeProto => ({
    opType,
    domain,
    input: ["x"],
    output,
    attribute: [],
  });

  it.each([
    ["ScatterND loses updates", node("ScatterND")],
    [
      "the second output of SimplifiedLayerNormalization is garbage",
      node("SimplifiedLayerNormalization", ["y", "r"]),
    ],
    ["Pad is not portable", node("Pad")],
    ["com.microsoft operators are not portable", node("FusedMatMul", ["y"], "com.microsoft")],
  ])("finds a model in which %s", (trap, bad) => {
    const model = encodeModel({
      irVersion: 9,
      producerName: "test",
      opsetImport: [{ domain: "", version: 18 }],
      graph: {
        name: "test",
        node: [node("Exp"), node("SimplifiedLayerNormalization"), bad],
        initializer: [],
        input: [],
        output: [],
      },
    });
    expect(trapsIn(decodeModel(model))).toEqual([trap]);
  });
});

describe("training graphs", () => {
  it.each(LOSSES.map((loss) => [loss.key, loss] as const))("of %s fall into no trap", async (_, loss) => {
    const models = await trainingModels(loss, "muon");
    expect(models).toHaveLength(3);
    expect(models.flatMap(trapsIn)).toEqual([]);
    // The search looked at what it is about: there are norms, rotations and scattered gradients in there.
    const operators = new Set(models.flatMap(({ graph }) => graph.node.map(({ opType }) => opType)));
    for (const opType of ["SimplifiedLayerNormalization", "RotaryEmbedding", "ScatterElements"]) {
      expect(operators).toContain(opType);
    }
  });

  it("of AdamW alone fall into no trap", async () => {
    expect((await trainingModels(CROSS_ENTROPY, "adamw")).flatMap(trapsIn)).toEqual([]);
  });

  it("of every differentiable row fall into no trap", () => {
    const caught = [...Object.values(PRIMITIVE_ROWS), ...Object.values(COMPOSITE_ROWS)]
      .flat()
      .flatMap((row) => {
        const arrays = inputsOf(row);
        const wrt = differentiableInputs(row, arrays);
        if (wrt.length === 0) return [];
        const model = lowerToOnnx(lossGraph(row, arrays, wrt).graph);
        return trapsIn(model).map((trap) => `${row.name}: ${trap}`);
      });
    expect(caught).toEqual([]);
  });

  it("differentiate a slice by Concat with zeros", () => {
    const graph = trace({ x: { dtype: "f32", shape: [5, 2] } }, ({ x }) => ({
      g: grad(sum(exp(slice(x, 0, 1, 3))), [x])[0]!,
    }));
    const operators = lowerToOnnx(graph).graph.node.map(({ opType }) => opType);
    expect(operators).toContain("Concat");
  });
});

describe("adding up at repeated indices, on two threads", () => {
  const COUNT = 8192;
  const WIDTH = 64;
  /** As many different indices: each is hit COUNT / DISTINCT times, so that threads meet. */
  const DISTINCT = 4;
  const RUNS = 20;

  // Small whole numbers: every order of addition gives the same float32, so that any lost update shows.
  const updates = hostArray("f32", [COUNT, WIDTH]);
  const indices = i32(
    [COUNT],
    Array.from({ length: COUNT }, (_, i) => (i * 7) % DISTINCT),
  );
  for (let i = 0; i < updates.data.length; i++) updates.data[i] = ((i * 31) % 17) - 8;

  function expectedRows(rows: number): Float32Array {
    const result = new Float32Array(rows * WIDTH);
    for (let i = 0; i < updates.data.length; i++) {
      result[indices.data[Math.floor(i / WIDTH)]! * WIDTH + (i % WIDTH)]! += updates.data[i]!;
    }
    return result;
  }

  async function expectExact(graph: Graph, arrays: Arrays, expected: Float32Array): Promise<void> {
    const { program } = await compile(engine, graph);
    const inputs = Object.fromEntries(
      Object.entries(arrays).map(([name, { dtype, shape, data }]) => [
        name,
        engine.tensor(dtype, shape, data),
      ]),
    );
    const y = engine.tensor("f32", graph.outputs.get("y")!.shape);
    const call = program.bind(inputs, { y });
    for (let run = 0; run < RUNS; run++) {
      await call.run();
      const wrong = y.data.findIndex((value, i) => value !== expected[i]);
      expect(wrong, `run ${run}: element ${wrong} is ${y.data[wrong]}, not ${expected[wrong]}`).toBe(-1);
    }
    program.dispose();
  }

  it.each([
    ["one-hot", 64],
    ["one-hot", 1024],
    ["ScatterElements", 1025],
    ["ScatterElements", 2048],
  ])("scatterAddRows is exact (%s, %i rows)", async (_, rows) => {
    const graph = trace(
      { ids: { dtype: "i32", shape: [COUNT] }, updates: { dtype: "f32", shape: [COUNT, WIDTH] } },
      ({ ids, updates }: { ids: Value; updates: Value }) => ({ y: scatterAddRows(ids, updates, rows) }),
    );
    await expectExact(graph, { ids: indices, updates }, expectedRows(rows));
  });

  it("scatterAddLast is exact", async () => {
    const last = hostArray("f32", [WIDTH, COUNT]);
    const columns = hostArray("i32", [WIDTH, COUNT]);
    const expected = new Float32Array(WIDTH * DISTINCT);
    for (let i = 0; i < last.data.length; i++) {
      last.data[i] = updates.data[i]!;
      columns.data[i] = indices.data[i % COUNT]!;
      expected[Math.floor(i / COUNT) * DISTINCT + columns.data[i]!]! += last.data[i]!;
    }
    const shape = [WIDTH, COUNT];
    const graph = trace(
      { columns: { dtype: "i32", shape }, last: { dtype: "f32", shape } },
      ({ columns, last }: { columns: Value; last: Value }) => ({
        y: scatterAddLast(columns, last, DISTINCT),
      }),
    );
    await expectExact(graph, { columns, last }, expected);
  });
});
