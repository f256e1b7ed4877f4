import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { ConfigError } from "../../../src/base/errors.ts";
import type { LlamaConfig } from "../../../src/model/arch/llama.ts";
import { llamaConfigJson, parseLlamaConfig } from "../../../src/model/arch/llama-json.ts";

const fixture = async (name: string) =>
  JSON.parse(await readFile(new URL(`../../fixtures/${name}/config.json`, import.meta.url), "utf8"));

/** As Llama 3.2 1B was published: before `rope_parameters`, head_dim and the rest spelt out, its scaling taken off. */
const published = {
  architectures: ["LlamaForCausalLM"],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 128000,
  eos_token_id: [128001, 128008],
  hidden_act: "silu",
  hidden_size: 2048,
  initializer_range: 0.02,
  intermediate_size: 8192,
  max_position_embeddings: 131072,
  model_type: "llama",
  num_attention_heads: 32,
  num_hidden_layers: 16,
  num_key_value_heads: 8,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 500000.0,
  tie_word_embeddings: true,
  torch_dtype: "bfloat16",
  vocab_size: 128256,
};

/** Llama 3.1's. */
const LLAMA3 = {
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
  rope_type: "llama3",
};

describe("parseLlamaConfig", () => {
  it("reads what transformers 5 writes, with rope_parameters", async () => {
    const { config, extra } = parseLlamaConfig("config.json", await fixture("llama-gqa"));
    const expected: LlamaConfig = {
      vocabSize: 20,
      hiddenSize: 16,
      intermediateSize: 24,
      layers: 2,
      heads: 4,
      kvHeads: 2,
      headDim: 8,
      rmsNormEpsilon: 1e-5,
      ropeTheta: 50_000,
      maxPositions: 64,
      tieEmbeddings: false,
    };
    expect(config).toEqual(expected);
    expect(extra).toMatchObject({ attention_dropout: 0, eos_token_id: 0, transformers_version: "5.23.0" });
    expect(Object.keys(extra)).not.toContain("dtype");
  });

  it("reads what older versions wrote, with rope_theta, and fills in what they left out", () => {
    const { config, extra } = parseLlamaConfig("config.json", published);
    expect(config).toMatchObject({ headDim: 64, kvHeads: 8, ropeTheta: 500_000, tieEmbeddings: true });
    expect(extra).toEqual({
      attention_dropout: 0,
      bos_token_id: 128000,
      eos_token_id: [128001, 128008],
      initializer_range: 0.02,
      pretraining_tp: 1,
    });
    const { num_key_value_heads: _, rope_theta: __, tie_word_embeddings: ___, ...oldest } = published;
    expect(parseLlamaConfig("config.json", oldest).config).toMatchObject({
      kvHeads: 32,
      ropeTheta: 10_000,
      tieEmbeddings: false,
    });
  });

  it("takes the rotary base from wherever it is given", () => {
    const { rope_theta: _, ...rest } = published;
    const theta = (rope: object) => parseLlamaConfig("config.json", { ...rest, ...rope }).config.ropeTheta;
    expect(theta({ rope_parameters: { rope_type: "default", rope_theta: 7 } })).toBe(7);
    expect(theta({ rope_theta: 7, rope_scaling: { type: "default" } })).toBe(7);
    expect(theta({ rope_theta: 7, rope_parameters: { rope_theta: 7 } })).toBe(7);
  });

  const rows: [string, object, string][] = [
    ["another architecture", { model_type: "qwen2" }, 'model_type: must be "llama"'],
    ["another head", { architectures: ["LlamaForTokenClassification"] }, "must name LlamaForCausalLM"],
    ["another activation", { hidden_act: "gelu" }, 'hidden_act: must be "silu"'],
    [
      "biases of attention",
      { attention_bias: true },
      "attention_bias: must be false: biases are not supported; got true",
    ],
    ["biases of the feed-forward", { mlp_bias: true }, "mlp_bias: must be false"],
    [
      "scaling without its numbers",
      { rope_scaling: { factor: 32, rope_type: "llama3" } },
      "rope_scaling.low_freq_factor: must be a number; got nothing",
    ],
    [
      "scaling whose bounds cross",
      { rope_scaling: { ...LLAMA3, high_freq_factor: 1 } },
      "rope_scaling.high_freq_factor: must be larger than low_freq_factor",
    ],
    [
      "scaled positions of another kind, by the older key",
      { rope_scaling: { type: "linear", factor: 2 } },
      "rope_scaling.type",
    ],
    [
      "scaled positions of another kind, by the newer",
      { rope_parameters: { rope_type: "yarn" } },
      "rope_parameters.rope_type",
    ],
    ["part of a head rotated", { partial_rotary_factor: 0.5 }, "partial_rotary_factor: must be 1"],
    [
      "two rotary bases",
      { rope_parameters: { rope_theta: 7 } },
      "rope_theta: must be the same wherever it is given",
    ],
    [
      "quantized weights",
      { quantization_config: { quant_method: "fp8" } },
      "quantization_config: must be absent",
    ],
    ["a size missing", { hidden_size: undefined }, "hidden_size: must be a whole number; got nothing"],
    ["a fractional size", { num_hidden_layers: 1.5 }, "num_hidden_layers: must be a whole number; got 1.5"],
    ["no layers", { num_hidden_layers: 0 }, "num_hidden_layers: must be positive; got 0"],
    ["a size as text", { vocab_size: "20" }, 'vocab_size: must be a whole number; got "20"'],
    ["no epsilon", { rms_norm_eps: 0 }, "rms_norm_eps: must be positive"],
    [
      "groups that do not divide",
      { num_key_value_heads: 5 },
      "num_key_value_heads: must divide num_attention_heads (32)",
    ],
    ["an odd head", { head_dim: 63 }, "head_dim: must be even"],
    ["a width that heads do not divide", { hidden_size: 2050 }, "hidden_size: must be a multiple"],
  ];
  it.each(rows)("refuses %s", (_, change, message) => {
    const parse = () => parseLlamaConfig("model/config.json", { ...published, ...change });
    expect(parse).toThrow(ConfigError);
    expect(parse).toThrow(message);
    expect(parse).toThrow(/^model\/config\.json: /);
  });

  it.each([null, [], "x", 1])("refuses what is no object: %j", (json) => {
    expect(() => parseLlamaConfig("config.json", json)).toThrow(ConfigError);
    expect(() => parseLlamaConfig("config.json", json)).toThrow("config.json: must be an object");
  });
});

describe("llamaConfigJson", () => {
  it("is read back as it was, keys it does not know included", () => {
    const parsed = parseLlamaConfig("config.json", { ...published, made_by: { run: 7 } });
    const json = llamaConfigJson(parsed);
    expect(parseLlamaConfig("config.json", json)).toEqual(parsed);
    expect(json).toMatchObject({ made_by: { run: 7 }, eos_token_id: [128001, 128008], dtype: "float32" });
    expect(json).not.toHaveProperty("torch_dtype");
  });
});
