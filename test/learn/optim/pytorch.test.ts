/** Ten training steps against PyTorch's, from test/reference/training.py. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import type { PackedBatch } from "../../../src/learn/optim/pack.ts";
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
  readonly gradientNorms: Readonly<Record<string, number>>;
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
  readonly batches: readonly Readonly<Record<"inputIds" | "targets" | "lossMask", StoredArray<"i32">>>[];
  readonly runs: Readonly<Record<string, { readonly steps: readonly Step[] }>>;
}>("training.json");

const STEPS = fixture.batches.length;

/** Each tensor's worst element, relative to the tensor's largest. Rounding alone makes 1e-5 (`driftFromFloat64`). */
const WITHIN: Tolerance = { relative: 0, floor: 1e-4 };

let engine: Runtime;
let model: ModelWeights;
let reference: ReadonlyMap<string, HostArray<"f32">>;
beforeAll(async () => {
  engine = await createEngine();
  model = await loadModelWeights(fixturePath("llama-gqa"));
  const { tensors } = await readSafetensors(fixturePath("training.safetensors"));
  reference = new Map([...tensors].map(([name, tensor]) => [name, toF32(tensor, name)]));
});
afterAll(() => engine.dispose());

/** A batch of the fixture: whole rows, nothing packed, mean over the masked tokens. */
function batchOf({ inputIds, targets, lossMask }: (typeof fixture.batches)[number]): PackedBatch {
  const [B, T] = inputIds.shape as readonly [number, number];
  const counted = lossMask.data.reduce((a, b) => a + b, 0);
  return {
    ids: toHost(inputIds),
    targets: toHost(targets),
    positions: i32(
      [B, T],
      Array.from({ length: B * T }, (_, i) => i % T),
    ),
    segments: i32([B, T], new Int32Array(B * T).fill(1)),
    weights: f32(
      [B, T],
      lossMask.data.map((mask) => mask / counted),
    ),
    extra: {},
    tokens: B * T,
  };
}

function expectTensors(actual: Readonly<Record<string, HostArray>>, prefix: string): void {
  for (const [name, array] of Object.entries(actual)) {
    expectClose(prefix + name, array, reference.get(prefix + name)!, WITHIN);
  }
}

const norm = ({ data }: { readonly data: Float32Array }): number =>
  Math.sqrt(data.reduce((total, x) => total + x * x, 0));

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
    const trainer = Trainer.create(engine, model.config, model.tensors, options);
    for (const [i, expected] of steps.entries()) {
      const factor = scheduleFactor({ warmup: 0, decay: 1, final: 0 }, i + 1, STEPS);
      const rates = { adamW: factor * fixture.options.learningRate, muon: factor * muon.learningRate };
      expect(rates.adamW).toBeCloseTo(expected.learningRates.at(-1)!, 12);
      if (matrices === "muon") expect(rates.muon).toBeCloseTo(expected.learningRates[0]!, 12);

      const { loss } = await trainer.accumulate(CROSS_ENTROPY, batchOf(fixture.batches[i]!));
      expect(Math.abs(loss / expected.loss - 1), `loss of step ${i + 1}`).toBeLessThan(1e-5);
      const gradients = trainer.gradients();
      for (const [name, gradient] of Object.entries(gradients)) {
        expect(norm(gradient) / expected.gradientNorms[name]!, `step ${i + 1}: ${name}`).toBeCloseTo(1, 4);
      }
      if (matrices === "adamw" && (i === 0 || i === STEPS - 1))
        expectTensors(gradients, `adamw.gradient${i + 1}.`);

      const { gradientNorm } = await trainer.apply(rates);
      expect(Math.abs(gradientNorm / expected.gradientNorm - 1), `norm of step ${i + 1}`).toBeLessThan(1e-5);
    }
    const { tensors } = model;
    const weights = Object.entries(trainer.snapshot()).filter(([name]) => Object.hasOwn(tensors, name));
    expect(weights).toHaveLength(Object.keys(tensors).length);
    expectTensors(Object.fromEntries(weights), `${matrices}.final.`);
    await trainer.dispose();
  });
});

it("the steps compared are clipped and not clipped", () => {
  const norms = fixture.runs["adamw"]!.steps.map(({ gradientNorm }) => gradientNorm);
  expect(norms.filter((n) => n > fixture.options.maxNorm)).not.toHaveLength(0);
  expect(norms.filter((n) => n < fixture.options.maxNorm)).not.toHaveLength(0);
  expect(fixture.options.muon.weight_decay).toBe(fixture.options.adamw.weight_decay);
});
