/** Training adapters: gradients by finite differences, what stays as it is, and that sampler and trainer agree. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError } from "../../../src/base/errors.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpretWide } from "../../../src/compute/runtime/interpreter.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import { fromLogits } from "../../../src/learn/losses/predictions.ts";
import { packAll } from "../../../src/learn/optim/pack.ts";
import { Scorer } from "../../../src/learn/optim/score.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import { trainedConfig } from "../../../src/learn/train/base-model.ts";
import { ADAPTER_TARGETS } from "../../../src/model/arch/adapters.ts";
import { freshWeights } from "../../../src/model/arch/architecture.ts";
import { type LlamaConfig, llamaTrain } from "../../../src/model/arch/llama.ts";
import { modelParameters } from "../../../src/model/arch/models.ts";
import { loadAdapterFolder, withAdaptersMerged } from "../../../src/model/checkpoint/adapter.ts";
import { loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { readSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { createEngine, expectClose, runOnEngine, specsOf } from "../../compute/harness.ts";
import { fixturePath, readFixture, type StoredArray, toHost } from "../../fixture.ts";
import { DEEPSEEK_V3_671B, opinionatedWeights, TINY } from "../../model/models.ts";
import { batchOf, randomSequences } from "./batches.ts";

const CONFIG: LlamaConfig = { ...TINY, adapters: { rank: 2, alpha: 3, targets: ADAPTER_TARGETS } };
const RATES = { adamW: 0.05, muon: 0 };

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

const base = opinionatedWeights(TINY, 6);
/** Adapters in the middle of their training: neither A nor B is zero. */
function adapters(): Record<string, HostArray<"f32">> {
  const random = new Random(9);
  const fresh = freshWeights(
    modelParameters(CONFIG).filter(({ kind }) => kind === "adapter"),
    1,
  );
  for (const { data } of Object.values(fresh)) for (const i of data.keys()) data[i] = 0.2 * random.normal();
  return fresh;
}

function trainer(): { readonly trainer: Trainer; readonly frozen: ReturnType<typeof deviceWeights> } {
  const frozen = deviceWeights(runtime, base);
  return { trainer: Trainer.create(runtime, CONFIG, adapters(), { matrices: "muon" }, {}, frozen), frozen };
}

const batch = batchOf(randomSequences(2, [7, 5, 4], TINY.vocabSize), [[0], [1, 2]], 9);

describe("gradients of adapters", () => {
  it("are those of finite differences, and there are no others", async () => {
    const { trainer: subject } = trainer();
    await subject.accumulate(CROSS_ENTROPY, batch);
    const gradients = subject.gradients();
    const own = adapters();
    expect(Object.keys(gradients)).toEqual(Object.keys(own));
    const { ids, positions, segments, targets, weights } = batch;
    const arrays: Record<string, HostArray> = { ...base, ...own, ids, positions, segments, targets, weights };
    const graph = trace(specsOf(arrays), (x: Record<string, Value>) => {
      const rows = x as Record<"ids" | "positions" | "segments" | "targets", Value>;
      return { loss: CROSS_ENTROPY.build(fromLogits(llamaTrain(x, rows, CONFIG)), x, rows, x).loss };
    });
    const step = 1e-4;
    for (const [name, { dtype, shape, data }] of Object.entries(own)) {
      const random = new Random(1, name.length);
      const direction = Float64Array.from(data, () => random.normal());
      const moved = (by: number): number => {
        const wide = { dtype, shape, data: Float64Array.from(data, (x, i) => x + by * direction[i]!) };
        return interpretWide(graph, { ...arrays, [name]: wide })["loss"]!.data[0]!;
      };
      const difference = (moved(step) - moved(-step)) / (2 * step);
      const gradient = gradients[name]!.data;
      const slope = gradient.reduce((total, g, i) => total + g * direction[i]!, 0);
      const scale = Math.hypot(...gradient, 1e-3) * Math.hypot(...direction);
      expect(Math.abs(slope - difference), name).toBeLessThan(1e-5 * scale);
    }
    await subject.dispose();
  });
});

