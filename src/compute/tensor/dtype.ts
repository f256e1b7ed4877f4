/** Element types, their sizes in bytes and the typed arrays that hold them on the host. */

export type DType = "f32" | "f16" | "i64" | "i32" | "i8" | "u8" | "bool";

export interface TypedArrayOf {
  f32: Float32Array;
  /** Raw IEEE half bits. */
  f16: Uint16Array;
  i64: BigInt64Array;
  i32: Int32Array;
  i8: Int8Array;
  u8: Uint8Array;
  /** 0 or 1. */
  bool: Uint8Array;
}

export const BYTES: { readonly [D in DType]: number } = {
  f32: 4,
  f16: 2,
  i64: 8,
  i32: 4,
  i8: 1,
  u8: 1,
  bool: 1,
};

const CONSTRUCTOR = {
  f32: Float32Array,
  f16: Uint16Array,
  i64: BigInt64Array,
  i32: Int32Array,
  i8: Int8Array,
  u8: Uint8Array,
  bool: Uint8Array,
} as const;

/** A typed array of `length` elements over `buffer` from `byteOffset`, or freshly allocated and zeroed. */
export function typedArray<D extends DType>(
  dtype: D,
  length: number,
  buffer?: ArrayBuffer,
  byteOffset = 0,
): TypedArrayOf[D] {
  const Type = CONSTRUCTOR[dtype];
  return (buffer === undefined ? new Type(length) : new Type(buffer, byteOffset, length)) as TypedArrayOf[D];
}
