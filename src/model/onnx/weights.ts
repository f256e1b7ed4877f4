/** Weights as the bytes of an ONNX file, and where in which file they lie. */

import { NumericError } from "../../base/errors.ts";
import { ELEMENT_TYPE, type TensorProto } from "../../compute/onnx/proto.ts";
import { toHalfBits } from "../../compute/tensor/half.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import type { Shape } from "../../compute/tensor/shape.ts";
import { sizeOf } from "../../compute/tensor/shape.ts";
import type { OnnxType, StoredWeight } from "./decoder.ts";

const BYTES: { readonly [T in OnnxType]: number } = { F32: 4, F16: 2 };
const LARGEST_HALF = 65_504;
/** Where data outside the graph begins, so that pages of it can be mapped. */
const ALIGNMENT = 4096;

/** [rows, columns] → [columns, rows], a block at a time so that both sides stay in the cache. */
function transpose(x: Float32Array, rows: number, columns: number): Float32Array {
  const BLOCK = 32;
  const y = new Float32Array(x.length);
  for (let top = 0; top < rows; top += BLOCK) {
    for (let left = 0; left < columns; left += BLOCK) {
      for (let i = top; i < Math.min(rows, top + BLOCK); i++) {
        for (let j = left; j < Math.min(columns, left + BLOCK); j++) y[j * rows + i] = x[i * columns + j]!;
      }
    }
  }
  return y;
}

/** @throws NumericError naming the first element that no half stands for */
function halves(where: string, x: Float32Array): Uint16Array {
  const y = new Uint16Array(x.length);
  for (let i = 0; i < x.length; i++) {
    if (!(Math.abs(x[i]!) <= LARGEST_HALF)) {
      throw new NumericError({
        where: `${where}: element ${i}`,
        rule: `must be a number up to ${LARGEST_HALF} in size, to be stored as F16`,
        got: `${x[i]}`,
      });
    }
    y[i] = toHalfBits(x[i]!);
  }
  return y;
}

function dimsOf({ transposed }: StoredWeight, shape: Shape): Shape {
  return transposed ? [...shape].reverse() : shape;
}

/** The bytes of one tensor as the file has them. @throws NumericError on a value that F16 has no number for */
export function storedBytes(weight: StoredWeight, { shape, data }: HostArray<"f32">): Uint8Array {
  const ordered = weight.transposed ? transpose(data, shape[0]!, shape[1]!) : data;
  const stored = weight.type === "F16" ? halves(weight.name, ordered) : ordered;
  return new Uint8Array(stored.buffer, stored.byteOffset, stored.byteLength);
}

/** How a weight is declared, wherever its bytes are. */
export function declared(weight: StoredWeight, shape: Shape): Omit<TensorProto, "rawData"> {
  const dataType = weight.type === "F16" ? ELEMENT_TYPE.f16 : ELEMENT_TYPE.f32;
  return { name: weight.name, dims: dimsOf(weight, shape), dataType };
}

export interface PlacedWeight {
  readonly weight: StoredWeight;
  readonly file: number;
  /** Bytes from the file's beginning. */
  readonly offset: number;
  readonly length: number;
}

export const storedLength = ({ type }: StoredWeight, shape: Shape): number => BYTES[type] * sizeOf(shape);

/**
 * Distributes weights over files of at most `maxFileBytes`, in order; one that is larger has a file of its own.
 */
export function placeWeights(
  weights: readonly StoredWeight[],
  shapeOf: (name: string) => Shape,
  maxFileBytes: number,
): PlacedWeight[] {
  let file = 0;
  let end = 0;
  return weights.map((weight) => {
    const length = storedLength(weight, shapeOf(weight.name));
    let offset = Math.ceil(end / ALIGNMENT) * ALIGNMENT;
    if (offset > 0 && offset + length > maxFileBytes) {
      file++;
      offset = 0;
    }
    end = offset + length;
    return { weight, file, offset, length };
  });
}
