import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, NumericError } from "../../../src/base/errors.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { add, sqrt, sub, sum } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpretWide } from "../../../src/compute/runtime/interpreter.ts";
import { collectGarbage } from "../../../src/compute/runtime/memory.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import { policyLoss } from "../../../src/learn/losses/grpo.ts";
import type { Loss } from "../../../src/learn/losses/loss.ts";
import { fromLogits } from "../../../src/learn/losses/predictions.ts";
import { POLICY_LOSSES } from "../../../src/learn/losses/settings.ts";
import type { PackedBatch } from "../../../src/learn/optim/rows.ts";
import { Trainer, UpdateError } from "../../../src/learn/optim/trainer.ts";
import { initializeLlama, llamaTrain } from "../../../src/model/arch/llama.ts";
import { createEngine, expectAllClose, specsOf, type Tolerance } from "../../compute/harness.ts";
import { batchOf, POLICY_SCALARS, policySequences, randomSequences, SMALL } from "../train/batches.ts";

const RATES = { adamW: 0.01, muon: 0.02 };

/** Sums in another order: float32 rounds at 6e-8 an operation, some tens of which meet in a gradient. */
const ANOTHER_ORDER: Tolerance = { relative: 0, floor: 1e-5 };

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

const LENGTHS = [6, 3, 8, 2, 5, 4];
const sequences = randomSequences(1, LENGTHS, SMALL.vocabSize);
const oneEach = LENGTHS.map((_, i) => [i]);

const fresh = (config = SMALL, seed = 1, options = {}): Trainer =>
  Trainer.create(engine, config, initializeLlama(config, seed), options);

type Outcome = { readonly loss: number; readonly gradients: Record<string, HostArray<"f32">> };

/** Loss and gradients of batches accumulated in turn. */
async function gradientsOf(
  batches: readonly PackedBatch[],
  loss: Loss = CROSS_ENTROPY,
  scalars: Readonly<Record<string, number>> = {},
): Promise<Outcome> {
  const trainer = fresh();
  let total = 0;
  for (const batch of batches) total += (await trainer.accumulate(loss, batch, scalars)).loss;
  const gradients = trainer.gradients();
  await trainer.dispose();
  return { loss: total, gradients };
}

function expectSame(actual: Outcome, expected: Outcome): void {
  expect(actual.loss).toBeCloseTo(expected.loss, 5);
  expectAllClose("gradients", actual.gradients, expected.gradients, ANOTHER_ORDER);
}

describe("accumulation", () => {
  it("of four micro-batches gives the gradients of one batch", async () => {
    const whole = await gradientsOf([batchOf(sequences, oneEach, 8)]);
    const parts = [[0], [1, 2], [3, 4], [5]].map((indices) =>
      batchOf(
        sequences,
        indices.map((i) => [i]),
        8,
      ),
    );
    expectSame(await gradientsOf(parts), whole);
  });

  it.each(POLICY_LOSSES)("of micro-batches gives the gradients of one batch: %s", async (name) => {
    const loss = policyLoss({ loss: name, kl: true, dualClip: true });
    const { sequences: samples, extraNames } = policySequences(2, LENGTHS, SMALL.vocabSize, name);
    const batch = (indices: readonly number[]): PackedBatch =>
      batchOf(
        samples,
        indices.map((i) => [i]),
        8,
        extraNames,
      );
    const whole = await gradientsOf([batch([0, 1, 2, 3, 4, 5])], loss, POLICY_SCALARS);
    expectSame(await gradientsOf([batch([5, 0]), batch([1, 4]), batch([3, 2])], loss, POLICY_SCALARS), whole);
  });

  it("packing does not change the loss, nor any gradient", async () => {
    const alone = await gradientsOf(sequences.map((_, i) => batchOf(sequences, [[i]], LENGTHS[i]!)));
    expectSame(await gradientsOf([batchOf(sequences, oneEach, 8)]), alone);
    expectSame(
      await gradientsOf([
        batchOf(
          sequences,
          [
            [0, 1, 2, 3],
            [4, 5],
          ],
          19,
        ),
      ]),
      alone,
    );
    expectSame(await gradientsOf([batchOf(sequences, [[5, 2, 4, 0, 1, 3], [], []], 32)]), alone);
  });

  it("packing does not change a policy loss that looks at whole sequences", async () => {
    const loss = policyLoss({ loss: "gspo", kl: true, dualClip: false });
    const { sequences: samples, extraNames } = policySequences(3, LENGTHS, SMALL.vocabSize, "gspo");
    const apart = await gradientsOf([batchOf(samples, oneEach, 8, extraNames)], loss, POLICY_SCALARS);
    const packed = batchOf(
      samples,
      [
        [0, 1, 2, 3],
        [4, 5],
      ],
      20,
      extraNames,
    );
    expectSame(await gradientsOf([packed], loss, POLICY_SCALARS), apart);
  });
});

