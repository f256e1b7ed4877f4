import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { add, constant, exp, mul, neg, reshape, sum } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { lowerToOnnx } from "../../../src/compute/onnx/lower.ts";
import { decodeModel, type ModelProto } from "../../../src/compute/onnx/proto.ts";
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
    for (const name of input)
      if (!defined.has(name)) faults.push(`${opType} uses ${name} before its definition`);
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
      for (const graph of graphs) expect(namingFaults(decodeModel(lowerToOnnx(graph)))).toEqual([]);
    },
  );

  it("keeps the names, dtypes and shapes of inputs and outputs, in order", () => {
    const graph = trace({ b: VECTOR, a: { dtype: "i32", shape: [] } }, ({ b }) => ({ z: exp(b), y: sum(b) }));
    const { input, output } = decodeModel(lowerToOnnx(graph)).graph;
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
    expect(namingFaults(decodeModel(lowerToOnnx(graph)))).toEqual([]);
    const { t1, t3 } = await runOnEngine(engine, graph, { t0: f32([2], [0, 0]), t2: f32([2], [3, -4]) });
    expect([...t1!.data]).toEqual([-3, 4]);
    expect([...t3!.data]).toEqual([7]);
  });

  it("leaves the values of external initializers out, and takes them when the program is loaded", async () => {
    const specs = { x: VECTOR, w: VECTOR };
    const graph = trace(specs, ({ x, w }: { x: Value; w: Value }) => ({ y: add(x, w) }));
    const model = lowerToOnnx(graph, { initializers: new Set(["w"]) });
    const { input, initializer } = decodeModel(model).graph;
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
    expect(decodeModel(lowerToOnnx(graph)).graph.initializer).toHaveLength(1);
  });
});
