import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import koffi from "koffi";
import { afterAll, describe, expect, test } from "vitest";
import { ConfigError, RuntimeError, ShapeError } from "../../../src/base/errors.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { BYTES, type DType } from "../../../src/compute/tensor/dtype.ts";
import { node, onnx, spec } from "./models.ts";

const DTYPES = Object.keys(BYTES) as DType[];

describe.each(["ffi", "node"] as const)("%s", async (backend) => {
  const runtime = await Runtime.create({ backend, threads: 2 });
  afterAll(() => runtime.dispose());

  test("a product of matrices is the one worked out by hand, however it is run", async () => {
    const io = { inputs: { a: spec("f32", 2, 3), b: spec("f32", 3, 2) }, outputs: { y: spec("f32", 2, 2) } };
    const program = await runtime.load(onnx({ ...io, nodes: [node("MatMul", ["a", "b"], ["y"])] }), io);
    const a = runtime.tensor("f32", [2, 3], [1, 2, 3, 4, 5, 6]);
    const b = runtime.tensor("f32", [3, 2], [1, 0, 0, 1, 1, 1]);
    const y = runtime.tensor("f32", [2, 2]);
    const call = program.bind({ a, b }, { y });
    await call.run();
    expect([...y.data]).toEqual([4, 5, 10, 11]);
    a.data[0] = 2;
    call.runSync();
    expect([...y.data]).toEqual([5, 5, 10, 11]);
  });

  test.each(DTYPES)("%s passes through unchanged, as a scalar and as a matrix", async (dtype) => {
    const io = {
      inputs: { x: spec(dtype), xs: spec(dtype, 2, 2) },
      outputs: { y: spec(dtype), ys: spec(dtype, 2, 2) },
    };
    const nodes = [node("Identity", ["x"], ["y"]), node("Identity", ["xs"], ["ys"])];
    const program = await runtime.load(onnx({ ...io, nodes }), io);
    const values = dtype === "i64" ? [1n, 0n, 1n, 1n] : [1, 0, 1, 1];
    const x = runtime.tensor(dtype, [], values.slice(0, 1));
    const xs = runtime.tensor(dtype, [2, 2], values);
    const y = runtime.tensor(dtype, []);
    const ys = runtime.tensor(dtype, [2, 2]);
    await program.bind({ x, xs }, { y, ys }).run();
    expect([...y.data]).toEqual(values.slice(0, 1));
    expect([...ys.data]).toEqual(values);
  });

  test("views of one tensor serve as input and output of a call", async () => {
    const io = { inputs: { x: spec("f32", 3) }, outputs: { y: spec("f32", 3) } };
    const program = await runtime.load(onnx({ ...io, nodes: [node("Neg", ["x"], ["y"])] }), io);
    const whole = runtime.tensor("f32", [7], [1, 2, 3, 4, 5, 6, 7]);
    const call = program.bind({ x: whole.view([3], 1) }, { y: whole.view([3], 4) });
    call.runSync();
    expect([...whole.data]).toEqual([1, 2, 3, 4, -2, -3, -4]);
  });

  test("an empty tensor is a tensor: a product over an empty axis is zero", async () => {
    const io = { inputs: { a: spec("f32", 2, 0), b: spec("f32", 0, 3) }, outputs: { y: spec("f32", 2, 3) } };
    const program = await runtime.load(onnx({ ...io, nodes: [node("MatMul", ["a", "b"], ["y"])] }), io);
    const y = runtime.tensor("f32", [2, 3], [1, 1, 1, 1, 1, 1]);
    await program.bind({ a: runtime.tensor("f32", [2, 0]), b: runtime.tensor("f32", [0, 3]) }, { y }).run();
    expect([...y.data]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  test("initializers are the model's values for external data", async () => {
    const io = { inputs: { x: spec("f32", 1, 2) }, outputs: { y: spec("f32", 1, 2) } };
    const external = { w: spec("f32", 2, 2), b: spec("f32", 2) };
    const nodes = [node("MatMul", ["x", "w"], ["xw"]), node("Add", ["xw", "b"], ["y"])];
    const initializers = {
      w: runtime.tensor("f32", [2, 2], [1, 2, 3, 4]),
      b: runtime.tensor("f32", [2], [10, 20]),
    };
    const program = await runtime.load(onnx({ ...io, external, nodes }), { ...io, initializers });
    const x = runtime.tensor("f32", [1, 2], [1, 1]);
    const y = runtime.tensor("f32", [1, 2]);
    await program.bind({ x }, { y }).run();
    expect([...y.data]).toEqual([14, 26]);
  });

  test("initializers are read where they are, and kept for as long as the program lives", async () => {
    for (const size of [1, 4, 4096]) {
      const io = { inputs: { x: spec("f32", size, size % 7) }, outputs: { y: spec("f32", size, size % 7) } };
      const external = { b: spec("f32", size, 1) };
      const model = onnx({ ...io, external, nodes: [node("Add", ["x", "b"], ["y"])] });
      const b = runtime.tensor("f32", [size, 1], new Float32Array(size).fill(3));
      const program = await runtime.load(model, { ...io, initializers: { b } });
      const y = runtime.tensor("f32", io.outputs.y.shape);
      const call = program.bind({ x: runtime.tensor("f32", io.inputs.x.shape) }, { y });
      call.runSync();
      expect(y.data.every((value) => value === 3)).toBe(true);
      b.data.fill(9);
      b.dispose();
      call.runSync();
      // onnxruntime-node copies them, and so does the model editor with the smallest.
      const now = backend === "ffi" && size === 4096 ? 9 : 3;
      expect(y.data.every((value) => value === now)).toBe(true);
    }
  });

  test("initializers that are laid out anew are given back, and read no more", async () => {
    const io = { inputs: { x: spec("f32", 8, 64) }, outputs: { y: spec("f32", 8, 64) } };
    const external = { packed: spec("f32", 64, 64), read: spec("f32", 64) };
    const nodes = [node("MatMul", ["x", "packed"], ["h"]), node("Add", ["h", "read"], ["y"])];
    const initializers = {
      packed: runtime.tensor("f32", [64, 64], new Float32Array(64 * 64).fill(1)),
      read: runtime.tensor("f32", [64], new Float32Array(64).fill(1)),
    };
    const gone: string[] = [];
    const returned = (name: string): void => {
      gone.push(name);
      initializers[name as "packed"].data.fill(Number.NaN);
    };
    const program = await runtime.load(onnx({ ...io, external, nodes }), { ...io, initializers, returned });
    // onnxruntime-node copies all of them, and does not say so.
    expect(gone).toEqual(backend === "ffi" ? ["packed"] : []);
    const x = runtime.tensor("f32", [8, 64], new Float32Array(8 * 64).fill(2));
    const y = runtime.tensor("f32", [8, 64]);
    await program.bind({ x }, { y }).run();
    expect(y.data.every((value) => value === 129)).toBe(true);
    program.dispose();
    expect(gone).toEqual(backend === "ffi" ? ["packed", "read"] : []);
  });

  test("a model that ONNX Runtime refuses is an error with its reason", async () => {
    const io = { inputs: { x: spec("f32", 2) }, outputs: { y: spec("f32", 2) } };
    const model = onnx({ ...io, nodes: [node("NoSuchOperator", ["x"], ["y"])] });
    const error = await runtime.load(model, { ...io, name: "broken" }).catch((reason) => reason);
    expect(error).toBeInstanceOf(RuntimeError);
    expect(error.message).toMatch(/^program "broken": .*NoSuchOperator/s);
  });

  test("a run that fails is an error with ONNX Runtime's reason, and the next one is unharmed", async () => {
    const io = { inputs: { x: spec("f32", 3), i: spec("i32", 1) }, outputs: { y: spec("f32", 1) } };
    const program = await runtime.load(onnx({ ...io, nodes: [node("Gather", ["x", "i"], ["y"])] }), io);
    const x = runtime.tensor("f32", [3], [7, 8, 9]);
    const i = runtime.tensor("i32", [1], [5]);
    const y = runtime.tensor("f32", [1]);
    const call = program.bind({ x, i }, { y });
    await expect(call.run()).rejects.toThrow(RuntimeError);
    expect(() => call.runSync()).toThrow(/indices element out of data bounds/);
    i.data[0] = 2;
    await call.run();
    expect(y.data[0]).toBe(9);
  });

  test("with a profile asked for, each program leaves one", async () => {
    const folder = mkdtempSync(join(tmpdir(), "profile-"));
    const profiled = await Runtime.create({ backend, threads: 1, profile: join(folder, "run") });
    const io = { inputs: { x: spec("f32", 3) }, outputs: { y: spec("f32", 3) } };
    const program = await profiled.load(onnx({ ...io, nodes: [node("Neg", ["x"], ["y"])] }), io);
    program.bind({ x: profiled.tensor("f32", [3]) }, { y: profiled.tensor("f32", [3]) }).runSync();
    profiled.dispose();
    const files = readdirSync(folder);
    expect(files).toEqual([expect.stringMatching(/^run-1_.*\.json$/)]);
    expect(readFileSync(join(folder, files[0]!), "utf8")).toContain("Neg");
    rmSync(folder, { recursive: true });
    expect(existsSync(folder)).toBe(false);
  });
});

test("both backends give the same bits", async () => {
  const io = {
    inputs: { x: spec("f32", 64, 48) },
    outputs: { y: spec("f32", 64, 40), p: spec("f32", 64, 40) },
  };
  const external = { w1: spec("f32", 48, 96), w2: spec("f32", 96, 40) };
  const nodes = [
    node("MatMul", ["x", "w1"], ["h"]),
    node("Tanh", ["h"], ["t"]),
    node("MatMul", ["t", "w2"], ["y"]),
    node("Softmax", ["y"], ["p"], { axis: -1 }),
  ];
  const results = [];
  for (const backend of ["ffi", "node"] as const) {
    using runtime = await Runtime.create({ backend, threads: 2 });
    expect(runtime.backend).toBe(backend);
    const wave = (shape: number[], rate: number) =>
      runtime.tensor(
        "f32",
        shape,
        Array.from({ length: shape[0]! * shape[1]! }, (_, i) => Math.sin(rate * i)),
      );
    const initializers = { w1: wave([48, 96], 0.37), w2: wave([96, 40], 0.73) };
    const program = await runtime.load(onnx({ ...io, external, nodes }), { ...io, initializers });
    const outputs = { y: runtime.tensor("f32", [64, 40]), p: runtime.tensor("f32", [64, 40]) };
    await program.bind({ x: wave([64, 48], 0.11) }, outputs).run();
    results.push([...outputs.y.data], [...outputs.p.data]);
  }
  expect(results[0]).toEqual(results[2]);
  expect(results[1]).toEqual(results[3]);
});

test("memory for the C API starts at a multiple of 64 bytes and tensors share no cache line", async () => {
  using runtime = await Runtime.create({ backend: "ffi" });
  for (const size of [0, 1, 3, 16, 17, 1000]) {
    const { data } = runtime.tensor("f32", [size]);
    const address = koffi.address(data.buffer) + BigInt(data.byteOffset);
    expect(address % 64n).toBe(0n);
    expect(data.buffer.byteLength - data.byteOffset).toBeGreaterThanOrEqual(Math.max(64, data.byteLength));
  }
});

test("the event loop goes on while the C API runs", async () => {
  using runtime = await Runtime.create({ backend: "ffi", threads: 1 });
  const io = { inputs: { a: spec("f32", 768, 768) }, outputs: { y: spec("f32", 768, 768) } };
  const program = await runtime.load(onnx({ ...io, nodes: [node("MatMul", ["a", "a"], ["y"])] }), io);
  const call = program.bind(
    { a: runtime.tensor("f32", [768, 768]) },
    { y: runtime.tensor("f32", [768, 768]) },
  );
  let turns = 0;
  let done = false;
  const count = () => {
    turns++;
    if (!done) setImmediate(count);
  };
  setImmediate(count);
  await call.run();
  done = true;
  expect(turns).toBeGreaterThan(1);
});

describe("options", () => {
  test("auto takes the C API where it loads", async () => {
    using runtime = await Runtime.create();
    expect(runtime).toMatchObject({ backend: "ffi", version: "1.30.0", fallbackReason: undefined });
    expect(runtime.threads).toBeGreaterThan(0);
  });

  test.each([0, -1, 1.5, Number.NaN])("%d threads are refused", async (threads) => {
    await expect(Runtime.create({ threads })).rejects.toThrow(ConfigError);
  });

  test("an unknown option or backend is refused with the nearest name", async () => {
    const options: object = { thread: 2 };
    await expect(Runtime.create(options)).rejects.toThrow('Did you mean "threads"?');
    const backend: object = { backend: "fii" };
    await expect(Runtime.create(backend)).rejects.toThrow('Did you mean "ffi"?');
  });
});

describe("tensor", async () => {
  const runtime = await Runtime.create();

  test("is zero without initial elements and copies those it is given", () => {
    expect([...runtime.tensor("i32", [3]).data]).toEqual([0, 0, 0]);
    const init = new Float32Array([1, 2]);
    const x = runtime.tensor("f32", [2], init);
    init[0] = 5;
    expect([...x.data]).toEqual([1, 2]);
  });

  test("refuses sizes that are no sizes and elements that do not fit", () => {
    expect(() => runtime.tensor("f32", [2, -1])).toThrow(ShapeError);
    expect(() => runtime.tensor("f32", [1.5])).toThrow(ShapeError);
    expect(() => runtime.tensor("f32", [2, 2], [1, 2, 3])).toThrow(
      "tensor f32[2,2]: init must have 4 elements; got 3.",
    );
  });

  test("a view shares memory in both directions and outlives its tensor", () => {
    const x = runtime.tensor("f32", [2, 3], [1, 2, 3, 4, 5, 6]);
    const row = x.view([3], 3);
    expect([...row.data]).toEqual([4, 5, 6]);
    row.data[0] = 40;
    expect(x.data[3]).toBe(40);
    x.data[4] = 50;
    expect(row.data[1]).toBe(50);
    x.dispose();
    expect([...row.data]).toEqual([40, 50, 6]);
    expect(row.view([], 2).data[0]).toBe(6);
  });

  test.each([
    [[4], 3],
    [[7], 0],
    [[1], -1],
    [[1], 0.5],
  ])("a view of shape %j at element %d of 6 is refused", (shape, offset) => {
    expect(() => runtime.tensor("f32", [6]).view(shape, offset)).toThrow(ShapeError);
  });

  test("use after disposal is an error that names the tensor", () => {
    const x = runtime.tensor("i64", [2, 3]);
    x.dispose();
    x.dispose();
    expect(x.disposed).toBe(true);
    expect(() => x.data).toThrow(RuntimeError);
    expect(() => x.view([1])).toThrow("tensor i64[2,3]: a tensor must not be used after dispose()");
  });
});
