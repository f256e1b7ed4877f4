/**
 * GGML blocks taken apart: whole numbers, and what to multiply and add to make them values. Every element of a quantised type
 * is `scale · quant + min`, scale and minimum being those of its run of 16 or 32 elements.
 *
 * @source github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h (the block structs), ggml/src/ggml-quants.c (what they mean)
 */

import { fromHalfBits } from "../../../compute/tensor/half.ts";
import type { GgmlType } from "./types.ts";

/** The types whose elements are quants under a scale. */
export type QuantizedType = Exclude<GgmlType, "F32" | "F16" | "BF16">;

/** A block taken apart; one is made and filled again for each block. */
export interface BlockParts {
  /** Of each element. */
  readonly quants: Int8Array;
  /** Of each run. */
  readonly scales: Float32Array;
  readonly mins: Float32Array;
}

export interface Unpacker {
  /** Elements that share a scale. */
  readonly run: 16 | 32;
  /** Bits, of those that ONNX Runtime has products for, that hold every quant. */
  readonly bits: 4 | 8;
  /** The middle of the quants of types that have minima, which count from 0; 0 of those that have both signs and no minima. */
  readonly center: number;
  /** @param x the stored bytes, the block's from `from` on */
  unpack(x: Uint8Array, from: number, parts: BlockParts): void;
}

/** Room for a block of any type. A minimum of −0 adds nothing, and keeps even the sign of a zero. */
export function emptyParts(): BlockParts {
  return { quants: new Int8Array(256), scales: new Float32Array(16), mins: new Float32Array(16).fill(-0) };
}

/** Every half's value, by its bits: one lookup a scale instead of a conversion. */
const HALF = Float32Array.from({ length: 65_536 }, (_, bits) => fromHalfBits(bits));

/** The value of a half with these bits. */
export const halfOf = (bits: number): number => HALF[bits]!;
export const half = (x: Uint8Array, at: number): number => halfOf(x[at]! | (x[at + 1]! << 8));
const signed = (byte: number): number => (byte << 24) >> 24;

/** 32 nibbles: the first half of the elements in the low ones, the second in the high. */
function nibbles(x: Uint8Array, from: number, quants: Int8Array, zero: number): void {
  for (let i = 0; i < 16; i++) {
    quants[i] = (x[from + i]! & 15) - zero;
    quants[i + 16] = (x[from + i]! >> 4) - zero;
  }
}

/** The same with a fifth bit of each element in 32 bits of their own. */
function fiveBits(x: Uint8Array, high: number, low: number, quants: Int8Array, zero: number): void {
  nibbles(x, low, quants, zero);
  for (let i = 0; i < 32; i++) quants[i]! += ((x[high + (i >> 3)]! >> (i & 7)) & 1) << 4;
}

/** Scales and minima of the eight runs of Q4_K and Q5_K, six bits each, in twelve bytes after the block's two halves. */
function sixBitScales(x: Uint8Array, from: number, { scales, mins }: BlockParts): void {
  const [d, dmin] = [half(x, from), half(x, from + 2)];
  const at = from + 4;
  for (let run = 0; run < 4; run++) {
    const [low, high, both] = [x[at + run]!, x[at + 4 + run]!, x[at + 8 + run]!];
    scales[run] = d * (low & 63);
    mins[run] = -dmin * (high & 63);
    scales[run + 4] = d * ((both & 15) | ((low >> 6) << 4));
    mins[run + 4] = -dmin * ((both >> 4) | ((high >> 6) << 4));
  }
}

