/**
 * Blocks of a GGML type as codes, scales and offsets: any type by way of its numbers one by one, and the commonest in WebAssembly,
 * sixteen bytes at a time. A file of billions of weights is put in order so whenever it is opened.
 */

import type { QuantizedMatrix } from "../../arch/stored.ts";
import { FILL_WASM } from "./fill-wasm.ts";
import { layoutOf } from "./types.ts";
import { emptyParts, type QuantizedType, UNPACKERS } from "./unpack.ts";

export type Target = Omit<QuantizedMatrix, "rounding">;

/** What fills runs from the one numbered `first` on with whole blocks. @returns the largest size of an offset */
export type Fill = (target: Target, first: number, blocks: Uint8Array) => number;

/** Any type. */
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

/** Numbers that are put in order at once: what they are made of and become lies in a core's second cache. */
const WINDOW = 2 ** 16;

// Where in the module's memory blocks, codes, scales and offsets of a window begin: of codes there is a byte a number at most, of
// blocks as much as those of Q8_0 take, of floats four bytes for every sixteen numbers.
const [CODES, SCALES, OFFSETS] = [2 * WINDOW, 3 * WINDOW, 3.25 * WINDOW] as const;

/** A function of `fill.wat`. @returns the largest size of an offset */
type Assembled = (from: number, end: number, codes: number, scales: number, offsets: number) => number;

interface FillModule {
  readonly memory: { readonly buffer: ArrayBuffer };
  /** By type. */
  readonly fills: Readonly<Record<string, Assembled>>;
}

/** The part of Node's WebAssembly that is used here: it is in no library of TypeScript but a browser's. */
declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (
    module: object,
  ) => { readonly exports: { readonly memory: FillModule["memory"] } & Record<string, unknown> };
};

let loaded: FillModule | undefined;

function fillModule(): FillModule {
  if (loaded === undefined) {
    const module = new WebAssembly.Module(Buffer.from(FILL_WASM, "base64"));
    const { memory, ...fills } = new WebAssembly.Instance(module).exports;
    loaded = { memory, fills: fills as Record<string, Assembled> };
  }
  return loaded;
}

/** The same to the bit, for the types that `fill.wat` has; undefined for others. */
export function assembledFill(type: QuantizedType): Fill | undefined {
  const { memory, fills } = fillModule();
  const fill = fills[type];
  if (fill === undefined) return undefined;
  const layout = layoutOf(type);
  const step = (WINDOW / layout.block) * layout.bytes;
  const [bytes, floats] = [new Uint8Array(memory.buffer), new Float32Array(memory.buffer)];
  return ({ codes, scales, offsets, bits, blockSize }, first, blocks) => {
    let largest = 0;
    let run = first;
    for (let at = 0; at < blocks.length; at += step) {
      const piece = blocks.subarray(at, at + step);
      const runs = ((piece.length / layout.bytes) * layout.block) / blockSize;
      const runBytes = (blockSize * bits) / 8;
      bytes.set(piece);
      largest = Math.max(largest, fill(0, piece.length, CODES, SCALES, OFFSETS));
      codes.data.set(bytes.subarray(CODES, CODES + runs * runBytes), run * runBytes);
      scales.data.set(floats.subarray(SCALES / 4, SCALES / 4 + runs), run);
      offsets?.data.set(floats.subarray(OFFSETS / 4, OFFSETS / 4 + runs), run);
      run += runs;
    }
    return largest;
  };
}
