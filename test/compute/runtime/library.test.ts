/** On its own, because what it guards against ends the process. */

import { setTimeout } from "node:timers/promises";
import { expect, test } from "vitest";
import { collectGarbage } from "../../../src/compute/runtime/memory.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { node, onnx, spec } from "./models.ts";

test("the native library stays loaded when garbage is collected", async () => {
  using runtime = await Runtime.create({ backend: "ffi", threads: 1 });
  for (let round = 0; round < 10; round++) {
    collectGarbage();
    // koffi unloads a library in a finalizer, which runs on a later turn of the event loop.
    await setTimeout(5);
  }
  const io = { inputs: { x: spec("f32", 2) }, outputs: { y: spec("f32", 2) } };
  const program = await runtime.load(onnx({ ...io, nodes: [node("Neg", ["x"], ["y"])] }), io);
  const y = runtime.tensor("f32", [2]);
  program.bind({ x: runtime.tensor("f32", [2], [1, 2]) }, { y }).runSync();
  expect([...y.data]).toEqual([-1, -2]);
});
