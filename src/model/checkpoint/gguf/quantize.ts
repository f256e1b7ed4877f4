/**
 * float32 to GGML blocks, as llama.cpp's reference quantisation does: the same roundings in float32, the same choice among
 * equal extremes, so that files are equal to the byte.
 *
 * @source github.com/ggml-org/llama.cpp, ggml/src/ggml-quants.c (quantize_row_q4_0_ref, quantize_row_q8_0_ref)
 */

import { NumericError } from "../../../base/errors.ts";
import { toHalfBits } from "../../../compute/tensor/half.ts";
import { GGML_TYPES, layoutOf } from "./types.ts";

/** What the writer can store. */
export const WRITABLE_TYPES = ["F32", "F16", "Q8_0", "Q4_0"] as const;
export type WritableType = (typeof WRITABLE_TYPES)[number];

const f = Math.fround;

/** Stores a half, little-endian. */
function putHalf(y: Uint8Array, at: number, value: number): void {
  const bits = toHalfBits(value);
  y[at] = bits & 255;
  y[at + 1] = bits >> 8;
}

/** The element furthest from zero, the first of equals; +0 in a block of zeros, whatever their signs. */
function extreme(x: Float32Array, from: number, count: number): number {
  let most = 0;
  let found = 0;
  for (let i = from; i < from + count; i++) {
    const size = Math.abs(x[i]!);
    if (size > most) {
      most = size;
      found = x[i]!;
    }
  }
  return found;
}

/** d f16 = extreme / −8, then nibbles q of d·(q − 8): the first half of the block low, the second high. */
function quantizeQ4(x: Float32Array, from: number, y: Uint8Array, to: number): void {
  const d = f(extreme(x, from, 32) / -8);
  const inverse = d === 0 ? 0 : f(1 / d);
  const quant = (i: number): number => Math.min(15, Math.trunc(f(f(x[from + i]! * inverse) + 8.5)));
  putHalf(y, to, d);
  for (let i = 0; i < 16; i++) y[to + 2 + i] = quant(i) | (quant(i + 16) << 4);
}

/** d f16 = largest magnitude / 127, then signed bytes, halves rounded away from zero. */
function quantizeQ8(x: Float32Array, from: number, y: Uint8Array, to: number): void {
  const d = f(Math.abs(extreme(x, from, 32)) / 127);
  const inverse = d === 0 ? 0 : f(1 / d);
  putHalf(y, to, d);
  for (let i = 0; i < 32; i++) {
    const scaled = f(x[from + i]! * inverse);
    const size = Math.abs(scaled);
    const rounded = Math.floor(size) + (size - Math.floor(size) >= 0.5 ? 1 : 0);
    y[to + 2 + i] = scaled < 0 ? -rounded : rounded;
  }
}

/** Largest magnitude whose scale is a finite half. */
const LARGEST = { Q4_0: 8 * 65_504, Q8_0: 127 * 65_504, F16: 65_504 } as const;

/** @throws NumericError naming the first element that the type has no number for */
function checkRange(where: string, type: Exclude<WritableType, "F32">, x: Float32Array): void {
  const limit = LARGEST[type];
  const wrong = x.findIndex((value) => !(Math.abs(value) <= limit));
  if (wrong === -1) return;
  throw new NumericError({
    where: `${where}: element ${wrong}`,
    rule: `must be a number up to ${limit} in size, to be stored as ${type}`,
    got: `${x[wrong]}`,
  });
}

/**
 * Stores whole blocks.
 * @param where names the tensor in errors
 * @param x     a multiple of the type's block of elements
 * @throws NumericError when a value is not finite, or too large for the type
 */
export function quantize(where: string, type: WritableType, x: Float32Array): Uint8Array {
  if (type === "F32") return new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
  checkRange(where, type, x);
  const { block, bytes } = layoutOf(type);
  const y = new Uint8Array((x.length / block) * bytes);
  if (type === "F16") {
    for (let i = 0; i < x.length; i++) putHalf(y, 2 * i, x[i]!);
    return y;
  }
  const one = type === "Q4_0" ? quantizeQ4 : quantizeQ8;
  for (let from = 0, to = 0; from < x.length; from += block, to += bytes) one(x, from, y, to);
  return y;
}

/** The type that a row of `width` elements is stored as: F16 where it is no whole number of blocks, as llama.cpp has it. */
export function typeForRow(type: WritableType, width: number): WritableType {
  return width % GGML_TYPES[type].block === 0 ? type : "F16";
}
