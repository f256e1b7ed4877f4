/**
 * GGML blocks to float32, one loop a type. Scales are halves and quants at most eight bits, so every product is exact in
 * float32 and each value rounds at most once, as in the reference: results are equal to the bit.
 *
 * @source github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h (the block structs), ggml/src/ggml-quants.c (what they mean)
 */

import { fromHalfBits } from "../../../compute/tensor/half.ts";
import { type GgmlType, layoutOf } from "./types.ts";

/** Every half's value, by its bits: one lookup a scale instead of a conversion. */
const HALF = Float32Array.from({ length: 65_536 }, (_, bits) => fromHalfBits(bits));

const half = (x: Uint8Array, at: number): number => HALF[x[at]! | (x[at + 1]! << 8)]!;
const signed = (byte: number): number => (byte << 24) >> 24;

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/**
 * Decodes one block.
 * @param x the stored bytes, the block's from `from` on
 * @param y receives the block's elements from `to` on
 */
type Decoder = (x: Uint8Array, from: number, y: Float32Array, to: number) => void;

/** What a block adds to each product: nothing, or its minimum. Adding −0 keeps even the sign of a zero. */
const NOTHING = -0;

/** What a block's quants become: `d·(q − zero) + min`. */
interface Scale {
  readonly d: number;
  readonly zero: number;
  readonly min: number;
}

/** Nibbles of 32 elements: the first half of them in the low nibbles, the second in the high. */
function nibbles(x: Uint8Array, from: number, y: Float32Array, to: number, { d, zero, min }: Scale): void {
  for (let i = 0; i < 16; i++) {
    const byte = x[from + i]!;
    y[to + i] = d * ((byte & 15) - zero) + min;
    y[to + i + 16] = d * ((byte >> 4) - zero) + min;
  }
}

/** The same with a fifth bit of each element in 32 bits of their own. */
function fiveBits(
  x: Uint8Array,
  high: number,
  low: number,
  y: Float32Array,
  to: number,
  { d, zero, min }: Scale,
): void {
  for (let i = 0; i < 16; i++) {
    const byte = x[low + i]!;
    const fifth = (x[high + (i >> 3)]! >> (i & 7)) & 1;
    const fifthOfSecond = (x[high + 2 + (i >> 3)]! >> (i & 7)) & 1;
    y[to + i] = d * (((byte & 15) | (fifth << 4)) - zero) + min;
    y[to + i + 16] = d * (((byte >> 4) | (fifthOfSecond << 4)) - zero) + min;
  }
}

/** Scale and minimum of each of the eight sub-blocks of Q4_K and Q5_K, six bits each, in twelve bytes. */
export function sixBitScale(x: Uint8Array, at: number, sub: number): { scale: number; min: number } {
  if (sub < 4) return { scale: x[at + sub]! & 63, min: x[at + 4 + sub]! & 63 };
  const both = x[at + 4 + sub]!;
  return {
    scale: (both & 15) | ((x[at + sub - 4]! >> 6) << 4),
    min: (both >> 4) | ((x[at + sub]! >> 6) << 4),
  };
}

