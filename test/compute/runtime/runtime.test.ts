import { expect, test } from "vitest";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { node, onnx, spec } from "./models.ts";

for (const backend of ["ffi", "node"] as const) {
  test(`matmul ${backend}`, async () => {
    using runtime = await Runtime.create({ backend, threads: 2 });
    const io = {
      inputs: { a: spec("f32", 2, 3) },
      outputs: { y: spec("f32", 2, 2) },
      external: { b: spec("f32", 3, 2) },
    };
    const b = runtime.tensor("f32", [3, 2], [1, 2, 3, 4, 5, 6]);
    const program = await runtime.load(onnx({ ...io, nodes: [node("MatMul", ["a", "b"], ["y"])] }), {
      ...io,
      initializers: { b },
    });
    const a = runtime.tensor("f32", [2, 3], [1, 0, 0, 0, 1, 1]);
    const y = runtime.tensor("f32", [2, 2]);
    const call = program.bind({ a }, { y });
    await call.run();
    expect([...y.data]).toEqual([1, 2, 8, 10]);
    a.data[0] = 2;
    call.runSync();
    expect([...y.data]).toEqual([2, 4, 8, 10]);
  });
}
