import { readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ConfigError, FormatError, NumericError } from "../../../../src/base/errors.ts";
import { f32, type HostArray } from "../../../../src/compute/tensor/host.ts";
import type { DeepseekV3Config } from "../../../../src/model/arch/deepseek-v3.ts";
import { initializeLlama, type LlamaConfig } from "../../../../src/model/arch/llama.ts";
import { initializeModel, modelConfigJson, parseModelConfig } from "../../../../src/model/arch/models.ts";
import { dequantizeInto } from "../../../../src/model/checkpoint/gguf/dequantize.ts";
import { openGgufModel } from "../../../../src/model/checkpoint/gguf/model.ts";
import { quantize, type WritableType } from "../../../../src/model/checkpoint/gguf/quantize.ts";
import { type GgufFile, openGguf } from "../../../../src/model/checkpoint/gguf/reader.ts";
import { saveGguf } from "../../../../src/model/checkpoint/gguf/save.ts";
import { layoutOf } from "../../../../src/model/checkpoint/gguf/types.ts";
import { loadModel } from "../../../../src/model/checkpoint/load.ts";
import type { GgufVocabulary } from "../../../../src/model/text/gguf.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { fixturePath, readFixture } from "../../../fixture.ts";

const floats = (hex: string) => new Float32Array(new Uint8Array(Buffer.from(hex, "hex")).buffer);

describe("quantize", () => {
  const expected = readFixture<{ values: string; bytes: Record<"Q4_0" | "Q8_0" | "F16", string> }>(
    "gguf/quantized.json",
  );

  it.each(["Q4_0", "Q8_0", "F16"] as const)("gives the bytes that gguf-py gives: %s", (type) => {
    const bytes = quantize("x", type, floats(expected.values));
    expect(Buffer.from(bytes).toString("hex")).toBe(expected.bytes[type]);
  });

  it.each(["Q4_0", "Q8_0"] as const)(
    "is off by at most a step of the block, whatever is in it: %s",
    (type) => {
      const value = fc.float({ noNaN: true, noDefaultInfinity: true, min: -1000, max: 1000 });
      fc.assert(
        fc.property(fc.array(value, { minLength: 32, maxLength: 32 }), (values) => {
          const x = Float32Array.from(values);
          const y = new Float32Array(32);
          dequantizeInto(type, quantize("x", type, x), y);
          const largest = Math.max(...values.map(Math.abs));
          // Q4_0 has seven steps to one side and eight to the other: what lies at the shorter end is off by a whole step. A
          // scale is a half: 2⁻¹¹ of it, or 2⁻²⁵ where it is subnormal, is lost for each of up to 127 steps.
          const step = type === "Q4_0" ? largest / 8 : largest / 254;
          const allowed = step * 1.001 + largest * 2 ** -11 + 128 * 2 ** -25;
          for (let i = 0; i < 32; i++) expect(Math.abs(y[i]! - x[i]!)).toBeLessThanOrEqual(allowed);
        }),
      );
    },
  );

  it.each([
    ["Q4_0", Number.NaN, "NaN"],
    ["Q8_0", Number.POSITIVE_INFINITY, "Infinity"],
    ["Q4_0", 6e5, "600000"],
    ["Q8_0", 9e6, "9000000"],
    ["F16", -70_000, "-70000"],
  ] as const)("refuses what %s has no number for: %d", (type, value, shown) => {
    const x = new Float32Array(64);
    x[33] = value;
    expect(() => quantize("w", type, x)).toThrow(NumericError);
    expect(() => quantize("w", type, x)).toThrow(`w: element 33: must be a number up to`);
    expect(() => quantize("w", type, x)).toThrow(`got ${shown}`);
  });
});

const CONFIG: LlamaConfig = {
  vocabSize: 40,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  headDim: 8,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 500_000,
  maxPositions: 64,
  tieEmbeddings: false,
};
const MODEL = { config: modelConfigJson({ config: CONFIG, extra: {} }), tensors: initializeLlama(CONFIG, 1) };
const VOCABULARY: GgufVocabulary = {
  model: "llama",
  tokens: Array.from({ length: 40 }, (_, i) => `t${i}`),
  scores: new Float32Array(40),
  tokenTypes: new Int32Array(40).fill(1),
  bosId: 1,
  eosId: 2,
  eotId: 3,
  paddingId: 0,
  addBos: true,
  addSpacePrefix: false,
  chatTemplate: "{{ x }}",
};

