/**
 * The GRPO family against TRL's own GRPOTrainer (test/reference/grpo.py) and against numbers by hand.
 *
 * TRL's fixture gives log-probabilities; ours takes logits. A vocabulary of two realises any log-probability x of a token
 * exactly: logits x and log(1 − e^x) are their own log-softmax.
 */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { grad } from "../../../src/compute/grad/reverse.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { div } from "../../../src/compute/graph/primitives.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { logSoftmax } from "../../../src/compute/ops/stable.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { f32, type HostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { advantages, lossWeights } from "../../../src/learn/losses/advantage.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import { policyLoss } from "../../../src/learn/losses/grpo.ts";
import { batchSpecs, type Loss } from "../../../src/learn/losses/loss.ts";
import { entropyOf, fromLogits, targetLogp } from "../../../src/learn/losses/predictions.ts";
import {
  POLICY_LOSSES,
  type PolicyLossName,
  type RewardScaling,
} from "../../../src/learn/losses/settings.ts";
import { bestFit } from "../../../src/learn/optim/pack.ts";
import { layOut, type TrainingSequence } from "../../../src/learn/optim/rows.ts";
import { createEngine, expectClose, runOnEngine, specsOf } from "../../compute/harness.ts";
import { readFixture, type StoredArray, toHost } from "../../fixture.ts";

interface LossCase {
  readonly config: {
    readonly max_completion_length: number;
    readonly loss_type: string;
    readonly epsilon: number;
    readonly epsilon_high?: number;
    readonly delta?: number;
    readonly beta: number;
    readonly scale_rewards: RewardScaling;
    readonly use_bias_correction_kl?: boolean;
    readonly importance_sampling_level?: "sequence";
    readonly entropy_coef?: number;
    readonly steps_per_generation?: number;
    readonly gradient_accumulation_steps?: number;
  };
  readonly usesOldLogp: boolean;
  readonly advantage: StoredArray<"f32">;
  readonly mask: StoredArray<"i32">;
  readonly numItemsInBatch: number;
  readonly microBatches: readonly {
    readonly rows: readonly [number, number];
    readonly loss: number;
    readonly metrics: Readonly<Record<string, number>>;
  }[];
  readonly gradient: StoredArray<"f32">;
}

interface Fixture {
  readonly inputs: Readonly<Record<"policyLogp" | "oldLogp" | "refLogp" | "rewards", StoredArray<"f32">>> & {
    readonly mask: StoredArray<"i32">;
  };
  readonly losses: Readonly<Record<string, LossCase>>;
  readonly advantages: Readonly<
    Record<
      string,
      {
        readonly rewards: readonly (readonly (number | null)[])[];
        readonly weights: readonly number[];
        readonly scale_rewards: RewardScaling;
        readonly advantage: StoredArray<"f32">;
      }
    >
  >;
  readonly tokens: {
    readonly logits: StoredArray<"f32">;
    readonly ids: StoredArray<"i32">;
    readonly cases: readonly {
      readonly temperature: number;
      readonly logp: StoredArray<"f32">;
      readonly entropy: StoredArray<"f32">;
    }[];
  };
}

const fixture = readFixture<Fixture>("grpo.json");

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

/** A completion as the loss sees it: per token what the policy, the sampler and the reference gave it. */
interface Sample {
  readonly policyLogp: readonly number[];
  readonly sampledLogp: readonly number[];
  readonly referenceLogp: readonly number[];
  readonly advantage: number;
  /** Weight of each of its tokens; 0: masked out. */
  readonly weight: number;
  readonly counts: boolean;
}

interface Outcome {
  readonly loss: number;
  readonly sums: Readonly<Record<string, number>>;
  readonly maxima: Readonly<Record<string, number>>;
  /** Per sample and token, of the loss by the token's log-probability, all other log-probabilities free. */
  readonly gradients: readonly (readonly number[])[];
}

