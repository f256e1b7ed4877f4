import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, ShapeError } from "../../../src/base/errors.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { add, exp, matmul, mul, neg } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import { compileInStages, type LateInitializers } from "../../../src/compute/runtime/jit.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32 } from "../../../src/compute/tensor/host.ts";
import { createEngine } from "../harness.ts";

const matrix = { dtype: "f32", shape: [2, 2] } as const;
const names = Array.from({ length: 6 }, (_, i) => `w${i}`);
const specs = Object.fromEntries(names.map((name) => [name, matrix]));
const graph = trace({ x: matrix, ...specs }, (inputs: Record<string, Value>) => {
  const y = names.reduce((x, name) => add(x, mul(exp(neg(matmul(x, inputs[name]!))), 0.5)), inputs["x"]!);
  return { y };
});
const elements = (i: number) => [0.1 * i, -0.2, 0.3, 0.05 * i];

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

interface Told {
  readonly late: LateInitializers;
  readonly events: string[];
}

function lateOf(fails?: string): Told {
  const events: string[] = [];
  const late: LateInitializers = {
    specs,
    async read(inputs) {
      events.push(`read ${inputs.join(" ")}`);
      if (fails !== undefined && inputs.includes(fails)) throw new Error("gone");
      return Object.fromEntries(
        inputs.map((name) => [name, runtime.tensor("f32", [2, 2], elements(names.indexOf(name)))]),
      );
    },
    afterLast: () => void events.push("all are read"),
    returned: (input) => void events.push(`returned ${input}`),
  };
  return { late, events };
}

describe("compileInStages", () => {
  it("makes a program that does what its graph says, of initializers that are read stage by stage", async () => {
    const { late, events } = lateOf();
    const { program, outputs } = await compileInStages(runtime, graph, 3, late);
    expect(events.filter((event) => !event.startsWith("returned"))).toEqual([
      "read w4 w5",
      "read w2 w3",
      "read w0 w1",
      "all are read",
    ]);
    expect(outputs).toMatchObject({ y: matrix });
    const x = runtime.tensor("f32", [2, 2], [1, 2, 3, 4]);
    const y = runtime.tensor("f32", [2, 2]);
    const call = program.bind({ x }, { y });
    await call.run();
    const values = Object.fromEntries(names.map((name, i) => [name, f32([2, 2], elements(i))]));
    const { y: expected } = interpret(graph, { x: f32([2, 2], [1, 2, 3, 4]), ...values });
    for (const [i, value] of y.data.entries()) expect(value).toBeCloseTo(expected!.data[i] as number, 5);
    call.dispose();
    program.dispose();
  });

  it("holds a binding against the whole, as any program does", async () => {
    const { program } = await compileInStages(runtime, graph, 3, lateOf().late);
    const x = runtime.tensor("f32", [2, 2]);
    const y = runtime.tensor("f32", [2, 2]);
    expect(() => program.bind({ x, z: x }, { y })).toThrow(ConfigError);
    expect(() => program.bind({ x, w0: x }, { y })).toThrow('must name an input of the model; got "w0"');
    expect(() => program.bind({}, { y })).toThrow('every input must be bound; got none for "x"');
    expect(() => program.bind({ x }, { y: x })).toThrow('must not share memory with input "x"');
    expect(() => program.bind({ x: runtime.tensor("f32", [2, 3]) }, { y })).toThrow(ShapeError);
    program.dispose();
  });

  it.each(["w0", "w3", "w5"])("fails where an initializer cannot be read: %s", async (fails) => {
    const { late, events } = lateOf(fails);
    await expect(compileInStages(runtime, graph, 3, late)).rejects.toThrow("gone");
    expect(events.filter((event) => event.startsWith("read")).at(-1)).toContain(fails);
  });
});
