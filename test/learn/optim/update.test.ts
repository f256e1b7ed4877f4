/** Optimizers by hand on tiny tensors; ten steps against PyTorch's are in test/learn/train/pytorch.test.ts. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { mul } from "../../../src/compute/graph/primitives.ts";
import { type Outputs, trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { adamW, clipFactor, globalNorm, muon, orthogonalize } from "../../../src/learn/optim/update.ts";
import {
  createEngine,
  expectAllClose,
  expectClose,
  normal,
  runOnEngine,
  specsOf,
} from "../../compute/harness.ts";

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

const scalar = (x: number): HostArray<"f32"> => f32([], [x]);

/** Runs a function of arrays on the engine; the interpreter must agree. */
async function run(
  arrays: Readonly<Record<string, HostArray>>,
  fn: (x: Readonly<Record<string, Value>>) => Outputs,
): Promise<Record<string, HostArray>> {
  const graph = trace(specsOf(arrays), fn);
  const result = await runOnEngine(engine, graph, arrays);
  expectAllClose("engine", result, interpret(graph, arrays), { relative: 1e-5, floor: 1e-5 });
  return result;
}

const numbers = (x: HostArray | undefined): number[] => Array.from((x as HostArray<"f32">).data);

function expectNumbers(actual: HostArray | undefined, expected: readonly number[]): void {
  for (const [i, value] of numbers(actual).entries()) expect(value, `[${i}]`).toBeCloseTo(expected[i]!, 5);
  expect(actual!.data).toHaveLength(expected.length);
}

describe("clipping", () => {
  // ‖(3, 0, 4)‖ over two tensors = 5.
  const gradients = { a: f32([2], [3, 0]), b: f32([1, 1], [4]) };
  it.each([
    [10, 1],
    [5.1, 1],
    [2.5, 2.5 / (5 + 1e-6)],
  ])("to a norm of %d multiplies by %d", async (limit, factor) => {
    const { norm, f } = await run({ ...gradients, limit: scalar(limit) }, ({ a, b, limit: most }) => {
      const total = globalNorm([a!, b!]);
      return { norm: total, f: clipFactor(total, most!) };
    });
    expectNumbers(norm, [5]);
    expectNumbers(f, [factor]);
  });

  it("leaves a gradient of nothing but zeros alone", async () => {
    const { f } = await run({ a: f32([2], [0, 0]), limit: scalar(1) }, ({ a, limit }) => ({
      f: clipFactor(globalNorm([a!]), limit!),
    }));
    expectNumbers(f, [1]);
  });
});

describe("adamW", () => {
  const options = { beta1: 0.9, beta2: 0.75, epsilon: 1e-8 };
  const step = (arrays: Readonly<Record<string, HostArray>>, t: number, decay: number) =>
    run(
      {
        ...arrays,
        rate: scalar(0.1),
        decay: scalar(decay),
        c1: scalar(1 / (1 - options.beta1 ** t)),
        c2: scalar(1 / (1 - options.beta2 ** t)),
      },
      ({ w, g, m, v, rate, decay: weightDecay, c1, c2 }) => {
        const scalars = {
          learningRate: rate!,
          weightDecay: weightDecay!,
          correction1: c1!,
          correction2: c2!,
        };
        const next = adamW(w!, g!, { m: m!, v: v! }, scalars, options);
        return { w1: next.weight, m1: next.m, v1: next.v };
      },
    );

  it("first moves every weight by the learning rate against its gradient's sign, after decay", async () => {
    const zero = f32([3], [0, 0, 0]);
    const first = await step(
      { w: f32([3], [1, -2, 4]), g: f32([3], [0.5, -8, 0]), m: zero, v: zero },
      1,
      0.5,
    );
    // w·(1 − 0.1·0.5) − 0.1·sign(g); no gradient, no step.
    expectNumbers(first["w1"], [0.95 - 0.1, -1.9 + 0.1, 3.8]);
    expectNumbers(first["m1"], [0.05, -0.8, 0]);
    expectNumbers(first["v1"], [0.0625, 16, 0]);
  });

  it("then by the ratio of the corrected moments", async () => {
    // m = 0.9·0.05 + 0.1·1 = 0.145, v = 0.75·0.0625 + 0.25·1 = 0.296875;
    // m̂ = 0.145/0.19 = 0.763158, v̂ = 0.296875/0.4375 = 0.678571, m̂/√v̂ = 0.926437.
    const state = { w: f32([1], [1]), g: f32([1], [1]), m: f32([1], [0.05]), v: f32([1], [0.0625]) };
    const second = await step(state, 2, 0);
    expectNumbers(second["m1"], [0.145]);
    expectNumbers(second["v1"], [0.296875]);
    expectNumbers(second["w1"], [1 - 0.0926437]);
  });
});