/** The tokens of every sample, one prompt token each, as logits over a vocabulary of two. */
async function evaluate(
  loss: Loss,
  scalars: Readonly<Record<string, number>>,
  samples: readonly Sample[],
  rowLength: number,
): Promise<Outcome> {
  const names = ["counts", "advantage", "sampledLogp", "sequenceShare", "referenceLogp", "policyLogp"];
  const sequences: TrainingSequence[] = samples.map((sample) => {
    const perToken = (value: (t: number) => number): number[] => [
      0,
      ...sample.policyLogp.map((_, t) => value(t)),
    ];
    const counts = Number(sample.counts);
    return {
      // Targets of both kinds, so that no one always takes the first logit.
      ids: perToken((t) => t % 2),
      weights: perToken(() => sample.weight),
      extra: {
        counts: perToken(() => counts),
        advantage: perToken(() => sample.advantage),
        sampledLogp: perToken((t) => sample.sampledLogp[t]!),
        sequenceShare: perToken(() => counts / sample.policyLogp.length),
        referenceLogp: perToken((t) => sample.referenceLogp[t]!),
        policyLogp: perToken((t) => sample.policyLogp[t]!),
      },
    };
  });
  const rows = bestFit(
    sequences.map(({ ids }) => ids.length),
    rowLength,
  );
  const batch = layOut(sequences, rows, { batch: rows.length + 1, rowLength, padId: 0 }, names);
  const [B, T] = batch.ids.shape as readonly [number, number];
  const logits = new Float32Array(B * T * 2);
  for (let i = 0; i < B * T; i++) {
    const logp = batch.extra["policyLogp"]!.data[i]!;
    // Where nothing is predicted, numbers that must not matter: an infinite ratio if it were not masked.
    const [chosen, rest] = logp === 0 ? [30, -30] : [logp, Math.log1p(-Math.exp(logp))];
    if (logp === 0) batch.extra["sampledLogp"]!.data[i] = -200;
    const target = batch.targets.data[i]!;
    logits[2 * i + target] = chosen;
    logits[2 * i + 1 - target] = rest;
  }
  const arrays: Record<string, HostArray> = { logits: f32([B * T, 2], logits) };
  for (const name of Object.keys(batchSpecs(loss, B, T, false))) {
    arrays[name] = { weights: batch.weights, ...batch.extra }[name] ?? batch[name as "ids"];
  }
  for (const [name, value] of Object.entries(scalars)) arrays[name] = f32([], [value]);
  const graph = trace(specsOf(arrays), (x: Readonly<Record<string, Value>>) => {
    const {
      loss: value,
      sums,
      maxima,
    } = loss.build(fromLogits(x["logits"]!), x, { targets: x["targets"]!, segments: x["segments"]! }, x);
    const rename = (prefix: string, values: Readonly<Record<string, Value>>) =>
      Object.fromEntries(Object.entries(values).map(([name, y]) => [`${prefix}${name}`, y]));
    return {
      loss: value,
      gradient: grad(value, [x["logits"]!])[0]!,
      ...rename("sum/", sums),
      ...rename("max/", maxima),
    };
  });
  const result = await runOnEngine(engine, graph, arrays);
  const named = (prefix: string) =>
    Object.fromEntries(
      Object.entries(result)
        .filter(([name]) => name.startsWith(prefix))
        .map(([name, { data }]) => [name.slice(prefix.length), data[0] as number]),
    );
  const gradients: number[][] = samples.map(() => []);
  const outside = new Set(Array.from({ length: B * T }, (_, i) => i));
  for (const [row, indices] of rows.entries()) {
    let at = row * T;
    for (const index of indices) {
      for (let t = 0; t < samples[index]!.policyLogp.length; t++) {
        const i = at + t;
        outside.delete(i);
        const target = batch.targets.data[i]!;
        const byLogit = result["gradient"]!.data as Float32Array;
        // d/d(logit of the target) = (1 − p)·d/d(log p), and the other logit gets the opposite.
        gradients[index]!.push(byLogit[2 * i + target]! / (1 - Math.exp(samples[index]!.policyLogp[t]!)));
        expect(byLogit[2 * i + target]! + byLogit[2 * i + 1 - target]!).toBeCloseTo(0, 6);
      }
      at += sequences[index]!.ids.length;
    }
  }
  for (const i of outside) expect((result["gradient"]!.data as Float32Array)[2 * i], `outside ${i}`).toBe(0);
  return { loss: result["loss"]!.data[0] as number, sums: named("sum/"), maxima: named("max/"), gradients };
}

