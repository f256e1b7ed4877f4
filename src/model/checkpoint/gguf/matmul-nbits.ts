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
import type { QuantizedTensor } from "./model.ts";
import { type GgmlType, layoutOf } from "./types.ts";
import { emptyParts, halfOf, type QuantizedType, UNPACKERS } from "./unpack.ts";

export function isQuantized(type: GgmlType): type is QuantizedType {
  return Object.hasOwn(UNPACKERS, type);
}

/** Half a unit in the last place of a float32, for each unit of its size. */
const HALF_UNIT = 2 ** -24;

type Target = Omit<QuantizedMatrix, "rounding">;

/** What fills blocks from the one numbered `first` on. @returns the largest size of an offset */
type Fill = (target: Target, first: number, blocks: Uint8Array) => number;

/** The lower halves of the four bytes of a word, as two bytes. */
function lowerHalves(word: number): number {
  const nibbles = word & 0x0f0f0f0f;
  const pairs = (nibbles | (nibbles >>> 4)) & 0x00ff00ff;
  return (pairs | (pairs >>> 8)) & 0xffff;
}

/** Bytes two by two; a copy of those that lie at an odd address. */
function inPairs(x: Uint8Array): Uint16Array {
  const { buffer, byteOffset, byteLength } = x.byteOffset % 2 === 0 ? x : x.slice();
  return new Uint16Array(buffer, byteOffset, byteLength / 2);
}

const inWords = ({ buffer, byteOffset, byteLength }: Uint8Array): Uint32Array =>
  new Uint32Array(buffer, byteOffset, byteLength / 4);

/**
 * Q4_0 and Q4_1: one half or two, and then 32 nibbles, whose halves of a block lie in the halves of bytes; as neighbours in bytes
 * they are wanted.
 */
function nibbleFill(halves: 1 | 2): Fill {
  const units = halves + 8;
  return ({ codes, scales, offsets }, first, blocks) => {
    const [x, words] = [inPairs(blocks), inWords(codes.data)];
    let largest = 0;
    for (let from = 0, block = first; from < x.length; from += units, block++) {
      const scale = halfOf(x[from]!);
      scales.data[block] = scale;
      if (offsets !== undefined) {
        const offset = halfOf(x[from + 1]!) + 8 * scale;
        offsets.data[block] = offset;
        largest = Math.max(largest, Math.abs(offset));
      }
      const [at, to] = [from + halves, 4 * block];
      for (let i = 0; i < 2; i++) {
        const a = x[at + 4 * i]! | (x[at + 4 * i + 1]! << 16);
        const b = x[at + 4 * i + 2]! | (x[at + 4 * i + 3]! << 16);
        words[to + i] = lowerHalves(a) | (lowerHalves(b) << 16);
        words[to + 2 + i] = lowerHalves(a >>> 4) | (lowerHalves(b >>> 4) << 16);
      }
    }
    return largest;
  };
}

/** The commonest types, straight from their bytes: what `unpack` and the loop over it do, twenty times as fast. */
const FILLS: { readonly [T in QuantizedType]?: Fill } = {
  Q4_0: nibbleFill(1),
  Q4_1: nibbleFill(2),
  Q8_0({ codes, scales }, first, blocks) {
    const [x, words] = [inPairs(blocks), inWords(codes.data)];
    for (let from = 0, block = first; from < x.length; from += 17, block++) {
      scales.data[block] = halfOf(x[from]!);
      for (let i = 0; i < 8; i++) {
        const at = from + 1 + 2 * i;
        // Signed bytes plus 128.
        words[8 * block + i] = (x[at]! | (x[at + 1]! << 16)) ^ 0x80808080;
      }
    }
    return 0;
  },
};

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
  const fill = FILLS[type] ?? unpackedFill(type);
  return fill(target, (row * target.K) / target.blockSize, blocks) * HALF_UNIT;
}

/** Any type, by way of its numbers one by one. */
export function unpackedFill(type: QuantizedType): Fill {
  const { run, bits, center, unpack } = UNPACKERS[type];
  const layout = layoutOf(type);
  const toCode = 2 ** (bits - 1) - center;
  return ({ codes, scales, offsets }, first, blocks) => {
    const parts = emptyParts();
    let largest = 0;
    let element = first * run;
    for (let from = 0; from < blocks.length; from += layout.bytes, element += layout.block) {
      unpack(blocks, from, parts);
      for (let r = 0; r < layout.block / run; r++) {
        const at = element / run + r;
        scales.data[at] = parts.scales[r]!;
        if (offsets === undefined) continue;
        const offset = parts.mins[r]! + center * parts.scales[r]!;
        offsets.data[at] = offset;
        largest = Math.max(largest, Math.abs(offset));
      }
      for (let i = 0; i < layout.block; i++) {
        const code = parts.quants[i]! + toCode;
        if (bits === 8) codes.data[element + i] = code;
        else if ((i & 1) === 0) codes.data[(element + i) >> 1] = code;
        else codes.data[(element + i) >> 1]! |= code << 4;
      }
    }
    return largest;
  };
}
