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
import type { QuantizedMatrix } from "../../arch/stored.ts";
import type { QuantizedTensor } from "./model.ts";
import { type GgmlType, layoutOf } from "./types.ts";
import { type BlockParts, emptyParts, half, type QuantizedType, UNPACKERS } from "./unpack.ts";

export function isQuantized(type: GgmlType): type is QuantizedType {
  return Object.hasOwn(UNPACKERS, type);
}

/** Half a unit in the last place of a float32, for each unit of its size. */
const HALF_UNIT = 2 ** -24;

/** Nibbles whose halves of a block lie in the halves of bytes, as neighbours in bytes. */
function repackNibbles(x: Uint8Array, from: number, codes: Uint8Array, to: number): void {
  for (let i = 0; i < 8; i++) {
    const [a, b] = [x[from + 2 * i]!, x[from + 2 * i + 1]!];
    codes[to + i] = (a & 15) | ((b & 15) << 4);
    codes[to + 8 + i] = (a >> 4) | (b & 0xf0);
  }
}

type Repack = (x: Uint8Array, from: number, parts: BlockParts, codes: Uint8Array, to: number) => void;

/** The commonest types, straight from their bytes: what `unpack` and the loop below it do, ten times as fast. */
const REPACK: { readonly [T in QuantizedType]?: Repack } = {
  Q4_0(x, from, { scales }, codes, to) {
    scales[0] = half(x, from);
    repackNibbles(x, from + 2, codes, to);
  },
  Q4_1(x, from, { scales, mins }, codes, to) {
    scales[0] = half(x, from);
    mins[0] = half(x, from + 2);
    repackNibbles(x, from + 4, codes, to);
  },
  Q8_0(x, from, { scales }, codes, to) {
    scales[0] = half(x, from);
    // A signed byte plus 128.
    for (let i = 0; i < 32; i++) codes[to + i] = x[from + 2 + i]! ^ 128;
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
  const target = emptyMatrix(type, N, K);
  return { ...target, rounding: fillRows(target, 0, type, tensor.blocks) };
}

/** Room for a matrix [N, K] of a type. */
export function emptyMatrix(type: QuantizedType, N: number, K: number): Omit<QuantizedMatrix, "rounding"> {
  const { run, bits, center } = UNPACKERS[type];
  const blocks = [N, K / run];
  return {
    ...{ bits, blockSize: run, N, K },
    codes: hostArray("u8", [...blocks, (run * bits) / 8]),
    scales: hostArray("f32", blocks),
    ...(center === 0 ? {} : { offsets: hostArray("f32", blocks) }),
  };
}

/**
 * Fills rows of a matrix, from `row` on, from blocks of its type.
 * @returns largest difference between a weight there and in the file
 */
export function fillRows(
  { K, codes, scales, offsets }: Omit<QuantizedMatrix, "rounding">,
  row: number,
  type: QuantizedType,
  blocks: Uint8Array,
): number {
  const { run, bits, center, unpack } = UNPACKERS[type];
  const layout = layoutOf(type);
  const parts = emptyParts();
  const repack = REPACK[type];
  const runsPerBlock = layout.block / run;
  const toCode = 2 ** (bits - 1) - center;
  let rounding = 0;
  for (let from = 0, element = row * K; from < blocks.length; from += layout.bytes, element += layout.block) {
    if (repack === undefined) unpack(blocks, from, parts);
    else repack(blocks, from, parts, codes.data, (element * bits) / 8);
    for (let r = 0; r < runsPerBlock; r++) {
      const at = element / run + r;
      scales.data[at] = parts.scales[r]!;
      if (offsets === undefined) continue;
      const offset = parts.mins[r]! + center * parts.scales[r]!;
      offsets.data[at] = offset;
      rounding = Math.max(rounding, Math.abs(offset) * HALF_UNIT);
    }
    if (repack !== undefined) continue;
    for (let i = 0; i < layout.block; i++) {
      const code = parts.quants[i]! + toCode;
      if (bits === 8) codes.data[element + i] = code;
      else codes.data[(element + i) >> 1]! |= code << (4 * (i & 1));
    }
  }
  return rounding;
}