// TRL

/** Our loss of TRL's: ours has no unbiased KL, and its entropy bonus is normalised as the rest of the loss. */
function ours({ config }: LossCase): PolicyLossName | undefined {
  if (config.use_bias_correction_kl === true || config.entropy_coef !== undefined) return undefined;
  if (config.importance_sampling_level === "sequence")
    return config.loss_type === "grpo" ? "gspo" : undefined;
  // Over one batch bnpo is dapo.
  return config.loss_type === "bnpo" ? "dapo" : (config.loss_type as PolicyLossName);
}

const comparable = Object.entries(fixture.losses).filter(
  // Several updates a rollout: TRL then multiplies by their number, which is the caller's business here.
  ([, trl]) =>
    ours(trl) !== undefined &&
    (trl.config.steps_per_generation ?? 1) === (trl.config.gradient_accumulation_steps ?? 1),
);

it("every loss is compared with TRL's, and most of its cases", () => {
  expect(new Set(comparable.map(([, trl]) => ours(trl)))).toEqual(new Set(POLICY_LOSSES));
  expect(comparable.length).toBe(Object.keys(fixture.losses).length - 5);
});

describe.each(comparable)("TRL's %s", (_, trl) => {
  const name = ours(trl)!;
  const { config } = trl;
  const [N, T] = trl.mask.shape as readonly [number, number];
  const row = (array: StoredArray, n: number, length: number): number[] =>
    array.data.slice(n * T, n * T + length) as number[];
  const lengths = Array.from({ length: N }, (_, n) =>
    row(fixture.inputs.mask, n, T).reduce((a, b) => a + b, 0),
  );
  const counted = Array.from({ length: N }, (_, n) => row(trl.mask, n, T).reduce((a, b) => a + b, 0));

  const loss = policyLoss({ loss: name, kl: config.beta > 0, dualClip: config.delta !== undefined });
  const high = config.epsilon_high ?? config.epsilon;
  const scalars: Record<string, number> = {
    temperature: 1,
    clipLow: config.epsilon,
    // TRL's CISPO takes the bound itself, ours what is added to 1.
    clipHigh: name === "cispo" ? high - 1 : high,
    entropyBonus: 0,
    ...(config.delta === undefined ? {} : { ratioCap: config.delta }),
    ...(config.beta > 0 ? { klBeta: config.beta } : {}),
  };
  const rewards = Array.from({ length: 3 }, (_, p) => fixture.inputs.rewards.data.slice(p * 4, p * 4 + 4));
  const advantage = advantages(rewards, config.scale_rewards).flat();
  const weights = lossWeights(name, counted, config.max_completion_length);
  const samples: Sample[] = lengths.map((length, n) => ({
    policyLogp: row(fixture.inputs.policyLogp, n, length),
    sampledLogp: row(trl.usesOldLogp ? fixture.inputs.oldLogp : fixture.inputs.policyLogp, n, length),
    referenceLogp: row(fixture.inputs.refLogp, n, length),
    advantage: advantage[n]!,
    weight: weights[n]!,
    counts: counted[n]! > 0,
  }));

  // One a row with room to spare; side by side.
  it.each([11, 24])("is ours, in rows of %i", async (rowLength) => {
    const gradients: number[][] = [];
    for (const part of trl.microBatches) {
      const outcome = await evaluate(loss, scalars, samples.slice(...part.rows), rowLength);
      expect(outcome.loss).toBeCloseTo(part.loss, 6);
      gradients.push(...outcome.gradients.map((g) => [...g]));

      const { sums, maxima } = outcome;
      const counts = counted.slice(...part.rows);
      const tokens = counts.reduce((a, b) => a + b, 0);
      expect(sums["tokens"]).toBe(tokens);
      if (config.beta > 0) expect(sums["kl"]! / tokens).toBeCloseTo(part.metrics["kl"]!, 5);
      const logRatios = samples
        .slice(...part.rows)
        .map(({ policyLogp, sampledLogp, counts: on }) =>
          on ? policyLogp.map((logp, t) => logp - sampledLogp[t]!) : [],
        );
      const ratios = logRatios.flatMap((values) => {
        if (name !== "gspo") return values.map(Math.exp);
        const ratio = Math.exp(values.reduce((a, b) => a + b, 0) / values.length);
        return values.map(() => ratio);
      });
      expect(sums["ratio"]! / tokens).toBeCloseTo(ratios.reduce((a, b) => a + b, 0) / tokens, 5);
      expect(maxima["ratio"]).toBeCloseTo(Math.max(...ratios), 5);
      if (name === "cispo") {
        expect(sums["clipHigh"]! / tokens).toBeCloseTo(part.metrics["cispo_clip_ratio"]!, 6);
        expect(sums["clipLow"]).toBe(0);
      } else if (name === "gspo") {
        // TRL counts clipped sequences, we count their tokens.
        const clipped = (yes: (ratio: number, a: number) => boolean) =>
          logRatios.reduce((total, values, n) => {
            const ratio = Math.exp(values.reduce((a, b) => a + b, 0) / values.length);
            return total + (values.length > 0 && yes(ratio, samples[n]!.advantage) ? values.length : 0);
          }, 0);
        expect(sums["clipLow"]).toBe(clipped((ratio, a) => ratio < 1 - config.epsilon && a < 0));
        expect(sums["clipHigh"]).toBe(clipped((ratio, a) => ratio > 1 + high && a > 0));
        expect(sums["clipLow"]! > 0).toBe(part.metrics["clip_ratio/low_mean"]! > 0);
        expect(sums["clipHigh"]! > 0).toBe(part.metrics["clip_ratio/high_mean"]! > 0);
      } else {
        expect(sums["clipLow"]! / tokens).toBeCloseTo(part.metrics["clip_ratio/low_mean"]!, 6);
        expect(sums["clipHigh"]! / tokens).toBeCloseTo(part.metrics["clip_ratio/high_mean"]!, 6);
      }
    }
    const flat = gradients.flatMap((g) => [...g, ...new Array<number>(T - g.length).fill(0)]);
    // The division by 1 − p, at least 0.01, magnifies rounding.
    expectClose("gradient", f32([N, T], flat), toHost(trl.gradient), { relative: 1e-5, floor: 1e-5 });
  });

  it("has our advantages", () => {
    for (const [i, a] of advantage.entries()) expect(a).toBeCloseTo(trl.advantage.data[i]!, 5);
  });
});

