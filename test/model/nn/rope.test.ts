import { describe, expect, it } from "vitest";
import {
  rotaryFrequencies,
  rotaryTables,
  type YarnScaling,
  yarnMagnitude,
} from "../../../src/model/nn/rope.ts";

describe("rotaryTables", () => {
  it("turns pair j of position p by p·θ^(−2j/D)", () => {
    const { cos, sin } = rotaryTables(3, 4, 100);
    expect(cos.shape).toEqual([3, 2]);
    // Angles: 0, 0 · 1, 0.1 · 2, 0.2.
    for (const [i, angle] of [0, 0, 1, 0.1, 2, 0.2].entries()) {
      expect(cos.data[i]).toBeCloseTo(Math.cos(angle), 7);
      expect(sin.data[i]).toBeCloseTo(Math.sin(angle), 7);
    }
  });

  it("is as exact far out as near by", () => {
    const { cos } = rotaryTables(100_001, 2, 1e4);
    // cos(100000) by a table of 20 digits.
    expect(cos.data[100_000]).toBeCloseTo(-0.999360807438, 6);
  });
});

/** DeepSeek-V3's scaling: inference/model.py, ModelArgs. */
const V3: YarnScaling = {
  type: "yarn",
  factor: 40,
  betaFast: 32,
  betaSlow: 1,
  originalPositions: 4096,
  mscale: 1,
};

describe("YaRN", () => {
  it("keeps DeepSeek-V3's first eleven pairs, slows those from the 23rd on by 40, and blends between", () => {
    const plain = rotaryFrequencies(64, 1e4);
    const ratios = [...rotaryFrequencies(64, 1e4, V3)].map((f, j) => f / plain[j]!);
    for (const j of ratios.keys()) {
      // The correction range worked out by hand is 10.47 to 22.51, widened to 10 and 23.
      const slowed = Math.min(1, Math.max(0, (j - 10) / 13));
      expect(ratios[j], `pair ${j}`).toBeCloseTo(1 - slowed * (1 - 1 / 40), 12);
    }
  });

  it("leaves the size of cosines and sines, and scales the softmax by 1.873854", () => {
    const { cos, sin } = rotaryTables(50, 64, 1e4, V3);
    for (const i of cos.data.keys()) expect(cos.data[i]! ** 2 + sin.data[i]! ** 2).toBeCloseTo(1, 5);
    expect(yarnMagnitude(V3) ** 2).toBeCloseTo(1.873854, 5);
    expect(yarnMagnitude({ ...V3, mscale: 0 })).toBe(1);
    expect(yarnMagnitude({ ...V3, factor: 1 })).toBe(1);
  });
});

describe("llama 3's scaling", () => {
  it("keeps waves shorter than 2048, stretches those longer than 8192 eightfold, and blends between", () => {
    const scaling = {
      type: "llama3",
      factor: 8,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalPositions: 8192,
    } as const;
    const plain = rotaryFrequencies(128, 5e5);
    const kinds = new Set<string>();
    for (const [j, f] of rotaryFrequencies(128, 5e5, scaling).entries()) {
      const wave = (2 * Math.PI) / plain[j]!;
      const smooth = (8192 / wave - 1) / 3;
      const kind = wave < 2048 ? "kept" : wave > 8192 ? "stretched" : "blended";
      kinds.add(kind);
      const ratio = { kept: 1, stretched: 1 / 8, blended: smooth + (1 - smooth) / 8 }[kind];
      expect(f / plain[j]!, `pair ${j}`).toBeCloseTo(ratio, 12);
    }
    expect(kinds.size).toBe(3);
  });
});
