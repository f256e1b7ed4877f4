/**
 * A training run from where it stands to its result: stages in order, each step recorded, state checkpointed so that a run
 * killed at any moment goes on as the run that was never killed.
 *
 * Nothing here depends on the time of day or on what ran before: step s of a stage is a function of the configuration, the
 * weights and s. What is measured with a clock goes into `timing` and nowhere else.
 */

import { join } from "node:path";
import { invariant, NumericError } from "../../base/errors.ts";
import { mean } from "../../base/numbers.ts";
import { shellPath } from "../../base/shell.ts";
import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { freshWeights } from "../../model/arch/architecture.ts";
import {
  initializeModel,
  type ModelConfig,
  modelParameters,
  parameterCount,
} from "../../model/arch/models.ts";
import { saveAdapterFolder } from "../../model/checkpoint/adapter.ts";
import { saveModelFolder } from "../../model/checkpoint/folder.ts";
import { Engine } from "../../model/engine/engine.ts";
import { deviceWeights, weightsInPlace } from "../../model/engine/weights.ts";
import { numeralsOf } from "../../model/text/numerals.ts";
import { THINK_TAGS } from "../../model/text/think.ts";
import { characterTokenizer, type Tokenizer } from "../../model/text/tokenizer.ts";
import { type CostSizes, costSizes } from "../cost/flops.ts";
import { measureMatmulPeak } from "../cost/peak.ts";
import { CPU_HOUR, dollarsFor } from "../cost/price.ts";
import { completionRecord, type Evaluation, evaluate } from "../eval/evaluate.ts";
import { Scorer } from "../optim/score.ts";
import { Trainer, UpdateError } from "../optim/trainer.ts";
import type { Checkpoint } from "../runs/checkpoint.ts";
import { type RunFailure, remedyOf } from "../runs/failure.ts";
import { readMetrics } from "../runs/read-run.ts";
import type {
  CompletionRecord,
  EvalSummary,
  RunResult,
  SampleRecord,
  Stage,
  StepMetrics,
} from "../runs/records.ts";
import type { RunFolder } from "../runs/run-folder.ts";
import { FRESH, parseRunState, type RunState } from "../runs/run-state.ts";
import type { PromptWriter } from "../tasks/prompts.ts";
import { softOverlong } from "../tasks/rewards.ts";
import type { Task } from "../tasks/task.ts";
import { type BaseModel, trainedConfig } from "./base-model.ts";
import { modelConfig, type RunConfig, stagesOf } from "./config.ts";
import { languageBatch, languageStep, type StepOutcome } from "./language-stage.ts";
import { rowLengthsFor } from "./policy-batch.ts";
import { policyStep, type Reference } from "./policy-stage.ts";
import { checkTraces, longestPrompt, writerFor } from "./prompt-room.ts";
import type { Group } from "./rollout.ts";
import { STREAMS } from "./streams.ts";

/** What is known before the first step. */
export interface RunFacts {
  readonly name: string;
  readonly task: string;
  readonly preset: string;
  readonly seed: number;
  readonly parameters: number;
  /** What runs it: `2 threads, ffi`. */
  readonly machine: string;
  readonly stages: readonly { readonly stage: Stage; readonly steps: number }[];
  /** The steps of before, where the run goes on. */
  readonly earlier: readonly StepMetrics[];
}

/** Who watches a run. */
export interface RunObserver {
  start(facts: RunFacts): void;
  step(metrics: StepMetrics, extra: { readonly etaSeconds?: number; readonly dollars?: number }): void;
  /** A sample worth showing. */
  sample(sample: SampleRecord): void;
  /** Something worth a line. */
  note(text: string): void;
  /** How many tokens of an evaluation between stages are written. */
  measuring?(tokens: number): void;
}