// By hand

describe("by hand", () => {
  const defaults = {
    temperature: 1,
    clipLow: 0.2,
    clipHigh: 0.28,
    entropyBonus: 0,
    ratioCap: 3,
    klBeta: 0.1,
  };
  const run = (
    name: PolicyLossName,
    samples: readonly Partial<Sample>[],
    options: { kl?: boolean; dualClip?: boolean } & Partial<typeof defaults> = {},
  ) => {
    const { kl = false, dualClip = false, ...changes } = options;
    const loss = policyLoss({ loss: name, kl, dualClip });
    const values: Record<string, number> = { ...defaults, ...changes };
    return evaluate(
      loss,
      Object.fromEntries(loss.scalars.map((scalar) => [scalar, values[scalar]!])),
      samples.map((sample) => ({
        policyLogp: [Math.log(0.5)],
        sampledLogp: [Math.log(0.5)],
        referenceLogp: [Math.log(0.5)],
        advantage: 1,
        weight: 1,
        counts: true,
        ...sample,
      })),
      8,
    );
  };
  /** One token of ratio 0.5/sampled. */
  const token = (ratio: number, advantage: number): Partial<Sample> => ({
    sampledLogp: [Math.log(0.5 / ratio)],
    advantage,
  });

  it.each([
    // name, ratio, advantage, loss, gradient by log p: −A·ρ where the free branch is the smaller one, 0 where clipped.
    ["grpo", 1.25, 2, -2.5, -2.5],
    ["grpo", 1.5, 2, -2.56, 0],
    ["grpo", 1.5, -2, 3, 3],
    ["grpo", 0.75, 2, -1.5, -1.5],
    ["grpo", 0.75, -2, 1.6, 0],
    ["dr_grpo", 1.5, 2, -2.56, 0],
    ["dapo", 1.5, -2, 3, 3],
    // The sequence's one token has the sequence's ratio.
    ["gspo", 1.25, 2, -2.5, -2.5],
    ["gspo", 0.75, -2, 1.6, 0],
    // −min(ρ, 1.28)·A·log p, the ratio a constant: clipped tokens still learn.
    ["cispo", 1.5, 2, -1.28 * 2 * Math.log(0.5), -2.56],
    ["cispo", 1.25, 2, -1.25 * 2 * Math.log(0.5), -2.5],
    ["cispo", 0.25, -2, 0.25 * 2 * Math.log(0.5), 0.5],
  ] as const)(
    "%s at a ratio of %d and an advantage of %d",
    async (name, ratio, advantage, loss, gradient) => {
      const outcome = await run(name, [token(ratio, advantage)]);
      expect(outcome.loss).toBeCloseTo(loss, 5);
      expect(outcome.gradients[0]![0]).toBeCloseTo(gradient, 5);
      expect(outcome.maxima["ratio"]).toBeCloseTo(ratio, 5);
      expect(outcome.sums["clipHigh"]).toBe(Number(ratio > 1.28 && advantage > 0));
      expect(outcome.sums["clipLow"]).toBe(Number(name !== "cispo" && ratio < 0.8 && advantage < 0));
    },
  );

  it.each([
    [4, -2, 6, 0],
    [2, -2, 4, 4],
    [4, 2, -2.56, 0],
  ])(
    "two-sided clipping caps a ratio of %d at 3 where the advantage is %d",
    async (ratio, advantage, loss, gradient) => {
      // 0.5/4 is a probability of the sampler; the policy's own must leave room for it.
      const outcome = await run("grpo", [token(ratio, advantage)], { dualClip: true });
      expect(outcome.loss).toBeCloseTo(loss, 5);
      expect(outcome.gradients[0]![0]).toBeCloseTo(gradient, 5);
    },
  );

  it("gspo takes the geometric mean of a sequence's ratios, for all of its tokens", async () => {
    // Ratios 2 and 0.605: √1.21 = 1.1, inside the clip range, though each alone is outside.
    const sample: Partial<Sample> = {
      policyLogp: [Math.log(0.5), Math.log(0.5)],
      sampledLogp: [Math.log(0.25), Math.log(0.5 / 0.605)],
      advantage: 2,
      weight: 0.5,
    };
    const outcome = await run("gspo", [sample, token(1, -1)]);
    expect(outcome.loss).toBeCloseTo(-2.2 + 1, 5);
    // The weight of both tokens, times ρ·A/2 for each.
    for (const g of outcome.gradients[0]!) expect(g).toBeCloseTo(-1.1, 5);
    expect(outcome.sums).toMatchObject({ tokens: 3, clipLow: 0, clipHigh: 0 });
    expect(outcome.sums["ratio"]).toBeCloseTo(3.2, 5);
  });

  it("KL is k3 of reference over policy", async () => {
    // Reference 0.25, policy 0.5: 0.5 − ln 0.5 − 1 = 0.193147; d/d(log p) = 1 − 0.5.
    const outcome = await run("dapo", [{ referenceLogp: [Math.log(0.25)], advantage: 0 }], { kl: true });
    expect(outcome.sums["kl"]).toBeCloseTo(0.1931472, 6);
    expect(outcome.loss).toBeCloseTo(0.01931472, 6);
    expect(outcome.gradients[0]![0]).toBeCloseTo(0.05, 6);
  });

  it("the entropy bonus is the mean of the tokens' entropies, normalised as the loss", async () => {
    // p = 0.5: ln 2, flat. p = 0.9: 0.325083, dH/d(log p) = −p·(log p + H) … by logits, ours over 1 − p: −p·ln(p/(1 − p)).
    const outcome = await run(
      "dapo",
      [
        { advantage: 0, weight: 0.5 },
        { policyLogp: [Math.log(0.9)], sampledLogp: [Math.log(0.9)], advantage: 0, weight: 0.5 },
      ],
      { entropyBonus: 0.02 },
    );
    expect(outcome.sums["entropy"]).toBeCloseTo(Math.LN2 + 0.325083, 5);
    expect(outcome.loss).toBeCloseTo((-0.02 * (Math.LN2 + 0.325083)) / 2, 6);
    expect(outcome.gradients[0]![0]).toBeCloseTo(0, 6);
    expect(outcome.gradients[1]![0]).toBeCloseTo((0.02 / 2) * 0.9 * Math.log(9), 5);
  });

  it("a completion that is masked out counts for nothing", async () => {
    const alone = await run("grpo", [token(1.5, -2)], { kl: true });
    const masked = await run("grpo", [token(1.5, -2), { ...token(2, -5), weight: 0, counts: false }], {
      kl: true,
    });
    expect(masked.loss).toBe(alone.loss);
    expect(masked.sums).toEqual(alone.sums);
    expect(masked.maxima).toEqual(alone.maxima);
    expect(masked.gradients[1]).toEqual([0]);
  });

  it("an empty batch has a loss of 0 and no gradient", async () => {
    const outcome = await run("gspo", [{ weight: 0, counts: false }], { kl: true });
    expect(outcome.loss).toBe(0);
    expect(outcome.gradients).toEqual([[0]]);
    expect(outcome.sums).toMatchObject({ tokens: 0, entropy: 0, kl: 0, ratio: 0 });
  });
});

