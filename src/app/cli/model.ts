/** From what a person types to a model that writes: a model's folder or GGUF file, a run's name or folder, a pulled model. */

import type { Stats } from "node:fs";
import { stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { z } from "zod";
import { ConfigError, FileError, invariant } from "../../base/errors.ts";
import { exists, recoverFolder } from "../../base/files.ts";
import { shellWord } from "../../base/shell.ts";
import { Runtime } from "../../compute/runtime/runtime.ts";
import { findRun, type RunView, readRun } from "../../learn/runs/read-run.ts";
import { HEAD_STEP } from "../../model/arch/llama.ts";
import { architectureOf } from "../../model/arch/models.ts";
import { isAdapterFolder } from "../../model/checkpoint/adapter.ts";
import type { ModelFolder } from "../../model/checkpoint/folder.ts";
import type { LoadedModel, StoredModel } from "../../model/checkpoint/load.ts";
import { padHeads } from "../../model/checkpoint/pad-heads.ts";
import { Engine, type TokenEngine } from "../../model/engine/engine.ts";
import { SAMPLING_DEFAULTS, type SamplingOptions } from "../../model/engine/sampler.ts";
import { acceptance, type Guesses, SpeculatingEngine, Speculator } from "../../model/engine/speculate.ts";
import { weightsInPlace } from "../../model/engine/weights.ts";
import { tryModelName } from "../../model/store/name.ts";
import { percent } from "../format.ts";
import type { SamplingArguments } from "./arguments.ts";
import { commandName, type Io } from "./io.ts";
import { openStore } from "./store.ts";

export interface FoundModel {
  /** What people call it: the run's name, or the folder's. */
  readonly name: string;
  /** Its folder, or its GGUF file; absolute. */
  readonly folder: string;
  /** The run that trained it, where that is known. */
  readonly run?: RunView;
}

/** The argument of commands that take any model. */
export const MODEL_ARGUMENT = [
  "<model>",
  "a model's folder or .gguf file, a run's name or folder, or the name a model was pulled under",
] as const;

const statOf = (path: string): Promise<Stats | undefined> =>
  stat(path).then(
    (found) => found,
    () => undefined,
  );

const MODEL = "model";

/** Whether a folder holds a model, or adapters to one. */
const holdsModel = async (folder: string): Promise<boolean> =>
  (await exists(join(folder, "config.json"))) || (await isAdapterFolder(folder));

/** A pulled model of that name. */
async function findStored(name: string, env: Io["env"]): Promise<FoundModel | undefined> {
  const parsed = tryModelName(name);
  const stored = parsed && (await openStore({}, { env }).find(parsed));
  return stored && { name: stored.name, folder: stored.path };
}

/**
 * The model that a person means: by its folder or GGUF file, by its run's folder, by its run's name under `runs`, by the name it
 * was pulled under, or, without a name, the newest run's.
 * @throws FileError when the folder holds no model, or the run none yet; ConfigError suggesting the nearest name of a run
 */
export async function findModel(
  name: string | undefined,
  runs: string,
  { env }: Pick<Io, "env">,
): Promise<FoundModel> {
  if (name !== undefined) {
    if ((await statOf(name))?.isFile()) return { name: basename(name, ".gguf"), folder: resolve(name) };
    await recoverFolder(name);
    if (await holdsModel(name)) {
      const folder = resolve(name);
      const parent = dirname(folder);
      if (basename(folder) !== MODEL || !(await exists(join(parent, "run.json")))) {
        return { name: basename(folder), folder };
      }
      const run = await readRun(parent);
      return { name: run.manifest.name, folder, run };
    }
    const isRun = (await exists(join(name, "run.json"))) || (await exists(join(runs, name, "run.json")));
    const stored = isRun ? undefined : await findStored(name, env);
    if (stored !== undefined) return stored;
    if (!isRun && (await statOf(name))?.isDirectory()) {
      throw new FileError({
        where: name,
        rule: "must be a model's folder, with config.json, adapters, with adapter_config.json, or a run's, with run.json",
        got: "a folder with none of them",
        remedy: `${commandName(env)} runs list and ${commandName(env)} list show what there is`,
      });
    }
  }
  const run = await readRun(await findRun(runs, name));
  const folder = join(run.path, MODEL);
  await recoverFolder(folder);
  if (!(await holdsModel(folder))) {
    throw new FileError({
      where: run.path,
      rule: "the run must have finished: its model is written at the end",
      got: `a run that is ${run.status}`,
      remedy:
        run.status === "running"
          ? "Wait for it"
          : `Go on with it: ${commandName(env)} train --resume ${shellWord(run.path)}`,
    });
  }
  return { name: run.manifest.name, folder, run };
}

const GenerationConfig = z.object({
  do_sample: z.boolean().nullish().catch(undefined),
  temperature: z.number().nonnegative().nullish().catch(undefined),
  top_p: z.number().gt(0).lte(1).nullish().catch(undefined),
  top_k: z.int().nonnegative().nullish().catch(undefined),
  min_p: z.number().min(0).lte(1).nullish().catch(undefined),
  max_new_tokens: z.int().positive().nullish().catch(undefined),
});

/** Longest completion of a model that says nothing about it; its positions bound it too. */
export const MOST_NEW_TOKENS = 1024;

/** Longest completion: as asked, else as the model's `generation_config.json` says. */
export function newTokensFor(
  { generationConfig }: Pick<ModelFolder, "generationConfig">,
  asked: number | undefined,
  otherwise = MOST_NEW_TOKENS,
): number {
  return asked ?? GenerationConfig.parse(generationConfig).max_new_tokens ?? otherwise;
}

/** `--speculate`, an option of commands that write text. */
export const SPECULATE_OPTION = [
  "--speculate",
  "greedy, while the model's own head for the token after next guesses ahead: the same text in fewer passes",
] as const;

/** The temperature where guesses are made: 0, and nothing else may be asked for. @throws ConfigError where it is */
export function greedyFor<T extends SamplingArguments & { readonly samples: number }>(asked: T): T {
  const { temperature = 0, samples } = asked;
  if (temperature !== 0) {
    throw new ConfigError({
      where: "--temperature",
      rule: "must be 0 with --speculate: what is guessed is the likeliest token",
      got: `${temperature}`,
    });
  }
  if (samples !== 1) {
    throw new ConfigError({
      where: "--samples",
      rule: "must be 1 with --speculate: greedy answers are all alike",
      got: `${samples}`,
    });
  }
  return { ...asked, temperature };
}

/** What guessing ahead has come to, with the figures people compare. */
export function guessesReport(
  guesses: Guesses,
  tokens: number,
): Guesses & { readonly acceptance: number; readonly tokensPerPass: number } {
  return { ...guesses, acceptance: acceptance(guesses), tokensPerPass: tokens / guesses.passes };
}

/** `71.2 % of 1,234 guesses were right, 1.60 tokens a pass`. */
export function guessesLine(guesses: Guesses, tokens: number): string {
  const { acceptance: share, tokensPerPass, drafted } = guessesReport(guesses, tokens);
  const of = `${percent(share)} of ${drafted.toLocaleString("en")} guesses were right`;
  return `${of}, ${tokensPerPass.toFixed(2)} tokens a pass`;
}

/** How tokens are chosen: as asked, else as the model's `generation_config.json` says, else by their probabilities. */
export function samplingFor(
  { generationConfig }: Pick<ModelFolder, "generationConfig">,
  asked: SamplingArguments,
): SamplingOptions {
  const own = GenerationConfig.parse(generationConfig);
  const likeliest = own.do_sample === false ? 0 : undefined;
  return {
    temperature: asked.temperature ?? likeliest ?? own.temperature ?? SAMPLING_DEFAULTS.temperature,
    topP: asked.topP ?? own.top_p ?? SAMPLING_DEFAULTS.topP,
    topK: asked.topK ?? own.top_k ?? SAMPLING_DEFAULTS.topK,
    minP: asked.minP ?? own.min_p ?? SAMPLING_DEFAULTS.minP,
  };
}

/** A model with an engine that decodes it. */
export interface OpenModel extends Omit<LoadedModel, "tensors"> {
  readonly engine: TokenEngine;
  /** What guessing ahead has come to, where it was asked for. */
  readonly guesses?: () => Guesses;
  readonly runtime: Runtime;
  dispose(): Promise<void>;
}

export interface OpenOptions {
  readonly threads: number;
  /** Sequences decoded side by side. */
  readonly slots: number;
  /** Longest sequence wanted, prompt included; the model's own limit bounds it. */
  readonly positions: number;
  /** Decode greedily, the model's head for the token after next guessing ahead. @default false */
  readonly speculate?: boolean;
}

/** The same model in a form the engine decodes: heads that are too narrow are widened. */
export function decodable({
  config,
  tensors,
}: Pick<ModelFolder, "config" | "tensors">): Pick<ModelFolder, "config" | "tensors"> {
  return config.modelType === "deepseek_v3" ? { config, tensors } : padHeads({ config, tensors }, HEAD_STEP);
}

/** @throws ConfigError unless the model has a head for the token after next */
function checkDraft({ config }: Pick<ModelFolder, "config">): void {
  const architecture = architectureOf(config);
  if (architecture.draft(config) !== undefined) return;
  throw new ConfigError({
    where: "--speculate",
    rule: "needs a model that also predicts the token after next, such as DeepSeek-V3 with num_nextn_predict_layers 1",
    got: `a ${architecture.name} that does not`,
    remedy: "Leave it out",
  });
}

/**
 * Opens a model, which then owns the weights: nobody else can use them any more.
 * @throws ConfigError when it is to guess ahead and cannot; what the runtime throws
 */
export async function openModel(model: StoredModel, options: OpenOptions): Promise<OpenModel> {
  const { threads } = options;
  if (options.speculate) checkDraft(model);
  const { source: _, tensors: __, ...text } = { source: undefined, tensors: undefined, ...model };
  const runtime = await Runtime.create({ threads });
  let engine: Engine | SpeculatingEngine;
  try {
    engine = engineOf(runtime, model, options);
  } catch (error) {
    runtime.dispose();
    throw error;
  }
  const guesses = engine instanceof SpeculatingEngine ? { guesses: () => engine.guesses } : {};
  return {
    ...text,
    engine,
    ...guesses,
    runtime,
    async dispose() {
      await engine.dispose();
      runtime.dispose();
    },
  };
}

function engineOf(
  runtime: Runtime,
  model: StoredModel,
  { slots, positions, speculate = false }: OpenOptions,
): Engine | SpeculatingEngine {
  const maxPositions = Math.min(positions, model.config.maxPositions);
  if ("source" in model) {
    invariant(!speculate, "a model that guesses ahead has floats");
    return new Engine(runtime, model.config, { slots, maxPositions, stored: { weights: model.source } });
  }
  const widened = decodable(model);
  const tokens = Math.min(model.tokenizer.vocabSize, model.config.vocabSize);
  const engine = speculate
    ? new SpeculatingEngine(new Speculator(runtime, widened.config, { maxPositions, tokens }))
    : new Engine(runtime, widened.config, { slots, maxPositions, tokens });
  engine.adopt(weightsInPlace(runtime, widened.tensors));
  return engine;
}
