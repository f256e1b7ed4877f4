import { describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/base/errors.ts";
import type { Application, Graph, Value } from "../../../src/compute/graph/ir.ts";
import { isPrimitive } from "../../../src/compute/graph/ir.ts";
import {
  add,
  broadcast,
  cast,
  concat,
  constant,
  div,
  exp,
  full,
  greater,
  mean,
  mul,
  neg,
  reshape,
  scalar,
  slice,
  sum,
  transpose,
  where,
} from "../../../src/compute/graph/primitives.ts";
import { checkGraph, trace } from "../../../src/compute/graph/trace.ts";
import { f32, i32 } from "../../../src/compute/tensor/host.ts";
import type { TensorSpec } from "../../../src/compute/tensor/shape.ts";

const VECTOR: TensorSpec = { dtype: "f32", shape: [3] };
const MATRIX: TensorSpec = { dtype: "f32", shape: [2, 3] };

const primitivesOf = (graph: Graph): string[] => graph.applications.map(({ primitive }) => primitive);

describe("hash-consing", () => {
  it("computes the same application once", () => {
    const graph = trace({ x: VECTOR }, ({ x }) => ({ y: mul(exp(x), exp(x)) }));
    expect(primitivesOf(graph)).toEqual(["exp", "mul"]);
  });

  it("tells arguments in another order and other attributes apart", () => {
    const graph = trace({ x: VECTOR, y: VECTOR }, ({ x, y }) => ({
      a: div(x, y),
      b: div(y, x),
      c: slice(x, 0, 0, 1),
      d: slice(x, 0, 1, 2),
    }));
    expect(primitivesOf(graph)).toEqual(["div", "div", "slice", "slice"]);
  });

  it("knows scalar constants by value and dtype, arrays by identity", () => {
    const table = f32([2], [1, 2]);
    trace({ x: VECTOR }, ({ x }) => {
      expect(scalar(x, 2)).toBe(scalar(x, 2));
      expect(scalar(x, 2)).not.toBe(scalar(x, 2, "i32"));
      expect(scalar(x, 2)).not.toBe(constant(x, f32([1], [2])));
      expect(constant(x, table)).toBe(constant(x, table));
      expect(constant(x, table)).not.toBe(constant(x, f32([2], [1, 2])));
      return { y: x };
    });
  });

  it("keeps 0 and −0 apart, which division does too", () => {
    trace({ x: VECTOR }, ({ x }) => {
      expect(scalar(x, 0)).not.toBe(scalar(x, -0));
      return { y: x };
    });
  });
});

describe("trace", () => {
  it("leaves out what no output needs, and keeps unused inputs", () => {
    const graph = trace({ x: VECTOR, unused: MATRIX }, ({ x, unused }) => {
      exp(unused);
      const dead = neg(x);
      add(dead, dead);
      return { y: exp(x) };
    });
    expect(primitivesOf(graph)).toEqual(["exp"]);
    expect([...graph.inputs.keys()]).toEqual(["x", "unused"]);
  });

  it("fails on values of another trace, as argument and as output", () => {
    let stray: Value | undefined;
    trace({ x: VECTOR }, ({ x }) => {
      stray = x;
      return { y: exp(x) };
    });
    expect(() => trace({ x: VECTOR }, ({ x }) => ({ y: add(x, stray!) }))).toThrow(
      "invariant broken: add: an argument belongs to another trace",
    );
    expect(() => trace({ x: VECTOR }, () => ({ y: stray! }))).toThrow(
      "invariant broken: output y belongs to another trace",
    );
  });

  it("refuses an output that bears the name of an input", () => {
    expect(() => trace({ x: VECTOR }, ({ x }) => ({ x: neg(x) }))).toThrow(
      new ShapeError({ where: "trace", rule: "an output may not bear the name of an input", got: "x" }),
    );
  });

  it("reports a broken rule where it happens", () => {
    expect(() => trace({ x: VECTOR, y: MATRIX }, ({ x, y }) => ({ z: add(x, slice(y, 1, 0, 2)) }))).toThrow(
      "add: shapes must broadcast: sizes aligned from the last axis must be equal or 1; got [3] and [2,2].",
    );
  });
});

describe("primitives as functions", () => {
  it("apply nothing where nothing would change", () => {
    const graph = trace({ x: MATRIX }, ({ x }) => ({
      a: reshape(x, [2, 3]),
      b: transpose(x, [0, 1]),
      c: broadcast(x, [2, 3]),
      d: slice(x, -1, 0, 3),
      e: concat([x], 0),
      f: cast(x, "f32"),
      g: sum(x, []),
    }));
    expect(graph.applications).toEqual([]);
  });

  it("fold a reshape of a reshape into one", () => {
    const graph = trace({ x: MATRIX }, ({ x }) => ({
      y: reshape(reshape(x, [6]), [3, 2]),
      back: reshape(reshape(x, [6]), [2, 3]),
    }));
    expect(primitivesOf(graph)).toEqual(["reshape"]);
    expect(graph.outputs.get("back")).toBe(graph.inputs.get("x"));
  });

  it("count negative axes from the end, sorted and once", () => {
    const graph = trace({ x: MATRIX }, ({ x }) => ({ y: sum(x, [-1, 0, 1]) }));
    expect(graph.applications[0]!.attributes).toEqual({ axes: [0, 1], keepDims: false });
    expect(() => trace({ x: MATRIX }, ({ x }) => ({ y: sum(x, [2]) }))).toThrow(
      "reduceSum: axis must be an integer within rank 2; got 2.",
    );
  });

  it("take a mean over the elements reduced", () => {
    const graph = trace({ x: MATRIX }, ({ x }) => ({ y: mean(x, [-1]) }));
    const factor = graph.applications.find((application) => isPrimitive(application, "constant"));
    expect(factor).toMatchObject({ attributes: { value: { data: Float32Array.of(1 / 3) } } });
  });

  it("store what is full of one value as a scalar", () => {
    const graph = trace({ x: VECTOR }, ({ x }) => ({ y: full(x, [100, 100], 7) }));
    expect(primitivesOf(graph)).toEqual(["constant", "broadcast"]);
  });

  it("give a number the dtype of the other argument, bits of a half included", () => {
    trace(
      { h: { dtype: "f16", shape: [] }, i: { dtype: "i32", shape: [] }, w: { dtype: "i64", shape: [] } },
      ({ h, i, w }) => {
        const second = (x: Value) => (x.node as Application<"add">).inputs[1]!;
        expect(second(add(h, 0.5)).node).toMatchObject({
          attributes: { value: { dtype: "f16", data: Uint16Array.of(0x3800) } },
        });
        expect(second(add(i, -3)).node).toMatchObject({
          attributes: { value: { dtype: "i32", data: Int32Array.of(-3) } },
        });
        expect(second(add(w, -3)).node).toMatchObject({
          attributes: { value: { dtype: "i64", data: BigInt64Array.of(-3n) } },
        });
        return { y: h };
      },
    );
  });

  it("take two numbers as f32 where only a condition is traced", () => {
    const graph = trace({ x: VECTOR }, ({ x }) => ({ y: where(greater(x, 0), 1, -1) }));
    expect(graph.outputs.get("y")).toMatchObject({ dtype: "f32", shape: [3] });
  });
});

describe("checkGraph", () => {
  const sound = (): Graph => trace({ x: MATRIX }, ({ x }) => ({ y: sum(exp(neg(x)), [1]) }));

  /** The graph with its i-th application changed. */
  function damaged(graph: Graph, i: number, change: (application: Application) => object): Graph {
    const applications = graph.applications.map((application, j) =>
      j === i ? ({ ...application, ...change(application) } as Application) : application,
    );
    return { ...graph, applications };
  }

  const relabelled =
    (label: Partial<TensorSpec>) =>
    ({ outputs }: Application): object => ({ outputs: [{ ...outputs[0]!, ...label }] });

  it("accepts a sound graph", () => {
    expect(() => checkGraph(sound())).not.toThrow();
  });

  it("catches a use before the definition", () => {
    const graph = sound();
    const [first, second, third] = graph.applications;
    expect(() => checkGraph({ ...graph, applications: [second!, first!, third!] })).toThrow(
      /invariant broken: exp uses %\d+ before it is defined/,
    );
  });

  it("catches an application that is missing", () => {
    const graph = sound();
    expect(() => checkGraph({ ...graph, applications: graph.applications.slice(1) })).toThrow(
      "exp uses %1 before it is defined",
    );
  });

  it("catches a value of another graph", () => {
    const other = sound().applications[0]!.outputs[0]!;
    expect(() => checkGraph(damaged(sound(), 1, () => ({ inputs: [other] })))).toThrow(
      "before it is defined",
    );
  });

  it("catches a wrong dtype and a wrong shape", () => {
    expect(() => checkGraph(damaged(sound(), 0, relabelled({ dtype: "f16" })))).toThrow(
      "neg mislabels output 0",
    );
    expect(() => checkGraph(damaged(sound(), 0, relabelled({ shape: [3, 2] })))).toThrow(
      "neg mislabels output 0",
    );
  });

  it("catches an output too many and an output too few", () => {
    expect(() =>
      checkGraph(damaged(sound(), 0, ({ outputs }) => ({ outputs: [...outputs, ...outputs] }))),
    ).toThrow("neg yields 1 values");
    expect(() => checkGraph(damaged(sound(), 0, () => ({ outputs: [] })))).toThrow("neg yields 1 values");
  });

  it("catches a second definition of a value", () => {
    const graph = sound();
    expect(() =>
      checkGraph({ ...graph, applications: [graph.applications[0]!, ...graph.applications] }),
    ).toThrow("%1 is defined twice");
  });

  it("catches arguments and attributes that break the primitive's rule", () => {
    const ids = trace({ x: VECTOR }, ({ x }) => ({ y: constant(x, i32([3], [1, 2, 3])) }));
    const integers = ids.applications[0]!;
    const graph = sound();
    const mixed = { ...graph, applications: [integers, ...graph.applications] };
    expect(() => checkGraph(damaged(mixed, 2, () => ({ inputs: integers.outputs })))).toThrow(
      "exp: argument 0 must be f32 or f16; got i32[3].",
    );
    expect(() =>
      checkGraph(damaged(graph, 2, () => ({ attributes: { axes: [5], keepDims: false } }))),
    ).toThrow("reduceSum: axes must name axes of the argument; got 5 for f32[2,3].");
  });

  it("catches an output that nothing defines", () => {
    const graph = sound();
    const stray = sound().outputs.get("y")!;
    expect(() => checkGraph({ ...graph, outputs: new Map([["y", stray]]) })).toThrow(
      "output y is never defined",
    );
  });
});
