/** Pre-training and the cold start: next-token prediction on traces, of which each step draws new ones. */

import { TaskError } from "../../base/errors.ts";
import { Random } from "../../compute/tensor/random.ts";
import { encodePrompt } from "../../model/engine/text.ts";
import type { Tokenizer } from "../../model/text/tokenizer.ts";
import { type CostSizes, causalKeys, trainFlops } from "../cost/flops.ts";
import { CROSS_ENTROPY } from "../losses/cross-entropy.ts";
import { bestFit } from "../optim/pack.ts";
import { layOut, type PackedBatch, type TrainingSequence } from "../optim/rows.ts";
import { scheduleFactor } from "../optim/schedule.ts";
import type { Rates, Trainer } from "../optim/trainer.ts";
import type { ExpertMetrics } from "../runs/records.ts";
import { asText, type PromptWriter } from "../tasks/prompts.ts";
import type { Trace } from "../tasks/task.ts";
import type { LanguageStageConfig } from "./config.ts";
import { expertMetrics } from "./expert-metrics.ts";

/** How much of a batch the drawn texts fill before they are packed. */
const FILL = 0.97;
/** Texts in a row that may all be longer than a row. */
const MOST_TOO_LONG = 1000;

export interface LanguageBatch {
  readonly batch: PackedBatch;
  /** Tokens of each sequence in it. */
  readonly lengths: readonly number[];
}

/** A trace as a training sequence: only the completion and its end are to be predicted. */
export function traceSequence(
  tokenizer: Tokenizer,
  trace: Trace,
  write: PromptWriter = asText,
): TrainingSequence {
  const prompt = encodePrompt(tokenizer, write(trace));
  const completion = [...tokenizer.encode(trace.completion), tokenizer.eosId];
  return {
    ids: [...prompt, ...completion],
    weights: [...prompt.map(() => 0), ...completion.map(() => 1)],
  };
}

/** Packed rows of new traces; the loss is the mean over the tokens to be predicted. */
export function languageBatch(options: {
  readonly tokenizer: Tokenizer;
  readonly draw: (random: Random) => Trace;
  /** Seed and path of the step's random stream. */
  readonly seed: number;
  readonly path: readonly number[];
  readonly rows: number;
  readonly rowLength: number;
  /** How the model is given a prompt. @default as text */
  readonly write?: PromptWriter;
}): LanguageBatch {
  const { tokenizer, draw, seed, path, rows: B, rowLength: T } = options;
  const drawn: TrainingSequence[] = [];
  let tokens = 0;
  let tooLong = 0;
  for (let index = 0; tokens < FILL * B * T; index++) {
    const sequence = traceSequence(tokenizer, draw(new Random(seed, ...path, index)), options.write);
    if (sequence.ids.length <= T) {
      drawn.push(sequence);
      tokens += sequence.ids.length;
      tooLong = 0;
    } else if (++tooLong === MOST_TOO_LONG) {
      throw new TaskError({
        where: "training texts",
        rule: `must fit rows of ${T} tokens`,
        got: `${MOST_TOO_LONG} longer ones in a row, the last of ${sequence.ids.length}`,
        remedy: "Set rowLength higher, or write shorter traces",
      });
    }
  }
  // What does not fit is given up from the end, so that it is no matter of length which texts are.
  const packed = (count: number): number[][] =>
    bestFit(
      drawn.slice(0, count).map(({ ids }) => ids.length),
      T,
    );
  let rows = packed(drawn.length);
  while (rows.length > B) {
    drawn.pop();
    rows = packed(drawn.length);
  }
  const lengths = drawn.map(({ ids }) => ids.length);
  const targets = drawn.reduce((sum, { weights }) => sum + Array.from(weights).reduce((a, b) => a + b, 0), 0);
  const weighted = drawn.map(({ ids, weights }) => ({
    ids,
    weights: Array.from(weights, (w) => w / targets),
  }));
  return { batch: layOut(weighted, rows, { batch: B, rowLength: T, padId: tokenizer.padId }), lengths };
}

/** Rates of one step of a stage. @param step 1-based */
export function ratesAt(
  stage: Pick<LanguageStageConfig, "rates" | "schedule" | "steps">,
  step: number,
): Rates {
  const factor = scheduleFactor(stage.schedule, step, stage.steps);
  return { adamW: stage.rates.adamW * factor, muon: stage.rates.muon * factor };
}

/** The rate that says most of a step: that of the matrices. */
export function matrixRate(stage: Pick<LanguageStageConfig, "optimizer">, rates: Rates): number {
  return stage.optimizer.matrices === "muon" ? rates.muon : rates.adamW;
}

/** What one step of any stage yields, apart from what only its kind has. */
export interface StepOutcome {
  readonly loss: number;
  readonly gradientNorm: number;
  readonly learningRate: number;
  readonly tokens: { readonly rollout: number; readonly train: number };
  readonly flops: number;
  /** How the experts were used; absent where there are none. */
  readonly experts?: ExpertMetrics;
}

/** A training pass is a forward pass and, for the gradients of what is computed and of the weights, two more. */
export const FORWARDS = 3;

/**
 * Operations of training on segments of so many tokens, each with so many before it that others pay for.
 * @param adapted  whether the matrices stay as they are, so that only what is computed has gradients; what the adapters
 *   themselves take is left out
 */
export function trainingFlops(
  sizes: CostSizes,
  segments: readonly { readonly tokens: number; readonly before: number }[],
  adapted = false,
): number {
  const full = segments.reduce(
    (sum, { tokens, before }) => sum + tokens * trainFlops(sizes, before + causalKeys(tokens)),
    0,
  );
  return adapted ? (full * (FORWARDS - 1)) / FORWARDS : full;
}

/** Forward, backward and update on one batch. */
export async function languageStep(
  trainer: Trainer,
  { batch, lengths }: LanguageBatch,
  options: { readonly stage: LanguageStageConfig; readonly step: number; readonly sizes: CostSizes },
): Promise<StepOutcome> {
  const { stage, step, sizes } = options;
  const rates = ratesAt(stage, step);
  const { loss } = await trainer.accumulate(CROSS_ENTROPY, batch);
  const { gradientNorm, loads } = await trainer.apply(rates);
  const experts = expertMetrics([loads]);
  return {
    loss,
    gradientNorm,
    learningRate: matrixRate(stage, rates),
    tokens: { rollout: 0, train: batch.tokens },
    flops: trainingFlops(
      sizes,
      lengths.map((tokens) => ({ tokens, before: 0 })),
      trainer.adapted,
    ),
    ...(experts === undefined ? {} : { experts }),
  };
}
