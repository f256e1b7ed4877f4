/**
 * The element types of GGML tensors. A quantised type stores rows as blocks: a fixed number of elements in a fixed number of
 * bytes, scales included.
 *
 * @source github.com/ggml-org/ggml, docs/gguf.md and include/ggml.h (enum ggml_type)
 */

export const GGML_TYPES = {
  F32: { id: 0, block: 1, bytes: 4 },
  F16: { id: 1, block: 1, bytes: 2 },
  Q4_0: { id: 2, block: 32, bytes: 18 },
  Q4_1: { id: 3, block: 32, bytes: 20 },
  Q5_0: { id: 6, block: 32, bytes: 22 },
  Q5_1: { id: 7, block: 32, bytes: 24 },
  Q8_0: { id: 8, block: 32, bytes: 34 },
  Q2_K: { id: 10, block: 256, bytes: 84 },
  Q3_K: { id: 11, block: 256, bytes: 110 },
  Q4_K: { id: 12, block: 256, bytes: 144 },
  Q5_K: { id: 13, block: 256, bytes: 176 },
  Q6_K: { id: 14, block: 256, bytes: 210 },
  BF16: { id: 30, block: 1, bytes: 2 },
} as const;

export type GgmlType = keyof typeof GGML_TYPES;

/** Elements and bytes of a block. */
export interface BlockLayout {
  readonly block: number;
  readonly bytes: number;
}

export const ggmlTypeNames = Object.keys(GGML_TYPES) as GgmlType[];

export function ggmlTypeOf(id: number): GgmlType | undefined {
  return ggmlTypeNames.find((name) => GGML_TYPES[name].id === id);
}

export const layoutOf = (type: GgmlType): BlockLayout => GGML_TYPES[type];
