/**
 * Pondera as a library. Task files need the first groups alone; the rest trains, measures and runs models.
 *
 * ```ts
 * import { defineTask, readAnswer } from "pondera";
 *
 * export default defineTask({
 *   name: "double",
 *   prompts: (random) => ({ prompt: `${random.integer(50)}*2=` }),
 *   reward: ({ text }, { prompt }) => (readAnswer(text) === `${2 * Number.parseInt(prompt)}` ? 1 : 0),
 *   // What a base model has read before it is rewarded, where one is made from nothing.
 *   explore: (random) => ({ prompt: `${random.integer(50)}*2=`, completion: `<answer>${random.integer(100)}</answer>` }),
 *   maxNewTokens: 16,
 * });
 * ```
 *
 * ```ts
 * import { openTask, presetNamed, startRun, withTaskLimits } from "pondera";
 *
 * const task = await openTask(definition);
 * const config = withTaskLimits(presetNamed("quick").config, task);
 * const outcome = await startRun({ root: "runs", task, preset: "quick", config });
 * if (outcome.kind === "finished") console.log(outcome.result.final.pass1);
 * ```
 *
 * ```ts
 * import { Engine, generateText, loadModelFolder, Runtime, weightsInPlace } from "pondera";
 *
 * const model = await loadModelFolder("runs/my-run/model");
 * const runtime = await Runtime.create();
 * const engine = new Engine(runtime, model.config, { slots: 4 });
 * engine.adopt(weightsInPlace(runtime, model.tensors));
 * const request = { prompt: "21*2=", samples: 4, seed: 1 };
 * for (const { text } of await generateText(engine, model, request)) console.log(text);
 * ```
 *
 * Importing this module loads no native library: `Runtime.create` does.
 */

// Tasks: prompts, and rewards that say how well a completion did.

export { Random } from "./compute/tensor/random.ts";
export { jsonl } from "./learn/tasks/jsonl.ts";
export { type Judgement, judge } from "./learn/tasks/judge.ts";
export { openTask } from "./learn/tasks/open.ts";
export {
  type Correct,
  defineTask,
  type Example,
  type ExampleSource,
  type Judged,
  type PromptRow,
  type Prompts,
  type Reward,
  type Sequence,
  type Task,
  type TaskDefinition,
  type TaskOptions,
  type Trace,
  type WeightedReward,
} from "./learn/tasks/task.ts";

// Rewards to add to your own, and what they are made of.

export { type FormatOptions, hasFormat, readAnswer } from "./learn/tasks/answer.ts";
export { combine } from "./learn/tasks/judge.ts";
export {
  type CosineLengthOptions,
  cosineLength,
  formatReward,
  type OverlongOptions,
  type RepetitionOptions,
  repetitionPenalty,
  softOverlong,
} from "./learn/tasks/rewards.ts";

// The countdown game: exact verdicts, puzzles and their solutions.

export { type GameOptions, puzzleSource } from "./learn/tasks/countdown/puzzle.ts";
export { type Solution, type SolveRules, solve } from "./learn/tasks/countdown/solve.ts";
export {
  COUNTDOWN_GAMES,
  type CountdownGame,
  type CountdownOptions,
  countdownTask,
} from "./learn/tasks/countdown/task.ts";
export type { NumberUse, Puzzle } from "./learn/tasks/countdown/types.ts";
export { type CountdownRules, type Verdict, verifyCountdown } from "./learn/tasks/countdown/verify.ts";

// Teaching a model: what `pondera train` does, and the records it leaves.

export type { RunFailure } from "./learn/runs/failure.ts";
export type { RunManifest } from "./learn/runs/manifest.ts";
export { findRun, listRuns, type RunView, readRun } from "./learn/runs/read-run.ts";
export type {
  CompletionRecord,
  EvalSummary,
  RolloutMetrics,
  RunResult,
  SampleRecord,
  Stage,
  StepMetrics,
} from "./learn/runs/records.ts";
export type { BasePlace } from "./learn/train/base-model.ts";
export {
  parseRunConfig,
  type RunConfig,
  setOption,
  setOptions,
  withDepth,
  withLora,
  withLoss,
  withTaskLimits,
} from "./learn/train/config.ts";
export { PRESETS, type Preset, type PresetName, presetNamed } from "./learn/train/presets.ts";
export { type ResumeOptions, resumeRun, type StartOptions, startRun } from "./learn/train/run.ts";
export type { RunFacts, RunObserver, RunOptions, RunOutcome } from "./learn/train/training.ts";

// Measuring it: how often it is right, and how sure that is.

export { type EvaluateOptions, type Evaluation, evaluate } from "./learn/eval/evaluate.ts";
export {
  clusteredInterval,
  majorityVote,
  passAtK,
  summarize,
  wilsonInterval,
} from "./learn/eval/statistics.ts";

// Running a model.

export type { DeviceTensor } from "./compute/runtime/device-tensor.ts";
export { Runtime, type RuntimeOptions } from "./compute/runtime/runtime.ts";
export {
  type Completion,
  Engine,
  type EngineOptions,
  type GenerateOptions,
  type GenerateRequest,
  type WeightTensors,
} from "./model/engine/engine.ts";
export type { SamplingOptions } from "./model/engine/sampler.ts";
export { acceptance, type Speculated, type SpeculateOptions, Speculator } from "./model/engine/speculate.ts";
export {
  encodePrompt,
  generateText,
  type TextCompletion,
  type TextModel,
  type TextOptions,
  type TextRequest,
} from "./model/engine/text.ts";
export { deviceWeights, weightsInPlace } from "./model/engine/weights.ts";

// Models on disk, in Hugging Face layout.

export type { HostArray } from "./compute/tensor/host.ts";
export type { DeepseekV3Config } from "./model/arch/deepseek-v3.ts";
export { type Inspection, inspectModel } from "./model/arch/inspect.ts";
export { initializeLlama, type LlamaConfig } from "./model/arch/llama.ts";
export { initializeModel, type ModelConfig, parameterCount } from "./model/arch/models.ts";
export { loadModelFolder, type ModelFolder, saveModelFolder } from "./model/checkpoint/folder.ts";

// Text: tokens, and thoughts apart from answers.

export { TextStream } from "./model/text/stream.ts";
export { parseThink, type ThinkEvent, type ThinkKind, ThinkParser } from "./model/text/think.ts";
export { characterTokenizer, loadTokenizer, type Tokenizer } from "./model/text/tokenizer.ts";

// Errors: each carries `where`, `rule`, `got` and `remedy` beside its message.

export {
  ConfigError,
  DTypeError,
  FileError,
  FormatError,
  NumericError,
  PonderaError,
  RuntimeError,
  ShapeError,
  TaskError,
} from "./base/errors.ts";
