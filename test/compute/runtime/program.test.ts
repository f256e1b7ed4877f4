import { afterAll, describe, expect, test } from "vitest";
import { ConfigError, DTypeError, FormatError, RuntimeError, ShapeError } from "../../../src/base/errors.ts";
import type { ProgramIO } from "../../../src/compute/runtime/program.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { node, onnx, type SmallModel, spec } from "./models.ts";

const runtime = await Runtime.create({ backend: "ffi", threads: 2 });
afterAll(() => runtime.dispose());

/** y = x + w, z = x · y: two operators in this order, since the second needs the first. */
const CHAIN: SmallModel = {
  inputs: { x: spec("f32", 4), w: spec("f32", 4) },
  outputs: { y: spec("f32", 4), z: spec("f32", 4) },
  nodes: [node("Add", ["x", "w"], ["y"]), node("Mul", ["x", "y"], ["z"])],
};

const load = (model: SmallModel, io: Partial<ProgramIO> = {}) =>
  runtime.load(onnx(model), { name: "chain", inputs: model.inputs, outputs: model.outputs, ...io });

const four = (...values: number[]) => runtime.tensor("f32", [4], values.length === 0 ? undefined : values);

describe("loading", () => {
  test("a declared name that the model lacks is refused with those it has", async () => {
    const error = await load(CHAIN, { inputs: { ...CHAIN.inputs, v: spec("f32", 4) } }).catch((e) => e);
    expect(error).toBeInstanceOf(ConfigError);
    expect(error.message).toBe(
      'program "chain": must name an input of the model; got "v". Its inputs are x, w.',
    );
  });

  test("a name of the model that is not declared is refused", async () => {
    await expect(load(CHAIN, { outputs: { y: spec("f32", 4) } })).rejects.toThrow(
      'program "chain": every output of the model must be given; got none for "z". It is f32[4].',
    );
  });

  test("a declared dtype or shape other than the model's is refused with both", async () => {
    const dtype = load(CHAIN, { inputs: { ...CHAIN.inputs, w: spec("f16", 4) } });
    await expect(dtype).rejects.toThrow(DTypeError);
    await expect(dtype).rejects.toThrow('input "w": the model declares f32[4]; got f16[4].');
    for (const shape of [[5], [4, 1], []]) {
      const other = load(CHAIN, { outputs: { ...CHAIN.outputs, y: spec("f32", ...shape) } });
      await expect(other).rejects.toThrow(ShapeError);
      await expect(other).rejects.toThrow(`output "y": the model declares f32[4]; got f32[${shape}].`);
    }
  });

  test("in-place pairs must name inputs and outputs", async () => {
    await expect(load(CHAIN, { inPlace: [["y", "y"]] })).rejects.toThrow(
      'program "chain": inPlace: must name an input of the model; got "y"',
    );
    await expect(load(CHAIN, { inPlace: [["x", "x"]] })).rejects.toThrow("must name an output");
  });

  test("initializers must be those of the model, each of its spec", async () => {
    const model: SmallModel = {
      ...CHAIN,
      inputs: { x: spec("f32", 4) },
      external: { w: spec("f32", 4) },
    };
    const given = (initializers: NonNullable<ProgramIO["initializers"]>) => load(model, { initializers });
    await expect(given({})).rejects.toThrow('every initializer of the model must be given; got none for "w"');
    await expect(given({ w: four(), v: four() })).rejects.toThrow(
      'must name an initializer of the model; got "v"',
    );
    await expect(given({ w: runtime.tensor("f32", [2, 2]) })).rejects.toThrow(
      'program "chain": initializer "w": the model declares f32[4]; got f32[2,2].',
    );
    await expect(given({ w: runtime.tensor("i32", [4]) })).rejects.toThrow(DTypeError);
    await expect(load(CHAIN, { initializers: { w: four() } })).rejects.toThrow("It has no initializers.");
  });

  test("bytes that are no model are refused as such", async () => {
    const io = { inputs: {}, outputs: {} };
    await expect(runtime.load(new Uint8Array([1, 2, 3]), io)).rejects.toThrow(FormatError);
    await expect(runtime.load(new Uint8Array(0), io)).rejects.toThrow(FormatError);
  });

  test("an error lists at most eight of many names", async () => {
    const inputs = Object.fromEntries(Array.from({ length: 20 }, (_, i) => [`x${i}`, spec("f32", 1)]));
    const nodes = [node("Sum", Object.keys(inputs), ["y"])];
    const many = { inputs, outputs: { y: spec("f32", 1) }, nodes };
    await expect(load(many, { inputs: { x: spec("f32", 1) } })).rejects.toThrow(
      "Its inputs are x0, x1, x2, x3, x4, x5, x6, x7, … (20 in all).",
    );
  });
});

