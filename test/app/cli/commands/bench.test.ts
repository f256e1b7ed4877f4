import { describe, expect, it } from "vitest";
import { measured } from "../../../../src/app/bench/measure.ts";
import { pondera } from "../harness.ts";

const tiny = ["--depth", "1", "--width", "32", "--heads", "2", "--vocab", "16", "--threads", "1"];

describe("pondera bench", () => {
  it("times training steps and counts their operations", async () => {
    const size = [
      "--batch",
      "4",
      "--tokens",
      "8",
      "--parts",
      "2",
      "--steps",
      "3",
      "--hidden",
      "24",
      "--peak-ms",
      "1",
    ];
    const { code, out, err } = await pondera(["bench", "train", ...tiny, ...size, "--json"]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const report = JSON.parse(out);
    expect(report).toMatchObject({
      // Embedding and head 16·32 each, attention 4·32·32, feed-forward 3·32·24, three norms of 32.
      model: { layers: 1, width: 32, heads: 2, kvHeads: 2, hidden: 24, vocab: 16, parameters: 7520 },
      batch: 4,
      tokens: 8,
      parts: 2,
      optimizer: "adamw",
      // 32 tokens × 3 passes × (2·(4·32² + 3·32·24 + 32·16) + 4·32·4.5): a query sees 4.5 keys on average.
      flopsPerStep: 32 * 3 * (2 * 6912 + 576),
      machine: { threads: 1, runtime: expect.stringMatching(/^ONNX Runtime \d/) },
    });
    expect(report.milliseconds.all).toHaveLength(3);
    expect(report.tokensPerSecond).toBeCloseTo(32 / (report.milliseconds.median / 1000), 6);
    expect(report.gflops).toBeCloseTo(report.flopsPerStep / report.milliseconds.median / 1e6, 6);
    expect(report.share).toBeCloseTo(report.gflops / report.peakGflops, 12);
    expect(report.share).toBeLessThan(1);
  });

  it("trains with Muon too, and says it in words", async () => {
    const size = ["--batch", "2", "--tokens", "8", "--steps", "1", "--optimizer", "muon", "--peak-ms", "1"];
    const { out } = await pondera(["bench", "train", ...tiny, ...size]);
    expect(out).toMatch(
      /^training depth 1, width 32, 2 heads \(2 for keys\), .* parameters, batch 2 × 8, muon\n/,
    );
    expect(out).toMatch(/ms a step +[\d.]+ \(min [\d.]+, max [\d.]+, 1 of them\)\n/);
    expect(out).toMatch(/GFLOP\/s +\d+, [\d.]+ % of the \d+ that matrix products reach\n/);
    expect(out).toMatch(/machine +.*1 threads.*Node/);
  });

  it("times generation, every row to its full length", async () => {
    const size = [
      "--batch",
      "3,2",
      "--prompt",
      "4",
      "--new-tokens",
      "5",
      "--repeats",
      "2",
      "--kv-heads",
      "1",
    ];
    const { code, out } = await pondera(["bench", "generate", ...tiny, ...size, "--json"]);
    expect(code).toBe(0);
    const report = JSON.parse(out);
    expect(report).toMatchObject({ model: { kvHeads: 1 }, promptTokens: 4, newTokens: 5 });
    expect(report.results.map(({ batch }: { batch: number }) => batch)).toEqual([3, 2]);
    for (const { batch, seconds, tokensPerSecond } of report.results) {
      expect(seconds.all).toHaveLength(2);
      expect(tokensPerSecond).toBeCloseTo((5 * batch) / seconds.median, 6);
    }
    const words = await pondera(["bench", "generate", ...tiny, ...size]);
    expect(words.out).toMatch(/batch 3 +[\d.k]+ tokens\/s, [\d.]+ ms for one of each row\n/);
  });

  it("times matrix products", async () => {
    const argv = ["bench", "matmul", "--sizes", "16,32", "--milliseconds", "1", "--threads", "1"];
    const report = JSON.parse((await pondera([...argv, "--json"])).out);
    expect(report.results.map(({ size }: { size: number }) => size)).toEqual([16, 32]);
    expect(report.peakGflops).toBe(
      Math.max(...report.results.map((r: { gflops: { max: number } }) => r.gflops.max)),
    );
    expect((await pondera(argv)).out).toMatch(/^float32 matrix products, GFLOP\/s\n {2}16² +\d+ \(min/);
  });

  it("says what does not fit together", async () => {
    const parts = await pondera(["bench", "train", ...tiny, "--batch", "4", "--parts", "3"]);
    expect(parts.code).toBe(2);
    expect(parts.err).toContain("--parts: must divide the batch of 4; got 3");
    const heads = await pondera(["bench", "train", ...tiny, "--kv-heads", "3", "--steps", "1"]);
    expect(heads.code).toBe(2);
    expect(heads.err).toContain("kvHeads");
    const sizes = await pondera(["bench", "matmul", "--sizes", "16,x"]);
    expect(sizes.code).toBe(2);
    expect(sizes.err).toContain("--sizes");
  });
});

describe("measured", () => {
  it("takes the middle, or the mean of the middle two, whatever the order", () => {
    expect(measured([3])).toEqual({ median: 3, min: 3, max: 3, all: [3] });
    expect(measured([5, 1, 3])).toEqual({ median: 3, min: 1, max: 5, all: [5, 1, 3] });
    expect(measured([10, 1, 2, 4])).toEqual({ median: 3, min: 1, max: 10, all: [10, 1, 2, 4] });
  });
});
