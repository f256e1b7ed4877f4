/** One step of reinforcement learning: a rollout, then one or more updates of the policy on it. */

import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import { hostArray } from "../../compute/tensor/host.ts";
import { Random } from "../../compute/tensor/random.ts";
import type { Engine } from "../../model/engine/engine.ts";
import type { Tokenizer } from "../../model/text/tokenizer.ts";
import { type CostSizes, causalKeys, forwardFlops } from "../cost/flops.ts";
import { policyLoss } from "../losses/grpo.ts";
import { type BucketShape, packInto } from "../optim/pack.ts";
import { type PackedBatch, segmentLengths } from "../optim/rows.ts";
import type { Scorer } from "../optim/score.ts";
import { addStatistics, type ExpertLoads, type Statistics, type Trainer } from "../optim/trainer.ts";
import type { RolloutMetrics } from "../runs/records.ts";
import type { PromptWriter } from "../tasks/prompts.ts";
import type { Task } from "../tasks/task.ts";
import type { PolicyStageConfig } from "./config.ts";
import { expertMetrics } from "./expert-metrics.ts";
import { FORWARDS, matrixRate, ratesAt, type StepOutcome, trainingFlops } from "./language-stage.ts";
import { miniBatches } from "./policy-batch.ts";
import { type Group, rollOut } from "./rollout.ts";
import { rolloutMetrics } from "./rollout-metrics.ts";
import { STREAMS } from "./streams.ts";

/** A frozen policy that the KL term pulls towards. */
export interface Reference {
  readonly scorer: Scorer;
  readonly weights: Readonly<Record<string, DeviceTensor<"f32">>>;
  /** Steps since it became the policy of its time. */
  readonly age: number;
}

export interface PolicyStepOptions<Row> {
  readonly trainer: Trainer;
  /** Must have adopted the trainer's weights. */
  readonly engine: Engine;
  readonly tokenizer: Tokenizer;
  readonly task: Task<Row>;
  readonly stage: PolicyStageConfig;
  readonly sizes: CostSizes;
  readonly rows: Pick<BucketShape, "rowLengths" | "sharedRowLengths">;
  readonly seed: number;
  /** 1-based. */
  readonly step: number;
  readonly reference?: Reference;
  /** As in {@link rollOut}. */
  readonly write?: PromptWriter;
  readonly stopIds?: readonly number[];
  readonly signal?: AbortSignal;
}

export interface PolicyStepOutcome<Row> extends StepOutcome {
  readonly rl: RolloutMetrics;
  readonly drawn: readonly Group<Row>[];
  readonly seconds: Readonly<Record<string, number>>;
}

/** Forward operations of sampling: each prompt once, then every token with what came before it. */
export function rolloutFlops(sizes: CostSizes, groups: readonly Group<unknown>[]): number {
  let total = 0;
  for (const { prompt, samples } of groups) {
    total += prompt.length * forwardFlops(sizes, causalKeys(prompt.length));
    for (const { ids } of samples) {
      // The first token comes from the prompt's own pass, and the last is not run.
      const decoded = ids.length - 1;
      total += decoded * forwardFlops(sizes, prompt.length + causalKeys(decoded));
    }
  }
  return total;
}

/** Adds the log-probabilities that a reference gives as one more per-token input. */
async function withReference(
  batches: readonly PackedBatch[],
  { scorer, weights }: Reference,
  temperature: number,
): Promise<PackedBatch[]> {
  const result: PackedBatch[] = [];
  for (const batch of batches) {
    const logp = await scorer.score(weights, batch, temperature);
    const referenceLogp = hostArray("f32", batch.ids.shape, logp);
    result.push({ ...batch, extra: { ...batch.extra, referenceLogp } });
  }
  return result;
}

/**
 * One step. Where every group is equal, and neither KL nor entropy speaks of it, no update is taken.
 * @throws NumericError when a loss or gradient is not finite; TaskError when a reward breaks its contract
 */