async function save(
  type: WritableType,
  change: { config?: object; tensors?: Record<string, HostArray<"f32">>; vocabulary?: GgufVocabulary } = {},
): Promise<string> {
  const file = join(await temporaryFolder(), "x.gguf");
  const config = { ...MODEL.config, ...change.config };
  const tensors = change.tensors ?? MODEL.tensors;
  await saveGguf(file, { config, tensors, vocabulary: change.vocabulary ?? VOCABULARY }, { type, name: "x" });
  return file;
}

describe("saveGguf", () => {
  it("is read back: config, vocabulary, every weight to the bit", async () => {
    const file = await save("F32");
    await using model = await openGgufModel(file);
    expect(parseModelConfig(file, model.config).config).toEqual(CONFIG);
    expect({ ...model.vocabulary, tokens: [...model.vocabulary!.tokens] }).toEqual(VOCABULARY);
    expect([...model.shapes.keys()].sort()).toEqual(Object.keys(MODEL.tensors).sort());
    for (const [name, tensor] of Object.entries(MODEL.tensors))
      expect(await model.readF32(name), name).toEqual(tensor);
  });

  it.each(["F16", "Q8_0", "Q4_0"] as const)(
    "stores matrices as asked, vectors as float32, and odd rows as F16: %s",
    async (type) => {
      await using model = await openGgufModel(await save(type));
      for (const [name, { shape, data }] of Object.entries(MODEL.tensors)) {
        const stored = shape.length === 1 ? "F32" : shape[1]! % layoutOf(type).block === 0 ? type : "F16";
        expect(model.typeOf(name), name).toBe(stored);
        const error = Math.max(...(await model.readF32(name)).data.map((x, i) => Math.abs(x - data[i]!)));
        const largest = Math.max(...data.map(Math.abs));
        expect(error / largest, name).toBeLessThan({ F32: 1e-9, F16: 1e-3, Q8_0: 0.005, Q4_0: 0.14 }[stored]);
      }
      expect(model.typeOf("model.layers.0.mlp.down_proj.weight")).toBe("F16");
    },
  );

  it("keeps biases, tied heads and the scaling of positions", async () => {
    const rope_scaling = {
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    };
    await using llama = await openGgufModel(
      await save("F16", { config: { rope_parameters: undefined, rope_scaling } }),
    );
    expect(llama.config).toMatchObject({ rope_scaling, rope_theta: 500_000 });
    const bias = f32(
      [32],
      Array.from({ length: 32 }, (_, i) => i),
    );
    const { "lm_head.weight": _, ...tied } = MODEL.tensors;
    const tensors = { ...tied, "model.layers.0.self_attn.q_proj.bias": bias };
    const config = {
      model_type: "qwen2",
      rope_parameters: { rope_type: "linear", factor: 2, rope_theta: 7 },
    };
    await using qwen2 = await openGgufModel(await save("F16", { config, tensors }));
    expect(qwen2.config).toMatchObject({
      model_type: "qwen2",
      tie_word_embeddings: true,
      rope_theta: 7,
      rope_scaling: { rope_type: "linear", factor: 2 },
    });
    expect(await qwen2.readF32("model.layers.0.self_attn.q_proj.bias")).toEqual(bias);
  });

  const DEEPSEEK: DeepseekV3Config = {
    modelType: "deepseek_v3",
    vocabSize: 40,
    hiddenSize: 32,
    intermediateSize: 48,
    expertSize: 24,
    layers: 2,
    denseLayers: 1,
    heads: 4,
    queryRank: 16,
    kvRank: 8,
    nopeHeadDim: 12,
    ropeHeadDim: 8,
    valueHeadDim: 10,
    routedExperts: 6,
    sharedExperts: 1,
    expertsPerToken: 2,
    expertGroups: 2,
    groupsPerToken: 1,
    normalizeExperts: true,
    expertScale: 2.5,
    draftLayers: 0,
    rmsNormEpsilon: 1e-6,
    ropeTheta: 10_000,
    ropeScaling: {
      type: "yarn",
      factor: 40,
      betaFast: 32,
      betaSlow: 1,
      originalPositions: 4096,
      mscale: 1,
    },
    maxPositions: 256,
    tieEmbeddings: false,
  };
  const { queryRank: _rank, ropeScaling: _scaling, ...plain } = DEEPSEEK;

  it.each([
    ["with ranks, groups and YaRN", DEEPSEEK],
    ["without", { ...plain, sharedExperts: 0, expertGroups: 1, groupsPerToken: 1, normalizeExperts: false }],
  ])("is read back where it has experts and latent attention, %s", async (_, config) => {
    const tensors = initializeModel(config, 2);
    // Biases of gates, which begin at zero.
    for (const [name, { data }] of Object.entries(tensors))
      if (name.endsWith("e_score_correction_bias")) for (const i of data.keys()) data[i] = i + 0.5;
    const json = modelConfigJson({ config, extra: {} });
    const file = await save("F32", { config: json, tensors });
    await using model = await openGgufModel(file);
    expect(model.config["model_type"]).toBe("deepseek_v3");
    expect(parseModelConfig(file, model.config).config).toEqual(config);
    expect([...model.shapes.keys()].sort()).toEqual(Object.keys(tensors).sort());
    for (const [name, tensor] of Object.entries(tensors))
      expect(await model.readF32(name), name).toEqual(tensor);
    await using small = await openGgufModel(await save("Q8_0", { config: json, tensors }));
    expect(small.typeOf("model.layers.1.mlp.experts.3.up_proj.weight")).toBe("Q8_0");
    // The choice of experts is not rounded.
    expect(small.typeOf("model.layers.1.mlp.gate.weight")).toBe("F32");
    expect(small.typeOf("model.layers.1.mlp.gate.e_score_correction_bias")).toBe("F32");
  });

  it("names tensors and keys of a model with experts as llama.cpp's converter does", async () => {
    const config = modelConfigJson({ config: DEEPSEEK, extra: {} });
    await using gguf = await openGguf(await save("F32", { config, tensors: initializeModel(DEEPSEEK, 2) }));
    await using reference = await openGguf(fixturePath("gguf/deepseek-split.gguf"));
    expect([...gguf.tensors.keys()].sort()).toEqual([...reference.tensors.keys()].sort());
    const keys = (file: GgufFile) => [...file.metadata.keys()].filter((key) => key.startsWith("deepseek2."));
    // The reference leaves out YaRN's two turns, which are llama.cpp's defaults.
    expect(
      keys(gguf)
        .filter((key) => !key.includes("yarn_beta"))
        .sort(),
    ).toEqual(keys(reference).sort());
    expect(gguf.metadata.get("deepseek2.attention.head_count_kv")).toBe(1);
  });

  it("leaves out the head for the token after next", async () => {
    const config = { ...DEEPSEEK, draftLayers: 1 };
    const tensors = initializeModel(config, 2);
    await using model = await openGgufModel(
      await save("F16", { config: modelConfigJson({ config, extra: {} }), tensors }),
    );
    expect(Object.keys(tensors).some((name) => name.startsWith("model.layers.2."))).toBe(true);
    expect(parseModelConfig("x", model.config).config).toMatchObject({ layers: 2, draftLayers: 0 });
  });

  it("refuses experts that are missing or of different shapes, and heads that do not add up", async () => {
    const config = modelConfigJson({ config: DEEPSEEK, extra: {} });
    const at = "model.layers.1";
    const wrong = (change: Record<string, HostArray<"f32"> | undefined>) => {
      const entries = Object.entries({ ...initializeModel(DEEPSEEK, 2), ...change });
      const tensors = entries.filter((entry): entry is [string, HostArray<"f32">] => entry[1] !== undefined);
      return save("F32", { config, tensors: Object.fromEntries(tensors) });
    };
    await expect(wrong({ [`${at}.mlp.experts.2.up_proj.weight`]: undefined })).rejects.toThrow(
      /blk\.1\.ffn_up_exps\.weight: must have a matrix of expert 2; got none/,
    );
    await expect(wrong({ [`${at}.mlp.experts.2.up_proj.weight`]: f32([1], [1]) })).rejects.toThrow(
      /experts\.2\.up_proj\.weight: must be \[24,32\] as expert 0's; got \[1\]/,
    );
    await expect(
      wrong({ [`${at}.self_attn.kv_b_proj.weight`]: f32([2, 8], Array(16).fill(0)) }),
    ).rejects.toThrow(/kv_b_proj\.weight: must have rows for 4 heads of keys, 12 wide, and values/);
  });

  it("gives every row of the embedding a token", async () => {
    const { tokens, scores, tokenTypes } = VOCABULARY;
    const vocabulary = {
      ...VOCABULARY,
      tokens: [...tokens].slice(0, 38),
      scores: scores!.slice(0, 38),
      tokenTypes: tokenTypes!.slice(0, 38),
    };
    await using model = await openGgufModel(await save("F16", { vocabulary }));
    expect([...model.vocabulary!.tokens].slice(37)).toEqual(["t37", "[PAD38]", "[PAD39]"]);
    expect([...model.vocabulary!.tokenTypes!.slice(37)]).toEqual([1, 5, 5]);
  });

  it("refuses what it cannot write, and leaves nothing behind", async () => {
    await expect(save("F16", { config: { model_type: "gpt2" } })).rejects.toThrow(ConfigError);
    await expect(save("F16", { config: { hidden_size: undefined } })).rejects.toThrow(/hidden_size/);
    await expect(save("F16", { config: { rope_parameters: { rope_type: "yarn" } } })).rejects.toThrow(
      /rope_parameters/,
    );
    await expect(
      save("F16", { tensors: { "model.layers.0.mlp.gate.weight": f32([1, 1], [1]) } }),
    ).rejects.toThrow(/mlp.gate.weight: must be a tensor of a llama model/);
    const long = { ...VOCABULARY, tokens: [...VOCABULARY.tokens, "more"] };
    await expect(save("F16", { vocabulary: long })).rejects.toThrow(FormatError);
    const folder = dirname(await save("F16"));
    const broken: Record<string, HostArray<"f32">> = {
      ...MODEL.tensors,
      "model.norm.weight": f32([32], Array(32).fill(1)),
    };
    broken["lm_head.weight"] = f32([40, 32], Array(1280).fill(Number.NaN));
    const again = saveGguf(
      join(folder, "y.gguf"),
      { ...MODEL, tensors: broken, vocabulary: VOCABULARY },
      { type: "Q8_0" },
    );
    await expect(again).rejects.toThrow(/lm_head.weight: element 0/);
    expect(await readdir(folder)).toEqual(["x.gguf"]);
  });
});

