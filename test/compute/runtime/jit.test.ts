import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { add, matmul, mul } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { jit, ProgramCache } from "../../../src/compute/runtime/jit.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";

let runtime: Runtime;
beforeAll(async () => {
  runtime = await Runtime.create({ threads: 1 });
});
afterAll(() => runtime.dispose());

describe("jit", () => {
  it("traces once per signature, whatever the values", async () => {
    let traced = 0;
    const square = jit(runtime, ({ x }) => {
      traced++;
      return { y: mul(x!, x!), z: add(x!, 1) };
    });
    const run = async (shape: number[], values: number[]) => {
      const { y, z } = await square({ x: runtime.tensor("f32", shape, values) });
      return [y!.shape, [...y!.data], [...z!.data]];
    };
    expect(await run([3], [1, 2, 3])).toEqual([[3], [1, 4, 9], [2, 3, 4]]);
    expect(await run([3], [4, 5, 6])).toEqual([[3], [16, 25, 36], [5, 6, 7]]);
    expect(traced).toBe(1);
    // As many values, but another shape.
    expect(await run([1, 3], [1, 2, 3])).toEqual([
      [1, 3],
      [1, 4, 9],
      [2, 3, 4],
    ]);
    expect(traced).toBe(2);
    await run([3], [7, 8, 9]);
    expect(traced).toBe(2);
  });

  it("tells inputs apart by name", async () => {
    const traced: string[][] = [];
    const sum = jit(runtime, (inputs) => {
      traced.push(Object.keys(inputs));
      return { total: Object.values(inputs).reduce((a, b) => add(a, b)) };
    });
    const x = runtime.tensor("f32", [1], [2]);
    expect([...(await sum({ x })).total!.data]).toEqual([2]);
    expect([...(await sum({ x, y: x })).total!.data]).toEqual([4]);
    expect([...(await sum({ y: x })).total!.data]).toEqual([2]);
    expect(traced).toEqual([["x"], ["x", "y"], ["y"]]);
  });
});

describe("ProgramCache", () => {
  const product = (n: number) => () => ({
    graph: trace({ a: { dtype: "f32", shape: [n, n] } }, ({ a }) => ({ b: matmul(a!, a!) })),
  });

  it("compiles once per key, also when asked again meanwhile", async () => {
    const programs = new ProgramCache(runtime);
    let built = 0;
    const build = () => {
      built++;
      return product(2)();
    };
    const [first, second] = await Promise.all([programs.get("2", build), programs.get("2", build)]);
    expect(second).toBe(first);
    expect(await programs.get("2", build)).toBe(first);
    expect(built).toBe(1);
    expect(await programs.get("3", product(3))).not.toBe(first);
    await programs.dispose();
  });

  it("does not remember a program that could not be built", async () => {
    const programs = new ProgramCache(runtime);
    const failing = programs.getCompiled("x", () => Promise.reject(new Error("no room")));
    await expect(failing).rejects.toThrow("no room");
    const { outputs } = await programs.get("x", product(4));
    expect(outputs["b"]).toMatchObject({ dtype: "f32", shape: [4, 4] });
    await programs.dispose();
  });
});