describe("log-probabilities and entropies", () => {
  it.each(fixture.tokens.cases)(
    "at temperature $temperature are TRL's",
    async ({ temperature, logp, entropy }) => {
      const [B, T, V] = fixture.tokens.logits.shape as readonly [number, number, number];
      const arrays = { logits: f32([B * T, V], fixture.tokens.logits.data), ids: toHost(fixture.tokens.ids) };
      const graph = trace(specsOf(arrays), ({ logits, ids }) => {
        const all = logSoftmax(div(logits!, temperature));
        return { logp: targetLogp(all, ids!), entropy: entropyOf(all) };
      });
      const result = await runOnEngine(engine, graph, arrays);
      expectClose("logp", result["logp"]!, toHost(logp), { relative: 1e-5, floor: 1e-6 });
      expectClose("entropy", result["entropy"]!, f32([B * T], entropy.data), { relative: 1e-5, floor: 1e-6 });
    },
  );
});

describe("cross-entropy", () => {
  it("is the weighted sum of −log p, its gradient p − 1 at the target", async () => {
    // Three classes: uniform; logits 0, 0, ln 2 with p = 1/4, 1/4, 1/2; a weight of 0.
    const arrays = {
      logits: f32([3, 3], [5, 5, 5, 0, 0, Math.LN2, 9, -9, 0]),
      targets: i32([1, 3], [1, 2, 0]),
      weights: f32([1, 3], [1, 0.5, 0]),
    };
    const graph = trace(specsOf(arrays), ({ logits, targets, weights }) => {
      const { loss } = CROSS_ENTROPY.build(
        fromLogits(logits!),
        { weights: weights! },
        { targets: targets!, segments: targets! },
        {},
      );
      return { loss, gradient: grad(loss, [logits!])[0]! };
    });
    const { loss, gradient } = await runOnEngine(engine, graph, arrays);
    expect(loss!.data[0]).toBeCloseTo(Math.log(3) + 0.5 * Math.LN2, 6);
    const expected = [1 / 3, -2 / 3, 1 / 3, 1 / 8, 1 / 8, -1 / 4, 0, 0, 0];
    for (const [i, g] of expected.entries()) expect(gradient!.data[i], `[${i}]`).toBeCloseTo(g, 6);
  });
});
