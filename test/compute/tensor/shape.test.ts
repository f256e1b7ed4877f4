import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/base/errors.ts";
import {
  broadcastShapes,
  normalizeAxis,
  sameShape,
  showSpec,
  sizeOf,
  stridesOf,
} from "../../../src/compute/tensor/shape.ts";

const shapes = fc.array(fc.integer({ min: 1, max: 4 }), { maxLength: 4 });

describe("sizes and strides", () => {
  it("a scalar has one element and no strides", () => {
    expect(sizeOf([])).toBe(1);
    expect(stridesOf([])).toEqual([]);
    expect(sizeOf([2, 0, 3])).toBe(0);
  });

  it("strides are row-major", () => {
    expect(stridesOf([2, 3, 4])).toEqual([12, 4, 1]);
    fc.assert(
      fc.property(shapes, (shape) => {
        const last = shape.reduce((offset, n, axis) => offset + (n - 1) * stridesOf(shape)[axis]!, 0);
        expect(last).toBe(sizeOf(shape) - 1);
      }),
    );
  });

  it("shapes are the same when every size is, at the same rank", () => {
    expect(sameShape([2, 3], [2, 3])).toBe(true);
    expect(sameShape([2, 3], [3, 2])).toBe(false);
    expect(sameShape([2], [2, 1])).toBe(false);
    expect(sameShape([], [])).toBe(true);
  });

  it("specs print as dtype and shape", () => {
    expect(showSpec({ dtype: "f32", shape: [2, 16, 64] })).toBe("f32[2,16,64]");
    expect(showSpec({ dtype: "i32", shape: [] })).toBe("i32[]");
  });
});

describe("broadcastShapes", () => {
  it("aligns at the last axis and stretches sizes of 1, on both sides at once", () => {
    expect(broadcastShapes("add", [4, 1, 3], [2, 1])).toEqual([4, 2, 3]);
    expect(broadcastShapes("add", [], [2])).toEqual([2]);
    expect(broadcastShapes("add", [1], [0])).toEqual([0]);
  });

  it("does not depend on the order, and leaves a shape with itself as it is", () => {
    fc.assert(
      fc.property(shapes, shapes, (a, b) => {
        const either = (x: number[], y: number[]): number[] | string => {
          try {
            return broadcastShapes("test", x, y);
          } catch {
            return "refused";
          }
        };
        expect(either(a, b)).toEqual(either(b, a));
        expect(broadcastShapes("test", a, a)).toEqual(a);
      }),
    );
  });

  it("refuses sizes that differ, naming both shapes", () => {
    expect(() => broadcastShapes("mul", [2, 3], [2])).toThrow(
      new ShapeError({
        where: "mul",
        rule: "shapes must broadcast: sizes aligned from the last axis must be equal or 1",
        got: "[2,3] and [2]",
      }),
    );
  });
});

describe("normalizeAxis", () => {
  it("counts negative axes from the end", () => {
    expect([-3, -1, 0, 2].map((axis) => normalizeAxis("sum", axis, 3))).toEqual([0, 2, 0, 2]);
  });

  it.each([3, -4, 0.5, Number.NaN])("refuses %d in rank 3", (axis) => {
    expect(() => normalizeAxis("sum", axis, 3)).toThrow(
      `sum: axis must be an integer within rank 3; got ${axis}.`,
    );
  });
});
