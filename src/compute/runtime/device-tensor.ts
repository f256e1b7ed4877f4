/**
 * Tensors that programs read and write in place: memory that ONNX Runtime and JavaScript see at the same address.
 *
 * The memory is an ArrayBuffer's, which the garbage collector frees once no tensor, view or call refers to it; disposing
 * of a tensor gives up its reference at once and turns every later use into an error.
 */

import { RuntimeError, ShapeError } from "../../base/errors.ts";
import type { DType, TypedArrayOf } from "../tensor/dtype.ts";
import { type Shape, showSpec, sizeOf, type TensorSpec } from "../tensor/shape.ts";

/** Elements a tensor can start from: bigints for i64, numbers for everything else (f16 as raw bits). */
export type Elements<D extends DType> = ArrayLike<TypedArrayOf[D][number]>;

/** A tensor in memory that programs use without copying. Made by `Runtime.tensor`. */
export class DeviceTensor<D extends DType = DType> implements TensorSpec {
  readonly dtype: D;
  readonly shape: Shape;
  #data: TypedArrayOf[D] | undefined;

  constructor(dtype: D, shape: Shape, data: TypedArrayOf[D]) {
    this.dtype = dtype;
    this.shape = shape;
    this.#data = data;
  }

  /**
   * The elements, row-major: a live view, so what a program writes shows up here.
   * @throws RuntimeError after `dispose`
   */
  get data(): TypedArrayOf[D] {
    if (this.#data === undefined) {
      throw new RuntimeError({
        where: `tensor ${showSpec(this)}`,
        rule: "a tensor must not be used after dispose()",
        remedy: "Dispose of it after its last use, and of the calls bound to it first",
      });
    }
    return this.#data;
  }

  get disposed(): boolean {
    return this.#data === undefined;
  }

  /**
   * Another tensor over part of the same memory; the memory lives until both are gone.
   * @param elementOffset  first element of the view, counted in elements of this tensor
   * @throws ShapeError when the view would reach outside this tensor
   */
  view(shape: Shape, elementOffset = 0): DeviceTensor<D> {
    const { data } = this;
    const end = elementOffset + sizeOf(shape);
    if (!Number.isInteger(elementOffset) || elementOffset < 0 || !(end <= data.length)) {
      throw new ShapeError({
        where: `view of ${showSpec(this)}`,
        rule: `must lie within its ${data.length} elements`,
        got: `shape [${shape.join(",")}] at element ${elementOffset}`,
      });
    }
    return new DeviceTensor(this.dtype, [...shape], data.subarray(elementOffset, end) as TypedArrayOf[D]);
  }

  /** Gives up the memory. Views keep it alive; other uses of this tensor throw from now on. */
  dispose(): void {
    this.#data = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
