import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { DTypeError } from "../../../src/base/errors.ts";
import { fromHalfBits } from "../../../src/compute/tensor/half.ts";
import { toF32 } from "../../../src/model/checkpoint/widen.ts";

const expected = JSON.parse(
  await readFile(new URL("../../fixtures/tensors/expected.json", import.meta.url), "utf8"),
) as { widened: Record<"f16" | "bf16", string> };

function widen(dtype: "f16" | "bf16", patterns: ArrayLike<number>): Float32Array {
  const data = new Uint8Array(Uint16Array.from(patterns).buffer);
  return toF32({ dtype, shape: [patterns.length], data }, "x").data;
}

const bitsOf = (values: Float32Array) => [...new Uint32Array(values.buffer)];

describe("widening to float32", () => {
  it("f16, by hand: zeros, subnormals, the smallest and largest normal, infinities, NaN", () => {
    const rows: [number, number][] = [
      [0x0000, 0x00000000], // +0
      [0x8000, 0x80000000], // −0
      [0x0001, 0x33800000], // 2⁻²⁴
      [0x8003, 0xb4400000], // −3 · 2⁻²⁴
      [0x03ff, 0x387fc000], // 1023 · 2⁻²⁴
      [0x0400, 0x38800000], // 2⁻¹⁴
      [0x3c00, 0x3f800000], // 1
      [0xc100, 0xc0200000], // −2.5
      [0x7bff, 0x477fe000], // 65504
      [0x7c00, 0x7f800000], // ∞
      [0xfc00, 0xff800000], // −∞
      [0x7e00, 0x7fc00000], // quiet NaN
      [0xfc01, 0xff802000], // signalling NaN, its payload kept
    ];
    expect(
      bitsOf(
        widen(
          "f16",
          rows.map(([half]) => half),
        ),
      ),
    ).toEqual(rows.map(([, bits]) => bits));
  });

  it("bf16, by hand: the upper half of the float32", () => {
    const rows: [number, number][] = [
      [0x0000, 0x00000000],
      [0x8000, 0x80000000],
      [0x0001, 0x00010000], // a float32 subnormal
      [0x3f80, 0x3f800000], // 1
      [0x7f80, 0x7f800000], // ∞
      [0xff81, 0xff810000], // signalling NaN
    ];
    expect(
      bitsOf(
        widen(
          "bf16",
          rows.map(([half]) => half),
        ),
      ),
    ).toEqual(rows.map(([, bits]) => bits));
  });

  it.each(["f16", "bf16"] as const)("%s: every pattern as torch widens it", (dtype) => {
    const values = widen(
      dtype,
      Uint16Array.from({ length: 65536 }, (_, i) => i),
    ).filter((x) => !Number.isNaN(x));
    const digest = createHash("sha256").update(new Uint8Array(values.buffer)).digest("hex");
    expect(digest).toBe(expected.widened[dtype]);
  });

  it("f16: every pattern as its slow twin has it", () => {
    const patterns = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const values = widen("f16", patterns);
    expect(patterns.every((half, i) => Object.is(values[i], fromHalfBits(half)))).toBe(true);
  });

  it("f32 is a view of the same bytes", () => {
    const data = new Uint8Array(Float32Array.of(1, -2).buffer);
    const { data: values } = toF32({ dtype: "f32", shape: [2], data }, "x");
    expect([...values]).toEqual([1, -2]);
    expect(values.buffer).toBe(data.buffer);
  });

  it("takes no integers for weights", () => {
    const ids = { dtype: "i64", shape: [1], data: new Uint8Array(8) } as const;
    expect(() => toF32(ids, "model.safetensors: ids")).toThrow(DTypeError);
    expect(() => toF32(ids, "model.safetensors: ids")).toThrow("must be F32, F16, BF16 or F8_E4M3; got I64");
  });
});
