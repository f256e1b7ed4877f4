import { readFile } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FormatError } from "../../../../src/base/errors.ts";
import { Runtime } from "../../../../src/compute/runtime/runtime.ts";
import { Random } from "../../../../src/compute/tensor/random.ts";
import type { QuantizedMatrix } from "../../../../src/model/arch/stored.ts";
import { dequantizeInto } from "../../../../src/model/checkpoint/gguf/dequantize.ts";
import { assembledFill, unpackedFill } from "../../../../src/model/checkpoint/gguf/fill.ts";
import {
  emptyMatrix,
  fillRows,
  formOf,
  isQuantized,
  nBitsOperands,
} from "../../../../src/model/checkpoint/gguf/matmul-nbits.ts";
import type { QuantizedTensor } from "../../../../src/model/checkpoint/gguf/model.ts";
import { openGguf } from "../../../../src/model/checkpoint/gguf/reader.ts";
import { ggmlTypeNames, layoutOf } from "../../../../src/model/checkpoint/gguf/types.ts";
import { node, onnx, spec } from "../../../compute/runtime/models.ts";
import { fixturePath } from "../../../fixture.ts";
import { assembledFile, FILL_WASM_FILE } from "../../../reference/fill-wasm.ts";

const QUANTIZED = ggmlTypeNames.filter(isQuantized);

let runtime: Runtime;
beforeAll(async () => {
  runtime = await Runtime.create({ threads: 1 });
});
afterAll(() => runtime.dispose());

/** The fixture's matrix [2, 256] of a type: random quants under scales of many sizes. */
async function matrixOf(type: string): Promise<QuantizedTensor> {
  await using file = await openGguf(fixturePath("gguf/blocks.gguf"));
  const info = file.tensors.get(`${type}.weight`)!;
  const blocks = new Uint8Array(info.bytes);
  await file.readInto(`${type}.weight`, blocks, 0);
  return { type: info.type, shape: info.shape, blocks };
}

/** Rows of x [M, K] times the transposed matrix: the operator's product, and the sums of blocks times their offsets. */
async function product(operands: QuantizedMatrix, x: Float32Array): Promise<Float32Array> {
  const { bits, blockSize, N, K, codes, scales, offsets } = operands;
  const M = x.length / K;
  const inputs = { x: spec("f32", M, K) };
  const outputs = { y: spec("f32", M, N) };
  const external = { codes: spec("u8", ...codes.shape), scales: spec("f32", ...scales.shape) };
  const attributes = { K, N, bits, block_size: blockSize };
  const multiply = node("MatMulNBits", ["x", "codes", "scales"], ["y"], attributes, "com.microsoft");
  const program = await runtime.load(onnx({ nodes: [multiply], inputs, outputs, external }), {
    ...{ inputs, outputs },
    initializers: {
      codes: runtime.tensor("u8", codes.shape, codes.data),
      scales: runtime.tensor("f32", scales.shape, scales.data),
    },
  });
  const y = runtime.tensor("f32", [M, N]);
  await program.bind({ x: runtime.tensor("f32", [M, K], x) }, { y }).run();
  const blocks = K / blockSize;
  return Float32Array.from(y.data, (value, i) => {
    const [m, n] = [Math.floor(i / N), i % N];
    let sum = value;
    for (let k = 0; k < K; k++)
      sum += x[m * K + k]! * (offsets?.data[n * blocks + Math.floor(k / blockSize)] ?? 0);
    return sum;
  });
}

