import { describe, expect, it } from "vitest";
import { cutGraph } from "../../../src/compute/graph/cut.ts";
import type { Graph, Value } from "../../../src/compute/graph/ir.ts";
import { add, exp, matmul, mul, neg } from "../../../src/compute/graph/primitives.ts";
import { checkGraph, trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import { f32, type HostArray } from "../../../src/compute/tensor/host.ts";

const LAYERS = 6;
const matrix = { dtype: "f32", shape: [2, 2] } as const;
const names = Array.from({ length: LAYERS }, (_, i) => `w${i}`);

/** A residual stream: in the middle of a layer two values are under way, between layers one. `first` is read again at the end. */
const graph = trace(
  { x: matrix, first: matrix, ...Object.fromEntries(names.map((name) => [name, matrix])) },
  (inputs: Record<string, Value>) => {
    let x = add(inputs["x"]!, inputs["first"]!);
    const branches: Record<string, typeof x> = {};
    for (const [i, name] of names.entries()) {
      const branch = mul(exp(neg(matmul(x, inputs[name]!))), 0.5);
      branches[`branch${i}`] = branch;
      x = add(x, branch);
    }
    return { y: matmul(x, inputs["first"]!), ...branches };
  },
);
const values: Record<string, HostArray> = Object.fromEntries(
  [...graph.inputs.keys()].map((name, i) => [name, f32([2, 2], [0.1 * i, -0.2, 0.3, 0.05 * i])]),
);

/** Runs graphs in turn, each with what the ones before it handed over. */
function runAll(graphs: readonly Graph[]): Record<string, HostArray> {
  const known: Record<string, HostArray> = { ...values };
  for (const each of graphs) {
    checkGraph(each);
    const inputs = Object.fromEntries([...each.inputs.keys()].map((name) => [name, known[name]!]));
    Object.assign(known, interpret(each, inputs));
  }
  return Object.fromEntries([...graph.outputs.keys()].map((name) => [name, known[name]!]));
}

describe("cutGraph", () => {
  const weigh = (name: string): number => (name.startsWith("w") ? 10 : 0);
  const whole = runAll([graph]);

  it.each([1, 2, 3, 6])("makes graphs that together do the same: %i", (parts) => {
    const graphs = cutGraph(graph, weigh, parts);
    expect(graphs.length).toBe(parts);
    expect(runAll(graphs)).toEqual(whole);
  });

  it("cuts where one value is handed over, so that all weigh about the same", () => {
    const graphs = cutGraph(graph, weigh, 3);
    const weights = graphs.map(({ inputs }) => [...inputs.keys()].filter((name) => name.startsWith("w")));
    expect(weights).toEqual([
      ["w0", "w1"],
      ["w2", "w3"],
      ["w4", "w5"],
    ]);
    const handed = graphs.map(({ inputs }) =>
      [...inputs.keys()].filter((name) => name.startsWith("handed/")),
    );
    expect(handed.map(({ length }) => length)).toEqual([0, 1, 1]);
    expect(graphs.map(({ outputs }) => outputs.has(handed[1]![0]!))).toEqual([true, false, false]);
  });

  it("weighs what is used twice where it is used last", () => {
    const [before, after] = cutGraph(graph, (name) => (name === "first" ? 10 : 1), 2) as [Graph, Graph];
    expect([...before.inputs.keys()]).toContain("w5");
    expect([...after.inputs.keys()]).toEqual(["first", expect.stringMatching(/^handed/)]);
  });

  it("gives constants to all that need them", () => {
    const graphs = cutGraph(graph, weigh, 2);
    for (const { applications } of graphs) {
      expect(applications.filter(({ primitive }) => primitive === "constant").length).toBe(1);
    }
  });

  it("makes fewer parts than it is asked for where there are no places", () => {
    const short = trace({ x: matrix }, ({ x }) => ({ y: neg(x) }));
    expect(cutGraph(short, () => 1, 4).length).toBe(1);
    expect(cutGraph(graph, weigh, 50).length).toBeLessThanOrEqual(13);
  });
});