describe("loadModel", () => {
  it("loads a GGUF file whole, its tokenizer made of its vocabulary", async () => {
    const tokens = ["<unk>", "<s>", "</s>", ...Array.from({ length: 36 }, (_, i) => `t${i}`), "▁"];
    const tokenTypes = Int32Array.from(tokens, (_, id) => (id === 0 ? 2 : id < 3 ? 3 : 1));
    const vocabulary = { ...VOCABULARY, tokens, tokenTypes, unknownId: 0 };
    const model = await loadModel(await save("F32", { vocabulary }));
    expect(model).toMatchObject({
      config: CONFIG,
      stopIds: [2, 3],
      generationConfig: {},
      chatTemplate: { source: "{{ x }}" },
    });
    expect(model.extra).toMatchObject({ bos_token_id: 1, eos_token_id: 2, pad_token_id: 0 });
    expect(model.tokenizer).toMatchObject({ vocabSize: 40, bosId: 1, eosId: 2, addsBos: true });
    expect(model.tokenizer.decode([3, 4])).toBe("t0t1");
    expect(model.tensors).toEqual(MODEL.tensors);
  });

  it("names a file that is missing or no model", async () => {
    await expect(loadModel("no/such.gguf")).rejects.toThrow(/no\/such\.gguf: must be readable/);
    await expect(loadModel(import.meta.filename)).rejects.toThrow(/magic: must be the four bytes "GGUF"/);
  });
});
