/** Nothing that is disposed of, or forgotten, stays in memory. */

import { expect, test, vi } from "vitest";
import { collectGarbage } from "../../../src/compute/runtime/memory.ts";
import type { Handle, OrtApi } from "../../../src/compute/runtime/ort-api.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { node, onnx, spec } from "./models.ts";

/** Native objects that were created and not yet released, by kind. */
const live = vi.hoisted(() => new Map<bigint, string>());

/** The argument whose objects belong to what they are given to from then on. */
const GIVEN: Readonly<Record<string, number>> = {
  SetGraphInputs: 1,
  SetGraphOutputs: 1,
  AddInitializerToGraph: 2,
  CreateNode: 7,
  AddNodeToGraph: 1,
  AddGraphToModel: 1,
};

vi.mock("../../../src/compute/runtime/ort-api.ts", async (original) => {
  const real = await original<typeof import("../../../src/compute/runtime/ort-api.ts")>();
  const succeeded = (name: string, args: unknown[]) => {
    for (const given of [args[GIVEN[name] ?? -1]].flat()) live.delete(given as bigint);
    const out = args.findLast((arg) => Array.isArray(arg)) as [Handle] | undefined;
    if (name.startsWith("Create") && out?.[0])
      live.set(out[0], name.replace(/^Create|From(?:Array|Model)|WithData(?:AndDeleter)?AsOrtValue/g, ""));
  };
  /** The function with every object it creates, takes or releases written down. */
  const watched = (name: string, call: OrtApi["CreateSessionFromArray"]) =>
    Object.assign(
      (...args: Parameters<typeof call>) => {
        if (name.startsWith("Release")) live.delete(args[0] as bigint);
        const status = call(...args);
        if (status === null) succeeded(name, args);
        return status;
      },
      {
        async: (...args: Parameters<typeof call.async>) => {
          const done = args.pop() as (error: unknown, status: Handle) => void;
          const given = args as unknown as Parameters<typeof call>;
          call.async(...given, (error, status) => {
            if (status === null) succeeded(name, args);
            done(error, status);
          });
        },
      },
    );
  const watchedTable = (table: object) =>
    Object.fromEntries(
      Object.entries(table).map(([name, call]) => [
        name,
        watched(name, call as OrtApi["CreateSessionFromArray"]),
      ]),
    );
  return {
    ...real,
    bindOrtApi: (address: Handle) => watchedTable(real.bindOrtApi(address)),
    bindModelEditorApi: (address: Handle) => watchedTable(real.bindModelEditorApi(address)),
  };
});

const count = (kind: string) => [...live.values()].filter((name) => name === kind).length;

const IO = { inputs: { x: spec("f32", 256, 128) }, outputs: { y: spec("f32", 256, 128) } };
const MODEL = onnx({
  ...IO,
  external: { w: spec("f32", 128, 128) },
  nodes: [node("MatMul", ["x", "w"], ["y"])],
});

/** Allocates, binds, runs and disposes `steps` times. */
function work(runtime: Runtime, program: Awaited<ReturnType<Runtime["load"]>>, steps: number): void {
  for (let step = 0; step < steps; step++) {
    using x = runtime.tensor("f32", [512, 128]);
    using half = x.view([256, 128], 256 * 128);
    using y = runtime.tensor("f32", [256, 128]);
    using call = program.bind({ x: half }, { y });
    call.runSync();
  }
}

test("memory stays flat over 2,000 steps of allocation, binding, running and disposal", async () => {
  using runtime = await Runtime.create({ backend: "ffi", threads: 1 });
  const w = runtime.tensor("f32", [128, 128]);
  const program = await runtime.load(MODEL, { ...IO, initializers: { w } });
  const rss = () => {
    collectGarbage();
    return process.memoryUsage().rss;
  };
  work(runtime, program, 300);
  // 2,000 steps allocate 750 MiB. What the allocators keep for reuse may still grow in one round; a leak grows in all.
  const growth = Array.from({ length: 3 }, () => {
    const before = rss();
    work(runtime, program, 2000);
    return (rss() - before) / 2 ** 20;
  });
  expect(Math.min(...growth)).toBeLessThan(20);
});

test("every native object is released", async () => {
  const before = new Map(live);
  const runtime = await Runtime.create({ backend: "ffi", threads: 1 });
  for (let round = 0; round < 3; round++) {
    const w = runtime.tensor("f32", [128, 128]);
    const program = await runtime.load(MODEL, { ...IO, initializers: { w } });
    work(runtime, program, 3);
    expect(count("Tensor")).toBe(0);
    expect(count("IoBinding")).toBe(round);
    expect(count("Session")).toBe(round + 1);
    const x = runtime.tensor("f32", [256, 128]);
    const y = runtime.tensor("f32", [256, 128]);
    await program.bind({ x }, { y }).run();
    expect(() => program.bind({ x }, { y: x })).toThrow();
    await expect(runtime.load(MODEL, { ...IO, outputs: {}, initializers: { w } })).rejects.toThrow();
  }
  expect(count("IoBinding")).toBe(3);
  const w = runtime.tensor("f32", [128, 128]);
  const program = await runtime.load(MODEL, { ...IO, initializers: { w } });
  const tensors = [runtime.tensor("f32", [256, 128]), runtime.tensor("f32", [256, 128])] as const;
  const run = program.bind({ x: tensors[0] }, { y: tensors[1] }).run();
  runtime.dispose();
  expect(count("Session"), "the one that is running").toBe(1);
  await run;
  expect(new Map(live)).toEqual(before);
});

test("calls and programs that were forgotten are released when they are collected", async () => {
  const before = new Map(live);
  using runtime = await Runtime.create({ backend: "ffi", threads: 1 });
  const x = runtime.tensor("f32", [256, 128]);
  const y = runtime.tensor("f32", [256, 128]);
  const forgetful = async () => {
    const w = runtime.tensor("f32", [128, 128]);
    const program = await runtime.load(MODEL, { ...IO, initializers: { w } });
    program.bind({ x }, { y }).runSync();
    return { program };
  };
  const held: { program?: unknown } = await forgetful();
  expect(count("IoBinding")).toBe(1);
  await vi.waitFor(() => {
    collectGarbage();
    expect(count("IoBinding")).toBe(0);
  });
  expect(count("Session")).toBe(1);
  delete held.program;
  await vi.waitFor(() => {
    collectGarbage();
    expect(new Map(live)).toEqual(before);
  });
});
