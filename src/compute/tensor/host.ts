/** Arrays on the host: a dtype, a shape and row-major data. */

import { ShapeError } from "../../base/errors.ts";
import { type DType, type TypedArrayOf, typedArray } from "./dtype.ts";
import { type Shape, sizeOf, type TensorSpec } from "./shape.ts";

export interface HostArray<D extends DType = DType> extends TensorSpec {
  readonly dtype: D;
  readonly data: TypedArrayOf[D];
}

/**
 * Wraps data, which is not copied, as an array of the given shape.
 * @throws ShapeError when the number of elements does not fit the shape
 */
export function hostArray<D extends DType>(dtype: D, shape: Shape, data?: TypedArrayOf[D]): HostArray<D> {
  const values = data ?? typedArray(dtype, sizeOf(shape));
  if (values.length !== sizeOf(shape)) {
    throw new ShapeError({
      where: "hostArray",
      rule: `shape [${shape.join(",")}] holds ${sizeOf(shape)} elements`,
      got: `${values.length}`,
    });
  }
  return { dtype, shape, data: values };
}

/** A float32 array from nested or flat numbers; for tests and small constants. */
export function f32(shape: Shape, values: Iterable<number>): HostArray<"f32"> {
  return hostArray("f32", shape, Float32Array.from(values));
}

/** An int32 array: ids, positions, lengths. */
export function i32(shape: Shape, values: Iterable<number>): HostArray<"i32"> {
  return hostArray("i32", shape, Int32Array.from(values));
}