/** What five iterations make of a singular value, the matrix having been divided by its Frobenius norm. */
function iterate(x: number): number {
  for (let step = 0; step < 5; step++) x = 3.4445 * x - 4.775 * x ** 3 + 2.0315 * x ** 5;
  return x;
}

describe("muon", () => {
  const step = (weights: HostArray[], gradients: HostArray[], momenta: HostArray[], clip?: number) => {
    const named = (prefix: string, arrays: HostArray[]) =>
      Object.fromEntries(arrays.map((array, i) => [`${prefix}${i}`, array]));
    const arrays = { ...named("w", weights), ...named("g", gradients), ...named("m", momenta) };
    const scale = clip === undefined ? {} : { clip: scalar(clip) };
    return run({ ...arrays, ...scale, rate: scalar(0.1), decay: scalar(0.5) }, (x) => {
      const pick = (prefix: string) => weights.map((_, i) => x[`${prefix}${i}`]!);
      const scalars = {
        learningRate: x["rate"]!,
        weightDecay: x["decay"]!,
        ...(clip === undefined ? {} : { gradientScale: x["clip"]! }),
      };
      const next = muon(pick("w"), pick("g"), pick("m"), scalars, { momentum: 0.75 });
      return Object.fromEntries([
        ...next.weights.map((w, i) => [`w'${i}`, w] as const),
        ...next.momenta.map((m, i) => [`m'${i}`, m] as const),
      ]);
    });
  };

  it("moves a diagonal matrix by its iterated singular values", async () => {
    // m = 0.25·g, direction 0.25·g + 0.75·m = 0.4375·g: diagonal with singular values in the ratio 3 : 4, so 0.6 and 0.8.
    const result = await step(
      [f32([2, 2], [1, 0, 0, 1])],
      [f32([2, 2], [3, 0, 0, -4])],
      [f32([2, 2], [0, 0, 0, 0])],
    );
    expectNumbers(result["m'0"], [0.75, 0, 0, -1]);
    expectNumbers(result["w'0"], [0.95 - 0.1 * iterate(0.6), 0, 0, 0.95 + 0.1 * iterate(0.8)]);
    // By hand: 1 → 0.701 → 1.11362 → 0.720706 → 1.08997 → 0.696436.
    expect(iterate(1)).toBeCloseTo(0.696436, 5);
  });

  it("follows the momentum, with Nesterov's look ahead", async () => {
    // m = 0.75·4 + 0.25·(−4) = 2; direction 0.25·(−4) + 0.75·2 = 0.5 > 0: the gradient alone would move up.
    const result = await step([f32([1, 1], [1])], [f32([1, 1], [-4])], [f32([1, 1], [4])]);
    expectNumbers(result["m'0"], [2]);
    expectNumbers(result["w'0"], [0.95 - 0.1 * iterate(1)]);
  });

  it("takes the gradient as clipping scales it", async () => {
    // As above, half of −8.
    const result = await step([f32([1, 1], [1])], [f32([1, 1], [-8])], [f32([1, 1], [4])], 0.5);
    expectNumbers(result["m'0"], [2]);
    expectNumbers(result["w'0"], [0.95 - 0.1 * iterate(1)]);
  });

  it("scales tall matrices by the root of rows/columns, wide ones not", async () => {
    const tall = await step(
      [f32([4, 1], [1, 1, 1, 1])],
      [f32([4, 1], [2, 0, 0, 0])],
      [f32([4, 1], [0, 0, 0, 0])],
    );
    expectNumbers(tall["w'0"], [0.95 - 0.1 * 2 * iterate(1), 0.95, 0.95, 0.95]);
    const wide = await step(
      [f32([1, 4], [1, 1, 1, 1])],
      [f32([1, 4], [2, 0, 0, 0])],
      [f32([1, 4], [0, 0, 0, 0])],
    );
    expectNumbers(wide["w'0"], [0.95 - 0.1 * iterate(1), 0.95, 0.95, 0.95]);
  });

  it("treats matrices of a batch apart", async () => {
    const random = new Random(3);
    const [w, g, m] = Array.from({ length: 3 }, () => [0, 1, 2].map(() => normal(random, [3, 5])));
    const together = await step(w!, g!, m!);
    for (const i of [0, 1, 2]) {
      const alone = await step([w![i]!], [g![i]!], [m![i]!]);
      expectClose(`weight ${i}`, together[`w'${i}`]!, alone["w'0"]!, { relative: 0, floor: 1e-5 });
      expectClose(`momentum ${i}`, together[`m'${i}`]!, alone["m'0"]!);
    }
  });
});

