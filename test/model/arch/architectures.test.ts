/** Every architecture against transformers, from test/reference/architectures.py. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { grad } from "../../../src/compute/grad/reverse.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { add, mul, neg, sum } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { logSoftmax } from "../../../src/compute/ops/stable.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { type Shape, sizeOf } from "../../../src/compute/tensor/shape.ts";
import {
  architectureOf,
  initializeModel,
  type ModelConfig,
  modelConfigJson,
  modelParameters,
  parseModelConfig,
} from "../../../src/model/arch/models.ts";
import { loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { openSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { toF32 } from "../../../src/model/checkpoint/widen.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { createEngine, expectClose, runOnEngine, specsOf, type Tolerance } from "../../compute/harness.ts";
import { fixturePath, readFixture, type StoredArray, toHost } from "../../fixture.ts";

const NAMES = [
  "arch-llama-tied",
  "arch-llama-grouped",
  "arch-llama-wide",
  "arch-llama3",
  "arch-qwen2",
  "arch-qwen2-tied",
  "arch-deepseek-plain",
  "arch-deepseek-yarn",
  "arch-deepseek-mtp",
];

/** What expected.json holds. */
interface Expected {
  readonly inputIds: StoredArray<"i32">;
  readonly targets: StoredArray<"i32">;
  /** Where there is a drafting module. */
  readonly afterNext?: StoredArray<"i32">;
  readonly loss: number;
  readonly greedy: {
    readonly prompt: StoredArray<"i32">;
    readonly continuation: StoredArray<"i32">;
    readonly smallestMargin: number;
  };
}

/** Largest logits are near 10; float32 rounding through three layers leaves some 1e-6 of that. */
const LOGITS: Tolerance = { relative: 0, floor: 1e-5 };
const GRADIENTS: Tolerance = { relative: 1e-4, floor: 3e-5 };

const readExpected = (name: string): Expected => readFixture<Expected>(`${name}/expected.json`);

/** What expected.safetensors holds: `logits`, `mtpLogits` where there is a module, and `gradient.NAME`. */
async function readTensors(name: string): Promise<Record<string, HostArray<"f32">>> {
  const source = await openSafetensors(fixturePath(`${name}/expected.safetensors`));
  const tensors: Record<string, HostArray<"f32">> = {};
  for (const tensor of source.tensors.keys()) tensors[tensor] = toF32(await source.read(tensor), tensor);
  await source.close();
  return tensors;
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

const reshaped = (array: HostArray<"f32">, shape: Shape): HostArray<"f32"> => ({ ...array, shape });

/** The mean cross-entropy of targets given one-hot. @param logits [N, V]; @param oneHot f32[N, V] */
const crossEntropy = (logits: Value, oneHot: Value): Value =>
  mul(neg(sum(mul(logSoftmax(logits), oneHot))), 1 / logits.shape[0]!);

function oneHot({ data }: StoredArray<"i32">, vocab: number): HostArray<"f32"> {
  const array = new Float32Array(data.length * vocab);
  for (const [i, id] of data.entries()) array[i * vocab + id] = 1;
  return { dtype: "f32", shape: [data.length, vocab], data: array };
}

/** Logits, those of the drafting module, the loss as the reference script defines it, and its gradients. */
async function trainedOn(
  config: ModelConfig,
  weights: Readonly<Record<string, HostArray<"f32">>>,
  known: Expected,
): Promise<Record<string, HostArray>> {
  const architecture = architectureOf(config);
  const arrays = {
    ...weights,
    ...plainBatch(toHost(known.inputIds)),
    next: toHost(known.targets),
    targets: oneHot(known.targets, config.vocabSize),
    ...(known.afterNext ? { afterNext: oneHot(known.afterNext, config.vocabSize) } : {}),
  };
  const trained = modelParameters(config).filter(({ kind }) => kind !== "correction");
  const graph = trace(specsOf(arrays), (x: Record<string, Value>) => {
    const batch = { ids: x["ids"]!, positions: x["positions"]!, segments: x["segments"]! };
    const { logits, hidden } = architecture.train(x, batch, config);
    const outputs: Record<string, Value> = { logits };
    let loss = crossEntropy(logits, x["targets"]!);
    if (known.afterNext) {
      const draft = architecture
        .draft(config)!
        .train(x, hidden, { ...batch, next: x["next"]! }, config).logits;
      outputs["mtpLogits"] = draft;
      loss = add(loss, mul(crossEntropy(draft, x["afterNext"]!), 0.3));
    }
    outputs["loss"] = loss;
    const gradients = grad(
      loss,
      trained.map(({ name }) => x[name]!),
    );
    for (const [i, { name }] of trained.entries()) outputs[`gradient.${name}`] = gradients[i]!;
    return outputs;
  });
  return runOnEngine(engine, graph, arrays);
}

describe.each(NAMES)("%s", (name) => {
  it("has transformers' logits, loss and gradients", async () => {
    const { config, tensors } = await loadModelWeights(fixturePath(name));
    const [known, expected] = [readExpected(name), await readTensors(name)];
    const { loss, ...ours } = await trainedOn(config, tensors, known);
    expect(Number(loss!.data[0])).toBeCloseTo(known.loss, 5);
    expect(new Set(Object.keys(ours))).toEqual(new Set(Object.keys(expected)));
    for (const [tensor, array] of Object.entries(ours)) {
      const tolerance = tensor.startsWith("gradient.") ? GRADIENTS : LOGITS;
      expectClose(tensor, array, reshaped(expected[tensor]!, array.shape), tolerance);
    }
  });

  it("continues a prompt greedily as transformers does, for 64 tokens", async () => {
    const { config, tensors } = await loadModelWeights(fixturePath(name));
    const { greedy } = readExpected(name);
    expect(greedy.continuation.data).toHaveLength(64);
    const generator = new Engine(engine, config, { slots: 2 });
    generator.adopt(deviceWeights(engine, tensors));
    const completions = await generator.generate([{ prompt: greedy.prompt.data, samples: 1, seed: 0 }], {
      temperature: 0,
      maxNewTokens: 64,
      stopIds: [],
    });
    expect(completions[0]![0]!.ids).toEqual(greedy.continuation.data);
    await generator.dispose();
  });

  it("has a config that is read back as it was, and tensors that are those of its file", async () => {
    const { config, extra, tensors } = await loadModelWeights(fixturePath(name));
    expect(parseModelConfig("config.json", modelConfigJson({ config, extra }))).toEqual({ config, extra });
    const shapes = Object.entries(tensors).map(([tensor, { shape }]) => [tensor, shape]);
    expect(shapes).toEqual(modelParameters(config).map((spec) => [spec.name, spec.shape]));
  });

  it("starts from weights of the right spread", async () => {
    const { config } = await loadModelWeights(fixturePath(name));
    const fresh = initializeModel(config, 3);
    for (const { name: tensor, shape, kind, initialStd } of modelParameters(config)) {
      const { data } = fresh[tensor]!;
      if (initialStd === 0) {
        expect([...new Set(data)], tensor).toEqual([kind === "norm" ? 1 : 0]);
        continue;
      }
      const std = Math.sqrt(data.reduce((a, b) => a + b * b, 0) / sizeOf(shape));
      expect(Math.abs(std / initialStd - 1), tensor).toBeLessThan(5 / Math.sqrt(2 * sizeOf(shape)));
    }
  });
});