export interface RunOptions {
  readonly observer?: RunObserver;
  /** Asks the run to stop: it leaves a checkpoint to go on from. */
  readonly signal?: AbortSignal;
  /** The machine's peak, where it is known. @default measured, which takes a third of a second */
  readonly peak?: number;
  /** What commands begin with, for an error that says which to type. @default "pondera" */
  readonly command?: string;
  /** Writes the report of a finished run, given its folder. */
  readonly report?: (folder: string) => Promise<unknown>;
}

export type RunOutcome =
  | { readonly kind: "finished"; readonly path: string; readonly result: RunResult }
  | { readonly kind: "interrupted"; readonly path: string };

export interface TrainingParts<Row> {
  readonly runtime: Runtime;
  readonly task: Task<Row>;
  readonly config: RunConfig;
  /** The model to train. @default one made from nothing, as the configuration says */
  readonly base?: BaseModel;
}

/** The task with the soft punishment of overlong completions among its rewards, where the configuration asks for it. */
function withOverlong<Row>(task: Task<Row>, { rl }: RunConfig): Task<Row> {
  if (rl.overlong !== "penalty") return task;
  const reward = softOverlong({ maxTokens: rl.maxNewTokens, slopeTokens: rl.overlongSlope });
  return { ...task, rewards: { ...task.rewards, overlong: { weight: 1, reward, shaping: true } } };
}

/** Seconds between samples shown to an observer. */
const SHOW_EVERY = 4;
/** Newest steps from whose duration the time left is estimated. */
const ETA_WINDOW = 20;
/** Marks the tensors of the reference policy in a checkpoint. */
const REFERENCE = "reference/";

type Weights = Readonly<Record<string, HostArray<"f32">>>;

/** Raised inside a session when the signal has asked it to stop. */
class Interrupted extends Error {}

/** One session's work on a run. */
export class Training<Row> {
  readonly #parts: TrainingParts<Row>;
  #opened: RunFolder | undefined;
  readonly #options: RunOptions;
  readonly #stages: readonly { readonly stage: Stage; readonly steps: number }[];
  readonly #tokenizer: Tokenizer;
  readonly #write: PromptWriter;
  readonly #stopIds: readonly number[];
  /** With adapters, where they are trained. */
  readonly #model: ModelConfig;
  readonly #engine: Engine;
  readonly #scorer: Scorer;
  /** Of the stage under way, or the last one. */
  #trainer: Trainer | undefined;
  /** Of the reference policy, the weights that may differ from the policy's. */
  #reference: Readonly<Record<string, DeviceTensor<"f32">>> | undefined;
  /** The weights beside adapters, which policy and reference share. */
  #frozen: Readonly<Record<string, DeviceTensor<"f32">>> = {};
  #state: RunState = FRESH;
  #peak = 0;
  /** The clock's reading when the run would have begun, had it never been paused. */
  #origin = performance.now();
  /** Steps of the run that the newest checkpoint covers; undefined where there is none. */
  #saved: number | undefined;
  /** Whether an evaluation came after it. */
  #measured = false;
  #checkpointSeconds = 0;
  #shown = Number.NEGATIVE_INFINITY;
  #durations: number[] = [];

  constructor(parts: TrainingParts<Row>, options: RunOptions) {
    const { runtime, task, config, base } = parts;
    this.#parts = { ...parts, task: withOverlong(task, config) };
    this.#options = options;
    const { alphabet, tokens: words = [] } = task;
    const tokenizer = base?.tokenizer ?? characterTokenizer({ alphabet, special: [...THINK_TAGS, ...words] });
    this.#tokenizer = tokenizer;
    this.#write = writerFor(config, base);
    this.#stopIds = base?.stopIds ?? [tokenizer.eosId];
    this.#stages = stagesOf(config);
    if (base === undefined) checkTraces(task, tokenizer, config);
    const positions =
      longestPrompt(task, tokenizer, this.#write, base === undefined) + config.rl.maxNewTokens;
    const rows = [config.pretrain, config.sft].map(({ steps, rowLength }) => (steps > 0 ? rowLength : 0));
    const maxPositions = Math.max(positions, ...rows);
    this.#model =
      base === undefined
        ? modelConfig(config.model!, { vocabSize: tokenizer.vocabSize, maxPositions })
        : trainedConfig(base.config, config.lora);
    const tokens = Math.min(tokenizer.vocabSize, this.#model.vocabSize);
    this.#engine = new Engine(runtime, this.#model, {
      slots: config.rl.slots,
      maxPositions: positions,
      tokens,
    });
    this.#scorer = new Scorer(runtime, this.#model);
  }

