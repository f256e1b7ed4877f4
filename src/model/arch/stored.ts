/** Weights as a file stores them: floats, or matrices of whole numbers that products need not widen first. */

import type { Quantization } from "../../compute/graph/ir.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import type { JoinedWeights } from "./architecture.ts";

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

/** The rows of one after those of another. @param arrays of the same sizes but for the first */
function joinArrays<D extends "u8" | "f32">(arrays: readonly HostArray<D>[]): HostArray<D> {
  const [first] = arrays as readonly [HostArray<D>];
  const rows = arrays.reduce((sum, { shape }) => sum + shape[0]!, 0);
  const all = hostArray(first.dtype, [rows, ...first.shape.slice(1)]);
  let at = 0;
  for (const { data } of arrays) {
    (all.data as Uint8Array).set(data as Uint8Array, at);
    at += data.length;
  }
  return all;
}

/** Matrices of one kind as one; undefined where they are of several kinds, or not quantised. */
export function joinMatrices(weights: readonly (StoredWeight | undefined)[]): QuantizedMatrix | undefined {
  const matrices = weights.filter((x) => x !== undefined).filter(isQuantizedMatrix);
  const [first] = matrices;
  const alike = (x: QuantizedMatrix): boolean =>
    x.K === first?.K &&
    x.bits === first.bits &&
    x.blockSize === first.blockSize &&
    (x.offsets === undefined) === (first.offsets === undefined);
  if (first === undefined || matrices.length !== weights.length || !matrices.every(alike)) return undefined;
  const offsets = matrices.map((x) => x.offsets).filter((x) => x !== undefined);
  return {
    ...first,
    N: matrices.reduce((sum, { N }) => sum + N, 0),
    codes: joinArrays(matrices.map(({ codes }) => codes)),
    scales: joinArrays(matrices.map(({ scales }) => scales)),
    ...(offsets.length === 0 ? {} : { offsets: joinArrays(offsets) }),
    rounding: Math.max(...matrices.map(({ rounding }) => rounding)),
  };
}

/** The same weights, joined where an architecture takes them so and they are of one kind. */
export function joinWeights(weights: StoredWeights, joins: readonly JoinedWeights[]): StoredWeights {
  const result: Record<string, StoredWeight> = { ...weights };
  for (const { parts, joined } of joins) {
    const matrix = joinMatrices(parts.map((name) => weights[name]));
    if (matrix === undefined) continue;
    for (const name of parts) delete result[name];
    result[joined] = matrix;
  }
  return result;
}
