/** Shapes: sizes of axes, outermost first. A scalar has the empty shape. */

import { ShapeError } from "../../base/errors.ts";
import type { DType } from "./dtype.ts";

export type Shape = readonly number[];

/** dtype and shape together: all a program must know of a tensor before it runs. */
export interface TensorSpec {
  readonly dtype: DType;
  readonly shape: Shape;
}

/** Number of elements. */
export function sizeOf(shape: Shape): number {
  let size = 1;
  for (const n of shape) size *= n;
  return size;
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((n, i) => n === b[i]);
}

/** `f32[2,16,64]`, as errors and printed graphs show it. */
export function showSpec(spec: TensorSpec): string {
  return `${spec.dtype}[${spec.shape.join(",")}]`;
}

/** Distance in elements between neighbours along each axis, row-major. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i]!;
  }
  return strides;
}

/**
 * The shape both arguments broadcast to, aligned at the last axis as in NumPy.
 * @throws ShapeError when two aligned sizes differ and neither is 1
 */
export function broadcastShapes(where: string, a: Shape, b: Shape): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i) => {
    const m = a[a.length - rank + i] ?? 1;
    const n = b[b.length - rank + i] ?? 1;
    if (m !== n && m !== 1 && n !== 1) {
      throw new ShapeError({
        where,
        rule: "shapes must broadcast: sizes aligned from the last axis must be equal or 1",
        got: `[${a.join(",")}] and [${b.join(",")}]`,
      });
    }
    return m === 1 ? n : m;
  });
}

/** A negative axis counts from the end. @throws ShapeError outside the rank */
export function normalizeAxis(where: string, axis: number, rank: number): number {
  const normal = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || normal < 0 || normal >= rank) {
    throw new ShapeError({ where, rule: `axis must be an integer within rank ${rank}`, got: String(axis) });
  }
  return normal;
}