export const UNPACKERS: { readonly [T in QuantizedType]: Unpacker } = {
  // d f16, 16 bytes of nibbles; d·(q − 8)
  Q4_0: {
    ...{ run: 32, bits: 4, center: 0 },
    unpack(x, from, { quants, scales }) {
      scales[0] = half(x, from);
      nibbles(x, from + 2, quants, 8);
    },
  },
  // d f16, m f16, 16 bytes of nibbles; d·q + m
  Q4_1: {
    ...{ run: 32, bits: 4, center: 8 },
    unpack(x, from, { quants, scales, mins }) {
      scales[0] = half(x, from);
      mins[0] = half(x, from + 2);
      nibbles(x, from + 4, quants, 0);
    },
  },
  // d f16, 32 high bits, 16 bytes of nibbles; d·(q − 16)
  Q5_0: {
    ...{ run: 32, bits: 8, center: 0 },
    unpack(x, from, { quants, scales }) {
      scales[0] = half(x, from);
      fiveBits(x, from + 2, from + 6, quants, 16);
    },
  },
  // d f16, m f16, 32 high bits, 16 bytes of nibbles; d·q + m
  Q5_1: {
    ...{ run: 32, bits: 8, center: 16 },
    unpack(x, from, { quants, scales, mins }) {
      scales[0] = half(x, from);
      mins[0] = half(x, from + 2);
      fiveBits(x, from + 4, from + 8, quants, 0);
    },
  },
  // d f16, 32 signed bytes; d·q
  Q8_0: {
    ...{ run: 32, bits: 8, center: 0 },
    unpack(x, from, { quants, scales }) {
      scales[0] = half(x, from);
      for (let i = 0; i < 32; i++) quants[i] = signed(x[from + 2 + i]!);
    },
  },
  // 16 bytes of (scale, minimum) nibbles, 64 bytes of 2-bit quants, d f16, dmin f16
  Q2_K: {
    ...{ run: 16, bits: 4, center: 2 },
    unpack(x, from, { quants, scales, mins }) {
      const [d, dmin] = [half(x, from + 80), half(x, from + 82)];
      for (let run = 0; run < 16; run++) {
        scales[run] = d * (x[from + run]! & 15);
        mins[run] = -dmin * (x[from + run]! >> 4);
        // 128 elements share 32 bytes: runs 0 and 1 have the lowest bits of them, 2 and 3 the next, and so on.
        const at = from + 16 + 32 * (run >> 3) + 16 * (run & 1);
        for (let i = 0; i < 16; i++) quants[16 * run + i] = (x[at + i]! >> (run & 6)) & 3;
      }
    },
  },
  // 32 bytes of high bits, 64 bytes of 2 low bits, 12 bytes of 16 six-bit scales, d f16; a high bit not set takes 4 away
  Q3_K: {
    ...{ run: 16, bits: 4, center: 0 },
    unpack(x, from, { quants, scales }) {
      const d = half(x, from + 108);
      for (let run = 0; run < 16; run++) {
        const low = (x[from + 96 + (run & 7)]! >> (run < 8 ? 0 : 4)) & 15;
        const high = (x[from + 104 + (run & 3)]! >> (2 * (run >> 2))) & 3;
        scales[run] = d * ((low | (high << 4)) - 32);
        const at = from + 32 + 32 * (run >> 3) + 16 * (run & 1);
        const mask = from + 16 * (run & 1);
        for (let i = 0; i < 16; i++) {
          const set = (x[mask + i]! >> (run >> 1)) & 1;
          quants[16 * run + i] = ((x[at + i]! >> (run & 6)) & 3) - (set ? 0 : 4);
        }
      }
    },
  },
  // d f16, dmin f16, 12 bytes of scales and minima, 128 bytes of nibbles
  Q4_K: {
    ...{ run: 32, bits: 4, center: 8 },
    unpack(x, from, parts) {
      sixBitScales(x, from, parts);
      for (let run = 0; run < 8; run++) {
        const at = from + 16 + 32 * (run >> 1);
        for (let i = 0; i < 32; i++) parts.quants[32 * run + i] = (x[at + i]! >> (4 * (run & 1))) & 15;
      }
    },
  },
  // d f16, dmin f16, 12 bytes of scales and minima, 32 bytes of fifth bits, 128 bytes of nibbles
  Q5_K: {
    ...{ run: 32, bits: 8, center: 16 },
    unpack(x, from, parts) {
      sixBitScales(x, from, parts);
      for (let run = 0; run < 8; run++) {
        const at = from + 48 + 32 * (run >> 1);
        for (let i = 0; i < 32; i++) {
          const fifth = (x[from + 16 + i]! >> run) & 1;
          parts.quants[32 * run + i] = ((x[at + i]! >> (4 * (run & 1))) & 15) | (fifth << 4);
        }
      }
    },
  },
  // 128 bytes of low nibbles, 64 bytes of 2 high bits, 16 signed scales, d f16; d·scale·(q − 32)
  Q6_K: {
    ...{ run: 16, bits: 8, center: 0 },
    unpack(x, from, { quants, scales }) {
      const d = half(x, from + 208);
      for (let run = 0; run < 16; run++) {
        scales[run] = d * signed(x[from + 192 + run]!);
        // 128 elements share 64 bytes of nibbles and 32 of high bits.
        const [part, quarter, odd] = [run >> 3, (run >> 1) & 3, run & 1];
        const low = from + 64 * part + 32 * (quarter & 1) + 16 * odd;
        const high = from + 128 + 32 * part + 16 * odd;
        for (let i = 0; i < 16; i++) {
          const nibble = (x[low + i]! >> (4 * (quarter >> 1))) & 15;
          const two = (x[high + i]! >> (2 * quarter)) & 3;
          quants[16 * run + i] = (nibble | (two << 4)) - 32;
        }
      }
    },
  },
};
