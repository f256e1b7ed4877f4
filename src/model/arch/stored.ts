/** Weights as a file stores them: floats, or matrices of whole numbers that products need not widen first. */

import type { Quantization } from "../../compute/graph/ir.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import type { Shape } from "../../compute/tensor/shape.ts";

/** What a matrix of whole numbers is like before it is read. */
export interface QuantizedForm extends Pick<Quantization, "bits" | "blockSize"> {
  /** Rows of the matrix, which are columns of the product. */
  readonly N: number;
  readonly K: number;
  /** Whether blocks have offsets. */
  readonly hasOffsets: boolean;
}

/**
 * A matrix [N, K] of whole numbers: value = (code − 2^(bits − 1)) · scale + offset, scale and offset being those of the block
 * of `blockSize` columns.
 */
export interface QuantizedMatrix extends Omit<QuantizedForm, "hasOffsets"> {
  /** u8[N, K/blockSize, blockSize·bits/8], the lower half of a byte first. */
  readonly codes: HostArray<"u8">;
  /** f32[N, K/blockSize] */
  readonly scales: HostArray<"f32">;
  /** f32[N, K/blockSize]: what every weight of a block has besides; absent where that is nothing. */
  readonly offsets?: HostArray<"f32">;
  /** Largest difference between a weight here and in the file; 0: none. */
  readonly rounding: number;
}

export type StoredWeight = HostArray<"f32"> | QuantizedMatrix;
export type StoredForm = { readonly shape: Shape } | QuantizedForm;

export function isQuantizedMatrix(weight: StoredWeight): weight is QuantizedMatrix {
  return "codes" in weight;
}

/** Memory of so many bytes, whatever is in it. */
export type Room = (bytes: number) => Uint8Array<ArrayBuffer>;

/**
 * A model's weights that are still in its file, which stays open: each is read when it is needed, so that what reads it can be rid of
 * it before the next. Nobody may write to the file meanwhile: what is read then is not checked again.
 */
export interface StoredSource {
  /** By Hugging Face name; matrices may be joined as `Architecture.joins` says. */
  readonly forms: Readonly<Record<string, StoredForm>>;
  /**
   * A weight, in memory that is the caller's.
   * @param room  where codes and offsets are to be, which are read no more once they are laid out anew
   * @throws FileError when the file cannot be read
   */
  read(name: string, room?: Room): Promise<StoredWeight>;
  /**
   * A row of a matrix, widened.
   * @param into  f32[K]
   * @throws FileError when the file cannot be read
   */
  readRow(name: string, row: number, into: Float32Array): void;
  close(): Promise<void>;
}
