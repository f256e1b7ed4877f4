/** The harness itself: a comparison that never fails would make every other test here worthless. */

import { describe, expect, it } from "vitest";
import { mul, stopGradient } from "../../src/compute/graph/primitives.ts";
import { interpretWide } from "../../src/compute/runtime/interpreter.ts";
import { f32, i32 } from "../../src/compute/tensor/host.ts";
import {
  DIFFERENCE_TOLERANCE,
  expectAllClose,
  expectClose,
  f16,
  finiteDifferences,
  inputsOf,
  lossGraph,
  normal,
  type Row,
} from "./harness.ts";

const LOOSE = { relative: 0.1, floor: 0 };

describe("expectClose", () => {
  it("names the worst element: its index, both values, the relative error", () => {
    const expected = f32([2, 3], [1, 2, 3, 4, 5, 8]);
    const actual = f32([2, 3], [1, 2.5, 3.3125, 4, 2.5, 8]);
    expect(() => expectClose("softmax: y", actual, expected, LOOSE)).toThrow(
      "softmax: y: 3 of 6 elements differ; worst at [1,1]: 2.5, expected 5, relative error 5.0e-1, 5.00 times what is allowed",
    );
  });

  it("allows a fraction of the element and a fraction of the largest", () => {
    const expected = f32([2], [100, 1e-3]);
    expectClose("y", f32([2], [109, 1e-3]), expected, LOOSE);
    expectClose("y", f32([2], [100, 0.5]), expected, { relative: 0, floor: 0.01 });
    expect(() => expectClose("y", f32([2], [111, 1e-3]), expected, LOOSE)).toThrow("worst at [0]");
    expect(() => expectClose("y", f32([2], [100, 0.5]), expected, LOOSE)).toThrow("worst at [1]");
  });

  it("takes NaN and infinity for equal to themselves alone", () => {
    const odd = f32([3], [Number.NaN, Infinity, -Infinity]);
    expectClose("y", odd, odd, LOOSE);
    for (const other of [0, 1e30, Number.NaN, Infinity, -Infinity]) {
      for (const [i, x] of odd.data.entries()) {
        if (Object.is(x, other)) continue;
        const changed = odd.data.slice();
        changed[i] = other;
        expect(() => expectClose("y", f32([3], changed), odd, LOOSE)).toThrow(`worst at [${i}]`);
      }
    }
  });

  it("wants integers exact, and reads halves as numbers", () => {
    expect(() => expectClose("y", i32([1], [1_000_001]), i32([1], [1_000_000]))).toThrow("1 of 1");
    expectClose("y", f16([1], [1]), f16([1], [1 + 2 ** -10]));
    expect(() => expectClose("y", f16([1], [1]), f16([1], [1 + 2 ** -9]))).toThrow("1 of 1");
  });

  it("wants the same dtype and shape, and the same names", () => {
    expect(() => expectClose("y", f32([2], [1, 2]), f32([1, 2], [1, 2]))).toThrow(
      "y: is f32[2], expected f32[1,2]",
    );
    expect(() => expectClose("y", f32([1], [1]), i32([1], [1]))).toThrow("y: is f32[1], expected i32[1]");
    const x = f32([1], [1]);
    expect(() => expectAllClose("row", { a: x }, { a: x, b: x })).toThrow("row: has a, expected a,b");
  });

  it("skips what means nothing, and only that", () => {
    const [actual, expected] = [f32([3], [1, 99, 3]), f32([3], [1, 2, 3])];
    expectClose("y", actual, expected, LOOSE, [1, 0, 1]);
    expect(() => expectClose("y", actual, expected, LOOSE, [0, 1, 0])).toThrow(
      "worst at [1]: 99, expected 2",
    );
  });
});

describe("the gradient check", () => {
  it("sees a gradient that is not that of the function", () => {
    const row: Row = {
      name: "half of the gradient of a square",
      inputs: (random) => ({ x: normal(random, [3]) }),
      fn: ({ x }) => mul(x!, stopGradient(x!)),
    };
    const arrays = inputsOf(row);
    const { graph, arrays: all } = lossGraph(row, arrays, ["x"]);
    const { loss: _, ...byRule } = interpretWide(graph, all);
    expect(() =>
      expectAllClose(row.name, byRule, finiteDifferences(row, arrays, ["x"]), DIFFERENCE_TOLERANCE),
    ).toThrow("gradient of x: 3 of 3 elements differ");
  });

  it("gives a row the same inputs every time, and other rows others", () => {
    const row = (name: string): Row => ({
      name,
      inputs: (random) => ({ x: normal(random, [4]) }),
      fn: ({ x }) => x!,
    });
    expect(inputsOf(row("a"))).toEqual(inputsOf(row("a")));
    expect(inputsOf(row("a"))).not.toEqual(inputsOf(row("b")));
  });
});