describe("nBitsOperands", () => {
  it.each(QUANTIZED)("has the file's weights, exactly or as nearly as it says: %s", async (type) => {
    const matrix = await matrixOf(type);
    const operands = nBitsOperands("w", matrix);
    const values = new Float32Array(512);
    dequantizeInto(matrix.type, matrix.blocks, values);
    const { bits, blockSize, codes, scales, offsets, rounding } = operands;
    const middle = 2 ** (bits - 1);
    for (let i = 0; i < values.length; i++) {
      const code = bits === 8 ? codes.data[i]! : (codes.data[i >> 1]! >> (4 * (i & 1))) & 15;
      const run = Math.floor(i / blockSize);
      const value = (code - middle) * scales.data[run]! + (offsets?.data[run] ?? 0);
      const unit = Math.abs(values[i]!) * 2 ** -24;
      expect(Math.abs(value - values[i]!), `element ${i}`).toBeLessThanOrEqual(
        rounding === 0 ? 0 : rounding + unit,
      );
    }
    const isSymmetric = ["Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K"].includes(type);
    expect(rounding === 0).toBe(isSymmetric);
    expect(offsets === undefined).toBe(isSymmetric);
    const largest = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    expect(rounding / largest).toBeLessThan(2 ** -23);
  });

  it.each(QUANTIZED)("multiplies in ONNX Runtime as the widened matrix does: %s", async (type) => {
    const matrix = await matrixOf(type);
    const operands = nBitsOperands("w", matrix);
    const [N, K, M] = [2, 256, 3];
    const values = new Float32Array(N * K);
    dequantizeInto(matrix.type, matrix.blocks, values);
    const x = Float32Array.from({ length: M * K }, (_, i) => Math.sin(i));
    const y = await product(operands, x);
    for (let m = 0; m < M; m++) {
      for (let n = 0; n < N; n++) {
        let [exact, allowed] = [0, 0];
        for (let k = 0; k < K; k++) {
          const [a, b] = [x[m * K + k]!, values[n * K + k]!];
          exact += a * b;
          // Sums of 256 products in float32, in whatever order, and what the operands say they round.
          allowed += Math.abs(a) * (Math.abs(b) * 256 * 2 ** -24 + operands.rounding);
        }
        expect(Math.abs(y[m * N + n]! - exact)).toBeLessThanOrEqual(allowed);
      }
    }
  });

  it.each(QUANTIZED)("fills memory whatever was in it: %s", async (type) => {
    const { blocks, shape } = await matrixOf(type);
    const [N, K] = shape as [number, number];
    const filled = [0, 0xff].map((byte) => {
      const matrix = emptyMatrix(formOf(type, N, K), (bytes) => new Uint8Array(bytes).fill(byte));
      fillRows(matrix, 0, type, blocks);
      return matrix;
    });
    expect(filled[1]).toEqual(filled[0]);
  });

  it.each(QUANTIZED.filter((type) => assembledFill(type)))(
    "is quicker for %s, and the same to the bit",
    (type) => {
      const { block, bytes } = layoutOf(type);
      const random = new Random(7);
      // More than fits the memory of the quick one at once, and an end that does not fill it.
      const [N, K] = [70, 4 * 256];
      const count = (N * K) / block;
      // One byte before, so that blocks lie at odd addresses, as they may within a file's bytes.
      const memory = Uint8Array.from({ length: 1 + count * bytes }, () => random.integer(256));
      for (const start of [0, 1]) {
        const blocks = memory.subarray(start, memory.length - 1 + start);
        const slow = emptyMatrix(formOf(type, N, K));
        unpackedFill(type)(slow, 0, blocks);
        const { rounding, ...fast } = nBitsOperands("w", { type, shape: [N, K], blocks });
        expect(fast).toEqual(slow);
      }
    },
  );

  it("is quicker for the types that files are commonly of", () => {
    expect(QUANTIZED.filter((type) => assembledFill(type))).toEqual([
      "Q4_0",
      "Q4_1",
      "Q8_0",
      "Q4_K",
      "Q5_K",
      "Q6_K",
    ]);
  });

  it("is what its source is assembled to", async () => {
    expect(await readFile(FILL_WASM_FILE, "utf8")).toBe(await assembledFile());
  });

  it("is worked out by hand for Q4_1", () => {
    // d = 2, m = 0.5; nibbles 5 in the first half of the block, 10 in the second: weights 10.5 and 20.5.
    const blocks = Uint8Array.of(0, 0x40, 0, 0x38, ...Array(16).fill(0xa5));
    const operands = nBitsOperands("w", { type: "Q4_1", shape: [1, 32], blocks });
    expect([...operands.codes.data]).toEqual([...Array(8).fill(0x55), ...Array(8).fill(0xaa)]);
    expect([...operands.scales.data]).toEqual([2]);
    expect([...operands.offsets!.data]).toEqual([16.5]);
    expect(operands).toMatchObject({ bits: 4, blockSize: 32, N: 1, K: 32, rounding: 16.5 * 2 ** -24 });
  });

  it("takes matrices of quantised types alone", () => {
    const refuse = (type: "F16" | "Q4_0", shape: number[]) => () =>
      nBitsOperands("w", { type, shape, blocks: new Uint8Array(64) });
    expect(refuse("F16", [1, 32])).toThrow(FormatError);
    expect(refuse("F16", [1, 32])).toThrow(/w: must be a matrix of a quantised type; got F16\[1,32\]/);
    expect(refuse("Q4_0", [32])).toThrow(/got Q4_0\[32\]/);
  });
});
