/** Ten training steps against PyTorch's, from test/reference/training.py. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray } from "../../../src/compute/tensor/host.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import type { PackedBatch } from "../../../src/learn/optim/rows.ts";
import { scheduleFactor } from "../../../src/learn/optim/schedule.ts";
import { type OptimizerOptions, Trainer } from "../../../src/learn/optim/trainer.ts";
import { loadModelWeights, type ModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { readSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { toF32 } from "../../../src/model/checkpoint/widen.ts";
import { createEngine, expectClose, type Tolerance } from "../../compute/harness.ts";
import { fixturePath, readFixture, type StoredArray, toHost } from "../../fixture.ts";

interface Step {
  readonly loss: number;
  readonly gradientNorm: number;
  readonly learningRates: readonly number[];
}

const fixture = readFixture<{
  readonly options: {
    readonly maxNorm: number;
    readonly learningRate: number;
    readonly adamw: {
      readonly betas: readonly [number, number];
      readonly eps: number;
      readonly weight_decay: number;
    };
    readonly muon: {
      readonly momentum: number;
      readonly weight_decay: number;
      readonly learningRate: number;
    };
  };
  readonly batches: readonly Readonly<
    Record<"inputIds" | "targets" | "positions" | "segments" | "lossMask", StoredArray<"i32">>
  >[];
  readonly runs: Readonly<Record<string, { readonly steps: readonly Step[] }>>;
}>("training/expected.json");

const STEPS = fixture.batches.length;

/**
 * Every element, relative to its tensor's largest. Both sides follow their own weights, and ten steps magnify rounding:
 * PyTorch's own float32 comes 1.3e-5 away from its float64 (`driftFromFloat64`).
 */
const WITHIN: Tolerance = { relative: 0, floor: 1e-4 };

let engine: Runtime;
let model: ModelWeights;
let reference: ReadonlyMap<string, HostArray<"f32">>;
beforeAll(async () => {
  engine = await createEngine();
  model = await loadModelWeights(fixturePath("training"));
  const { tensors } = await readSafetensors(fixturePath("training/expected.safetensors"));
  reference = new Map([...tensors].map(([name, tensor]) => [name, toF32(tensor, name)]));
});
afterAll(() => engine.dispose());

/** A batch of the fixture: two sequences a row, mean over the masked tokens. */
function batchOf({ lossMask, ...batch }: (typeof fixture.batches)[number]): PackedBatch {
  const { shape, data } = lossMask;
  const counted = data.reduce((a, b) => a + b, 0);
  return {
    ids: toHost(batch.inputIds),
    targets: toHost(batch.targets),
    positions: toHost(batch.positions),
    segments: toHost(batch.segments),
    weights: f32(
      shape,
      data.map((mask) => mask / counted),
    ),
    extra: {},
    tokens: data.length,
  };
}

/** The gradient of step `i`, from 0, out of all steps' in one tensor. */
function ofStep({ shape: [, ...shape], data }: HostArray<"f32">, i: number): HostArray<"f32"> {
  const size = data.length / STEPS;
  return f32(shape, data.slice(i * size, (i + 1) * size));
}

describe.each(["adamw", "muon"] as const)("ten steps with %s", (matrices) => {
  it("are PyTorch's", async () => {
    const { maxNorm, adamw, muon } = fixture.options;
    const options: OptimizerOptions = {
      matrices,
      beta1: adamw.betas[0],
      beta2: adamw.betas[1],
      epsilon: adamw.eps,
      momentum: muon.momentum,
      weightDecay: adamw.weight_decay,
      clipNorm: maxNorm,
    };
    const { steps } = fixture.runs[matrices]!;
    const names = Object.keys(model.tensors);
    // Gradients and final weights of two runs: nothing that PyTorch has is left out.
    expect(reference.size).toBe(4 * names.length);
    const trainer = Trainer.create(engine, model.config, model.tensors, options);
    for (const [i, expected] of steps.entries()) {
      const factor = scheduleFactor({ warmup: 0, decay: 1, final: 0 }, i + 1, STEPS);
      const rates = { adamW: factor * fixture.options.learningRate, muon: factor * muon.learningRate };
      expect(rates.adamW).toBeCloseTo(expected.learningRates.at(-1)!, 12);
      if (matrices === "muon") expect(rates.muon).toBeCloseTo(expected.learningRates[0]!, 12);

      const { loss } = await trainer.accumulate(CROSS_ENTROPY, batchOf(fixture.batches[i]!));
      expect(Math.abs(loss / expected.loss - 1), `loss of step ${i + 1}`).toBeLessThan(1e-5);
      const gradients = trainer.gradients();
      for (const name of names) {
        const gradient = ofStep(reference.get(`${matrices}.gradient.${name}`)!, i);
        expectClose(`step ${i + 1}: ${name}`, gradients[name]!, gradient, WITHIN);
      }

      const { gradientNorm } = await trainer.apply(rates);
      expect(Math.abs(gradientNorm / expected.gradientNorm - 1), `norm of step ${i + 1}`).toBeLessThan(1e-5);
    }
    const weights = trainer.snapshot();
    for (const name of names)
      expectClose(`final ${name}`, weights[name]!, reference.get(`${matrices}.final.${name}`)!, WITHIN);
    await trainer.dispose();
  });
});

it.each(Object.entries(fixture.runs))(
  "of the ten steps with %s some are clipped and some are not",
  (_, { steps }) => {
    const clipped = steps.filter(({ gradientNorm }) => gradientNorm > fixture.options.maxNorm);
    expect(steps).toHaveLength(10);
    expect(clipped.length).toBeGreaterThan(0);
    expect(clipped.length).toBeLessThan(steps.length);
    expect(fixture.options.muon.weight_decay).toBe(fixture.options.adamw.weight_decay);
  },
);
