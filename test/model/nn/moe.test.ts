import { describe, expect, it } from "vitest";
import { grad } from "../../../src/compute/grad/reverse.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import {
  add,
  cast,
  constant,
  equal,
  mul,
  reshape,
  slice,
  sum,
} from "../../../src/compute/graph/primitives.ts";
import { type Outputs, trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import { f32, type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { swiglu } from "../../../src/model/nn/layers.ts";
import { expertLoad, type GateOptions, gate, mixture, sequenceBalance } from "../../../src/model/nn/moe.ts";
import { expectAllClose, normal, specsOf, type Traced } from "../../compute/harness.ts";

const run = (
  arrays: Readonly<Record<string, HostArray>>,
  fn: (x: Traced) => Outputs,
): Record<string, HostArray> =>
  interpret(
    trace(specsOf(arrays), (x) => fn(x)),
    arrays,
  );

const numbers = (array: HostArray | undefined): number[] => Array.from(array!.data as Float32Array);
const logit = (p: number): number => Math.log(p / (1 - p));

/** One token whose affinities are as given: its only feature is 1. */
function gateOf(affinities: readonly number[], correction: readonly number[], options: Partial<GateOptions>) {
  const E = affinities.length;
  const arrays = {
    x: f32([1, 1], [1]),
    weight: f32([E, 1], affinities.map(logit)),
    correction: f32([E], correction),
  };
  const settings = { chosen: 2, groups: 1, chosenGroups: 1, normalized: true, scale: 1, ...options };
  const { chosen, weights } = run(arrays, ({ x, weight, correction: c }) => {
    const gated = gate(x!, weight!, c!, settings);
    return { chosen: gated.chosen, weights: gated.weights };
  });
  return { chosen: numbers(chosen), weights: numbers(weights) };
}

describe("the gate", () => {
  it("weighs what it chooses by affinity, made to add up to the scale", () => {
    const { chosen, weights } = gateOf([0.1, 0.6, 0.2, 0.3], [0, 0, 0, 0], { scale: 2.5 });
    expect(chosen).toEqual([1, 3]);
    expect(weights[0]).toBeCloseTo((2.5 * 0.6) / 0.9, 5);
    expect(weights[1]).toBeCloseTo((2.5 * 0.3) / 0.9, 5);
  });

  it("takes the correction into the choice and not into the weights", () => {
    const { chosen, weights } = gateOf([0.1, 0.6, 0.2, 0.3], [0.7, 0, 0, 0], { normalized: false });
    expect(chosen).toEqual([0, 1]);
    expect(weights[0]).toBeCloseTo(0.1, 5);
    expect(weights[1]).toBeCloseTo(0.6, 5);
  });

  it("chooses inside the groups whose two best are best together", () => {
    // Groups of three: 0.9 alone is less than 0.5 and 0.6 together.
    const affinities = [0.9, 0.01, 0.01, 0.5, 0.6, 0.05];
    const zeros = affinities.map(() => 0);
    expect(gateOf(affinities, zeros, { groups: 2, chosenGroups: 1 }).chosen).toEqual([4, 3]);
    expect(gateOf(affinities, zeros, { groups: 2, chosenGroups: 2 }).chosen).toEqual([0, 4]);
  });

  it("never chooses what is excluded, however low a correction makes the rest", () => {
    const chosen = gateOf([0.5, 0.4, 0.9, 0.8], [-3, -3, -9, -9], { groups: 2, chosenGroups: 1 }).chosen;
    expect(chosen).toEqual([0, 1]);
  });

  it("lets gradients through the weights to its matrix, and none to the correction", () => {
    const random = new Random(1);
    const arrays = { x: normal(random, [3, 2]), weight: normal(random, [4, 2]), c: normal(random, [4]) };
    const gradients = run(arrays, ({ x, weight, c }) => {
      const options = { chosen: 2, groups: 2, chosenGroups: 1, normalized: true, scale: 1 };
      const { weights } = gate(x!, weight!, c!, options);
      const [byWeight, byCorrection] = grad(sum(mul(slice(weights, 1, 0, 1), 1)), [weight!, c!]);
      return { byWeight: byWeight!, byCorrection: byCorrection! };
    });
    expect(numbers(gradients["byWeight"]).some((g) => g !== 0)).toBe(true);
    expect(numbers(gradients["byCorrection"])).toEqual([0, 0, 0, 0]);
  });
});

/** Four experts, three of five tokens' choices crowded on one, none on the last. */
function crowd(): Record<string, HostArray> {
  const random = new Random(2);
  const experts = [0, 1, 2, 3].flatMap((e) => [
    [`gate${e}`, normal(random, [3, 2])] as const,
    [`up${e}`, normal(random, [3, 2])] as const,
    [`down${e}`, normal(random, [2, 3])] as const,
  ]);
  return {
    x: normal(random, [5, 2]),
    chosen: i32([5, 2], [1, 0, 1, 2, 2, 1, 0, 1, 1, 0]),
    weights: normal(random, [5, 2]),
    cotangent: normal(random, [5, 2]),
    ...Object.fromEntries(experts),
  };
}

const four = (x: Traced, part: string): Value[] => [0, 1, 2, 3].map((e) => x[`${part}${e}`]!);

/** Every expert on every token, most of it times zero. */
function dense(x: Traced): Value {
  const each = [0, 1, 2, 3].map((e) => {
    const matrices = { gate: x[`gate${e}`]!, up: x[`up${e}`]!, down: x[`down${e}`]! };
    const chose = cast(equal(x["chosen"]!, constant(x["chosen"]!, i32([], [e]))), "f32");
    return mul(
      swiglu(x["x"]!, matrices),
      reshape(sum(mul(chose, x["weights"]!), [1], { keepDims: true }), [5, 1]),
    );
  });
  return each.reduce((a, b) => add(a, b));
}

describe("the mixture", () => {
  it("is every expert on every token times its weight, in value and gradient", () => {
    const arrays = crowd();
    const wrt = Object.keys(arrays).filter((name) => name !== "chosen" && name !== "cotangent");
    const withGradients = (fn: (x: Traced) => Value) =>
      run(arrays, (x) => {
        const y = fn(x);
        const gradients = grad(
          sum(mul(y, x["cotangent"]!)),
          wrt.map((name) => x[name]!),
        );
        return { y, ...Object.fromEntries(wrt.map((name, i) => [`gradient of ${name}`, gradients[i]!])) };
      });
    const sparse = withGradients((x) => {
      const gated = { scores: x["weights"]!, chosen: x["chosen"]!, weights: x["weights"]! };
      return mixture(x["x"]!, gated, { gate: four(x, "gate"), up: four(x, "up"), down: four(x, "down") });
    });
    expectAllClose("mixture", sparse, withGradients(dense), { relative: 1e-5, floor: 1e-6 });
  });

  it("multiplies each row by its own expert's matrices and no other's", () => {
    const arrays = crowd();
    const graph = trace(specsOf(arrays), (x) => {
      const gated = { scores: x["weights"]!, chosen: x["chosen"]!, weights: x["weights"]! };
      return {
        y: mixture(x["x"]!, gated, { gate: four(x, "gate"), up: four(x, "up"), down: four(x, "down") }),
      };
    });
    // Ten rows, one for each choice of each token, through each of three products: the rest of the work is moving them.
    const products = graph.applications.filter(({ primitive }) => /matmul/i.test(primitive));
    expect(products.map(({ primitive, inputs }) => [primitive, inputs[0]!.shape[0]])).toEqual([
      ["groupedMatmul", 10],
      ["groupedMatmul", 10],
      ["groupedMatmul", 10],
    ]);
  });
});

describe("loads and balance", () => {
  it("count the tokens that chose each expert, padding not counted", () => {
    const arrays = { chosen: i32([3, 2], [0, 2, 2, 1, 2, 0]), counted: f32([3], [1, 1, 0]) };
    const { load } = run(arrays, ({ chosen, counted }) => ({ load: expertLoad(chosen!, counted!, 4) }));
    expect(numbers(load)).toEqual([1, 1, 2, 0]);
  });

  it("weigh shares by use, each sequence by itself", () => {
    // Two sequences in one row; each token has three affinities and goes to its best.
    const scores = [
      [0.6, 0.3, 0.1],
      [0.2, 0.2, 0.4],
      [0.8, 0.1, 0.1],
    ];
    const arrays = { scores: f32([3, 3], scores.flat()), segments: i32([1, 3], [1, 1, 2]) };
    const { balance } = run(arrays, (x) => ({ balance: sequenceBalance(x["scores"]!, x["segments"]!, 1) }));
    // First sequence: f = 3/2 · (1, 0, 1), P = ((0.6 + 0.25)/2, (0.3 + 0.25)/2, (0.1 + 0.5)/2). Second: f = (3, 0, 0), P = 0.8.
    const first = 1.5 * 0.425 + 1.5 * 0.3;
    for (const [i, expected] of [first, first, 2.4].entries()) {
      expect(numbers(balance)[i]).toBeCloseTo(expected, 5);
    }
  });
});
