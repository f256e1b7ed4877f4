/** Stored weights that a test holds, as an engine reads them from a file. */

import type { HostArray } from "../../../src/compute/tensor/host.ts";
import {
  isQuantizedMatrix,
  type QuantizedForm,
  type QuantizedMatrix,
  type StoredSource,
  type StoredWeight,
} from "../../../src/model/arch/stored.ts";
import { emptyMatrix } from "../../../src/model/checkpoint/gguf/matmul-nbits.ts";

const formOf = (weight: QuantizedMatrix): QuantizedForm => ({
  ...weight,
  hasOffsets: weight.offsets !== undefined,
});

/**
 * Copies of the weights, one at a time.
 * @param floats  the same as floats, for rows
 */
export function held(
  weights: Readonly<Record<string, StoredWeight>>,
  floats: Readonly<Record<string, HostArray<"f32">>>,
): StoredSource {
  return {
    forms: Object.fromEntries(
      Object.entries(weights).map(([name, weight]) => [
        name,
        isQuantizedMatrix(weight) ? formOf(weight) : weight,
      ]),
    ),
    async read(name, room) {
      const weight = weights[name]!;
      if (!isQuantizedMatrix(weight)) return structuredClone(weight);
      const matrix = { ...emptyMatrix(formOf(weight), room), rounding: weight.rounding };
      for (const part of ["codes", "scales", "offsets"] as const) matrix[part]?.data.set(weight[part]!.data);
      return matrix;
    },
    readRow: (name, row, into) =>
      into.set(floats[name]!.data.subarray(row * into.length, (row + 1) * into.length)),
    close: async () => {},
  };
}
