/**
 * GGML blocks to float32. Scales are halves times few bits and quants at most eight bits, so every product is exact in float32
 * and each value rounds at most once, as in the reference: results are equal to the bit.
 */

import { type GgmlType, layoutOf } from "./types.ts";
import { emptyParts, half, type QuantizedType, UNPACKERS } from "./unpack.ts";

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

function dequantizeBlocks(type: QuantizedType, x: Uint8Array, y: Float32Array, at: number): void {
  const { block, bytes } = layoutOf(type);
  const { run, unpack } = UNPACKERS[type];
  const parts = emptyParts();
  const { quants, scales, mins } = parts;
  for (let from = 0, to = at; from < x.byteLength; from += bytes, to += block) {
    unpack(x, from, parts);
    for (let first = 0, r = 0; first < block; first += run, r++) {
      const [scale, min] = [scales[r]!, mins[r]!];
      for (let i = first; i < first + run; i++) y[to + i] = scale * quants[i]! + min;
    }
  }
}

/**
 * Decodes whole blocks.
 * @param x stored bytes, a whole number of blocks of the type
 * @param y receives their elements from `at` on
 */
export function dequantizeInto(type: GgmlType, x: Uint8Array, y: Float32Array, at = 0): void {
  switch (type) {
    case "F32":
      // A copy, which keeps NaNs as they were.
      new Uint8Array(y.buffer, y.byteOffset + 4 * at, x.byteLength).set(x);
      return;
    case "F16":
      for (let i = 0; 2 * i < x.byteLength; i++) y[at + i] = half(x, 2 * i);
      return;
    case "BF16":
      for (let i = 0; 2 * i < x.byteLength; i++) {
        bits[0] = (x[2 * i]! << 16) | (x[2 * i + 1]! << 24);
        y[at + i] = float[0]!;
      }
      return;
    default:
      dequantizeBlocks(type, x, y, at);
  }
}
