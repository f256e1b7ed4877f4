import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FileError } from "../../../src/base/errors.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { initializeLlama } from "../../../src/model/arch/llama.ts";
import { modelConfigJson } from "../../../src/model/arch/models.ts";
import {
  isQuantizedMatrix,
  type QuantizedMatrix,
  type StoredSource,
  type StoredWeight,
} from "../../../src/model/arch/stored.ts";
import { saveModelFolder } from "../../../src/model/checkpoint/folder.ts";
import { nBitsOperands } from "../../../src/model/checkpoint/gguf/matmul-nbits.ts";
import { openGgufModel } from "../../../src/model/checkpoint/gguf/model.ts";
import type { WritableType } from "../../../src/model/checkpoint/gguf/quantize.ts";
import { saveGguf } from "../../../src/model/checkpoint/gguf/save.ts";
import { loadModel, loadStoredModel, type SourcedModel } from "../../../src/model/checkpoint/load.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import type { GgufVocabulary } from "../../../src/model/text/gguf.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { createEngine } from "../../compute/harness.ts";
import { BLOCKY as CONFIG } from "../models.ts";

const VOCABULARY: GgufVocabulary = {
  model: "llama",
  tokens: ["<unk>", "<s>", "</s>", ...Array.from({ length: 36 }, (_, i) => `t${i}`), "▁"],
  scores: new Float32Array(40),
  tokenTypes: Int32Array.from({ length: 40 }, (_, id) => (id === 0 ? 2 : id < 3 ? 3 : 1)),
  unknownId: 0,
  bosId: 1,
  eosId: 2,
  addBos: true,
  addSpacePrefix: false,
};

async function fileOf(type: WritableType, config = CONFIG, vocabulary = VOCABULARY): Promise<string> {
  const file = join(await temporaryFolder(), "model.gguf");
  const tensors = initializeLlama(config, 1);
  const json = modelConfigJson({ config, extra: {} });
  await saveGguf(file, { config: json, tensors, vocabulary }, { type, name: "x" });
  return file;
}

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

async function sourced(file: string): Promise<SourcedModel> {
  const model = await loadStoredModel(file);
  if ("source" in model) return model;
  throw new Error("its weights are no longer in the file");
}

async function readAll({ forms, read }: StoredSource): Promise<Record<string, StoredWeight>> {
  const weights: Record<string, StoredWeight> = {};
  for (const name of Object.keys(forms)) weights[name] = await read(name);
  return weights;
}