describe("orthogonalize", () => {
  /** Orthonormal columns, by Gram–Schmidt on normal numbers; [n][k]. */
  function orthonormal(random: Random, n: number, k: number): number[][] {
    const columns: number[][] = [];
    while (columns.length < k) {
      let column = Array.from({ length: n }, () => random.normal());
      for (const known of columns) {
        const dot = known.reduce((total, x, i) => total + x * column[i]!, 0);
        column = column.map((x, i) => x - dot * known[i]!);
      }
      const norm = Math.sqrt(column.reduce((total, x) => total + x * x, 0));
      columns.push(column.map((x) => x / norm));
    }
    return columns;
  }

  /** U · diag(values) · Vᵀ. */
  function compose(u: number[][], values: readonly number[], v: number[][]): HostArray<"f32"> {
    const [rows, columns] = [u[0]!.length, v[0]!.length];
    const entry = (i: number, j: number): number =>
      values.reduce((total, s, k) => total + u[k]![i]! * s * v[k]![j]!, 0);
    return f32(
      [1, rows, columns],
      Array.from({ length: rows * columns }, (_, i) => entry(Math.floor(i / columns), i % columns)),
    );
  }

  it.each([
    [6, 6],
    [4, 9],
    [9, 4],
    [1, 5],
  ])(
    "keeps the singular vectors of a [%i, %i] matrix and brings its singular values near 1",
    async (rows, columns) => {
      const random = new Random(17, rows, columns);
      const rank = Math.min(rows, columns);
      const [u, v] = [orthonormal(random, rows, rank), orthonormal(random, columns, rank)];
      // From 1 to 0.05 of one another, at an arbitrary scale.
      const values = Array.from({ length: rank }, (_, k) => 37 * 0.05 ** (k / Math.max(1, rank - 1)));
      const norm = Math.sqrt(values.reduce((total, s) => total + s * s, 0));
      const expected = values.map((s) => iterate(s / norm));
      for (const s of expected) expect(Math.abs(s - 1)).toBeLessThan(0.35);
      const { y } = await run({ x: compose(u, values, v) }, ({ x }) => ({ y: orthogonalize(x!) }));
      // The iteration multiplies rounding by its slope at 0, 3.4445⁵ = 485 at most.
      expectClose("orthogonalized", y!, compose(u, expected, v), { relative: 0, floor: 1e-4 });
    },
  );

  it("does not depend on the scale of the matrix", async () => {
    const { small, large } = await run({ x: normal(new Random(5), [2, 3, 4]) }, ({ x }) => ({
      small: orthogonalize(mul(x!, 1e-3)),
      large: orthogonalize(mul(x!, 1e3)),
    }));
    expectClose("small", small!, large!, { relative: 0, floor: 1e-4 });
  });

  it("leaves a matrix of zeros at zero", async () => {
    const { y } = await run({ x: f32([1, 2, 3], [0, 0, 0, 0, 0, 0]) }, ({ x }) => ({ y: orthogonalize(x!) }));
    expect(numbers(y)).toEqual([0, 0, 0, 0, 0, 0]);
  });
});
