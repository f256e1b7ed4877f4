import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Value } from "../../../src/compute/graph/ir.ts";
import {
  add,
  cachedAttention,
  constant,
  exp,
  gatherRows,
  matmul,
  mul,
  neg,
  reshape,
  slice,
  sum,
  transposeLast,
} from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { lowerToOnnx } from "../../../src/compute/onnx/lower.ts";
import type { ModelProto } from "../../../src/compute/onnx/proto.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import { compile } from "../../../src/compute/runtime/jit.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32 } from "../../../src/compute/tensor/host.ts";
import {
  createEngine,
  differentiableInputs,
  forwardGraph,
  inputsOf,
  lossGraph,
  runOnEngine,
} from "../harness.ts";
import { COMPOSITE_ROWS, PRIMITIVE_ROWS } from "../rows.ts";

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

const VECTOR = { dtype: "f32", shape: [2] } as const;
const ROWS = [...Object.values(PRIMITIVE_ROWS), ...Object.values(COMPOSITE_ROWS)].flat();

/** What is wrong with the names of a model: defined twice, or used before. */
function namingFaults({ graph }: ModelProto): string[] {
  const faults: string[] = [];
  const defined = new Set<string>();
  const define = (name: string): void => {
    if (defined.has(name)) faults.push(`${name} is defined twice`);
    defined.add(name);
  };
  for (const { name } of [...graph.input, ...graph.initializer]) define(name);
  for (const { opType, input, output } of graph.node) {
    // An empty name is an optional input left out.
    for (const name of input)
      if (name !== "" && !defined.has(name)) faults.push(`${opType} uses ${name} before its definition`);
    output.forEach(define);
  }
  for (const { name } of graph.output) if (!defined.has(name)) faults.push(`output ${name} is never defined`);
  return faults;
}

