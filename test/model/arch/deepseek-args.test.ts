import { describe, expect, it } from "vitest";
import { ConfigError } from "../../../src/base/errors.ts";
import { inspectModel } from "../../../src/model/arch/inspect.ts";
import { parseModelConfig } from "../../../src/model/arch/models.ts";
import { DEEPSEEK_V3_671B, DEEPSEEK_V3_ARGS } from "../models.ts";

const parse = (change: object = {}) => parseModelConfig("671B.json", { ...DEEPSEEK_V3_ARGS, ...change });

describe("a config in DeepSeek's own form", () => {
  it("is the model that Hugging Face's form describes, without the module and as long as the reference is", () => {
    const { config, extra } = parse();
    expect(config).toEqual({ ...DEEPSEEK_V3_671B, draftLayers: 0, maxPositions: 16_384 });
    expect(extra).toEqual({});
  });

  it("has the published numbers of weights, 37 billion of them active, and 70,272 bytes of cache a token", () => {
    const { parameters, cache } = inspectModel(parse({ dtype: "fp8", scale_fmt: "ue8m0" }).config);
    expect(parameters.total).toBe(671_026_419_200);
    expect(Math.round(parameters.active / 1e9)).toBe(37);
    expect(parameters.draft).toBe(0);
    expect(cache.bytesPerToken).toBe(70_272);
  });

  it("takes queries from the model's width where their rank is 0, and positions as they are where few", () => {
    const { config } = parse({ q_lora_rank: 0, max_seq_len: 4096 });
    expect(config).not.toHaveProperty("queryRank");
    expect(config).not.toHaveProperty("ropeScaling");
  });

  // The sizes of deepseek-ai/DeepSeek-V3, inference/configs/config_16B.json and config_236B.json.
  const V2 = { dim: 2048, n_routed_experts: 64, n_expert_groups: 1, n_limited_groups: 1 };
  const rows: [string, object, string][] = [
    [
      "V2's gate, meant where none is named",
      { ...V2, score_func: undefined },
      'score_func: must be "sigmoid"',
    ],
    ["V2's gate, named", { dim: 5120, score_func: "softmax" }, 'score_func: must be "sigmoid"'],
    ["a width without correction", { dim: 2048 }, "dim: must be 7168"],
    ["an argument of a later reference", { index_n_heads: 64 }, "index_n_heads: must be absent"],
    ["odd rotary heads", { qk_rope_head_dim: 63 }, "qk_rope_head_dim: must be even"],
    ["uneven groups", { n_expert_groups: 7 }, "n_expert_groups: must divide n_routed_experts (256)"],
    [
      "more groups than there are",
      { n_limited_groups: 9 },
      "n_limited_groups: must be at most n_expert_groups (8)",
    ],
    ["more experts than groups have", { n_activated_experts: 129 }, "n_activated_experts: must be at most"],
    [
      "more dense layers than layers",
      { n_dense_layers: 62 },
      "n_dense_layers: must be at most n_layers (61)",
    ],
    ["more layers than a model has", { n_layers: 1e9 }, "n_layers: must be at most"],
    ["more experts in all", { n_layers: 1024 }, "n_routed_experts: must be at most"],
    ["crossed bounds of turns", { beta_fast: 1 }, "beta_fast: must be larger than beta_slow"],
  ];
  it.each(rows)("is refused with %s", (_, change, message) => {
    expect(() => parse(change)).toThrow(ConfigError);
    expect(() => parse(change)).toThrow(`671B.json: ${message}`);
  });

  it("is told from others by what it names", () => {
    expect(() => parseModelConfig("params.json", { dim: 4096, n_layers: 32, n_heads: 32 })).toThrow(
      "params.json: model_type: must be one of",
    );
  });
});
