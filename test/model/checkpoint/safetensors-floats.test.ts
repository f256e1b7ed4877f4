import { copyFile, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { DTypeError, FormatError } from "../../../src/base/errors.ts";
import { collectGarbage } from "../../../src/compute/runtime/memory.ts";
import { hostArray } from "../../../src/compute/tensor/host.ts";
import type { FloatSource } from "../../../src/model/checkpoint/float-source.ts";
import {
  openSafetensors,
  openSharded,
  readSafetensors,
  type TensorBytes,
  writeSafetensors,
} from "../../../src/model/checkpoint/safetensors.ts";
import { safetensorsFloats } from "../../../src/model/checkpoint/safetensors-floats.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { fixturePath } from "../../fixture.ts";

async function floatsOf(tensors: Record<string, TensorBytes>): Promise<FloatSource> {
  const file = join(await temporaryFolder(), "x.safetensors");
  await writeSafetensors(file, tensors);
  return safetensorsFloats(file, await openSafetensors(file));
}

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);

const eights = (...shape: number[]): TensorBytes => ({
  dtype: "f8_e4m3",
  shape,
  data: new Uint8Array(shape.reduce((a, b) => a * b)).fill(0x38), // ones
});

describe("weights from safetensors", () => {
  it("with 8-bit floats in shards are what torch makes of them, to the bit", async () => {
    const index = fixturePath("fp8/model.safetensors.index.json");
    await using source = safetensorsFloats(index, await openSharded(index));
    const { tensors } = await readSafetensors(fixturePath("fp8/expected.safetensors"));
    expect([...source.shapes.keys()].sort()).toEqual([...tensors.keys()].sort());
    for (const [name, { shape, data }] of tensors) {
      const ours = await source.readF32(name);
      const theirs = new Float32Array(data.buffer);
      expect(ours.shape).toEqual(shape);
      const wrong = ours.data.findIndex((value, i) => !Object.is(value, theirs[i]));
      expect(wrong, `${name}, element ${wrong}: ${ours.data[wrong]} for ${theirs[wrong]}`).toBe(-1);
    }
  });

  it("of every float type are the same however many windows they take", async () => {
    // More than a window of two-byte elements, and no whole number of windows.
    const n = 2 ** 20 + 3;
    const halves = new Uint16Array(n).map((_, i) => (i * 7) % 0x7c00);
    const bits = new Uint32Array(n).map((_, i) => halves[i]! << 16);
    await using source = await floatsOf({
      brain: { dtype: "bf16", shape: [n], data: halves },
      single: { dtype: "f32", shape: [n], data: bits },
    });
    const [brain, single] = [await source.readF32("brain"), await source.readF32("single")];
    expect(Buffer.compare(bytesOf(brain.data), bytesOf(single.data))).toBe(0);
    expect(brain.data[n - 1]).toBe(single.data[n - 1]);
  });

  it.skipIf(process.platform === "win32")(
    "in float32 are pages of the file, which lives on as it was, and does not see what is written",
    async () => {
      const file = join(await temporaryFolder(), "x.safetensors");
      const n = 2 ** 16;
      const data = Float32Array.from({ length: n }, (_, i) => i / 8);
      await writeSafetensors(file, { a: hostArray("f32", [n], data), few: hostArray("f32", [3]) });
      const source = safetensorsFloats(file, await openSafetensors(file));
      const [a, again, few] = [
        await source.readF32("a"),
        await source.readF32("a"),
        await source.readF32("few"),
      ];
      await source.close();
      const stored = await readFile(file);
      expect(a.data.buffer.byteLength).toBe(stored.byteLength);
      expect(again.data.buffer).toBe(a.data.buffer);
      expect(few.data.buffer.byteLength).toBe(12);
      await rm(file);
      collectGarbage();
      expect(a.data).toEqual(data);
      await writeFile(file, stored);
      await using other = safetensorsFloats(file, await openSafetensors(file));
      const mine = await other.readF32("a");
      mine.data.fill(7);
      expect(await readFile(file)).toEqual(stored);
    },
  );

  it("in float32 that lie across the boundaries of arrays are read", async () => {
    const file = join(await temporaryFolder(), "x.safetensors");
    const n = 2 ** 16;
    const header = JSON.stringify({ a: { dtype: "F32", shape: [n], data_offsets: [0, 4 * n] } });
    const odd = header.padEnd(header.length + 1 + ((4 - (header.length % 4)) % 4));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(odd.length));
    const data = Float32Array.from({ length: n }, (_, i) => i / 8);
    await writeFile(file, Buffer.concat([length, Buffer.from(odd), bytesOf(data)]));
    await using source = safetensorsFloats(file, await openSafetensors(file));
    const a = await source.readF32("a");
    expect(a.data.byteOffset).toBe(0);
    expect(a.data).toEqual(data);
  });

  it("may be empty", async () => {
    await using source = await floatsOf({ none: { dtype: "f16", shape: [0, 3], data: new Uint16Array(0) } });
    expect((await source.readF32("none")).data).toHaveLength(0);
  });

  const scale = (...shape: number[]) => hostArray("f32", shape);
  const rows: [string, Record<string, TensorBytes>, RegExp][] = [
    ["no scales", { w: eights(2, 2) }, /w_scale_inv: must have the shape \[1,1\].*got no such tensor/],
    [
      "scales of another shape",
      { w: eights(129, 2), w_scale_inv: scale(1, 1) },
      /must have the shape \[2,1\].*got \[1,1\]/,
    ],
    ["a vector of 8-bit floats", { w: eights(2), w_scale_inv: scale(1) }, /w: must be a matrix.*got \[2\]/],
  ];
  it.each(rows)("are refused with %s", async (_, tensors, message) => {
    await using source = await floatsOf(tensors);
    await expect(source.readF32("w")).rejects.toThrow(FormatError);
    await expect(source.readF32("w")).rejects.toThrow(message);
  });

  it("are floats, and there; scales are not among them", async () => {
    await using source = await floatsOf({
      ids: hostArray("i64", [1]),
      w: eights(2, 2),
      w_scale_inv: scale(1, 1),
      lone_scale_inv: scale(1),
    });
    expect([...source.shapes.keys()].sort()).toEqual(["ids", "lone_scale_inv", "w"]);
    await expect(source.readF32("ids")).rejects.toThrow(DTypeError);
    await expect(source.readF32("w_scale_inv")).rejects.toThrow(/must hold the tensor "w_scale_inv"/);
  });

  it("are not believed when a shard is another model's", async () => {
    const folder = await temporaryFolder();
    for (const file of ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]) {
      await copyFile(fixturePath(`fp8/${file}`), join(folder, file));
    }
    const other = join(folder, "model-00002-of-00002.safetensors");
    await writeSafetensors(other, { other: scale(1) });
    await expect(openSharded(join(folder, "model.safetensors.index.json"))).rejects.toThrow(FormatError);
    await writeFile(other, "");
    await expect(openSharded(join(folder, "model.safetensors.index.json"))).rejects.toThrow(/00002-of-00002/);
  });
});
