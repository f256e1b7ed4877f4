/**
 * 16-bit floats widened to float32. Every value of both formats has an exact float32, so nothing rounds; infinities stay
 * infinite and NaNs keep their sign and payload. Whole arrays at a time, for weights by the billion; `fromHalfBits` of
 * compute/tensor is the slow twin.
 */

import { DTypeError } from "../../base/errors.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import type { StoredTensor } from "./safetensors.ts";

/** Written as integers, because a NaN that passes through a JavaScript number may lose its payload. */
function widenBrain(from: Uint16Array): Float32Array<ArrayBuffer> {
  const bits = new Uint32Array(from.length);
  // bfloat16 is the upper half of a float32.
  for (let i = 0; i < from.length; i++) bits[i] = from[i]! << 16;
  return new Float32Array(bits.buffer);
}

const HALF_INFINITY = 0x7c00;
const HALF_SMALLEST_NORMAL = 0x0400;
/** Value of the lowest bit of a subnormal half. */
const HALF_UNIT = 2 ** -24;
/** float32's exponent bias, 127, less half's, 15, in float32's exponent position. */
const REBIAS = (127 - 15) << 23;

function widenHalf(from: Uint16Array): Float32Array<ArrayBuffer> {
  const values = new Float32Array(from.length);
  const bits = new Uint32Array(values.buffer);
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
  return values;
}

/**
 * A stored float tensor as float32: a view of the same memory where it is float32 already, a copy otherwise.
 * @throws DTypeError when the tensor holds no floats
 */
export function toF32(tensor: StoredTensor, where: string): HostArray<"f32"> {
  const { dtype, shape, data } = tensor;
  switch (dtype) {
    case "f32":
      return hostArray("f32", shape, new Float32Array(data.buffer));
    case "f16":
      return hostArray("f32", shape, widenHalf(new Uint16Array(data.buffer)));
    case "bf16":
      return hostArray("f32", shape, widenBrain(new Uint16Array(data.buffer)));
    default:
      throw new DTypeError({ where, rule: "must be F32, F16 or BF16", got: dtype.toUpperCase() });
  }
}