describe("the whole model's gradient", () => {
  const step = 1e-4;
  const config = SMALL;

  /** The loss in float64 as a function of the weights. */
  function lossOf(loss: Loss, batch: PackedBatch, scalars: Readonly<Record<string, number>>) {
    const weights = initializeLlama(config, 1);
    const arrays: Record<string, HostArray> = {
      ...weights,
      ids: batch.ids,
      positions: batch.positions,
      segments: batch.segments,
      targets: batch.targets,
      weights: batch.weights,
      ...batch.extra,
      ...Object.fromEntries(loss.scalars.map((name) => [name, f32([], [scalars[name]!])])),
    };
    const graph = trace(specsOf(arrays), (x: Record<string, Value>) => {
      const inputs = x as Record<"ids" | "positions" | "segments" | "targets", Value>;
      return { loss: loss.build(fromLogits(llamaTrain(x, inputs, config)), x, inputs, x).loss };
    });
    const moved = (name: string, change: (i: number) => number): number => {
      const { dtype, shape, data } = weights[name]!;
      const wide = { dtype, shape, data: Float64Array.from(data, (x, i) => x + change(i)) };
      return interpretWide(graph, { ...arrays, [name]: wide })["loss"]!.data[0]!;
    };
    return { weights, moved };
  }

  const policies = POLICY_LOSSES.map((name) => policyLoss({ loss: name, kl: true, dualClip: true }));
  it.each([CROSS_ENTROPY, ...policies])("of $key is that of finite differences", async (loss) => {
    const name = POLICY_LOSSES.find((policy) => loss.key.includes(`:${policy}:`));
    const { sequences: samples, extraNames } = policySequences(
      5,
      [4, 3, 5],
      config.vocabSize,
      name ?? "dapo",
    );
    const batch = batchOf(samples, [[0, 1], [2]], 8, extraNames);
    // CISPO's gradient is that of its value only where the ratio is clipped: elsewhere it is held still.
    if (name === "cispo") batch.extra["sampledLogp"]!.data.fill(-100);
    const { gradients } = await gradientsOf([batch], loss, POLICY_SCALARS);
    const { weights, moved } = lossOf(loss, batch, POLICY_SCALARS);
    for (const [tensor, { data }] of Object.entries(weights)) {
      for (const seed of [1, 2]) {
        const random = new Random(seed, tensor.length);
        const direction = Float64Array.from(data, () => random.normal());
        const by = (amount: number) => moved(tensor, (i) => amount * direction[i]!);
        const difference = (by(step) - by(-step)) / (2 * step);
        const gradient = gradients[tensor]!.data;
        const slope = gradient.reduce((total, g, i) => total + g * direction[i]!, 0);
        // Float32's rounding in the gradient, and the square of the step in the difference.
        const scale = Math.hypot(...gradient, 1e-3) * Math.hypot(...direction);
        expect(Math.abs(slope - difference), tensor).toBeLessThan(1e-5 * scale);
      }
    }
  });
});

