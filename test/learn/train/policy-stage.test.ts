import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { causalKeys, forwardFlops } from "../../../src/learn/cost/flops.ts";
import { POLICY_LOSSES } from "../../../src/learn/losses/settings.ts";
import { Scorer } from "../../../src/learn/optim/score.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import type { Task } from "../../../src/learn/tasks/task.ts";
import type { PolicyStageConfig } from "../../../src/learn/train/config.ts";
import {
  type PolicyStepOptions,
  policyStep,
  type Reference,
  rolloutFlops,
} from "../../../src/learn/train/policy-stage.ts";
import { initializeLlama, type LlamaConfig } from "../../../src/model/arch/llama.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";
import { letters, madeGroup } from "./rollouts.ts";
import { TINY } from "./tiny.ts";

const tokenizer = characterTokenizer({ alphabet: letters.alphabet });
const model: LlamaConfig = {
  vocabSize: tokenizer.vocabSize,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 1,
  heads: 2,
  kvHeads: 1,
  headDim: 16,
  rmsNormEpsilon: 1e-6,
  ropeTheta: 10_000,
  maxPositions: 32,
  tieEmbeddings: false,
};
const sizes = {
  layers: 1,
  width: 32,
  heads: 2,
  kvHeads: 1,
  headWidth: 16,
  hidden: 48,
  vocab: model.vocabSize,
};
const plain: PolicyStageConfig = {
  ...TINY.rl,
  ...{
    prompts: 4,
    samples: 4,
    maxNewTokens: 10,
    klBeta: 0,
    thinBelow: 0,
    updatesPerRollout: 1,
    resampleAttempts: 0,
  },
};

type Snapshot = ReturnType<Trainer["snapshot"]>;

let runtime: Runtime;
beforeAll(async () => {
  runtime = await Runtime.create({ threads: 1 });
});
afterAll(() => runtime.dispose());

/** What every step is given. */
const GIVEN = { tokenizer, task: letters, sizes, rows: { rowLengths: [16, 32] }, seed: 3 };

/** One step of a fresh model whose weights are named by the seed. */
async function oneStep(change: Partial<PolicyStageConfig>, options: Partial<PolicyStepOptions<number>> = {}) {
  const trainer = Trainer.create(runtime, model, initializeLlama(model, 1), { matrices: "adamw" });
  const before = trainer.snapshot();
  const engine = new Engine(runtime, model, { slots: 8 });
  engine.adopt(trainer.weights());
  const stage = { ...plain, ...change };
  const outcome = await policyStep({
    ...{ ...GIVEN, trainer, engine, stage, step: 6 },
    ...options,
  });
  const after = trainer.snapshot();
  await trainer.dispose();
  await engine.dispose();
  return { outcome, before, after, updates: trainer.updates };
}

const reference = (seed: number): Reference => ({
  scorer: new Scorer(runtime, model),
  weights: deviceWeights(runtime, initializeLlama(model, seed)),
  age: 2,
});

/** Adam's first step is a sign, nearly: compares the moments, which are linear in the gradient. */
function expectSameMoments(some: Snapshot, others: Snapshot): void {
  for (const [name, { data }] of Object.entries(some)) {
    if (!name.startsWith("m/")) continue;
    const scale = Math.max(...data.map(Math.abs));
    const worst = Math.max(...data.map((x, i) => Math.abs(x - others[name]!.data[i]!)));
    expect(worst, name).toBeLessThanOrEqual(1e-5 * scale);
  }
}