  /**
   * Trains from a checkpoint, or from the start, and leaves what comes of it in a folder.
   * @throws NumericError when a number is not finite; the run's folder then says why, and from where it may go better
   */
  async run(folder: RunFolder, checkpoint: Checkpoint | undefined): Promise<RunOutcome> {
    const { runtime } = this.#parts;
    this.#opened = folder;
    this.#peak = this.#options.peak ?? (await measureMatmulPeak(runtime));
    this.#restore(checkpoint);
    const { name, task, preset, seed } = folder.manifest;
    const { observer } = this.#options;
    observer?.start({
      ...{ name, task, preset, seed },
      parameters: parameterCount(this.#model),
      machine: `${runtime.threads} thread${runtime.threads === 1 ? "" : "s"}, ${runtime.backend}`,
      stages: this.#stages,
      earlier: checkpoint === undefined ? [] : await readMetrics(folder.path),
    });
    if (checkpoint !== undefined) this.#note(`Going on after step ${checkpoint.step}.`);
    try {
      while (this.#state.stage < this.#stages.length) await this.#runStage();
      return { kind: "finished", path: folder.path, result: await this.#finish() };
    } catch (error) {
      if (error instanceof NumericError) throw await this.#failed(error);
      if (!(error instanceof Interrupted)) throw error;
      await this.#checkpoint();
      return { kind: "interrupted", path: folder.path };
    } finally {
      await this.#trainer?.dispose();
      await this.#engine.dispose();
      await this.#scorer.dispose();
    }
  }

  get #folder(): RunFolder {
    invariant(this.#opened !== undefined, "a run has its folder from its start");
    return this.#opened;
  }

  #note(text: string): void {
    this.#options.observer?.note(text);
  }

  #elapsed(): number {
    return (performance.now() - this.#origin) / 1000;
  }

  #expectToGoOn(): void {
    if (this.#options.signal?.aborted) throw new Interrupted();
  }

  /** Steps of the whole run that are done. */
  #stepsDone(): number {
    const before = this.#stages.slice(0, this.#state.stage).reduce((sum, { steps }) => sum + steps, 0);
    return before + this.#state.step;
  }

  /** A copy of the weights that move. */
  #weights(): Weights {
    const live = Object.entries(this.#trainer!.moved());
    return Object.fromEntries(
      live.map(([name, { shape, data }]) => [name, hostArray("f32", shape, data.slice())]),
    );
  }

  /** The optimizer that moves the weights of a stage; after the last stage, of that. */
  #createTrainer(weights: Weights): Trainer {
    const { runtime, config } = this.#parts;
    const { stage } = this.#stages[Math.min(this.#state.stage, this.#stages.length - 1)]!;
    return Trainer.create(
      runtime,
      this.#model,
      weights,
      config[stage].optimizer,
      config.model?.mixture?.auxiliary,
      this.#frozen,
    );
  }