describe("a step that is not finite", () => {
  const good = batchOf(sequences, oneEach, 8);
  const bad: PackedBatch = {
    ...good,
    weights: f32(
      good.weights.shape,
      good.weights.data.map((w) => w / 0),
    ),
  };

  /** Finite, but its gradient is not: the slope of a root at 0. */
  const rootAtZero: Loss = {
    ...CROSS_ENTROPY,
    key: "root at zero",
    build(predictions, tokens, batch, scalars) {
      const built = CROSS_ENTROPY.build(predictions, tokens, batch, scalars);
      const logp = predictions.logp(batch.targets);
      return { ...built, loss: add(built.loss, sum(sqrt(sub(logp, logp)))) };
    },
  };

  /** State after one good step, and what a second good step makes of it, undisturbed. */
  async function undisturbed(): Promise<Record<string, HostArray<"f32">>[]> {
    const trainer = fresh();
    const states = [];
    for (let i = 0; i < 2; i++) {
      await trainer.accumulate(CROSS_ENTROPY, good);
      await trainer.apply(RATES);
      states.push(trainer.snapshot());
    }
    await trainer.dispose();
    return states;
  }

  /** What `attempt` does between the first update and the second leaves the first's state, and the second as if it had not been. */
  async function expectNoTrace(attempt: (trainer: Trainer) => Promise<void>): Promise<void> {
    const [first, second] = await undisturbed();
    const trainer = fresh();
    await trainer.accumulate(CROSS_ENTROPY, good);
    await trainer.apply(RATES);

    await attempt(trainer);
    expect(trainer.snapshot()).toEqual(first);
    expect(trainer.updates).toBe(1);
    // The gradients that waited are gone with it.
    await expect(trainer.apply(RATES)).rejects.toThrow("apply: needs gradients. Call accumulate first.");

    await trainer.accumulate(CROSS_ENTROPY, good);
    await trainer.apply(RATES);
    expect(trainer.snapshot()).toEqual(second);
    await trainer.dispose();
  }

  it("by its loss is refused by name, keeps the last good state and does not hinder the next", () =>
    expectNoTrace(async (trainer) => {
      await trainer.accumulate(CROSS_ENTROPY, good);
      const call = trainer.accumulate(CROSS_ENTROPY, bad);
      await expect(call).rejects.toThrow(NumericError);
      await expect(call).rejects.toThrow(
        /^update 2: the loss must be finite; got (Infinity|NaN)\. The last good weights/,
      );
    }));

  it("by a gradient names the tensor, keeps the last good state and does not hinder the next", () =>
    expectNoTrace(async (trainer) => {
      const { loss } = await trainer.accumulate(rootAtZero, good);
      expect(Number.isFinite(loss)).toBe(true);
      const named = Object.entries(trainer.gradients()).find(
        ([, { data }]) => !data.every(Number.isFinite),
      )![0];
      const call = trainer.apply(RATES);
      await expect(call).rejects.toThrow(NumericError);
      await expect(call).rejects.toThrow(
        `update 2: gradients must be finite; got a non-finite gradient of ${named}.`,
      );
    }));

  it("by the norm alone says so", async () => {
    // Every gradient is near 1e25, its square beyond float32.
    const large = {
      ...good,
      weights: f32(
        good.weights.shape,
        good.weights.data.map((w) => w * 1e25),
      ),
    };
    const trainer = fresh();
    await trainer.accumulate(CROSS_ENTROPY, large);
    await expect(trainer.apply(RATES)).rejects.toThrow("got a global norm of Infinity");
    expect(trainer.updates).toBe(0);
    await trainer.dispose();
  });

  // 1e39 is infinite in float32. A rate of 3e38 leaves finite weights, of which no two can be added.
  it.each([
    [
      "a matrix",
      { ...RATES, muon: 1e39 },
      /non-finite values of model\.layers\.0\.self_attn\.q_proj\.weight/,
    ],
    ["an embedding", { ...RATES, adamW: 1e39 }, /non-finite values of model\.embed_tokens\.weight/],
    ["their sum", { ...RATES, adamW: 3e38 }, /weights whose sum is (NaN|-?Infinity)/],
  ])("by the new weights is refused, keeps the last good state and does not hinder: %s", (_, rates, got) =>
    expectNoTrace(async (trainer) => {
      await trainer.accumulate(CROSS_ENTROPY, good);
      const call = trainer.apply(rates);
      await expect(call).rejects.toThrow(UpdateError);
      await expect(call).rejects.toThrow(
        /^update 2: new weights must be finite; got .*\. The last good weights/,
      );
      await expect(call).rejects.toThrow(got);
    }),
  );
});

