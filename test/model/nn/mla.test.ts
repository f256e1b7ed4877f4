import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { constant } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray, hostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { packedCausalMask } from "../../../src/model/nn/layers.ts";
import {
  absorbedAttention,
  type LatentSizes,
  type LatentWeights,
  latentAttention,
} from "../../../src/model/nn/mla.ts";
import { rotaryTables } from "../../../src/model/nn/rope.ts";
import { createEngine, expectClose, normal, runOnEngine, specsOf } from "../../compute/harness.ts";

const SIZES: LatentSizes = { heads: 3, nope: 5, rope: 8, value: 7, latent: 16, scale: 0.4 };
const [C, B, T] = [12, 2, 6];
const WIDTH = SIZES.latent + SIZES.rope;

/** A layer's weights; its queries come from a latent of 6, or from the model's width at once. */
function layer(rank: number | undefined): Record<string, HostArray<"f32">> {
  const random = new Random(4);
  const { heads: H, nope: N, rope: R, value: V, latent: K } = SIZES;
  const query: Record<string, HostArray<"f32">> = rank === undefined
    ? { q: normal(random, [H * (N + R), C]) }
    : {
        qDown: normal(random, [rank, C]),
        qNorm: normal(random, [rank]),
        qUp: normal(random, [H * (N + R), rank]),
      };
  return {
    ...query,
    kvDown: normal(random, [K + R, C]),
    kvNorm: normal(random, [K]),
    kvUp: normal(random, [H * (N + V), K]),
    output: normal(random, [C, H * V]),
  };
}

const weightsOf = (x: Readonly<Record<string, Value>>): LatentWeights => ({
  query: x["q"] ?? { down: x["qDown"]!, norm: x["qNorm"]!, up: x["qUp"]! },
  kvDown: x["kvDown"]!,
  kvNorm: x["kvNorm"]!,
  kvUp: x["kvUp"]!,
  output: x["output"]!,
});

const rotationOf = (positions: Value) => {
  const { cos, sin } = rotaryTables(T, SIZES.rope, 100);
  return { positions, cos: constant(positions, cos), sin: constant(positions, sin) };
};

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

/** Rows [B·n, C] of positions from … to − 1. */
function part(x: HostArray<"f32">, from: number, to: number): HostArray<"f32"> {
  const rows = range(0, B).map((b) => x.data.subarray((b * T + from) * C, (b * T + to) * C));
  return f32(
    [B * (to - from), C],
    rows.flatMap((row) => [...row]),
  );
}

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

describe.each([undefined, 6])("latent attention, queries from a latent of %s", (rank) => {
  const weights = layer(rank);
  const x = normal(new Random(5), [B * T, C]);

  const naive = (): HostArray<"f32"> => {
    const arrays = { ...weights, x, positions: i32([B, T], [...range(0, T), ...range(0, T)]) };
    const graph = trace(specsOf(arrays), (v: Record<string, Value>) => {
      const mask = packedCausalMask({
        segments: constant(v["x"]!, i32([B, T], new Array(B * T).fill(1))),
      });
      return { y: latentAttention(v["x"]!, weightsOf(v), mask, SIZES, rotationOf(v["positions"]!)) };
    });
    return interpret(graph, arrays)["y"] as HostArray<"f32">;
  };

  /** Positions from … to − 1 in the absorbed form, over a cache that holds those before. */
  const absorbed = async (cache: HostArray<"f32">, from: number, to: number) => {
    const n = to - from;
    const arrays = {
      ...weights,
      x: part(x, from, to),
      past: cache,
      positions: i32([B, n], [...range(from, to), ...range(from, to)]),
      lengths: i32([B], new Array(B).fill(to - 1)),
      total: i32([1], [to]),
    };
    const graph = trace(specsOf(arrays), (v: Record<string, Value>) => {
      const given = { past: v["past"]!, lengths: v["lengths"]!, total: v["total"]! };
      const { attended, keys, values } = absorbedAttention(
        v["x"]!,
        weightsOf(v),
        given,
        SIZES,
        rotationOf(v["positions"]!),
      );
      return { y: attended, keys, values };
    });
    const ran = await runOnEngine(engine, graph, arrays, [
      ["past", "keys"],
      ["past", "values"],
    ]);
    expect(ran["keys"]!.data).toEqual(ran["values"]!.data);
    return { y: ran["y"] as HostArray<"f32">, cache: ran["keys"] as HostArray<"f32"> };
  };

  it("is the same naive and absorbed: the whole at once, and token by token over the cache", async () => {
    const expected = naive();
    const tolerance = { relative: 0, floor: 1e-5 };
    const empty = () => hostArray("f32", [B, 1, T, WIDTH]);
    expectClose("at once", (await absorbed(empty(), 0, T)).y, expected, tolerance);
    let { cache } = await absorbed(empty(), 0, 3);
    for (let t = 3; t < T; t++) {
      const step = await absorbed(cache, t, t + 1);
      expectClose(`token ${t}`, step.y, part(expected, t, t + 1), tolerance);
      cache = step.cache;
    }
  });

  it("keeps K + R numbers a position, however many heads there are", async () => {
    const { cache } = await absorbed(hostArray("f32", [B, 1, T, WIDTH]), 0, T);
    expect(cache.shape).toEqual([B, 1, T, 16 + 8]);
    expect(cache.data.every((v) => v !== 0)).toBe(true);
  });
});