describe("a step of reinforcement learning", () => {
  it("moves the weights, at a ratio of 1 where there is one update", async () => {
    const { outcome, before, after, updates } = await oneStep({});
    expect(updates).toBe(1);
    expect(after).not.toEqual(before);
    const { ratio, clipLow, clipHigh, kl } = outcome.rl;
    expect(Math.abs(ratio.max - 1)).toBeLessThan(1e-4);
    expect(Math.abs(ratio.mean - 1)).toBeLessThan(1e-5);
    expect([clipLow, clipHigh, kl]).toEqual([0, 0, undefined]);
    expect(outcome.gradientNorm).toBeGreaterThan(0);
    expect(outcome.tokens.rollout).toBe(
      outcome.drawn.reduce((sum, g) => sum + g.samples.reduce((n, { ids }) => n + ids.length, 0), 0),
    );
  });

  it("takes as many updates as there are mini-batches and epochs, on the same samples", async () => {
    const { outcome, updates } = await oneStep({ updatesPerRollout: 2, epochs: 3 });
    expect(updates).toBe(6);
    const once = await oneStep({});
    expect(outcome.tokens.train).toBe(3 * once.outcome.tokens.train);
    expect(outcome.rl.ratio.max).toBeGreaterThan(1.0001);
    expect(outcome.rl.reward).toEqual(once.outcome.rl.reward);
  });

  it("takes none where all rewards are equal", async () => {
    const task: Task<number> = { ...letters, rewards: { same: { weight: 1, reward: () => 1 } } };
    const { outcome, before, after, updates } = await oneStep({}, { task });
    expect(updates).toBe(0);
    expect(after).toEqual(before);
    expect(outcome).toMatchObject({ loss: 0, gradientNorm: 0, tokens: { train: 0 }, rl: { equalGroups: 1 } });
    expect(outcome.flops).toBe(rolloutFlops(sizes, outcome.drawn));
  });

  it("measures no KL to itself, and some to another", async () => {
    const same = await oneStep({ klBeta: 0.1 }, { reference: reference(1) });
    expect(same.outcome.rl.kl).toBeLessThan(1e-9);
    expect(same.outcome.rl.referenceAge).toBe(2);
    const other = await oneStep({ klBeta: 0.1 }, { reference: reference(2) });
    expect(other.outcome.rl.kl).toBeGreaterThan(1e-4);
    expect(other.after).not.toEqual(same.after);
  });

  it("trains on fewer samples of the same rollout with a bound for advantages", async () => {
    const all = await oneStep({ klBeta: 0.1 }, { reference: reference(2) });
    const some = await oneStep({ klBeta: 0.1, thinBelow: 10 }, { reference: reference(2) });
    expect(some.outcome.rl.reward).toEqual(all.outcome.rl.reward);
    // No advantage here is above a quarter of 10: one sample in four.
    expect(some.outcome.tokens.train).toBeLessThan(all.outcome.tokens.train / 2);
    expect(some.outcome.tokens.train).toBeGreaterThan(0);
    expect(some.outcome.rl.kl).toBeGreaterThan(1e-4);
    expect(some.updates).toBe(1);
  });

  it.each(POLICY_LOSSES)("learns the same by %s where a row holds a prompt once", async (loss) => {
    const change = { loss, klBeta: 0.1, updatesPerRollout: 2, batchTokens: 512 };
    // Rows of 256 cost so much that shared ones are taken.
    const [apart, together] = [{ rowLengths: [16, 32] }, { rowLengths: [256], sharedRowLengths: [32] }].map(
      (rows) => oneStep(change, { rows, reference: reference(2) }),
    );
    const [each, once] = [await apart!, await together!];
    expect(once.outcome.tokens.train).toBeLessThan(each.outcome.tokens.train);
    expect(once.outcome.flops).toBeLessThan(each.outcome.flops);
    expectSameMoments(once.after, each.after);
    expect(once.outcome.loss).toBeCloseTo(each.outcome.loss, 5);
    expect(once.outcome.rl.kl).toBeCloseTo(each.outcome.rl.kl!, 6);
    expect(once.outcome.rl.ratio.max).toBeCloseTo(each.outcome.rl.ratio.max, 4);
  });

  it("learns what the loss says, not from how rows are packed", async () => {
    const { after: long } = await oneStep({ batchTokens: 512 });
    const { after: short } = await oneStep({ batchTokens: 32 });
    expectSameMoments(long, short);
  });

  it("learns to write what is rewarded", async () => {
    const trainer = Trainer.create(runtime, model, initializeLlama(model, 1), { matrices: "adamw" });
    const engine = new Engine(runtime, model, { slots: 64 });
    const rewards: number[] = [];
    for (let step = 1; step <= 25; step++) {
      engine.adopt(trainer.weights());
      const stage = {
        ...plain,
        samples: 8,
        rates: { adamW: 0.01, muon: 0 },
        schedule: { warmup: 0, decay: 0, final: 1 },
      };
      const { rl } = await policyStep({ ...GIVEN, trainer, engine, stage, step });
      rewards.push(rl.reward.mean);
    }
    expect(rewards.at(-1)!).toBeGreaterThan(3 * rewards[0]! + 1);
    await trainer.dispose();
    await engine.dispose();
  });
});

describe("the operations of a rollout", () => {
  it("are each prompt once and each decoded token with its keys", () => {
    const group = madeGroup(
      [
        { reward: 1, length: 3 },
        { reward: 0, length: 1 },
      ],
      [1, 2, 3, 4],
    );
    // Prompt: 4 tokens seeing 1 to 4 keys. The first sample runs 2 of its 3 tokens, which see 5 and 6 keys.
    const expected = 4 * forwardFlops(sizes, causalKeys(4)) + forwardFlops(sizes, 5) + forwardFlops(sizes, 6);
    expect(rolloutFlops(sizes, [group])).toBe(expected);
  });
});