describe("binding", async () => {
  const program = await load(CHAIN);

  test("a missing or unknown name is refused", () => {
    expect(() => program.bind({ x: four() }, { y: four(), z: four() })).toThrow(
      'program "chain": every input must be bound; got none for "w". Bind a tensor f32[4] to it.',
    );
    expect(() => program.bind({ x: four(), w: four(), v: four() }, { y: four(), z: four() })).toThrow(
      'must name an input of the model; got "v"',
    );
    expect(() => program.bind({ x: four(), w: four() }, { y: four() })).toThrow('got none for "z"');
    expect(() => program.bind({ x: four(), toString: four() }, { y: four(), z: four() })).toThrow(
      'must name an input of the model; got "toString"',
    );
  });

  test("a tensor of another dtype or shape is refused with both specs", () => {
    const outputs = { y: four(), z: four() };
    expect(() => program.bind({ x: four(), w: runtime.tensor("i32", [4]) }, outputs)).toThrow(DTypeError);
    expect(() => program.bind({ x: four(), w: runtime.tensor("f32", [2, 2]) }, outputs)).toThrow(ShapeError);
    expect(() => program.bind({ x: four(), w: runtime.tensor("f32", [2, 2]) }, outputs)).toThrow(
      'program "chain": input "w": must be f32[4]; got f32[2,2].',
    );
  });

  test("one tensor may serve several inputs, and a call keeps its tensors when others are bound", async () => {
    const x = four(1, 2, 3, 4);
    const first = { y: four(), z: four() };
    const second = { y: four(), z: four() };
    const calls = [program.bind({ x, w: x }, first), program.bind({ x, w: four(1, 1, 1, 1) }, second)];
    for (const call of calls) await call.run();
    expect([...first.z.data]).toEqual([2, 8, 18, 32]);
    expect([...second.z.data]).toEqual([2, 6, 12, 20]);
  });
});

describe("outputs over inputs", async () => {
  const program = await load(CHAIN);

  test("give wrong results without a word, which is why they are refused", async () => {
    const x = four(1, 2, 3, 4);
    const w = four(1, 1, 1, 1);
    const z = four();
    program.bind({ x, w }, { y: four(), z }).runSync();
    expect([...z.data]).toEqual([2, 6, 12, 20]);

    expect(() => program.bind({ x, w }, { y: x, z })).toThrow(ConfigError);
    expect(() => program.bind({ x, w }, { y: x, z })).toThrow(
      'program "chain": output "y": must not share memory with input "x"',
    );

    // A false promise that the pair may share memory gets past the guard: z is (x + w)² now, not x · (x + w).
    const careless = await load(CHAIN, { inPlace: [["x", "y"]] });
    careless.bind({ x, w }, { y: x, z }).runSync();
    expect([...z.data]).toEqual([4, 9, 16, 25]);
  });

  test("are refused through views as well, whatever part they share", () => {
    const memory = runtime.tensor("f32", [12]);
    const others = { w: four(), z: four() };
    const bind = (input: number, output: number) =>
      program.bind({ x: memory.view([4], input), w: others.w }, { y: memory.view([4], output), z: others.z });
    expect(() => bind(0, 3)).toThrow("must not share memory");
    expect(() => bind(3, 0)).toThrow(/got bytes \d+ to \d+ over \d+ to \d+ of one buffer/);
    expect(() => bind(0, 4)).not.toThrow();
    expect(() => bind(8, 0)).not.toThrow();
  });

  test("are refused over each other", () => {
    const y = four();
    expect(() => program.bind({ x: four(), w: four() }, { y, z: y })).toThrow(
      'output "z": must not share memory with output "y"',
    );
  });

  test("are refused over each other unless both are in place over one input", async () => {
    const memory = four(1, 2, 3, 4);
    const bind = (program: Awaited<ReturnType<typeof load>>, w = four()) =>
      program.bind({ x: memory, w }, { y: memory, z: memory });
    const one = await load(CHAIN, { inPlace: [["x", "y"]] });
    expect(() => bind(one)).toThrow('output "z": must not share memory with input "x"');
    const different = await load(CHAIN, {
      inPlace: [
        ["x", "y"],
        ["w", "z"],
      ],
    });
    expect(() => bind(different)).toThrow('output "z": must not share memory with input "x"');
    expect(() => different.bind({ x: four(), w: memory }, { y: memory, z: memory })).toThrow(
      'output "y": must not share memory with input "w"',
    );
    const both = await load(CHAIN, {
      inPlace: [
        ["x", "y"],
        ["x", "z"],
      ],
    });
    expect(() => bind(both)).not.toThrow();
  });

  test.each(["ffi", "node"] as const)(
    "update in place where the program may, through %s",
    async (backend) => {
      const own = await Runtime.create({ backend, threads: 2 });
      const io = { inputs: { x: spec("f32", 2), d: spec("f32", 2) }, outputs: { y: spec("f32", 2) } };
      const model = onnx({ ...io, nodes: [node("Add", ["x", "d"], ["y"])] });
      const accumulate = await own.load(model, { ...io, inPlace: [["x", "y"]] });
      const total = own.tensor("f32", [2], [10, 20]);
      const d = own.tensor("f32", [2], [1, 2]);
      const call = accumulate.bind({ x: total, d }, { y: total });
      await call.run();
      call.runSync();
      expect([...total.data]).toEqual([12, 24]);
      // Two tensors are as good, and the pair must fit exactly or not at all.
      const memory = own.tensor("f32", [4]);
      accumulate.bind({ x: total, d }, { y: memory.view([2]) }).runSync();
      expect([...memory.data]).toEqual([13, 26, 0, 0]);
      expect(() => accumulate.bind({ x: memory.view([2]), d }, { y: memory.view([2], 1) })).toThrow(
        'must cover the memory of input "x" exactly',
      );
      expect(() => accumulate.bind({ x: total, d }, { y: d })).toThrow('share memory with input "d"');
      own.dispose();
    },
  );
});

