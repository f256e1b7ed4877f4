/**
 * GGML blocks as the operands of ONNX Runtime's `com.microsoft.MatMulNBits`, which multiplies by quantised weights without
 * widening them first: value = (code − 2^(bits − 1)) · scale, with codes of four or eight bits and a scale a block.
 *
 * Symmetric types (Q4_0, Q5_0, Q8_0, Q3_K, Q6_K) fit exactly. The others add a minimum that is no whole number of steps. The
 * operator has float32 zero points for that, but on the CPU (ONNX Runtime 1.30) it refuses them with eight bits, and with four
 * it widens the whole matrix at every call: 6 ms for 2048 × 2048 and one row where the packed form takes 0.1. So the minimum
 * stays apart, as `offsets` that are added to every weight of a block:
 *
 *     x · Wᵀ = MatMulNBits(x) + blockSums(x) · offsetsᵀ,  blockSums(x)[m, b] = Σ of x[m, k] over the k of block b
 *
 * which rounds nothing but each offset, once. What GGML packs in two, three, five or six bits takes four or eight here.
 *
 * @source github.com/microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits
 */

import { FormatError } from "../../../base/errors.ts";
import { hostArray } from "../../../compute/tensor/host.ts";
import { sizeOf } from "../../../compute/tensor/shape.ts";
import type { QuantizedForm, QuantizedMatrix, Room } from "../../arch/stored.ts";
import { assembledFill, type Target, unpackedFill } from "./fill.ts";
import type { QuantizedTensor } from "./model.ts";
import type { GgmlType } from "./types.ts";
import { type QuantizedType, UNPACKERS } from "./unpack.ts";

export function isQuantized(type: GgmlType): type is QuantizedType {
  return Object.hasOwn(UNPACKERS, type);
}

/** Half a unit in the last place of a float32, for each unit of its size: what one rounding changes at most. */
export const HALF_UNIT = 2 ** -24;

/**
 * The operands for a matrix [N, K] as a GGUF file stores it.
 * @param where names the tensor in errors
 * @throws FormatError when the tensor is no matrix, or its type is no quantised one
 */
export function nBitsOperands(where: string, tensor: QuantizedTensor): QuantizedMatrix {
  const { type, shape } = tensor;
  if (shape.length !== 2 || !isQuantized(type)) {
    throw new FormatError({
      where,
      rule: "must be a matrix of a quantised type",
      got: `${type}[${shape.join(",")}]`,
    });
  }
  const [N, K] = shape as readonly [number, number];
  const target = emptyMatrix(formOf(type, N, K));
  return { ...target, rounding: fillRows(target, 0, type, tensor.blocks) };
}

/** What a matrix [N, K] of a type is like. */
export function formOf(type: QuantizedType, N: number, K: number): QuantizedForm {
  const { run, bits, center } = UNPACKERS[type];
  return { N, K, bits, blockSize: run, hasOffsets: center !== 0 };
}

const newRoom: Room = (bytes) => new Uint8Array(bytes);

/** Such a matrix, to be filled: whatever is in the memory it gets. */
export function emptyMatrix(
  { N, K, bits, blockSize, hasOffsets }: QuantizedForm,
  room: Room = newRoom,
): Target {
  const blocks = [N, K / blockSize];
  const count = sizeOf(blocks);
  const floats = ({ buffer, byteOffset }: Uint8Array<ArrayBuffer>) =>
    hostArray("f32", blocks, new Float32Array(buffer, byteOffset, count));
  const bytes = (blockSize * bits) / 8;
  return {
    ...{ bits, blockSize, N, K },
    codes: hostArray("u8", [...blocks, bytes], room(bytes * count)),
    scales: floats(newRoom(4 * count)),
    ...(hasOffsets ? { offsets: floats(room(4 * count)) } : {}),
  };
}

/**
 * Fills rows of a matrix, from `row` on, from blocks of its type.
 * @returns largest difference between a weight there and in the file
 */
export function fillRows(target: Target, row: number, type: QuantizedType, blocks: Uint8Array): number {
  const fill = assembledFill(type) ?? unpackedFill(type);
  return fill(target, (row * target.K) / target.blockSize, blocks) * HALF_UNIT;
}