describe("loadStoredModel", () => {
  it.each(["Q4_0", "Q8_0"] as const)("says what a weight is like before it is read: %s", async (type) => {
    const { source } = await sourced(await fileOf(type));
    for (const [name, weight] of Object.entries(await readAll(source))) {
      if (!isQuantizedMatrix(weight)) {
        expect(source.forms[name]).toEqual({ shape: weight.shape });
        continue;
      }
      const { N, K, bits, blockSize, offsets } = weight;
      expect(source.forms[name]).toEqual({ N, K, bits, blockSize, hasOffsets: offsets !== undefined });
    }
    await source.close();
  });

  it.each(["F16", "Q4_0", "Q8_0"] as const)(
    "reads rows of a matrix alone, as they are widened: %s",
    async (type) => {
      const file = await fileOf(type);
      await using model = await openGgufModel(file);
      const { shape, data } = await model.readF32("model.embed_tokens.weight");
      const row = new Float32Array(shape[1]!);
      model.readRow("model.embed_tokens.weight", 3, row);
      expect(row).toEqual(data.subarray(3 * row.length, 4 * row.length));
      // Whose rows the file has in another order.
      const query = new Float32Array(CONFIG.hiddenSize);
      expect(() => model.readRow("model.layers.0.self_attn.q_proj.weight", 0, query)).toThrow("as it is");
    },
  );

  it("reads rows of the embedding while nothing else is read", async () => {
    const file = await fileOf("Q4_0");
    const { source } = await sourced(file);
    const { shape, data } = (await loadModel(file)).tensors["model.embed_tokens.weight"]!;
    const [V, C] = shape as [number, number];
    const row = new Float32Array(C);
    for (const id of [0, 7, V - 1]) {
      source.readRow("model.embed_tokens.weight", id, row);
      expect(row).toEqual(data.subarray(id * C, (id + 1) * C));
    }
    expect(() => source.readRow("model.embed_tokens.weight", V, row)).toThrow(`has a row ${V}`);
    await source.close();
    expect(() => source.readRow("model.embed_tokens.weight", 0, row)).toThrow(FileError);
    await expect(source.read("model.norm.weight")).rejects.toThrow(FileError);
  });

  it.each(["Q4_0", "Q8_0"] as const)(
    "leaves blocks as they are, and joins those of one input: %s",
    async (type) => {
      const file = await fileOf(type);
      const model = await sourced(file);
      const weights = await readAll(model.source);
      await model.source.close();
      await using source = await openGgufModel(file);
      const at = "model.layers.1";
      const joined = weights[`${at}.self_attn.qkv_proj.weight`] as QuantizedMatrix;
      const parts = await Promise.all(
        ["q", "k", "v"].map(async (name) =>
          nBitsOperands(name, await source.readBlocks(`${at}.self_attn.${name}_proj.weight`)),
        ),
      );
      expect(joined).toMatchObject({
        N: 128,
        K: 64,
        bits: type === "Q4_0" ? 4 : 8,
        blockSize: 32,
        rounding: 0,
      });
      expect([...joined.codes.data]).toEqual(parts.flatMap(({ codes }) => [...codes.data]));
      expect([...joined.scales.data]).toEqual(parts.flatMap(({ scales }) => [...scales.data]));
      expect(weights[`${at}.mlp.gate_up_proj.weight`]).toMatchObject({ N: 192, K: 64 });
      expect(
        Object.keys(weights)
          .filter((name) => name.startsWith(at))
          .sort(),
      ).toEqual(
        [
          ...["input_layernorm", "mlp.down_proj", "mlp.gate_up_proj", "post_attention_layernorm"],
          ...["self_attn.o_proj", "self_attn.qkv_proj"],
        ].map((name) => `${at}.${name}.weight`),
      );
      expect(isQuantizedMatrix(weights["model.norm.weight"]!)).toBe(false);
    },
  );

  it("makes an engine say what the widened model says", async () => {
    const file = await fileOf("Q4_0");
    const requests = [{ prompt: [1, 5, 9, 30], samples: 2, seed: 4 }];
    const options = { maxNewTokens: 30, stopIds: [] };
    const { config, source: weights } = await sourced(file);
    const ours = new Engine(runtime, config, { slots: 2, stored: { weights, activations: "f32" } });
    const twin = new Engine(runtime, config, { slots: 2 });
    twin.adopt(deviceWeights(runtime, (await loadModel(file)).tensors));
    const said = await Promise.all([ours, twin].map((engine) => engine.generate(requests, options)));
    expect(said[0]![0]!.map(({ ids }) => ids)).toEqual(said[1]![0]!.map(({ ids }) => ids));
    expect(said[0]![0]![0]!.ids).not.toEqual(said[0]![0]![1]!.ids);
    for (const engine of [ours, twin]) await engine.dispose();
  });

  it("widens what an engine cannot take so: floats, and heads that are too narrow", async () => {
    const narrow = { ...CONFIG, heads: 8, headDim: 8 };
    for (const file of [await fileOf("F16"), await fileOf("Q4_0", narrow)]) {
      const model = await loadStoredModel(file);
      expect("tensors" in model && model.tensors).toEqual((await loadModel(file)).tensors);
    }
  });

  it("loads a folder, too", async () => {
    const tokenizer = characterTokenizer({ alphabet: "abc" });
    const config = { ...CONFIG, vocabSize: tokenizer.vocabSize };
    const tensors = initializeLlama(config, 2);
    const folder = join(await temporaryFolder(), "model");
    await saveModelFolder(folder, { config, tensors, tokenizer });
    expect(await loadStoredModel(folder)).toMatchObject({ tensors });
  });

  const { scores: _, ...withoutScores } = VOCABULARY;
  const wrong: [string, GgufVocabulary, RegExp][] = [
    [
      "a pre-tokenizer nobody knows",
      { ...VOCABULARY, model: "gpt2", pre: "no-such" },
      /tokenizer\.ggml\.pre: must be one of/,
    ],
    ["no scores", withoutScores, /tokenizer\.ggml\.scores: must be there for llama/],
    [
      "no merges",
      { ...VOCABULARY, model: "gpt2", pre: "gpt-2" },
      /tokenizer\.ggml\.merges: must be there for gpt2/,
    ],
    [
      "a token twice",
      { ...VOCABULARY, tokens: [...VOCABULARY.tokens].with(9, "t2") },
      /tokenizer\.ggml\.tokens: must differ .*"t2" for 5 and 9/,
    ],
  ];
  it.each(wrong)(
    "says what is wrong with the text side when it is asked for: %s",
    async (_, vocabulary, rule) => {
      const file = await fileOf("Q4_0", CONFIG, vocabulary);
      const model = await sourced(file);
      expect(Object.keys(model.source.forms).length).toBeGreaterThan(0);
      await model.source.close();
      for (const ask of [() => model.tokenizer, () => model.tokenizer, () => model.stopIds]) {
        expect(ask).toThrow(rule);
        expect(ask).toThrow(file);
      }
      await expect(loadModel(file)).rejects.toThrow(rule);
    },
  );
});
