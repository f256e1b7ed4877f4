import { describe, expect, it } from "vitest";
import { ConfigError } from "../../../src/base/errors.ts";
import { fitsIn, inspectModel, PRECISIONS, type TensorNode } from "../../../src/model/arch/inspect.ts";
import {
  modelConfigJson,
  modelParameters,
  parameterCount,
  parseModelConfig,
} from "../../../src/model/arch/models.ts";
import { DEEPSEEK_V3_671B, DEEPSEEK_V3_JSON, TINY } from "../models.ts";

describe("DeepSeek-V3 and R1, from their config", () => {
  const inspection = inspectModel(DEEPSEEK_V3_671B);

  it("have the published numbers of weights, 37 billion of them active, and 70,272 bytes of cache a token", () => {
    expect(inspection.parameters.total).toBe(671_026_419_200);
    expect(Math.round(inspection.parameters.active / 1e9)).toBe(37);
    expect(inspection.cache.bytesPerToken).toBe(70_272);
    // The module has 11.5 billion of its own, by README_WEIGHTS.md; to these the norms and the projection belong.
    expect(inspection.parameters.draft / 1e9).toBeCloseTo(11.5, 0);
    // The published checkpoint of fp8 takes some 640 GiB.
    expect(inspection.memory.fp8 / 2 ** 30).toBeGreaterThan(620);
    expect(inspection.memory.fp8 / 2 ** 30).toBeLessThan(640);
  });

  it("are shown as a tree in which layers and experts that are alike stand together", () => {
    const find = (nodes: readonly TensorNode[] | undefined, name: string) =>
      nodes?.find((node) => node.name === name);
    const layers = find(find(inspection.tensors, "model")?.children, "layers")!;
    expect(layers.children!.map(({ name, count }) => [name, count])).toEqual([
      ["0-2", 3],
      ["3-60", 58],
      ["61", 1],
    ]);
    const experts = find(find(layers.children![1]!.children, "mlp")?.children, "experts")!;
    expect(experts.children!.map(({ name, count, parameters }) => [name, count, parameters])).toEqual([
      ["0-255", 256, 256 * 44_040_192],
    ]);
    const sum = inspection.tensors.reduce((total, { parameters }) => total + parameters, 0);
    expect(sum).toBe(parameterCount(DEEPSEEK_V3_671B));
  });

  it("fit a machine at the precisions at which weights and a token's cache do", () => {
    const fitting = (gigabytes: number) =>
      fitsIn(gigabytes * 1e9, inspection)
        .filter(({ fits }) => fits)
        .map(({ precision }) => precision);
    expect(fitting(64)).toEqual([]);
    expect(fitting(512)).toEqual(["int4"]);
    expect(fitting(1000)).toEqual(["fp8", "int8", "int4"]);
    expect(fitting(4000)).toEqual([...PRECISIONS]);
    for (const { positions } of fitsIn(4e12, inspection)) expect(positions).toBe(163_840);
  });
});

describe("a config from outside", () => {
  it("is read back as it was written", () => {
    const parsed = parseModelConfig("config.json", DEEPSEEK_V3_JSON);
    expect(parseModelConfig("config.json", modelConfigJson(parsed))).toEqual(parsed);
    expect(parsed.extra).toEqual({ bos_token_id: 0, eos_token_id: 1, ep_size: 1, initializer_range: 0.02 });
  });

  const rope = DEEPSEEK_V3_JSON.rope_scaling;
  const rows: [string, object, string][] = [
    [
      "an unknown architecture",
      { model_type: "mamba" },
      "model_type: must be one of llama, qwen2, deepseek_v3",
    ],
    ["no architecture", { model_type: undefined }, "model_type: must be one of llama, qwen2, deepseek_v3"],
    ["another gate", { scoring_func: "softmax" }, 'scoring_func: must be "sigmoid"'],
    ["another choice", { topk_method: "greedy" }, 'topk_method: must be "noaux_tc"'],
    ["halves for pairs", { rope_interleave: false }, "rope_interleave: must be true"],
    ["uneven groups", { n_group: 7 }, "n_group: must divide n_routed_experts (256)"],
    ["more groups than there are", { topk_group: 9 }, "topk_group: must be at most n_group (8)"],
    [
      "more experts than the groups have",
      { num_experts_per_tok: 129 },
      "num_experts_per_tok: must be at most",
    ],
    [
      "scaled cosines",
      { rope_scaling: { ...rope, mscale: 0.7 } },
      "rope_scaling.mscale: must equal mscale_all_dim",
    ],
    [
      "a scaling without a factor",
      { rope_scaling: { ...rope, factor: undefined } },
      "rope_scaling.factor: must be",
    ],
    ["another scaling", { rope_scaling: { ...rope, type: "linear" } }, "rope_scaling.type: must be"],
    ["two modules", { num_nextn_predict_layers: 2 }, "num_nextn_predict_layers: must be 0 or 1"],
    ["biases", { attention_bias: true }, "attention_bias: must be false"],
    [
      "more dense layers than layers",
      { first_k_dense_replace: 62 },
      "first_k_dense_replace: must be at most",
    ],
    ["more tensors than a model has", { num_hidden_layers: 1e9 }, "num_hidden_layers: must be at most"],
    ["more experts than a model has", { n_routed_experts: 2 ** 40 }, "n_routed_experts: must be at most"],
  ];
  it.each(rows)("is refused with %s", (_, change, message) => {
    const parse = () => parseModelConfig("config.json", { ...DEEPSEEK_V3_JSON, ...change });
    expect(parse).toThrow(ConfigError);
    expect(parse).toThrow(message);
  });
});

describe("a llama", () => {
  it("is active in all but the embedding's look-up, and takes what its tensors take", () => {
    const { parameters, memory, cache } = inspectModel(TINY);
    expect(parameters).toEqual({
      total: parameterCount(TINY),
      active: parameterCount(TINY) - TINY.vocabSize * TINY.hiddenSize,
      draft: 0,
    });
    expect(memory.float32).toBe(4 * parameterCount(TINY));
    const norms = modelParameters(TINY).filter(({ kind }) => kind === "norm");
    const inNorms = norms.reduce((sum, { shape }) => sum + shape[0]!, 0);
    expect(memory.bfloat16).toBe(2 * parameterCount(TINY) + 2 * inNorms);
    // Keys and values of two layers, one head of width 16 each.
    expect(cache.numbersPerToken).toBe(2 * 2 * 16);
  });
});
