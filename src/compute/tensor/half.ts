/** IEEE 754 half precision (binary16): numbers from bits and bits from numbers, for dtype f16 on the host. */

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/**
 * The half-precision bits nearest to a number, ties to even; beyond ±65504 by half a step or more, infinity.
 * The number is taken in float32, which is what f16 values are made from.
 */
export function toHalfBits(x: number): number {
  float[0] = x;
  const sign = (bits[0]! >>> 16) & 0x8000;
  const magnitude = bits[0]! & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Below 2^−14 halves are multiples of 2^−24: adding 1.5·2^23 leaves that multiple, rounded, in the low bits.
    float[0] = Math.abs(float[0]!) * 2 ** 24 + 1.5 * 2 ** 23;
    return sign | (bits[0]! & 0x7fff);
  }
  // Rebias the exponent from 127 to 15 and round 13 bits away; a carry moves into the exponent, as it should.
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

/** The number that half-precision bits stand for. */
export function fromHalfBits(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >>> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0x1f) return fraction === 0 ? sign * Infinity : Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
