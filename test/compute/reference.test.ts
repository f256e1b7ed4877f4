/** Values and gradients of torch and transformers, from test/reference/rules.py. */

import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { grad } from "../../src/compute/grad/reverse.ts";
import type { Value } from "../../src/compute/graph/ir.ts";
import {
  constant,
  mul,
  reshape,
  rmsNorm,
  rotary,
  softmax,
  sum,
  transpose,
} from "../../src/compute/graph/primitives.ts";
import { trace } from "../../src/compute/graph/trace.ts";
import { attention } from "../../src/compute/ops/attention.ts";
import {
  logSoftmax,
  rmsNormUnfused,
  rotaryUnfused,
  silu,
  softmaxUnfused,
} from "../../src/compute/ops/stable.ts";
import { interpret } from "../../src/compute/runtime/interpreter.ts";
import type { Runtime } from "../../src/compute/runtime/runtime.ts";
import { f32, type HostArray, i32 } from "../../src/compute/tensor/host.ts";
import type { Shape } from "../../src/compute/tensor/shape.ts";
import { packedCausalMask } from "../../src/model/nn/layers.ts";
import { rotaryTables } from "../../src/model/nn/rope.ts";
import {
  createEngine,
  expectAllClose,
  runOnEngine,
  specsOf,
  type Tolerance,
  type Traced,
} from "./harness.ts";

interface StoredArray {
  readonly dtype: "f32" | "i32";
  readonly shape: Shape;
  readonly data: readonly number[];
}

interface Case {
  readonly inputs: Readonly<Record<string, StoredArray>>;
  readonly options: Readonly<Record<string, number>>;
  readonly output: StoredArray;
  readonly cotangent: StoredArray;
  readonly gradients: Readonly<Record<string, StoredArray>>;
}

const fixture = JSON.parse(
  readFileSync(new URL("../fixtures/rules.json", import.meta.url), "utf8"),
) as Record<string, Case>;

function read({ dtype, shape, data }: StoredArray): HostArray {
  return dtype === "f32" ? f32(shape, data) : i32(shape, data);
}

const readAll = (arrays: Readonly<Record<string, StoredArray>>): Record<string, HostArray> =>
  Object.fromEntries(Object.entries(arrays).map(([name, x]) => [name, read(x)]));

/** transformers takes the rotary angle in float32: at position 511 it is off by 511 · 2^−24. Ours is in float64. */
const ANGLE_TOLERANCE: Tolerance = { relative: 0, floor: 511 * 2 ** -24 };

// torch has heads before positions, ours lie side by side in the last axis.
const joinHeads = (x: Value): Value => {
  const [B, H, T, D] = x.shape as readonly [number, number, number, number];
  return reshape(transpose(x, [0, 2, 1, 3]), [B, T, H * D]); // [B, H, T, D] → [B, T, H·D]
};
const splitHeads = (x: Value, heads: number): Value => {
  const [B, T, width] = x.shape as readonly [number, number, number];
  return transpose(reshape(x, [B, T, heads, width / heads]), [0, 2, 1, 3]); // [B, T, H·D] → [B, H, T, D]
};

type Operation = (inputs: Traced, options: Readonly<Record<string, number>>) => Value;

const turn =
  (rotation: typeof rotary): Operation =>
  ({ x, positions }, { theta }) => {
    const [, H, , D] = x!.shape as readonly [number, number, number, number];
    const last = Math.max(...fixture.rope!.inputs.positions!.data);
    const { cos, sin } = rotaryTables(last + 1, D, theta!);
    return splitHeads(rotation(joinHeads(x!), positions!, constant(x!, cos), constant(x!, sin)), H);
  };

/** Ours, by the name of the case. */
const OPERATIONS: Readonly<Record<string, Readonly<Record<string, Operation>>>> = {
  softmax: { softmax: ({ x }) => softmax(x!), softmaxUnfused: ({ x }) => softmaxUnfused(x!) },
  log_softmax: { logSoftmax: ({ x }) => logSoftmax(x!) },
  rms_norm: {
    rmsNorm: ({ x, weight }, { eps }) => rmsNorm(x!, weight!, { epsilon: eps! }),
    rmsNormUnfused: ({ x, weight }, { eps }) => rmsNormUnfused(x!, weight!, { epsilon: eps! }),
  },
  silu: { silu: ({ x }) => silu(x!) },
  rope: { rotary: turn(rotary), rotaryUnfused: turn(rotaryUnfused) },
  attention: {
    attention: ({ q, k, v, segments }) => {
      const [heads, kvHeads] = [q!.shape[1]!, k!.shape[1]!];
      const mask = packedCausalMask({ segments: segments! });
      return splitHeads(
        attention(joinHeads(q!), joinHeads(k!), joinHeads(v!), mask, { heads, kvHeads }),
        heads,
      );
    },
  },
};

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

it("every case of the fixture is used", () => {
  const cases = Object.keys(fixture).filter((name) => name !== "madeBy" && name !== "versions");
  expect(Object.keys(OPERATIONS).sort()).toEqual(cases.sort());
});

describe.each(Object.entries(OPERATIONS))("torch's %s", (name, operations) => {
  it.each(Object.entries(operations))("equals %s in value and gradient", async (ours, operation) => {
    const { inputs, options, output, cotangent, gradients } = fixture[name]!;
    const arrays = { ...readAll(inputs), cotangent: read(cotangent) };
    const wrt = Object.keys(gradients);
    const graph = trace(specsOf(arrays), (traced) => {
      const y = operation(traced, options);
      const received = grad(
        sum(mul(y, traced.cotangent!)),
        wrt.map((input) => traced[input]!),
      );
      return { y, ...Object.fromEntries(wrt.map((input, i) => [`gradient of ${input}`, received[i]!])) };
    });
    const expected = {
      y: read(output),
      ...Object.fromEntries(wrt.map((input) => [`gradient of ${input}`, read(gradients[input]!)])),
    };
    const tolerance = name === "rope" ? ANGLE_TOLERANCE : undefined;
    expectAllClose(`${ours}, interpreted`, interpret(graph, arrays), expected, tolerance);
    expectAllClose(`${ours}, engine`, await runOnEngine(engine, graph, arrays), expected, tolerance);
  });
});