export async function policyStep<Row>(options: PolicyStepOptions<Row>): Promise<PolicyStepOutcome<Row>> {
  const { trainer, engine, tokenizer, task, stage, sizes, seed, step, reference, signal } = options;
  const { prompts, samples, maxNewTokens, temperature, resampleAttempts } = stage;
  const rollout = await rollOut({
    ...{ engine, tokenizer, task, seed, step },
    ...{ prompts, samples, maxNewTokens, temperature, resampleAttempts },
    ...(options.write === undefined ? {} : { write: options.write }),
    ...(options.stopIds === undefined ? {} : { stopIds: options.stopIds }),
    ...(signal === undefined ? {} : { signal }),
  });
  const packing = performance.now();
  const loss = policyLoss({
    loss: stage.loss,
    kl: reference !== undefined,
    dualClip: stage.ratioCap !== undefined,
  });
  const inputs = loss.tokenInputs.filter((name) => name !== "weights" && name !== "referenceLogp");
  const shape = {
    ...options.rows,
    batchTokens: stage.batchTokens,
    padId: tokenizer.padId,
    costOfToken: (rowLength: number) => forwardFlops(sizes, causalKeys(rowLength)),
  };
  const minis = miniBatches(rollout.groups, stage, new Random(seed, STREAMS.order, step)).filter(
    (part) => part.length > 0,
  );
  const updates = minis.map((part) => packInto(part, shape, inputs));
  const training = performance.now();
  const rates = ratesAt(stage, step);
  const scalars = {
    temperature,
    clipLow: stage.clipLow,
    clipHigh: stage.clipHigh,
    entropyBonus: stage.entropyBonus,
    klBeta: stage.klBeta,
    ...(stage.ratioCap === undefined ? {} : { ratioCap: stage.ratioCap }),
  };
  const total: Statistics = { loss: 0, sums: {}, maxima: {} };
  let norms = 0;
  const loads: ExpertLoads[] = [];
  let trained = 0;
  for (const batches of updates) {
    const parts = reference === undefined ? batches : await withReference(batches, reference, temperature);
    for (let epoch = 0; epoch < stage.epochs; epoch++) {
      for (const batch of parts) {
        addStatistics(total, await trainer.accumulate(loss, batch, scalars));
        trained += batch.tokens;
      }
      const applied = await trainer.apply(rates);
      norms += applied.gradientNorm;
      loads.push(applied.loads);
    }
  }
  const taken = updates.length * stage.epochs;
  const segments = updates.flat().flatMap(segmentLengths);
  const trainOnce = trainingFlops(sizes, segments, trainer.adapted);
  const scoring = reference === undefined ? 0 : trainingFlops(sizes, segments) / FORWARDS;
  const trainFlops = trainOnce * stage.epochs + scoring;
  const experts = expertMetrics(loads);
  const done = performance.now();
  const generated = rollout.drawn.reduce(
    (sum, group) => sum + group.samples.reduce((n, { ids }) => n + ids.length, 0),
    0,
  );
  return {
    loss: taken === 0 ? 0 : total.loss / taken,
    gradientNorm: taken === 0 ? 0 : norms / taken,
    learningRate: matrixRate(stage, rates),
    tokens: { rollout: generated, train: trained },
    flops: rolloutFlops(sizes, rollout.drawn) + trainFlops,
    rl: rolloutMetrics({
      drawn: rollout.drawn,
      resampled: rollout.drawn.length - rollout.groups.length,
      statistics: total,
      ...(reference === undefined ? {} : { referenceAge: reference.age }),
    }),
    ...(experts === undefined ? {} : { experts }),
    drawn: rollout.drawn,
    seconds: {
      rollout: rollout.seconds.generate,
      reward: rollout.seconds.judge,
      pack: (training - packing) / 1000,
      train: (done - training) / 1000,
    },
  };
}
