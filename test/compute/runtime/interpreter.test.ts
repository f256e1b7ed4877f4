/** Hand-computed results of the oracle itself; ops.test.ts holds it against the engine. */

import { describe, expect, it } from "vitest";
import { DTypeError, ShapeError } from "../../../src/base/errors.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import * as p from "../../../src/compute/graph/primitives.ts";
import { type Outputs, trace } from "../../../src/compute/graph/trace.ts";
import { interpret, interpretWide } from "../../../src/compute/runtime/interpreter.ts";
import { f32, type HostArray, hostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { f16, i64, specsOf } from "../harness.ts";

/** The elements of every output. */
function run(
  arrays: Readonly<Record<string, HostArray>>,
  fn: (inputs: Record<string, Value>) => Outputs,
): Record<string, (number | bigint)[]> {
  const outputs = interpret(trace(specsOf(arrays), fn), arrays);
  return Object.fromEntries(
    Object.entries(outputs).map(([name, { data }]) => [name, Array.from<number | bigint>(data)]),
  );
}

describe("interpret", () => {
  it("multiplies matrices, a batch at a time", () => {
    const arrays = { a: f32([2, 1, 2], [1, 2, 3, 4]), b: f32([2, 2], [5, 6, 7, 8]) };
    expect(run(arrays, ({ a, b }) => ({ y: p.matmul(a!, b!) }))).toEqual({ y: [19, 22, 43, 50] });
  });

  it("moves axes: transpose, broadcast, slice, concat", () => {
    const arrays = { x: f32([2, 3], [1, 2, 3, 4, 5, 6]) };
    expect(
      run(arrays, ({ x }) => ({
        turned: p.transpose(x!, [1, 0]),
        repeated: p.broadcast(p.slice(x!, 1, 2, 3), [2, 2, 2]),
        joined: p.concat([p.slice(x!, 1, 1, 2), x!], 1),
      })),
    ).toEqual({
      turned: [1, 4, 2, 5, 3, 6],
      repeated: [3, 3, 6, 6, 3, 3, 6, 6],
      joined: [2, 1, 2, 3, 5, 4, 5, 6],
    });
  });

  it("reduces, finds the first maximum, sums along an axis", () => {
    const arrays = { x: f32([2, 3], [1, 7, 7, -4, -5, -4]) };
    expect(
      run(arrays, ({ x }) => ({
        columns: p.sum(x!, [0]),
        rows: p.reduceMax(x!, [1]),
        first: p.argMax(x!),
        down: p.cumulativeSum(x!, 0),
        along: p.cumulativeSum(x!, 1),
      })),
    ).toEqual({
      columns: [-3, 2, 3],
      rows: [7, -4],
      first: [1, 0],
      down: [1, 7, 7, -3, 2, 3],
      along: [1, 8, 15, -4, -9, -13],
    });
  });

  it("gathers and scatters, adding up where indices repeat", () => {
    const arrays = { table: f32([3, 2], [1, 2, 3, 4, 5, 6]), ids: i32([3], [2, 0, 2]) };
    const last = p.takeAlongLast;
    expect(
      run(arrays, ({ table, ids }) => ({
        rows: p.gatherRows(table!, ids!),
        added: p.scatterAddRows(ids!, table!, 4),
        taken: last(p.reshape(table!, [1, 6]), p.reshape(ids!, [1, 3])),
        put: p.scatterAddLast(ids!, p.constant(table!, f32([3], [10, 20, 30])), 4),
      })),
    ).toEqual({
      rows: [5, 6, 1, 2, 5, 6],
      added: [3, 4, 0, 0, 6, 8, 0, 0],
      taken: [3, 1, 3],
      put: [20, 0, 40, 0],
    });
  });

  it("turns pairs (j, j + D/2) of each head to its position", () => {
    // A quarter turn at position 1: (a, b) → (−b, a).
    const arrays = { x: f32([1, 2, 4], [1, 2, 3, 4, 1, 2, 3, 4]), positions: i32([1, 2], [1, 0]) };
    const tables = { cos: f32([2, 2], [1, 1, 0, 0]), sin: f32([2, 2], [0, 0, 1, 1]) };
    expect(
      run({ ...arrays, ...tables }, ({ x, positions, cos, sin }) => ({
        y: p.rotary(x!, positions!, cos!, sin!),
      })),
    ).toEqual({ y: [-3, -4, 1, 2, 1, 2, 3, 4] });
  });

  it("attends over the cache it extends, a first prompt padded on the right", () => {
    // One head of 16, no rotation, zero queries: attention is the mean of the values up to the position.
    const ones = (rows: number[]): number[] => rows.flatMap((n) => new Array<number>(16).fill(n));
    const arrays = {
      q: hostArray("f32", [2, 2, 16]),
      kv: f32([2, 2, 16], ones([1, 3, 5, 99])),
      past: f32([2, 1, 3, 16], ones([7, 7, 7, 7, 7, 7])),
      cos: f32([3, 8], new Array(24).fill(1)),
      sin: hostArray("f32", [3, 8]),
      lengths: i32([2], [1, 0]),
      total: i32([1], [2]),
    };
    const { attended, keys, values } = run(arrays, ({ q, kv, past, cos, sin, lengths, total }) =>
      p.cachedAttention(
        {
          q: q!,
          k: kv!,
          v: kv!,
          pastKeys: past!,
          pastValues: past!,
          lengths: lengths!,
          total: total!,
          cos: cos!,
          sin: sin!,
        },
        { heads: 1, kvHeads: 1, scale: 1 },
      ),
    );
    expect(attended).toEqual(ones([1, 2, 5, 0]));
    expect(values).toEqual(ones([1, 3, 7, 5, 7, 7]));
    expect(keys).toEqual(values);
  });

  it("rounds every result to its dtype, and computes in float64 before that", () => {
    const arrays = { x: f32([3], [2 ** 24, 1, 1]), h: f16([1], [2048]) };
    expect(
      run(arrays, ({ x, h }) => ({
        // 2^24 + 1 is no float32, 2^24 + 2 is: one rounding at the end of the sum, not one a term.
        once: p.sum(x!),
        twice: p.add(p.add(p.slice(x!, 0, 0, 1), 1), 1),
        half: p.cast(p.add(h!, 1), "f32"),
      })),
    ).toEqual({ once: [2 ** 24 + 2], twice: [2 ** 24], half: [2048] });
  });

  it("keeps integers whole and within their range", () => {
    const arrays = { i: i32([1], [2 ** 31 - 1]), w: i64([1], [2 ** 40 + 1]), x: f32([3], [-2.9, 2.9, 300]) };
    expect(
      run(arrays, ({ i, w, x }) => ({
        wrapped: p.add(i!, 1),
        wide: p.add(w!, 1),
        truncated: p.cast(x!, "i32"),
        bytes: p.cast(x!, "u8"),
        truth: p.cast(x!, "bool"),
      })),
    ).toEqual({
      wrapped: [-(2 ** 31)],
      wide: [2n ** 40n + 2n],
      truncated: [-2, 2, 300],
      bytes: [254, 2, 44],
      truth: [1, 1, 1],
    });
  });

  it("does not write to its inputs", () => {
    const x = f32([2], [1, 2]);
    run({ x }, ({ x }) => ({ a: p.cumulativeSum(x!, 0), b: p.softmax(x!), c: p.reshape(x!, [1, 2]) }));
    expect([...x.data]).toEqual([1, 2]);
  });

  it("refuses inputs that are missing, unknown or not as declared", () => {
    const graph = trace({ x: { dtype: "f32", shape: [2] } }, ({ x }) => ({ y: p.neg(x) }));
    const x = f32([2], [1, 2]);
    const failing = (inputs: Record<string, HostArray>): (() => unknown) => {
      return () => interpret(graph, inputs);
    };
    expect(failing({})).toThrow(ShapeError);
    expect(failing({})).toThrow("interpret: input x must be f32[2]; got nothing.");
    expect(failing({ x, z: x })).toThrow("interpret: inputs are x; got z.");
    expect(failing({ x: f32([1, 2], [1, 2]) })).toThrow("interpret: input x must be f32[2]; got f32[1,2].");
    expect(failing({ x: i32([2], [1, 2]) })).toThrow(DTypeError);
  });

  it("refuses indices out of range instead of reading nothing", () => {
    const arrays = { table: f32([2, 2], [1, 2, 3, 4]), ids: i32([2], [0, 2]) };
    const indices = (ids: Value): Value => p.reshape(ids, [2, 1]);
    const cases: Record<string, (table: Value, ids: Value) => Value> = {
      "gatherRows: indices must lie in 0 … 1; got 2.": p.gatherRows,
      "scatterAddRows: indices must lie in 0 … 1; got 2.": (table, ids) => p.scatterAddRows(ids, table, 2),
      "takeAlongLast: indices must lie in 0 … 1; got 2.": (table, ids) =>
        p.takeAlongLast(table, indices(ids)),
      "scatterAddLast: indices must lie in 0 … 1; got 2.": (table, ids) =>
        p.scatterAddLast(indices(ids), p.slice(table, 1, 0, 1), 2),
      "gatherRows: indices must lie in 0 … 1; got -1.": (table, ids) => p.gatherRows(table, p.sub(ids, 1)),
    };
    for (const [message, fn] of Object.entries(cases)) {
      expect(() => run(arrays, ({ table, ids }) => ({ y: fn(table!, ids!) }))).toThrow(message);
    }
  });
});

describe("interpretWide", () => {
  it("rounds no floats, takes inputs in float64, and still keeps integers whole", () => {
    const graph = trace({ x: { dtype: "f32", shape: [1] } }, ({ x }) => ({
      third: p.div(x, 3),
      whole: p.cast(x, "i32"),
    }));
    const { third, whole } = interpretWide(graph, {
      x: { dtype: "f32", shape: [1], data: Float64Array.of(1.1) },
    });
    expect(third!.data[0]).toBe(1.1 / 3);
    expect(whole!.data[0]).toBe(1);
    expect(third).toMatchObject({ dtype: "f32", shape: [1] });
  });
});