describe("a snapshot", () => {
  const batch = (step: number) => batchOf(randomSequences(step, LENGTHS, SMALL.vocabSize), oneEach, 8);

  async function take(trainer: Trainer, from: number, to: number): Promise<number[]> {
    const losses = [];
    for (let step = from; step <= to; step++) {
      losses.push((await trainer.accumulate(CROSS_ENTROPY, batch(step))).loss);
      losses.push((await trainer.apply(RATES)).gradientNorm);
    }
    return losses;
  }

  it.each(["muon", "adamw"] as const)("restored, continues to the bit, with %s", async (matrices) => {
    const options = { matrices, weightDecay: 0.1, clipNorm: 0.5 };
    const trainer = fresh(SMALL, 1, options);
    await take(trainer, 1, 3);
    const [snapshot, updates] = [trainer.snapshot(), trainer.updates];
    expect(updates).toBe(3);
    const uninterrupted = await take(trainer, 4, 6);
    const final = trainer.snapshot();
    expect(snapshot, "a copy, not a view").not.toEqual(final);

    const other = fresh(SMALL, 2, options);
    await other.accumulate(CROSS_ENTROPY, batch(9));
    other.restore(snapshot, updates);
    expect(() => other.gradients(), "gradients of before").toThrow("gradients: needs gradients waiting");
    expect(await take(other, 4, 6)).toEqual(uninterrupted);
    expect(other.snapshot()).toEqual(final);

    // The trainer itself, wherever it has got to.
    trainer.restore(snapshot, updates);
    expect(await take(trainer, 4, 6)).toEqual(uninterrupted);
    expect(trainer.snapshot()).toEqual(final);
    await trainer.dispose();
    await other.dispose();
  });

  it("of another model or optimizer is refused by the tensor it lacks, and changes nothing", async () => {
    const muon = fresh();
    const adamw = fresh(SMALL, 1, { matrices: "adamw" });
    expect(() => adamw.restore(muon.snapshot(), 0)).toThrow(ConfigError);
    expect(() => adamw.restore(muon.snapshot(), 0)).toThrow(
      "trainer: v/model.layers.0.self_attn.q_proj.weight: needs a tensor f32[8,8]; got none. Use the weights and optimizer of the same model.",
    );
    const wider = initializeLlama({ ...SMALL, intermediateSize: 12 }, 2);
    expect(() => Trainer.create(engine, SMALL, wider)).toThrow(
      "trainer: model.layers.0.mlp.gate_proj.weight: needs a tensor f32[6,8]; got f32[12,8].",
    );
    const before = muon.snapshot();
    expect(() => muon.restore({ ...before, ...wider }, 0)).toThrow(ConfigError);
    expect(muon.snapshot()).toEqual(before);
    // As many elements in another shape are another tensor too.
    const turned = initializeLlama({ ...SMALL, intermediateSize: 8 }, 1);
    turned["lm_head.weight"] = f32([8, 7], turned["lm_head.weight"]!.data);
    expect(() => Trainer.create(engine, { ...SMALL, intermediateSize: 8 }, turned)).toThrow(
      "trainer: lm_head.weight: needs a tensor f32[7,8]; got f32[8,7].",
    );
  });

  it("does not carry the weights a trainer was made from: they are copied", async () => {
    const weights = initializeLlama(SMALL, 1);
    const trainer = Trainer.create(engine, SMALL, weights);
    const before = trainer.snapshot();
    weights["lm_head.weight"]!.data.fill(0);
    expect(trainer.snapshot()).toEqual(before);
  });
});

describe("what a loss needs", () => {
  const loss = policyLoss({ loss: "grpo", kl: false, dualClip: false });
  it("is asked for by name", async () => {
    const trainer = fresh();
    const batch = batchOf(sequences, oneEach, 8);
    await expect(trainer.accumulate(loss, batch, POLICY_SCALARS)).rejects.toThrow(/needs counts per token/);
    const { sequences: samples, extraNames } = policySequences(1, [3], SMALL.vocabSize, "grpo");
    const { temperature: _, ...rest } = POLICY_SCALARS;
    await expect(trainer.accumulate(loss, batchOf(samples, [[0]], 4, extraNames), rest)).rejects.toThrow(
      /needs the scalar temperature/,
    );
    await trainer.dispose();
  });
});

it("scalars change from step to step without another program, and count", async () => {
  const trainer = fresh();
  const loss = policyLoss({ loss: "grpo", kl: false, dualClip: false });
  const { sequences: samples, extraNames } = policySequences(1, LENGTHS, SMALL.vocabSize, "grpo");
  const batch = batchOf(samples, oneEach, 8, extraNames);
  const clipped = async (clipHigh: number) => {
    const { sums } = await trainer.accumulate(loss, batch, { ...POLICY_SCALARS, clipHigh });
    return sums["clipHigh"]!;
  };
  expect(await clipped(0.01)).toBeGreaterThan(await clipped(0.5));
  await trainer.dispose();
});

it("memory stays flat over 2,000 steps of training", async () => {
  const rss = () => {
    collectGarbage();
    return process.memoryUsage().rss;
  };
  using alone = await Runtime.create({ threads: 1 });
  const trainer = Trainer.create(alone, SMALL, initializeLlama(SMALL, 1));
  const batches = [
    batchOf(sequences, oneEach, 8),
    batchOf(
      sequences,
      [
        [0, 1, 2],
        [3, 4, 5],
      ],
      20,
    ),
  ];
  const train = async (steps: number) => {
    for (let step = 0; step < steps; step++) {
      await trainer.accumulate(CROSS_ENTROPY, batches[step % 2]!);
      if (step % 4 === 0) await trainer.accumulate(CROSS_ENTROPY, batches[0]!);
      await trainer.apply(RATES);
    }
  };
  await train(200);
  const before = rss();
  await train(2000);
  // 1 KiB lost a step would be 2 MiB; allocators keep a few pages for reuse.
  expect((rss() - before) / 2 ** 20).toBeLessThan(8);
  await trainer.dispose();
});
