/** Weights as a file stores them: floats, or matrices of whole numbers that products need not widen first. */

import type { Quantization } from "../../compute/graph/ir.ts";
import type { HostArray } from "../../compute/tensor/host.ts";

/**
 * A matrix [N, K] of whole numbers: value = (code − 2^(bits − 1)) · scale + offset, scale and offset being those of the block
 * of `blockSize` columns.
 */
export interface QuantizedMatrix extends Pick<Quantization, "bits" | "blockSize"> {
  /** Rows of the matrix, which are columns of the product. */
  readonly N: number;
  readonly K: number;
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
export type StoredWeights = Readonly<Record<string, StoredWeight>>;

export function isQuantizedMatrix(weight: StoredWeight): weight is QuantizedMatrix {
  return "codes" in weight;
}
