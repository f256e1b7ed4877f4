import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { ggufFacts, ggufLines } from "../../../src/app/cli/header-facts.ts";
import type { GgufTensorInfo } from "../../../src/model/checkpoint/gguf/reader.ts";
import { BLOCKY, DEEPSEEK_V3_671B } from "../../model/models.ts";

const nowhere = new PassThrough();
const IO = { stdin: nowhere, stdout: nowhere, stderr: nowhere, env: {}, exitWith() {} };

const tensor = (type: GgufTensorInfo["type"], ...shape: number[]): GgufTensorInfo => ({
  ...{ type, shape },
  bytes: 8 * shape.reduce((product, size) => product * size),
});
const HEADER = {
  version: 3,
  metadata: new Map(),
  tensors: new Map([
    ["a", tensor("Q4_K", 64, 256)],
    ["b", tensor("Q4_K", 32, 256)],
    ["c", tensor("Q8_0", 8, 256)],
    ["d", tensor("Q8_0", 256)],
    ["e", tensor("F32", 64)],
  ]),
};

describe("what a GGUF header says of how a model runs", () => {
  it("is said of each type, of one that runs in two ways twice", () => {
    const { stored, widened } = ggufFacts(HEADER, undefined, BLOCKY);
    expect(stored.map(({ type, tensors, runs }) => [type, tensors, runs?.as, runs?.rounding])).toEqual([
      ["Q4_K", 2, "blocks and offsets", 2 ** -24],
      ["Q8_0", 1, "blocks", 0],
      ["Q8_0", 1, "float32", 0],
      ["F32", 1, "float32", 0],
    ]);
    expect(widened).toBeUndefined();
  });

  it("is told a person, with the size of the error", () => {
    const lines = ggufLines(ggufFacts(HEADER, undefined, BLOCKY), true, IO).join("\n");
    expect(lines).toMatch(/\nQ4_K +2 .* blocks and offsets\nQ8_0 +1 .* blocks\nQ8_0 +1 .* float32\n/);
    expect(lines).toContain("\nblocks: whole numbers and scales exactly as stored\n");
    expect(lines).toContain("off by at most 2^-24 (6.0e-8) of its block's offset");
    expect(lines).toContain("\nfloat32: exactly what is stored, widened\n");
    for (const line of lines.split("\n")) expect(line.length).toBeLessThanOrEqual(120);
  });

  it("names why all is widened, and what that rounds", () => {
    const facts = ggufFacts(HEADER, undefined, DEEPSEEK_V3_671B);
    expect(new Set(facts.stored.map(({ runs }) => runs?.as))).toEqual(new Set(["float32"]));
    const lines = ggufLines(facts, true, IO).join("\n");
    expect(lines).not.toContain("blocks:");
    expect(lines).toContain("rounded once,\n  by at most 2^-24 (6.0e-8) of itself\n");
    expect(lines).toContain(
      "all is widened, to four bytes a weight: experts and latent attention of deepseek_v3",
    );
  });
});
