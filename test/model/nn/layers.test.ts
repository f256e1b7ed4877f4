import { describe, expect, it } from "vitest";
import { softmax } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import { f32, type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { linear, packedCausalMask, swiglu } from "../../../src/model/nn/layers.ts";
import { specsOf, type Traced } from "../../compute/harness.ts";

const run = (
  arrays: Readonly<Record<string, HostArray>>,
  fn: (x: Traced) => ReturnType<typeof softmax>,
): number[] =>
  Array.from(
    interpret(
      trace(specsOf(arrays), (x) => ({ y: fn(x) })),
      arrays,
    )["y"]!.data as Float32Array,
  );

describe("linear", () => {
  it("multiplies by the transposed weight, as checkpoints store it", () => {
    const arrays = { x: f32([1, 2], [3, 5]), weight: f32([3, 2], [1, 0, 0, 1, 2, -1]) };
    expect(run(arrays, ({ x, weight }) => linear(x!, weight!))).toEqual([3, 5, 1]);
  });
});

describe("swiglu", () => {
  it("gates with silu, by hand", () => {
    // gate = 2, up = 3: silu(2)·3 = 2·0.880797·3 = 5.284782; down doubles it.
    const one = (value: number) => f32([1, 1], [value]);
    const arrays = { x: one(1), gate: one(2), up: one(3), down: one(2) };
    const [y] = run(arrays, ({ x, gate, up, down }) => swiglu(x!, { gate: gate!, up: up!, down: down! }));
    expect(y).toBeCloseTo(10.569565, 5);
  });
});

describe("packedCausalMask", () => {
  const mask = (segments: readonly number[], prefixes = segments): number[][] => {
    const T = segments.length;
    const arrays = { segments: i32([1, T], segments), prefixes: i32([1, T], prefixes) };
    const flat = run(arrays, ({ segments: s, prefixes: p }) =>
      packedCausalMask({ segments: s!, ...(prefixes === segments ? {} : { prefixes: p! }) }),
    );
    return Array.from({ length: T }, (_, t) => flat.slice(t * T, (t + 1) * T).map((x) => Number(x === 0)));
  };

  it("lets a position see itself and what came before it in its own segment", () => {
    expect(mask([1, 1, 2, 2, 0])).toEqual([
      [1, 0, 0, 0, 0],
      [1, 1, 0, 0, 0],
      [0, 0, 1, 0, 0],
      [0, 0, 1, 1, 0],
      [0, 0, 0, 0, 1],
    ]);
  });

  it("lets a position see the prefix of its segment", () => {
    expect(mask([1, 1, 2, 3, 3, 0], [1, 1, 1, 1, 1, 0])).toEqual([
      [1, 0, 0, 0, 0, 0],
      [1, 1, 0, 0, 0, 0],
      [1, 1, 1, 0, 0, 0],
      [1, 1, 0, 1, 0, 0],
      [1, 1, 0, 1, 1, 0],
      [0, 0, 0, 0, 0, 1],
    ]);
  });

  it("of one position is open", () => {
    expect(mask([7])).toEqual([[1]]);
  });

  it("is finite: a row of nothing but masked scores has probabilities", () => {
    const segments = i32([1, 3], [1, 2, 3]);
    const values = run({ segments }, ({ segments: s }) => packedCausalMask({ segments: s! }));
    for (const value of values) expect(Number.isFinite(value)).toBe(true);
    const masked = f32([1, 3], new Array<number>(3).fill(Math.min(...values)));
    for (const p of run({ masked }, ({ masked: m }) => softmax(m!))) expect(p).toBeCloseTo(1 / 3, 6);
  });
});
