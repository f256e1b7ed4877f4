import { describe, expect, it } from "vitest";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import { type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import {
  initializeLlama,
  type LlamaConfig,
  llamaParameters,
  llamaTrain,
} from "../../../src/model/arch/llama.ts";
import { type LlamaWeights, padHeads } from "../../../src/model/checkpoint/pad-heads.ts";

const CONFIG: LlamaConfig = {
  vocabSize: 11,
  hiddenSize: 12,
  intermediateSize: 16,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  headDim: 8,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 10_000,
  maxPositions: 16,
  tieEmbeddings: false,
};

function logitsOf({ config, tensors }: LlamaWeights): number[] {
  const T = 9;
  const inputs: Record<string, HostArray> = {
    ...tensors,
    ids: i32([1, T], [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    positions: i32([1, T], Array(T).keys()),
    segments: i32([1, T], Array(T).fill(1)),
  };
  const graph = trace(inputs, (values) => {
    const batch = { ids: values["ids"]!, positions: values["positions"]!, segments: values["segments"]! };
    return { logits: llamaTrain(values, batch, config) };
  });
  return Array.from(interpret(graph, inputs)["logits"]!.data, Number);
}

describe("padHeads", () => {
  it.each([
    [8, 16],
    [6, 48],
    [20, 80],
  ])("computes the same with heads of %i as with %i", (headDim, wide) => {
    const config = { ...CONFIG, headDim };
    const model = { config, tensors: initializeLlama(config, 3) };
    const padded = padHeads(model, 16);
    expect(padded.config).toEqual({ ...config, headDim: wide });
    for (const { name, shape } of llamaParameters(padded.config)) {
      expect(padded.tensors[name]!.shape, name).toEqual(shape);
    }
    const [ours, theirs] = [logitsOf(padded), logitsOf(model)];
    // Logits are of size 0.1 to 1; only the queries round, once more than before.
    const worst = Math.max(...ours.map((x, i) => Math.abs(x - theirs[i]!)));
    expect(worst).toBeLessThan(1e-6);
    expect(Math.max(...theirs.map(Math.abs))).toBeGreaterThan(0.1);
  });

  it("leaves a model alone whose heads are wide enough", () => {
    const config = { ...CONFIG, headDim: 32 };
    const model = { config, tensors: initializeLlama(config, 3) };
    expect(padHeads(model, 16)).toBe(model);
  });
});
