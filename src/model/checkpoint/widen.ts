/**
 * Stored floats widened to float32. Every value of these formats has an exact float32, so nothing rounds; infinities stay
 * infinite and NaNs of the 16-bit formats keep their sign and payload. Whole arrays at a time, for weights by the billion;
 * `fromHalfBits` of compute/tensor is the slow twin.
 */

import { DTypeError } from "../../base/errors.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { sizeOf } from "../../compute/tensor/shape.ts";
import type { StoredDType, StoredTensor } from "./safetensors.ts";

/** Bytes of an element of each float format that weights are stored in. */
export const FLOAT_BYTES = { f32: 4, f16: 2, bf16: 2, f8_e4m3: 1 } as const;
export type StoredFloat = keyof typeof FLOAT_BYTES;

export function isStoredFloat(dtype: StoredDType): dtype is StoredFloat {
  return Object.hasOwn(FLOAT_BYTES, dtype);
}

/** Written as integers, because a NaN that passes through a JavaScript number may lose its payload. */
function widenBrain(from: Uint16Array, bits: Uint32Array): void {
  // bfloat16 is the upper half of a float32.
  for (let i = 0; i < from.length; i++) bits[i] = from[i]! << 16;
}

const HALF_INFINITY = 0x7c00;
const HALF_SMALLEST_NORMAL = 0x0400;
/** Value of the lowest bit of a subnormal half. */
const HALF_UNIT = 2 ** -24;
/** float32's exponent bias, 127, less half's, 15, in float32's exponent position. */
const REBIAS = (127 - 15) << 23;

function widenHalf(from: Uint16Array, values: Float32Array, bits: Uint32Array): void {
  for (let i = 0; i < from.length; i++) {
    const half = from[i]!;
    const magnitude = half & 0x7fff;
    const sign = (half & 0x8000) << 16;
    if (magnitude < HALF_SMALLEST_NORMAL) {
      // Zero and the subnormals are plain multiples of the unit; the sign is set apart, for −0.
      values[i] = magnitude * HALF_UNIT;
      bits[i]! |= sign;
    } else if (magnitude < HALF_INFINITY) {
      bits[i] = sign | ((magnitude << 13) + REBIAS);
    } else {
      bits[i] = sign | 0x7f800000 | ((magnitude - HALF_INFINITY) << 13);
    }
  }
}

/**
 * The value of an 8-bit float of four exponent and three fraction bits, bias 7, without infinities.
 * @source arXiv:2209.05433, table 1, E4M3
 */
function fromE4M3(byte: number): number {
  const sign = byte & 0x80 ? -1 : 1;
  const exponent = (byte >> 3) & 15;
  const fraction = byte & 7;
  if (exponent === 15 && fraction === 7) return Number.NaN;
  return exponent === 0 ? sign * fraction * 2 ** -9 : sign * (1 + fraction / 8) * 2 ** (exponent - 7);
}

const E4M3 = Float32Array.from({ length: 256 }, (_, byte) => fromE4M3(byte));

/**
 * Widens stored floats.
 * @param from little-endian elements, starting at a multiple of their width in their buffer
 * @param y    receives them, one each; a view that begins at any element
 */
export function widenInto(dtype: StoredFloat, from: Uint8Array, y: Float32Array): void {
  const halves = () => new Uint16Array(from.buffer, from.byteOffset, from.byteLength / 2);
  const bits = new Uint32Array(y.buffer, y.byteOffset, y.length);
  switch (dtype) {
    case "f32":
      new Uint8Array(y.buffer, y.byteOffset, from.byteLength).set(from);
      return;
    case "f16":
      widenHalf(halves(), y, bits);
      return;
    case "bf16":
      widenBrain(halves(), bits);
      return;
    case "f8_e4m3":
      for (let i = 0; i < from.length; i++) y[i] = E4M3[from[i]!]!;
  }
}

/** @throws DTypeError when a tensor of that type holds no floats */
export function expectFloat(dtype: StoredDType, where: string): StoredFloat {
  if (isStoredFloat(dtype)) return dtype;
  throw new DTypeError({ where, rule: "must be F32, F16, BF16 or F8_E4M3", got: dtype.toUpperCase() });
}

/**
 * A stored float tensor as float32: a view of the same memory where it is float32 already, a copy otherwise.
 * @throws DTypeError when the tensor holds no floats
 */
export function toF32({ dtype, shape, data }: StoredTensor, where: string): HostArray<"f32"> {
  const float = expectFloat(dtype, where);
  if (float === "f32") return hostArray("f32", shape, new Float32Array(data.buffer));
  const values = new Float32Array(sizeOf(shape));
  widenInto(float, data, values);
  return hostArray("f32", shape, values);
}
