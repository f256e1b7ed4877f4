/** Logits a few rows at a time against logits all at once: values, gradients of hidden states and head, and memory. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { grad } from "../../../src/compute/grad/reverse.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { add, mul, sum } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { fromHidden, fromLogits, type Predictions } from "../../../src/learn/losses/predictions.ts";
import { linear } from "../../../src/model/nn/layers.ts";
import { createEngine, expectClose, runOnEngine, specsOf } from "../../compute/harness.ts";

const [B, T, C, V] = [2, 7, 6, 11];

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

const random = new Random(4);
const normal = (...shape: number[]): HostArray<"f32"> =>
  f32(
    shape,
    Array.from({ length: shape.reduce((a, b) => a * b) }, () => 2 * random.normal()),
  );
const arrays = {
  hidden: normal(B * T, C),
  head: normal(V, C),
  targets: i32(
    [B, T],
    Array.from({ length: B * T }, () => random.integer(V)),
  ),
  temperature: f32([], [0.7]),
  first: normal(B, T),
  second: normal(B, T),
};
type Inputs = Record<keyof typeof arrays, Value>;

/** Both answers, each weighted anew in every place, and their gradients. */
async function answers(predict: (x: Inputs) => Predictions, entropy: boolean) {
  const graph = trace(specsOf(arrays), (inputs) => {
    const x = inputs as Inputs;
    const predictions = predict(x);
    const both = predictions.logpAndEntropy(x.targets, x.temperature);
    const logp = entropy ? both.logp : predictions.logp(x.targets);
    const weighted = sum(mul(logp, x.first));
    const loss = entropy ? add(weighted, sum(mul(both.entropy, x.second))) : weighted;
    const [hidden, head] = grad(loss, [x.hidden, x.head]);
    return { logp, dHidden: hidden!, dHead: head!, ...(entropy ? { entropy: both.entropy } : {}) };
  });
  return runOnEngine(engine, graph, arrays);
}

describe.each([1, 3, 5, 14])("with %i rows at once", (rows) => {
  it.each([true, false])("all is as with logits all at once (entropy: %s)", async (entropy) => {
    const whole = await answers(({ hidden, head }) => fromLogits(linear(hidden, head)), entropy);
    const options = { learns: true, atOnce: rows * V };
    const parts = await answers(({ hidden, head }) => fromHidden(hidden, head, options), entropy);
    for (const [name, expected] of Object.entries(whole)) {
      expectClose(name, parts[name]!, expected, { relative: 1e-5, floor: 1e-5 });
    }
  });
});

it("no array of the graph is larger than the rows at once, and a head that does not learn takes no gradient", () => {
  const graph = trace(specsOf(arrays), (inputs) => {
    const x = inputs as Inputs;
    const predictions = fromHidden(x.hidden, x.head, { learns: false, atOnce: 3 * V });
    return { dHidden: grad(sum(predictions.logp(x.targets)), [x.hidden])[0]! };
  });
  const sizes = graph.applications.flatMap(({ outputs }) => outputs.map(({ shape }) => shape));
  const logits = sizes.filter((shape) => shape.at(-1) === V && shape[0] !== C);
  expect(logits.length).toBeGreaterThan(0);
  for (const shape of logits) expect(shape[0]).toBeLessThanOrEqual(3);
  // The head's own shape is that of no result: neither its gradient nor a copy of it.
  expect(sizes.some((shape) => shape.length === 2 && shape[0] === V && shape[1] === C)).toBe(false);
});
