import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { initializeLlama, type LlamaConfig } from "../../../src/model/arch/llama.ts";
import { loadModelFolder, saveModelFolder } from "../../../src/model/checkpoint/folder.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { deviceWeights, weightsInPlace } from "../../../src/model/engine/weights.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { createEngine } from "../../compute/harness.ts";

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

describe("weights of a folder", () => {
  it("are in memory once: what is read is what programs read", async () => {
    const tokenizer = characterTokenizer({ alphabet: "0123456789" });
    const config: LlamaConfig = {
      ...{ vocabSize: tokenizer.vocabSize, hiddenSize: 64, intermediateSize: 128, layers: 2 },
      ...{ heads: 2, kvHeads: 1, headDim: 32, rmsNormEpsilon: 1e-5, ropeTheta: 10_000 },
      ...{ maxPositions: 32, tieEmbeddings: false },
    };
    const folder = await temporaryFolder();
    await saveModelFolder(folder, { config, extra: {}, tensors: initializeLlama(config, 5), tokenizer });
    const { tensors } = await loadModelFolder(folder);
    const inPlace = weightsInPlace(runtime, tensors);
    const copies = deviceWeights(runtime, tensors);
    for (const [name, { data }] of Object.entries(tensors)) {
      // A small array may move, so it is copied.
      expect(inPlace[name]!.data.buffer === data.buffer, name).toBe(data.byteLength >= 4096);
      expect(copies[name]!.data.buffer === data.buffer, name).toBe(false);
    }
    const written = [inPlace, copies].map(async (weights) => {
      const engine = new Engine(runtime, config, { slots: 1 });
      engine.adopt(weights);
      const request = { prompt: [8, 9, 10], samples: 1, seed: 3 };
      const completions = await engine.generate([request], { maxNewTokens: 20, stopIds: [] });
      await engine.dispose();
      return completions[0]![0]!.ids;
    });
    const [first, second] = await Promise.all(written);
    expect(first).toEqual(second);
  });
});