const DECODERS: { readonly [T in Exclude<GgmlType, "F32">]: Decoder } = {
  F16(x, from, y, to) {
    y[to] = half(x, from);
  },
  BF16(x, from, y, to) {
    bits[0] = (x[from]! << 16) | (x[from + 1]! << 24);
    y[to] = float[0]!;
  },
  // d f16, 16 bytes of nibbles; d·(q − 8)
  Q4_0(x, from, y, to) {
    nibbles(x, from + 2, y, to, { d: half(x, from), zero: 8, min: NOTHING });
  },
  // d f16, m f16, 16 bytes of nibbles; d·q + m
  Q4_1(x, from, y, to) {
    nibbles(x, from + 4, y, to, { d: half(x, from), zero: 0, min: half(x, from + 2) });
  },
  // d f16, 32 high bits, 16 bytes of nibbles; d·(q − 16)
  Q5_0(x, from, y, to) {
    fiveBits(x, from + 2, from + 6, y, to, { d: half(x, from), zero: 16, min: NOTHING });
  },
  // d f16, m f16, 32 high bits, 16 bytes of nibbles; d·q + m
  Q5_1(x, from, y, to) {
    fiveBits(x, from + 4, from + 8, y, to, { d: half(x, from), zero: 0, min: half(x, from + 2) });
  },
  // d f16, 32 signed bytes; d·q
  Q8_0(x, from, y, to) {
    const d = half(x, from);
    for (let i = 0; i < 32; i++) y[to + i] = d * signed(x[from + 2 + i]!);
  },
  // 16 bytes of (scale, minimum) nibbles for 16 elements each, 64 bytes of 2-bit quants, d f16, dmin f16
  Q2_K(x, from, y, to) {
    const [d, dmin] = [half(x, from + 80), half(x, from + 82)];
    for (let sub = 0; sub < 16; sub++) {
      const scales = x[from + sub]!;
      const [scale, min] = [d * (scales & 15), dmin * (scales >> 4)];
      // 128 elements share 32 bytes: sub-blocks 0 and 1 have the lowest bits of them, 2 and 3 the next, and so on.
      const quants = from + 16 + 32 * (sub >> 3) + 16 * (sub & 1);
      const shift = sub & 6;
      for (let i = 0; i < 16; i++) y[to + 16 * sub + i] = scale * ((x[quants + i]! >> shift) & 3) - min;
    }
  },
  // 32 bytes of high bits, 64 bytes of 2 low bits, 12 bytes of 16 six-bit scales, d f16; a high bit that is not set takes 4 away
  Q3_K(x, from, y, to) {
    const d = half(x, from + 108);
    const scales = from + 96;
    for (let sub = 0; sub < 16; sub++) {
      const low = (x[scales + (sub & 7)]! >> (sub < 8 ? 0 : 4)) & 15;
      const high = (x[scales + 8 + (sub & 3)]! >> (2 * (sub >> 2))) & 3;
      const scale = d * ((low | (high << 4)) - 32);
      const quants = from + 32 + 32 * (sub >> 3) + 16 * (sub & 1);
      const mask = from + 16 * (sub & 1);
      for (let i = 0; i < 16; i++) {
        const quant = (x[quants + i]! >> (sub & 6)) & 3;
        const set = (x[mask + i]! >> (sub >> 1)) & 1;
        y[to + 16 * sub + i] = scale * (quant - (set ? 0 : 4));
      }
    }
  },
  // d f16, dmin f16, 12 bytes of scales and minima, 128 bytes of nibbles
  Q4_K(x, from, y, to) {
    const [d, dmin] = [half(x, from), half(x, from + 2)];
    for (let sub = 0; sub < 8; sub++) {
      const { scale, min } = sixBitScale(x, from + 4, sub);
      const [dl, ml] = [d * scale, dmin * min];
      const quants = from + 16 + 32 * (sub >> 1);
      const shift = 4 * (sub & 1);
      for (let i = 0; i < 32; i++) y[to + 32 * sub + i] = dl * ((x[quants + i]! >> shift) & 15) - ml;
    }
  },
  // d f16, dmin f16, 12 bytes of scales and minima, 32 bytes of fifth bits, 128 bytes of nibbles
  Q5_K(x, from, y, to) {
    const [d, dmin] = [half(x, from), half(x, from + 2)];
    for (let sub = 0; sub < 8; sub++) {
      const { scale, min } = sixBitScale(x, from + 4, sub);
      const [dl, ml] = [d * scale, dmin * min];
      const quants = from + 48 + 32 * (sub >> 1);
      const shift = 4 * (sub & 1);
      for (let i = 0; i < 32; i++) {
        const fifth = (x[from + 16 + i]! >> sub) & 1;
        y[to + 32 * sub + i] = dl * (((x[quants + i]! >> shift) & 15) | (fifth << 4)) - ml;
      }
    }
  },
  // 128 bytes of low nibbles, 64 bytes of 2 high bits, 16 signed scales, d f16; d·scale·(q − 32)
  Q6_K(x, from, y, to) {
    const d = half(x, from + 208);
    for (let sub = 0; sub < 16; sub++) {
      const scale = d * signed(x[from + 192 + sub]!);
      // 128 elements share 64 bytes of nibbles and 32 of high bits.
      const [part, quarter, odd] = [sub >> 3, (sub >> 1) & 3, sub & 1];
      const low = from + 64 * part + 32 * (quarter & 1) + 16 * odd;
      const high = from + 128 + 32 * part + 16 * odd;
      for (let i = 0; i < 16; i++) {
        const nibble = (x[low + i]! >> (4 * (quarter >> 1))) & 15;
        const two = (x[high + i]! >> (2 * quarter)) & 3;
        y[to + 16 * sub + i] = scale * ((nibble | (two << 4)) - 32);
      }
    }
  },
};

/** Single values, in the host's own order; the copy keeps a signalling NaN as it was. */
function copyF32(x: Uint8Array, y: Float32Array, at: number): void {
  new Uint8Array(y.buffer, y.byteOffset + 4 * at, x.byteLength).set(x);
}

/**
 * Decodes whole blocks.
 * @param blocks stored bytes, a whole number of blocks of the type
 * @param y      receives their elements from `at` on
 */
export function dequantizeInto(type: GgmlType, blocks: Uint8Array, y: Float32Array, at = 0): void {
  if (type === "F32") {
    copyF32(blocks, y, at);
    return;
  }
  const { block, bytes } = layoutOf(type);
  const decode = DECODERS[type];
  for (let from = 0, to = at; from < blocks.byteLength; from += bytes, to += block) {
    decode(blocks, from, y, to);
  }
}