describe("lifetime", () => {
  const tensors = () => ({
    inputs: { x: four(1, 2, 3, 4), w: four(1, 1, 1, 1) },
    outputs: { y: four(), z: four() },
  });

  test("a disposed tensor can neither be bound nor run, but others can", async () => {
    const program = await load(CHAIN);
    const { inputs, outputs } = tensors();
    const call = program.bind(inputs, outputs);
    inputs.w.dispose();
    expect(() => call.runSync()).toThrow(RuntimeError);
    await expect(call.run()).rejects.toThrow("tensor f32[4]: a tensor must not be used after dispose()");
    expect(() => program.bind(inputs, outputs)).toThrow(RuntimeError);
    program.bind({ ...inputs, w: four() }, outputs).runSync();
    expect([...outputs.y.data]).toEqual([1, 2, 3, 4]);
  });

  test("a disposed call, program or runtime is refused", async () => {
    const own = await Runtime.create({ backend: "ffi", threads: 1 });
    const { inputs, outputs } = tensors();
    const program = await own.load(onnx(CHAIN), { ...CHAIN, name: "chain" });
    const [first, second] = [program.bind(inputs, outputs), program.bind(inputs, outputs)];
    first.dispose();
    first.dispose();
    expect(() => first.runSync()).toThrow('call of program "chain": must not be used after dispose().');
    second.runSync();
    program.dispose();
    program.dispose();
    expect(() => second.runSync()).toThrow('program "chain": must not be used after dispose().');
    await expect(second.run()).rejects.toThrow(RuntimeError);
    expect(() => program.bind(inputs, outputs)).toThrow(RuntimeError);
    second.dispose();

    const last = await own.load(onnx(CHAIN), CHAIN);
    const loading = own.load(onnx(CHAIN), CHAIN);
    own.dispose();
    own.dispose();
    expect(() => last.bind(inputs, outputs)).toThrow(RuntimeError);
    expect(() => own.tensor("f32", [1])).toThrow("Runtime: must not be used after dispose().");
    await expect(own.load(onnx(CHAIN), CHAIN)).rejects.toThrow(RuntimeError);
    await expect(loading).rejects.toThrow(RuntimeError);
  });

  test("`using` disposes at the end of the block", async () => {
    const { inputs, outputs } = tensors();
    using program = await load(CHAIN);
    let kept: ReturnType<typeof program.bind>;
    {
      using call = program.bind(inputs, outputs);
      call.runSync();
      kept = call;
    }
    expect(() => kept.runSync()).toThrow(RuntimeError);
  });

  test("what is disposed of during a run is freed after it, and the result is whole", async () => {
    const size = 512;
    const io = { inputs: { a: spec("f32", size, size) }, outputs: { y: spec("f32", size, size) } };
    const program = await runtime.load(onnx({ ...io, nodes: [node("MatMul", ["a", "a"], ["y"])] }), io);
    const a = runtime.tensor("f32", [size, size], new Float32Array(size * size).fill(1));
    const y = runtime.tensor("f32", [size, size]);
    const call = program.bind({ a }, { y });
    const run = call.run();
    call.dispose();
    program.dispose();
    a.dispose();
    await run;
    expect(y.data.every((value) => value === size)).toBe(true);
    expect(() => call.runSync()).toThrow(RuntimeError);
  });

  test("a call runs once at a time; calls of one program run together", async () => {
    const program = await load(CHAIN);
    const one = tensors();
    const two = tensors();
    two.inputs.x.data.fill(7);
    const calls = [program.bind(one.inputs, one.outputs), program.bind(two.inputs, two.outputs)];
    const runs = calls.map((call) => call.run());
    await expect(calls[0]!.run()).rejects.toThrow("a call runs once at a time");
    expect(() => calls[0]!.runSync()).toThrow(RuntimeError);
    await Promise.all(runs);
    expect([...one.outputs.y.data]).toEqual([2, 3, 4, 5]);
    expect([...two.outputs.y.data]).toEqual([8, 8, 8, 8]);
    await calls[0]!.run();
  });
});