describe("lowerToOnnx", () => {
  it.each(ROWS.map((row) => [row.name, row] as const))(
    "defines every name once and before its use: %s",
    (_, row) => {
      const arrays = inputsOf(row);
      const graphs = [forwardGraph(row, arrays)];
      const wrt = differentiableInputs(row, arrays);
      if (wrt.length > 0) graphs.push(lossGraph(row, arrays, wrt).graph);
      for (const graph of graphs) expect(namingFaults(lowerToOnnx(graph))).toEqual([]);
    },
  );

  it("keeps the names, dtypes and shapes of inputs and outputs, in order", () => {
    const graph = trace({ b: VECTOR, a: { dtype: "i32", shape: [] } }, ({ b }) => ({ z: exp(b), y: sum(b) }));
    const { input, output } = lowerToOnnx(graph).graph;
    expect(input.map(({ name }) => name)).toEqual(["b", "a"]);
    expect(output.map(({ name }) => name)).toEqual(["z", "y"]);
    const specs = [...input, ...output].map(({ type: { tensorType } }) => [
      tensorType.elemType,
      tensorType.shape.dim.map(({ dimValue }) => dimValue),
    ]);
    // TensorProto.DataType: FLOAT is 1, INT32 is 6.
    expect(specs).toEqual([
      [1, [2]],
      [6, []],
      [1, [2]],
      [1, []],
    ]);
  });

  it("leaves open sizes open, each under a name, and takes those of a call", async () => {
    const [B, T] = [101, 103];
    const specs = { x: { dtype: "f32", shape: [B, T, 4] }, row: { dtype: "i32", shape: [B] } } as const;
    const graph = trace(specs, ({ x, row }) => {
      // The same axis before and after, a product of both, and one that only the size of the rest says.
      const apart = reshape(exp(x!), [B, T, 2, 2]);
      return { y: gatherRows(reshape(apart, [B * T, 4]), row!) };
    });
    const model = lowerToOnnx(graph, { open: [B, T] });
    const dims = [...model.graph.input, ...model.graph.output].map(({ type }) =>
      type.tensorType.shape.dim.map(({ dimParam, dimValue }) => dimParam || dimValue),
    );
    expect(dims).toEqual([["open101", "open103", 4], ["open101"], ["open101", 4]]);
    const { program } = await compile(engine, graph, { open: [B, T] });
    // A size that is a multiple of what stands for another.
    for (const [b, t] of [
      [1, 2],
      [T, 1],
      [2, B],
    ] as const) {
      const x = engine.tensor("f32", [b, t, 4]);
      for (const i of x.data.keys()) x.data[i] = Math.log(1 + i);
      const row = engine.tensor("i32", [b], Array(b).fill(1));
      const y = engine.tensor("f32", [b, 4]);
      await program.bind({ x, row }, { y }).run();
      expect(Array.from(y.data.subarray(0, 4), Math.round)).toEqual([5, 6, 7, 8]);
      const wrong = engine.tensor("f32", [b + 1, 4]);
      expect(() => program.bind({ x, row }, { y: wrong })).toThrow(`must be f32[${b},4]`);
    }
  });

  it("writes no node that leads to no output", () => {
    const cut = { dtype: "f32", shape: [1, 2, 64] } as const;
    const cache = { dtype: "f32", shape: [1, 1, 8, 16] } as const;
    const counts = { lengths: { dtype: "i32", shape: [1] }, total: { dtype: "i32", shape: [1] } } as const;
    const operators = (start: number): string[] => {
      const graph = trace({ cut, keys: cache, values: cache, ...counts }, (x) => {
        const [q, k, v] = [
          [start, start + 32],
          [32, 48],
          [48, 64],
        ].map(([from, to]) => slice(x["cut"]!, -1, from!, to!)) as [Value, Value, Value];
        const past = { pastKeys: x["keys"]!, pastValues: x["values"]! };
        const given = { q, k, v, ...past, lengths: x["lengths"]!, total: x["total"]! };
        const { attended, keys, values } = cachedAttention(given, { heads: 2, kvHeads: 1, scale: 1 });
        return { attended, nextKeys: keys, nextValues: values };
      });
      return lowerToOnnx(graph).graph.node.map(({ opType }) => opType);
    };
    // Queries, keys and values that are one array are taken as one; others are not.
    expect(operators(0)).toEqual(["GroupQueryAttention"]);
    expect(operators(1)).toEqual(["Slice", "Slice", "Slice", "GroupQueryAttention"]);
  });

  it("transposes a factor of many rows in memory, once for all who ask", async () => {
    const products = (rows: number) =>
      trace({ x: { dtype: "f32", shape: [rows, 3] }, w: { dtype: "f32", shape: [2, 3] } }, ({ x, w }) => {
        const turned = transposeLast(w);
        return { first: matmul(x, turned), second: matmul(neg(x), turned) };
      });
    const operators = (rows: number) => lowerToOnnx(products(rows)).graph.node.map(({ opType }) => opType);
    const detour = ["Reshape", "Transpose", "Reshape"];
    expect(operators(128)).toEqual([...detour, "MatMul", "Neg", "MatMul"]);
    expect(operators(127)).toEqual(["Transpose", "MatMul", "Neg", "MatMul"]);
    const x = f32(
      [128, 3],
      Array.from({ length: 384 }, (_, i) => i % 7),
    );
    const w = f32([2, 3], [1, 2, 3, 4, 5, 6]);
    const { first, second } = await runOnEngine(engine, products(128), { x, w });
    expect([...first!.data]).toEqual([...interpret(products(128), { x, w }).first!.data]);
    expect([...second!.data]).toEqual([...first!.data].map((value) => -value));
  });

  it("copies an input that is returned, and a value returned under two names", async () => {
    const graph = trace({ x: VECTOR }, ({ x }) => {
      const y = neg(x);
      return { same: x, first: y, second: y };
    });
    const x = f32([2], [1, -2]);
    const { same, first, second } = await runOnEngine(engine, graph, { x });
    expect([...same!.data]).toEqual([1, -2]);
    expect([...first!.data]).toEqual([-1, 2]);
    expect([...second!.data]).toEqual([-1, 2]);
  });

  it("gives its own values no name that an input or output bears", async () => {
    const graph = trace({ t0: VECTOR, t2: VECTOR }, ({ t0, t2 }) => ({
      t1: mul(exp(t0), neg(t2)),
      t3: constant(t0, f32([1], [7])),
    }));
    expect(namingFaults(lowerToOnnx(graph))).toEqual([]);
    const { t1, t3 } = await runOnEngine(engine, graph, { t0: f32([2], [0, 0]), t2: f32([2], [3, -4]) });
    expect([...t1!.data]).toEqual([-3, 4]);
    expect([...t3!.data]).toEqual([7]);
  });

  it("leaves the values of external initializers out, and takes them when the program is loaded", async () => {
    const specs = { x: VECTOR, w: VECTOR };
    const graph = trace(specs, ({ x, w }: { x: Value; w: Value }) => ({ y: add(x, w) }));
    const model = lowerToOnnx(graph, { initializers: new Set(["w"]) });
    const { input, initializer } = model.graph;
    expect(input.map(({ name }) => name)).toEqual(["x"]);
    expect(initializer).toMatchObject([
      {
        name: "w",
        dims: [2],
        dataLocation: 1,
        externalData: [
          { key: "location", value: "w" },
          { key: "offset", value: "0" },
          { key: "length", value: "8" },
        ],
      },
    ]);
    const w = engine.tensor("f32", [2], [10, 20]);
    using program = await engine.load(model, {
      inputs: { x: VECTOR },
      outputs: { y: VECTOR },
      initializers: { w },
    });
    const y = engine.tensor("f32", [2]);
    using call = program.bind({ x: engine.tensor("f32", [2], [1, 2]) }, { y });
    await call.run();
    expect([...y.data]).toEqual([11, 22]);
  });

  it("stores a shape or an axis that recurs once", () => {
    const graph = trace({ x: { dtype: "f32", shape: [6] } }, ({ x }) => ({
      a: reshape(exp(x), [2, 3]),
      b: reshape(neg(x), [2, 3]),
    }));
    expect(lowerToOnnx(graph).graph.initializer).toHaveLength(1);
  });
});