  /** What training begins with: the base's weights, beside adapters that change nothing yet, or new ones. */
  #firstWeights(): Weights {
    const { base, config, runtime } = this.#parts;
    if (base === undefined) {
      return initializeModel(this.#model, config.seed, { numerals: numeralsOf(this.#tokenizer) });
    }
    const tensors = base.takeTensors();
    if (config.lora === undefined) return tensors;
    this.#frozen = weightsInPlace(runtime, tensors);
    const adapters = modelParameters(this.#model).filter(({ kind }) => kind === "adapter");
    return freshWeights(adapters, config.seed);
  }

  #restore(checkpoint: Checkpoint | undefined): void {
    const { runtime, base } = this.#parts;
    if (checkpoint === undefined) {
      this.#trainer = this.#createTrainer(this.#firstWeights());
      return;
    }
    // A base is read again for the weights beside adapters; others are let go.
    if (base !== undefined) this.#firstWeights();
    const where = join(this.#folder.path, "checkpoints", `step-${checkpoint.step}`);
    this.#state = parseRunState(where, checkpoint.state);
    this.#saved = checkpoint.step;
    this.#origin = performance.now() - 1000 * this.#state.elapsed;
    const tensors = Object.entries(checkpoint.tensors) as [string, HostArray<"f32">][];
    const own = Object.fromEntries(tensors.filter(([name]) => !name.startsWith(REFERENCE)));
    this.#trainer = this.#createTrainer(own);
    if (this.#state.step > 0) this.#trainer.restore(own, this.#state.updates);
    const reference = tensors.filter(([name]) => name.startsWith(REFERENCE));
    if (reference.length > 0) {
      const named = reference.map(([name, tensor]) => [name.slice(REFERENCE.length), tensor]);
      this.#reference = weightsInPlace(runtime, Object.fromEntries(named));
    }
  }

  /** Writes the state as it stands, unless the newest checkpoint already holds it. */
  async #checkpoint(): Promise<void> {
    const step = this.#stepsDone();
    if (step === (this.#saved ?? 0) && !this.#measured) return;
    const began = performance.now();
    const trainer = this.#trainer!;
    // Between stages the next one's optimizer starts afresh: the weights are all there is to keep.
    const between = this.#state.step === 0;
    const kept = between ? this.#weights() : trainer.snapshot();
    const reference = Object.entries(between ? {} : (this.#reference ?? {}));
    const frozen = reference.map(([name, { shape, data }]) => [
      REFERENCE + name,
      hostArray("f32", shape, data),
    ]);
    this.#state = { ...this.#state, updates: trainer.updates, elapsed: this.#elapsed() };
    await this.#folder.saveCheckpoint(step, {
      tensors: { ...kept, ...Object.fromEntries(frozen) },
      state: this.#state,
    });
    this.#saved = step;
    this.#measured = false;
    this.#checkpointSeconds += (performance.now() - began) / 1000;
  }

  /** The stage under way, to its end. */
  async #runStage(): Promise<void> {
    const { config } = this.#parts;
    const { stage, steps } = this.#stages[this.#state.stage]!;
    if (stage !== "pretrain" && this.#state.base === undefined) {
      this.#state = { ...this.#state, base: await this.#evaluateBefore("base") };
      this.#measured = true;
    }
    if (stage === "rl" && config.sft.steps > 0 && this.#state.sft === undefined) {
      this.#state = { ...this.#state, sft: await this.#evaluateBefore("cold start") };
      this.#measured = true;
    }
    this.#durations = [];
    while (this.#state.step < steps) {
      this.#expectToGoOn();
      await this.#runStep(stage, this.#state.step + 1, steps);
      const atEnd = this.#state.step === steps;
      if (!atEnd && this.#stepsDone() % config.checkpointEvery === 0) await this.#checkpoint();
    }
    const weights = this.#weights();
    this.#state = { ...this.#state, stage: this.#state.stage + 1, step: 0 };
    await this.#checkpoint();
    if (this.#state.stage < this.#stages.length) {
      await this.#trainer!.dispose();
      this.#trainer = this.#createTrainer(weights);
    }
  }

  /** One step, recorded. */
  async #runStep(stage: Stage, step: number, steps: number): Promise<void> {
    const { config } = this.#parts;
    const began = performance.now();
    const outcome = stage === "rl" ? await this.#policyStep(step) : await this.#languageStep(stage, step);
    const trained = performance.now();
    const { every } = config.validation;
    const validation = stage === "rl" && every > 0 && step % every === 0 ? await this.#validate() : undefined;
    const seconds = (trained - began) / 1000;
    const { tokens } = outcome;
    this.#state = {
      ...this.#state,
      step,
      tokens: this.#state.tokens + tokens.rollout + tokens.train,
      flops: this.#state.flops + outcome.flops,
      seconds: { ...this.#state.seconds, [stage]: (this.#state.seconds[stage] ?? 0) + seconds },
    };
    const { train = seconds, rollout } = outcome.phases;
    const metrics: StepMetrics = {
      ...{ stage, step, steps },
      loss: outcome.loss,
      gradientNorm: outcome.gradientNorm,
      learningRate: outcome.learningRate,
      tokens: { ...tokens, total: this.#state.tokens },
      flops: outcome.flops,
      ...(outcome.rl === undefined ? {} : { rl: outcome.rl }),
      ...(outcome.experts === undefined ? {} : { experts: outcome.experts }),
      ...(validation === undefined ? {} : { validation }),
      timing: {
        elapsed: this.#elapsed(),
        phases: {
          ...outcome.phases,
          ...(validation === undefined ? {} : { validate: (performance.now() - trained) / 1000 }),
          ...(this.#checkpointSeconds === 0 ? {} : { checkpoint: this.#checkpointSeconds }),
        },
        ...(rollout === undefined ? {} : { rolloutTokensPerSecond: tokens.rollout / rollout }),
        trainTokensPerSecond: train > 0 ? tokens.train / train : 0,
        utilization: outcome.flops / seconds / this.#peak,
        rssBytes: process.memoryUsage.rss(),
      },
    };
    this.#checkpointSeconds = 0;
    await this.#folder.appendMetrics(metrics);
    await this.#folder.appendSamples(outcome.samples);
    this.#durations = [...this.#durations.slice(1 - ETA_WINDOW), (performance.now() - began) / 1000];
    this.#show(metrics, outcome.samples);
  }

  #show(metrics: StepMetrics, samples: readonly SampleRecord[]): void {
    const { observer } = this.#options;
    if (observer === undefined) return;
    const { elapsed } = metrics.timing;
    observer.step(metrics, { etaSeconds: this.#timeLeft(metrics), dollars: this.#dollars(elapsed) });
    if (samples.length === 0 || elapsed - this.#shown < SHOW_EVERY) return;
    this.#shown = elapsed;
    observer.sample(samples.find(({ correct }) => correct) ?? samples[0]!);
  }

  #cpuHours(seconds: number): number {
    return (seconds / 3600) * this.#parts.runtime.threads;
  }

  #dollars(seconds: number): number {
    return dollarsFor(this.#cpuHours(seconds), CPU_HOUR);
  }

  /** Seconds until the last step, from the newest steps; stages to come are guessed from their tokens. */
  #timeLeft(metrics: StepMetrics): number {
    const seconds = mean(this.#durations);
    let left = (metrics.steps - metrics.step) * seconds;
    const { config } = this.#parts;
    const tokensPerSecond = (metrics.tokens.rollout + metrics.tokens.train) / seconds;
    for (const { stage, steps } of this.#stages.slice(this.#state.stage + 1)) {
      const { rl } = config;
      const tokens =
        stage === "rl"
          ? // At most: each sample is written and, unless it says little, trained on; thoughts are about half as long as they may be.
            rl.prompts * rl.samples * rl.maxNewTokens
          : config[stage].rows * config[stage].rowLength;
      left += (steps * tokens) / tokensPerSecond;
    }
    return left;
  }

  #sizes(): CostSizes {
    return costSizes(this.#model);
  }

  async #languageStep(stage: "pretrain" | "sft", step: number): Promise<Outcome> {
    const { task, config } = this.#parts;
    const began = performance.now();
    const { rows, rowLength } = config[stage];
    const batch = languageBatch({
      tokenizer: this.#tokenizer,
      draw: stage === "pretrain" ? task.explore! : task.demonstrate!,
      seed: config.seed,
      path: [STREAMS[stage], step],
      ...{ rows, rowLength, write: this.#write },
    });
    const packed = performance.now();
    const outcome = await this.#good(1, () =>
      languageStep(this.#trainer!, batch, { stage: config[stage], step, sizes: this.#sizes() }),
    );
    const phases = { pack: (packed - began) / 1000, train: (performance.now() - packed) / 1000 };
    return { ...outcome, phases, samples: [] };
  }

  async #policyStep(step: number): Promise<Outcome> {
    const { task, config } = this.#parts;
    const { rl: stage, seed } = config;
    const trainer = this.#trainer!;
    this.#engine.adopt(trainer.weights());
    const reference = stage.klBeta > 0 ? this.#referenceAt(step) : undefined;
    const { signal } = this.#options;
    const outcome = await this.#good(stage.updatesPerRollout * stage.epochs, () =>
      policyStep({
        ...{ trainer, engine: this.#engine, tokenizer: this.#tokenizer, task, stage, seed, step },
        sizes: this.#sizes(),
        rows: rowLengthsFor(this.#engine.maxPositions, stage.maxNewTokens),
        ...{ write: this.#write, stopIds: this.#stopIds },
        ...(reference === undefined ? {} : { reference }),
        ...(signal === undefined ? {} : { signal }),
      }),
    );
    const { drawn, seconds, ...rest } = outcome;
    this.#findBacktrack(drawn, step);
    const samples = drawn
      .slice(0, config.samplesPerStep)
      .map((group) => sampleRecord(group, group.samples[0]!, step));
    return { ...rest, phases: seconds, samples };
  }

  /** The reference policy of a step, made anew from the policy when its time has come. */
  #referenceAt(step: number): Reference {
    const { runtime, config } = this.#parts;
    const { reference: made } = this.#state;
    if (this.#reference === undefined || made === undefined || step - made >= config.rl.referenceEvery) {
      this.#reference = deviceWeights(runtime, this.#trainer!.moved());
      this.#state = { ...this.#state, reference: step };
    }
    const age = step - this.#state.reference!;
    return { scorer: this.#scorer, weights: { ...this.#frozen, ...this.#reference }, age };
  }

  /** Keeps the first sample of the run that failed a check, went on and was then right. */
  #findBacktrack(drawn: readonly Group<Row>[], step: number): void {
    const { wentBack } = this.#parts.task;
    if (wentBack === undefined || this.#state.firstBacktrack !== undefined) return;
    for (const group of drawn) {
      const found = group.samples.find(({ correct, judged }) => correct && wentBack(judged, group.example));
      if (found === undefined) continue;
      this.#state = { ...this.#state, firstBacktrack: sampleRecord(group, found, step) };
      return;
    }
  }

  /**
   * Runs the work of a step. When a number is not finite, the signal interrupts it, or the task throws, the step is undone. The
   * state before it is checkpointed, but for a number that is not finite where the step had used no rate: it would only fail
   * again, and from before a lower rate may lead elsewhere.
   * @param most  updates the step may take; of several, a later one may fail when earlier ones have moved the weights
   */
  async #good<T>(most: number, work: () => Promise<T>): Promise<T> {
    const trainer = this.#trainer!;
    const { updates } = trainer;
    const before = most > 1 ? trainer.snapshot() : undefined;
    try {
      const outcome = await work();
      if (trainer.updates > updates) this.#markMove();
      return outcome;
    } catch (error) {
      const interrupted = this.#options.signal?.aborted && error === this.#options.signal.reason;
      const rated = trainer.updates > updates || error instanceof UpdateError;
      if (before !== undefined) trainer.restore(before, updates);
      if (interrupted) throw new Interrupted();
      if (!(error instanceof NumericError)) {
        // A task's own mistake, which can be mended: the steps before it are kept. Should that fail, the mistake is still what to tell.
        if (trainer.updates === updates) await this.#checkpoint().catch(() => {});
        throw error;
      }
      if (rated) {
        await this.#checkpoint();
        this.#markMove();
      }
      throw error;
    }
  }

  /** The step under way has moved the weights, or would have. */
  #markMove(): void {
    this.#state = { ...this.#state, moved: this.#stepsDone() + 1 };
  }

  /** Leaves in the run's folder what stopped it. @returns the same error with what to type next */
  async #failed(error: NumericError): Promise<NumericError> {
    const folder = this.#folder;
    const { config } = this.#parts;
    const { moved = 0 } = this.#state;
    // Later checkpoints hold the very weights that a number that is not finite came from.
    const useful = (await folder.checkpoints()).filter((step) => moved === 0 || step < moved);
    const { where, rule, got } = error;
    const failure: RunFailure = {
      step: this.#stepsDone(),
      error: `${where}: ${rule}${got === undefined ? "" : `; got ${got}`}`,
      from: useful.at(-1) ?? 0,
      set: moved === 0 ? [] : lowerRates(this.#stageOf(moved), config),
    };
    await folder.recordFailure(failure);
    const remedy = remedyOf(failure, shellPath(folder.path), this.#options.command);
    return new NumericError({ where, rule, ...(got === undefined ? {} : { got }), remedy, cause: error });
  }

  /** The stage that a step of the whole run belongs to. */
  #stageOf(step: number): Stage {
    let before = 0;
    for (const { stage, steps } of this.#stages) {
      before += steps;
      if (step <= before) return stage;
    }
    return this.#stages.at(-1)!.stage;
  }

  /** @param signal  ends it early; the signal's reason is then thrown */
  #evaluate(
    { count, samples, temperature, topP }: RunConfig["evaluation"],
    signal?: AbortSignal,
    onToken?: () => void,
  ): Promise<Evaluation> {
    const { task, config } = this.#parts;
    this.#engine.adopt(this.#trainer!.weights());
    return evaluate(this.#engine, this.#tokenizer, task, task.validation.slice(0, count), {
      ...{ samples, temperature, topP, seed: config.seed, maxNewTokens: config.rl.maxNewTokens },
      ...{ write: this.#write, stopIds: this.#stopIds },
      ...(signal === undefined ? {} : { signal }),
      ...(onToken === undefined ? {} : { onToken }),
    });
  }

  /** The evaluation between two stages or at the end. @throws Interrupted when the signal ends it */
  async #evaluateBetween(what: string): Promise<Evaluation> {
    const { signal, observer } = this.#options;
    const { evaluation } = this.#parts.config;
    const count = Math.min(evaluation.count, this.#parts.task.validation.length);
    this.#note(`Measuring ${what} on ${count.toLocaleString("en")} held-out prompts…`);
    let written = 0;
    const onToken = (): void => observer?.measuring?.(++written);
    try {
      return await this.#evaluate(evaluation, signal, onToken);
    } catch (error) {
      if (signal?.aborted && error === signal.reason) throw new Interrupted();
      throw error;
    }
  }

  async #evaluateBefore(what: string): Promise<EvalSummary> {
    const { summary } = await this.#evaluateBetween(`the ${what}`);
    this.#note(`${what}: ${(100 * summary.pass1).toFixed(1)} % right on ${summary.count} held-out prompts`);
    return summary;
  }

  /** Not to be interrupted: the weights have moved, and the step is not recorded yet. */
  async #validate(): Promise<NonNullable<StepMetrics["validation"]>> {
    const { count, temperature, topP } = this.#parts.config.validation;
    const { summary } = await this.#evaluate({ count, samples: 1, temperature, topP });
    return { pass1: summary.pass1, count: summary.count, meanLength: summary.meanLength };
  }

  /** Writes what was trained: a whole model, or the adapters to one. */
  async #saveModel(): Promise<void> {
    const { config, base } = this.#parts;
    const path = join(this.#folder.path, "model");
    const { temperature, topP } = config.evaluation;
    const generationConfig = {
      ...(temperature > 0 ? { do_sample: true, temperature, top_p: topP } : { do_sample: false }),
      max_new_tokens: config.rl.maxNewTokens,
    };
    const tensors = this.#weights();
    if (base === undefined) {
      const model = { config: this.#model, tokenizer: this.#tokenizer };
      await saveModelFolder(path, { ...model, tensors, generationConfig });
    } else if (config.lora !== undefined) {
      const adapters = { base: base.identity.path, adapters: config.lora, tensors };
      await saveAdapterFolder(path, { ...adapters, generationConfig });
    } else {
      const own = { ...base.generationConfig, ...generationConfig };
      await saveModelFolder(path, { ...base, tensors, generationConfig: own });
    }
  }

  /** Evaluates what was trained and writes model, result and report. */
  async #finish(): Promise<RunResult> {
    const folder = this.#folder;
    const { config, task } = this.#parts;
    const { summary: final, records } = await this.#evaluateBetween("what came of it");
    await this.#saveModel();
    const { base = final, sft, firstBacktrack, tokens, flops, seconds } = this.#state;
    const elapsed = this.#elapsed();
    const result: RunResult = {
      name: folder.manifest.name,
      task: task.name,
      preset: folder.manifest.preset,
      seed: config.seed,
      parameters: parameterCount(this.#model),
      minutes: elapsed / 60,
      stages: this.#stages.map(({ stage, steps }) => ({ stage, steps, minutes: (seconds[stage] ?? 0) / 60 })),
      base,
      ...(sft === undefined ? {} : { sft }),
      final,
      sampling: { temperature: config.evaluation.temperature, topP: config.evaluation.topP },
      ...{ tokens, flops },
      cpuHours: this.#cpuHours(elapsed),
      dollars: this.#dollars(elapsed),
      solved: solvedAmong(records.flat(), this.#stages.at(-1)!),
      ...(firstBacktrack === undefined ? {} : { firstBacktrack }),
      model: "model",
    };
    await folder.writeResult(result);
    await this.#options.report?.(folder.path);
    return result;
  }
}

/** A step of any stage, with what the record needs. */
interface Outcome extends StepOutcome {
  readonly rl?: NonNullable<StepMetrics["rl"]>;
  /** Seconds by phase. */
  readonly phases: Readonly<Record<string, number>>;
  readonly samples: readonly SampleRecord[];
}

function sampleRecord<Row>(
  group: Group<Row>,
  sample: Group<Row>["samples"][number],
  step: number,
): SampleRecord {
  return { stage: "rl", step, ...completionRecord(group.example, sample.judged, sample) };
}

/** Three solved prompts to show: a short thought, a middling one and a long one. */
function solvedAmong(
  records: readonly CompletionRecord[],
  { stage, steps }: { readonly stage: Stage; readonly steps: number },
): SampleRecord[] {
  const solved = records.filter(({ correct }) => correct).sort((a, b) => a.tokens - b.tokens);
  const chosen = [0.1, 0.5, 0.9].map((share) => solved[Math.floor(share * solved.length)]);
  const distinct = [...new Set(chosen)].filter((record) => record !== undefined);
  return distinct.map((record) => ({ stage, step: steps, ...record }));
}

/** Half the rates that a stage uses, as `field=value`. */
function lowerRates(stage: Stage, config: RunConfig): string[] {
  const { optimizer, rates } = config[stage];
  const used = optimizer.matrices === "muon" ? (["muon", "adamW"] as const) : (["adamW"] as const);
  return used.map((kind) => `${stage}.rates.${kind}=${rates[kind] / 2}`);
}
