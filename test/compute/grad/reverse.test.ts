/** What finite differences cannot say about gradients: ties, kinks, stops and what has none. */

import { describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/base/errors.ts";
import { grad } from "../../../src/compute/grad/reverse.ts";
import { sumTo } from "../../../src/compute/grad/rules.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import * as p from "../../../src/compute/graph/primitives.ts";
import { checkGraph, trace } from "../../../src/compute/graph/trace.ts";
import { logSoftmax, softmaxUnfused } from "../../../src/compute/ops/stable.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import { f32, type HostArray, hostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { specsOf } from "../harness.ts";

/** Gradients of a scalar by each of the inputs named. */
function gradientsOf(
  arrays: Readonly<Record<string, HostArray>>,
  wrt: readonly string[],
  loss: (inputs: Record<string, Value>) => Value,
): number[][] {
  const graph = trace(specsOf(arrays), (inputs) => {
    const received = grad(
      loss(inputs),
      wrt.map((name) => inputs[name]!),
    );
    return Object.fromEntries(received.map((g, i) => [`g${i}`, g]));
  });
  checkGraph(graph);
  return Object.values(interpret(graph, arrays)).map(({ data }) => Array.from(data, Number));
}

describe("ties and kinks", () => {
  it("reduceMax shares its gradient equally among all that tie", () => {
    const x = f32([2, 3], [4, 4, 4, 1, 2, 2]);
    const [g] = gradientsOf({ x }, ["x"], ({ x }) => p.sum(p.mul(p.reduceMax(x!, [1]), 6)));
    expect(g).toEqual([2, 2, 2, 0, 3, 3]);
  });

  it("max and min share it between two that tie", () => {
    const arrays = { a: f32([3], [1, 2, 5]), b: f32([3], [3, 2, 4]) };
    expect(gradientsOf(arrays, ["a", "b"], ({ a, b }) => p.sum(p.max(a!, b!)))).toEqual([
      [0, 0.5, 1],
      [1, 0.5, 0],
    ]);
    expect(gradientsOf(arrays, ["a", "b"], ({ a, b }) => p.sum(p.min(a!, b!)))).toEqual([
      [1, 0.5, 0],
      [0, 0.5, 1],
    ]);
  });

  it("abs has the gradient 0 at 0", () => {
    expect(gradientsOf({ x: f32([3], [-2, 0, 2]) }, ["x"], ({ x }) => p.sum(p.abs(x!)))).toEqual([
      [-1, 0, 1],
    ]);
  });
});

describe("masked rows", () => {
  it.each([
    ["softmax", p.softmax],
    ["softmaxUnfused", softmaxUnfused],
    ["logSoftmax", logSoftmax],
  ])("%s has a finite gradient where a row is masked in full", (_, f) => {
    const arrays = { x: f32([2, 2], [1, 2, 3, 3]), mask: f32([2, 2], [0, -1e30, -1e30, -1e30]) };
    const [g] = gradientsOf(arrays, ["x"], ({ x, mask }) =>
      p.sum(p.mul(f(p.add(x!, mask!)), p.constant(x!, f32([2], [1, 3])))),
    );
    expect(g!.every(Number.isFinite)).toBe(true);
    // What is masked alone in its row learns nothing.
    if (f !== logSoftmax) expect(g!.slice(0, 2)).toEqual([0, 0]);
  });
});

describe("what lets no gradient through", () => {
  it("stopGradient makes its argument a constant", () => {
    const [g] = gradientsOf({ x: f32([2], [3, -5]) }, ["x"], ({ x }) => p.sum(p.mul(x!, p.stopGradient(x!))));
    expect(g).toEqual([3, -5]);
  });

  it("comparisons, indices and casts through integers give zeros", () => {
    const arrays = { x: f32([3], [0.5, 1.5, 2.5]) };
    const sums: ((x: Value) => Value)[] = [
      (x) => p.cast(p.less(x, 1), "f32"),
      (x) => p.cast(p.cast(x, "i32"), "f32"),
      (x) => p.cast(p.argMax(x), "f32"),
    ];
    for (const f of sums) expect(gradientsOf(arrays, ["x"], ({ x }) => p.sum(f(x!)))).toEqual([[0, 0, 0]]);
  });

  it("a value the loss does not depend on gets zeros of its shape", () => {
    const arrays = { x: f32([1], [2]), unused: f32([2, 2], [1, 2, 3, 4]), scalar: f32([], [1]) };
    expect(gradientsOf(arrays, ["unused", "scalar"], ({ x }) => p.sum(x!))).toEqual([[0, 0, 0, 0], [0]]);
  });

  it("a path through the attention cache is an error that says what to do", () => {
    const arrays = {
      q: hostArray("f32", [1, 1, 16]),
      cache: hostArray("f32", [1, 1, 2, 16]),
      table: hostArray("f32", [2, 8]),
      one: i32([1], [0]),
    };
    const cached = ({ q, cache, table, one }: Record<string, Value>): Value =>
      p.cachedAttention(
        {
          q: q!,
          k: q!,
          v: q!,
          pastKeys: cache!,
          pastValues: cache!,
          lengths: one!,
          total: one!,
          cos: table!,
          sin: table!,
        },
        { heads: 1, kvHeads: 1, scale: 1 },
      ).attended;
    expect(() => gradientsOf(arrays, ["q"], (inputs) => p.sum(cached(inputs)))).toThrow(
      new ShapeError({
        where: "grad",
        rule: "cachedAttention has no gradient",
        remedy: "Use its differentiable twin in the training graph",
      }),
    );
    // Off the path it does no harm.
    expect(
      gradientsOf({ ...arrays, x: f32([], [1]) }, ["x"], ({ x, ...rest }) => p.mul(x!, p.sum(cached(rest)))),
    ).toEqual([[0]]);
  });
});

describe("grad", () => {
  it("adds up every path, and counts a repeated argument twice", () => {
    // d/dx (x·x + e^x·x) = 2x + e^x·x + e^x
    const [g] = gradientsOf({ x: f32([], [2]) }, ["x"], ({ x }) =>
      p.add(p.mul(x!, x!), p.mul(p.exp(x!), x!)),
    );
    expect(g![0]).toBeCloseTo(4 + 3 * Math.exp(2), 5);
  });

  it("differentiates by values in the middle of the graph, and by the loss itself", () => {
    const graph = trace({ x: { dtype: "f32", shape: [2] } }, ({ x }) => {
      const middle = p.mul(x, 3);
      const loss = p.sum(p.mul(middle, middle));
      const [byMiddle, byX, byLoss] = grad(loss, [middle, x, loss]);
      return { byMiddle: byMiddle!, byX: byX!, byLoss: byLoss! };
    });
    const { byMiddle, byX, byLoss } = interpret(graph, { x: f32([2], [1, -2]) });
    expect([...byMiddle!.data]).toEqual([6, -12]);
    expect([...byX!.data]).toEqual([18, -36]);
    expect([...byLoss!.data]).toEqual([1]);
  });

  it("applied twice is the second derivative", () => {
    const graph = trace({ x: { dtype: "f32", shape: [] } }, ({ x }) => {
      const [first] = grad(p.mul(p.mul(x, x), x), [x]);
      return { second: grad(first!, [x])[0]! };
    });
    expect(interpret(graph, { x: f32([], [5]) }).second!.data[0]).toBe(30);
  });

  it("takes a loss of one element in any rank, and refuses more", () => {
    expect(gradientsOf({ x: f32([1, 1], [3]) }, ["x"], ({ x }) => p.mul(x!, x!))).toEqual([[6]]);
    expect(() => gradientsOf({ x: f32([2], [1, 2]) }, ["x"], ({ x }) => x!)).toThrow(
      new ShapeError({ where: "grad", rule: "the loss must be a scalar", got: "f32[2]", remedy: "Sum it" }),
    );
  });

  it("goes through 20,000 applications in a row", () => {
    const [g] = gradientsOf({ x: f32([], [1]) }, ["x"], ({ x }) => {
      let y = x!;
      for (let i = 0; i < 20_000; i++) y = p.neg(y);
      return y;
    });
    expect(g).toEqual([1]);
  });

  it("puts the gradients of disjoint slices side by side in one concat, with zeros in the gaps", () => {
    const graph = trace({ x: { dtype: "f32", shape: [6] } }, ({ x }) => {
      const loss = p.sum(p.mul(p.slice(x, 0, 4, 5), 2));
      return { g: grad(p.add(loss, p.sum(p.mul(p.slice(x, 0, 0, 2), 3))), [x])[0]! };
    });
    expect(graph.applications.filter(({ primitive }) => primitive === "concat")).toHaveLength(1);
    expect(graph.applications.some(({ primitive }) => primitive === "add")).toBe(false);
    expect([...interpret(graph, { x: hostArray("f32", [6]) }).g!.data]).toEqual([3, 3, 0, 0, 2, 0]);
  });

  it("keeps the forward pass of a batch and a matrix as one product a weight", () => {
    const graph = trace(
      { x: { dtype: "f32", shape: [4, 5, 3] }, w: { dtype: "f32", shape: [3, 2] } },
      ({ x, w }) => ({ g: grad(p.sum(p.matmul(x, w)), [w])[0]! }),
    );
    const products = graph.applications.filter(({ primitive }) => primitive === "matmul");
    expect(products.map(({ outputs }) => outputs[0]!.shape)).toEqual([[2, 3]]);
  });
});

describe("sumTo", () => {
  it("undoes broadcasting along new axes and axes of length 1", () => {
    const graph = trace({ g: { dtype: "f32", shape: [2, 3, 2] } }, ({ g }) => ({ y: sumTo(g, [3, 1]) }));
    const g = f32([2, 3, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    expect(interpret(graph, { g }).y).toMatchObject({ shape: [3, 1], data: Float32Array.of(18, 26, 34) });
  });
});
