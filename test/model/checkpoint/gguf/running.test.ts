import { describe, expect, it } from "vitest";
import { dequantizeInto } from "../../../../src/model/checkpoint/gguf/dequantize.ts";
import { nBitsOperands } from "../../../../src/model/checkpoint/gguf/matmul-nbits.ts";
import { openGguf } from "../../../../src/model/checkpoint/gguf/reader.ts";
import { isBlockMatrix, runOf, wideningReason } from "../../../../src/model/checkpoint/gguf/running.ts";
import { ggmlTypeNames, layoutOf } from "../../../../src/model/checkpoint/gguf/types.ts";
import { emptyParts, type QuantizedType, UNPACKERS } from "../../../../src/model/checkpoint/gguf/unpack.ts";
import { fixturePath } from "../../../fixture.ts";
import { BLOCKY, DEEPSEEK_V3_671B } from "../../models.ts";

const SHAPE = [2, 256];
const QUANTIZED = ggmlTypeNames.filter((type): type is QuantizedType => isBlockMatrix(type, SHAPE));

async function blocksOf(type: string): Promise<Uint8Array<ArrayBuffer>> {
  await using file = await openGguf(fixturePath("gguf/blocks.gguf"));
  const name = `${type}.weight`;
  const blocks = new Uint8Array(file.tensors.get(name)!.bytes);
  await file.readInto(name, blocks, 0);
  return blocks;
}

/** Blocks taken apart, elements that share a scale together. */
function runsOf(type: QuantizedType, blocks: Uint8Array): { quants: number[]; scale: number; min: number }[] {
  const { run, unpack } = UNPACKERS[type];
  const { block, bytes } = layoutOf(type);
  return Array.from({ length: blocks.length / bytes }, (_, i) => {
    const parts = emptyParts();
    unpack(blocks, i * bytes, parts);
    return Array.from({ length: block / run }, (_, r) => ({
      quants: [...parts.quants.subarray(r * run, (r + 1) * run)],
      scale: parts.scales[r]!,
      min: parts.mins[r]!,
    }));
  }).flat();
}

describe("how a type runs", () => {
  it.each(QUANTIZED)("bounds what its blocks lose, and is 0 where they lose nothing: %s", async (type) => {
    const run = runOf(type, SHAPE, false);
    const blocks = await blocksOf(type);
    const { offsets, rounding } = nBitsOperands("w", { type, shape: SHAPE, blocks });
    expect(run.as).toBe(offsets === undefined ? "blocks" : "blocks and offsets");
    expect(run.of).toBe(offsets === undefined ? undefined : "offset");
    let largest = 0;
    for (const [i, { scale, min }] of runsOf(type, blocks).entries()) {
      // Exact in float64, as are those below.
      const exact = min + UNPACKERS[type].center * scale;
      largest = Math.max(largest, Math.abs(exact));
      const lost = Math.abs((offsets?.data[i] ?? 0) - exact);
      expect(lost).toBeLessThanOrEqual(run.rounding * Math.abs(exact));
    }
    expect(rounding).toBe(run.rounding * largest);
    expect(rounding === 0).toBe(offsets === undefined);
  });

  it.each(QUANTIZED)("bounds what widening loses, and is 0 where it loses nothing: %s", async (type) => {
    const run = runOf(type, SHAPE, true);
    expect(run.as).toBe("float32");
    expect(run.of).toBe(run.rounding === 0 ? undefined : "weight");
    const blocks = await blocksOf(type);
    const widened = new Float32Array(2 * 256);
    dequantizeInto(type, blocks, widened);
    const exact = runsOf(type, blocks).flatMap(({ quants, scale, min }) =>
      quants.map((q) => scale * q + min),
    );
    for (const [i, value] of exact.entries()) {
      expect(Math.abs(widened[i]! - value)).toBeLessThanOrEqual(run.rounding * Math.abs(value));
    }
  });

  it("is float32, exactly, for floats, and for what is no matrix", () => {
    expect(runOf("BF16", SHAPE, false)).toEqual({ as: "float32", rounding: 0 });
    expect(runOf("Q8_0", [256], false)).toEqual({ as: "float32", rounding: 0 });
    expect(runOf("Q4_K", [2, 2, 256], false)).toMatchObject({ as: "float32", of: "weight" });
  });
});

describe("why a model is widened", () => {
  it("is its architecture, or the width of its heads", () => {
    expect(wideningReason(BLOCKY)).toBeUndefined();
    expect(wideningReason(DEEPSEEK_V3_671B)).toContain("deepseek_v3");
    expect(wideningReason({ ...BLOCKY, headDim: 24 })).toBe(
      "heads are 24 wide, and are made 48, a multiple of 16, which rounds the weights of queries once",
    );
    expect(wideningReason({ ...BLOCKY, headDim: 4 })).toBe(
      "heads are 4 wide, and are made 16, a multiple of 16",
    );
  });
});
