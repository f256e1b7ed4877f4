import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import {
  causalKeys,
  costSizes,
  type DenseSizes,
  forwardFlops,
  matmulParameters,
  trainFlops,
} from "../../../src/learn/cost/flops.ts";
import { CPU_HOUR, dollarsFor, GPU_HOUR } from "../../../src/learn/cost/price.ts";
import { COUNTDOWN_RUNS, DEEPSEEK_R1, DEEPSEEK_V3 } from "../../../src/learn/cost/published.ts";
import type { LlamaConfig } from "../../../src/model/arch/llama.ts";
import { DEEPSEEK_V3_671B } from "../../model/models.ts";

const llama8B: DenseSizes = {
  layers: 32,
  width: 4096,
  heads: 32,
  kvHeads: 8,
  headWidth: 128,
  hidden: 14336,
  vocab: 128256,
};

const LLAMA_TINY: LlamaConfig = {
  vocabSize: 7,
  hiddenSize: 4,
  intermediateSize: 5,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  headDim: 4,
  rmsNormEpsilon: 1e-6,
  ropeTheta: 1e4,
  maxPositions: 8,
  tieEmbeddings: false,
};

const tiny: DenseSizes = { layers: 2, width: 4, heads: 2, kvHeads: 1, headWidth: 3, hidden: 5, vocab: 7 };

describe("flops", () => {
  it("counts a tiny model as by hand", () => {
    // Per layer: 4·6 query + 2·4·3 key and value + 6·4 output + 3·4·5 = 132; two layers and a head of 4·7.
    expect(matmulParameters(tiny)).toBe(2 * 132 + 28);
    // Attention: 4 operations · 2 layers · 2 heads · 3 wide · 10 keys.
    expect(forwardFlops(tiny, 10)).toBe(2 * 292 + 480);
    expect(trainFlops(tiny, 10)).toBe(3 * 1064);
  });

  it("finds the published size of Llama 3.1 8B: matmuls, one more embedding, 65 norms", () => {
    expect(matmulParameters(llama8B) + 128256 * 4096 + 65 * 4096).toBe(8_030_261_248);
  });

  it("counts of DeepSeek-V3 the experts that a token goes to, and latent attention in its naive form", () => {
    const sizes = costSizes(DEEPSEEK_V3_671B);
    // As published, 37 billion active: by hand per layer MLA 187,105,280, an expert 44,040,192, dense 396,361,728.
    const mixtures = 58 * (9 * 44_040_192 + 256 * 7168);
    const active = 61 * 187_105_280 + 3 * 396_361_728 + mixtures + 129_280 * 7168;
    expect(matmulParameters(sizes)).toBe(active);
    expect(Math.round(active / 1e9)).toBe(37);
    expect(forwardFlops(sizes, 10) - forwardFlops(sizes, 0)).toBe(2 * 61 * 128 * (192 + 128) * 10);
    expect(costSizes({ ...LLAMA_TINY })).toEqual({ ...tiny, headWidth: 4 });
  });

  it("averages a causal mask", () => {
    expect(causalKeys(1)).toBe(1);
    expect(causalKeys(4)).toBe((1 + 2 + 3 + 4) / 4);
  });

  it("charges a sequence the same whole or token by token", () => {
    const T = 17;
    let steps = 0;
    for (let t = 1; t <= T; t++) steps += forwardFlops(tiny, t);
    expect(T * forwardFlops(tiny, causalKeys(T))).toBe(steps);
  });
});

describe("dollars", () => {
  it("are hours by their price", () => {
    expect(dollarsFor(10, CPU_HOUR)).toBeCloseTo(0.48, 12);
    expect(dollarsFor(24, GPU_HOUR)).toBe(48);
    expect(dollarsFor(0, CPU_HOUR)).toBe(0);
  });

  it("come from prices that name their source", () => {
    expect(CPU_HOUR.source).toContain("m5.large");
    expect(CPU_HOUR.dollarsPerHour * 2).toBeCloseTo(0.096, 12);
    expect(GPU_HOUR.source).toContain("arXiv");
  });
});

describe("published costs", () => {
  it.each([DEEPSEEK_V3, DEEPSEEK_R1])("parts add up to the printed total: $source", (budget) => {
    const hours = Object.values(budget.gpuHours).reduce((a, b) => a + b, 0);
    expect(hours).toBe(budget.totalGpuHours);
    expect(dollarsFor(hours, GPU_HOUR)).toBe(budget.totalDollars);
  });

  it("reproduces the arithmetic around the tables", () => {
    // R1-Zero: 64 × 8 GPUs for about 198 hours.
    expect(512 * 198).toBeGreaterThan(DEEPSEEK_R1.gpuHours["R1-Zero"]!);
    expect(512 * 198 - DEEPSEEK_R1.gpuHours["R1-Zero"]!).toBeLessThan(500);
    // 2,048 GPUs for 54.2 days pre-training.
    expect(DEEPSEEK_V3.gpuHours["pre-training"]! / 2048 / 24).toBeCloseTo(54.2, 1);
    // One day of serving: 226.75 nodes of 8.
    expect(dollarsFor(226.75 * 8 * 24, GPU_HOUR)).toBe(87_072);
  });

  it("puts Mini-R1 at 24 GPU-hours", () => {
    const miniR1 = COUNTDOWN_RUNS.find((run) => run.name === "Mini-R1")!;
    expect(miniR1.gpuHours).toBe(24);
    expect(miniR1.dollars).toEqual({ value: 48, upTo: false });
  });

  const file = "../shared/data/cost/deepseek/published.json";
  it.skipIf(!existsSync(file))("agrees with the published figures kept as data", () => {
    const published = JSON.parse(readFileSync(file, "utf8"));
    expect(DEEPSEEK_V3.gpuHours["pre-training"]).toBe(published.training.pretraining_h800_gpu_hours);
    expect(DEEPSEEK_V3.totalGpuHours).toBe(published.training.full_training_h800_gpu_hours);
    expect(GPU_HOUR.dollarsPerHour).toBe(published.inference_day.usd_per_gpu_hour);
  });
});