describe("against torch", () => {
  interface Expected {
    readonly ids: StoredArray<"i32">;
    readonly logits: StoredArray<"f32">;
    readonly loss: number;
  }
  const expected = readFixture<Expected>("lora-wide/expected.json");
  const [B, T] = expected.ids.shape as readonly [number, number];
  const rows = Array.from({ length: B }, (_, b) => expected.ids.data.slice(b * T, (b + 1) * T));

  it("loss and every gradient are those of PEFT's formula, read from PEFT's files", async () => {
    const { config, tensors } = await loadModelWeights(fixturePath("arch-llama-wide"));
    const { tensors: own } = await loadAdapterFolder(fixturePath("lora-wide"));
    const adapted = trainedConfig(config, { rank: 3, alpha: 5, targets: ADAPTER_TARGETS });
    const frozen = deviceWeights(runtime, tensors);
    const subject = Trainer.create(runtime, adapted, own, {}, {}, frozen);
    const weight = 1 / (B * (T - 1));
    const sequences = rows.map((ids) => ({ ids, weights: ids.map(() => weight) }));
    const { loss } = await subject.accumulate(CROSS_ENTROPY, batchOf(sequences, [[0], [1]], T));
    expect(loss).toBeCloseTo(expected.loss, 5);
    const { tensors: stored } = await readSafetensors(fixturePath("lora-wide/gradients.safetensors"));
    const gradients = subject.gradients();
    expect(Object.keys(gradients).sort()).toEqual([...stored.keys()].sort());
    for (const [name, gradient] of Object.entries(gradients)) {
      const { shape, data } = stored.get(name)!;
      const theirs = f32(shape, new Float32Array(data.slice().buffer));
      expectClose(name, gradient, theirs, { relative: 1e-4, floor: 1e-5 });
    }
    await subject.dispose();
  });

  it("the base with the adapters taken in has the same logits", async () => {
    const { config, tensors } = await loadModelWeights(fixturePath("arch-llama-wide"));
    const folder = fixturePath("lora-wide");
    const merged = withAdaptersMerged(folder, tensors, await loadAdapterFolder(folder));
    const positions = i32(
      [B, T],
      rows.flatMap((row) => row.map((_, t) => t)),
    );
    const ones = i32(
      [B, T],
      rows.flatMap((row) => row.map(() => 1)),
    );
    const arrays = { ...merged, ids: toHost(expected.ids), positions, segments: ones };
    const graph = trace(specsOf(arrays), (x) => ({
      logits: llamaTrain(x, x as Record<"ids" | "positions" | "segments", Value>, config as LlamaConfig),
    }));
    const { logits } = await runOnEngine(runtime, graph, arrays);
    const theirs = f32([B * T, config.vocabSize], expected.logits.data);
    expectClose("logits", logits!, theirs, { relative: 1e-4, floor: 1e-5 });
  });
});

describe("a trainer of adapters", () => {
  it("moves them alone, by AdamW whatever moves matrices, and reads the base in place", async () => {
    const { trainer: subject, frozen } = trainer();
    const before = adapters();
    await subject.accumulate(CROSS_ENTROPY, batch);
    await subject.apply(RATES);
    const weights = subject.weights();
    for (const [name, { data }] of Object.entries(base)) {
      expect(weights[name]).toBe(frozen[name]);
      expect(weights[name]!.data).toEqual(data);
    }
    for (const [name, { data }] of Object.entries(before)) expect(weights[name]!.data).not.toEqual(data);
    const states = Object.keys(subject.stateSpecs());
    expect(states).toHaveLength(3 * Object.keys(before).length);
    expect(subject.adapted).toBe(true);
    await subject.dispose();
  });

  it("lowers the loss", async () => {
    const { trainer: subject } = trainer();
    const losses: number[] = [];
    for (let i = 0; i < 12; i++) {
      losses.push((await subject.accumulate(CROSS_ENTROPY, batch)).loss);
      await subject.apply(RATES);
    }
    expect(losses.at(-1)!).toBeLessThan(0.5 * losses[0]!);
    await subject.dispose();
  });

  it("needs the whole base", () => {
    const { "model.norm.weight": _, ...rest } = deviceWeights(runtime, base);
    expect(() => Trainer.create(runtime, CONFIG, adapters(), {}, {}, rest)).toThrow(
      /trainer: model\.norm\.weight: needs a tensor f32\[16\]; got none/,
    );
    expect(() => trainedConfig(DEEPSEEK_V3_671B, CONFIG.adapters)).toThrow(
      /is for llama and qwen2; got deepseek_v3.*leave --lora-rank out/,
    );
    expect(() => trainedConfig(TINY, { rank: 0, alpha: 1, targets: ["q_proj"] })).toThrow(ConfigError);
  });
});

it("what is sampled with adapters has the log-probability that training finds, within 1e-4, also after an update", async () => {
  const { trainer: subject } = trainer();
  const engine = new Engine(runtime, CONFIG, { slots: 8 });
  const scorer = new Scorer(runtime, CONFIG);
  let worst = 0;
  let count = 0;
  for (let update = 0; update < 3; update++) {
    engine.adopt(subject.weights());
    const prompts = [[1, 2, 3], [4, 5], [6]];
    const requests = prompts.map((prompt, i) => ({ prompt, samples: 4, seed: 3, path: [update, i] }));
    const completions = await engine.generate(requests, { maxNewTokens: 20, stopIds: [0] });
    const sequences = completions.flatMap((group, i) =>
      group.map(({ ids, logp }) => ({
        ids: [...prompts[i]!, ...ids],
        weights: [...prompts[i]!.map(() => 0), ...ids.map(() => 1)],
        extra: { sampledLogp: [...prompts[i]!.map(() => 0), ...logp] },
      })),
    );
    for (const packed of packAll(sequences, { batch: 4, rowLength: 48, padId: 0 }, ["sampledLogp"])) {
      const scores = await scorer.score(subject.weights(), packed, 1);
      for (const [i, weight] of packed.weights.data.entries()) {
        if (weight === 0) continue;
        count++;
        worst = Math.max(worst, Math.abs(scores[i]! - packed.extra["sampledLogp"]!.data[i]!));
      }
    }
    await subject.accumulate(CROSS_ENTROPY, batch);
    await subject.apply(RATES);
  }
  expect(count).toBeGreaterThan(100);
  expect(worst).toBeLessThan(1e-4);
  await Promise.all([engine.dispose(), scorer.dispose(), subject.dispose()]);
});
