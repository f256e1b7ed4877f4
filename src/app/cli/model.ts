/** From what a person types to a model that writes: a model's folder or GGUF file, a run's name or folder, a pulled model. */

import type { Stats } from "node:fs";
import { access, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { z } from "zod";
import { FileError } from "../../base/errors.ts";
import { recoverFolder } from "../../base/files.ts";
import { Runtime } from "../../compute/runtime/runtime.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import { findRun, type RunView, readRun } from "../../learn/train/run-folder.ts";
import { HEAD_STEP } from "../../model/arch/llama.ts";
import type { ModelConfig } from "../../model/arch/models.ts";
import { isQuantizedMatrix, type StoredWeights } from "../../model/arch/stored.ts";
import type { ModelFolder } from "../../model/checkpoint/folder.ts";
import type { StoredModel } from "../../model/checkpoint/load.ts";
import { padHeads } from "../../model/checkpoint/pad-heads.ts";
import { Engine, type EngineOptions } from "../../model/engine/engine.ts";
import { SAMPLING_DEFAULTS, type SamplingOptions } from "../../model/engine/sampler.ts";
import { deviceWeights } from "../../model/engine/weights.ts";
import { tryModelName } from "../../model/store/name.ts";
import type { SamplingArguments } from "./arguments.ts";
import type { Io } from "./io.ts";
import { openStore } from "./store.ts";

export interface FoundModel {
  /** What people call it: the run's name, or the folder's. */
  readonly name: string;
  /** Its folder, or its GGUF file; absolute. */
  readonly folder: string;
  /** The run that trained it, where that is known. */
  readonly run?: RunView;
}

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

const statOf = (path: string): Promise<Stats | undefined> =>
  stat(path).then(
    (found) => found,
    () => undefined,
  );

const MODEL = "model";

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
    if (await exists(join(name, "config.json"))) {
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
        rule: "must be a model's folder, with config.json, or a run's, with run.json",
        got: "a folder with neither",
      });
    }
  }
  const run = await readRun(await findRun(runs, name));
  const folder = join(run.path, MODEL);
  await recoverFolder(folder);
  if (!(await exists(join(folder, "config.json")))) {
    throw new FileError({
      where: run.path,
      rule: "the run must have finished: its model is written at the end",
      got: `a run that is ${run.status}`,
      remedy:
        run.status === "running"
          ? "Wait for it"
          : `Go on with it: pondera train --resume ${run.manifest.name}`,
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
): number {
  return asked ?? GenerationConfig.parse(generationConfig).max_new_tokens ?? MOST_NEW_TOKENS;
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
export interface OpenModel extends StoredModel {
  readonly engine: Engine;
  readonly runtime: Runtime;
  dispose(): Promise<void>;
}

export interface OpenOptions {
  readonly threads: number;
  /** Sequences decoded side by side. */
  readonly slots: number;
  /** Longest sequence wanted, prompt included; the model's own limit bounds it. */
  readonly positions: number;
}

type Floats = Readonly<Record<string, HostArray<"f32">>>;

/** Floats in a form the engine decodes: heads that are too narrow are widened. */
function decodable(config: ModelConfig, tensors: Floats): { config: ModelConfig; tensors: Floats } {
  return config.modelType === "deepseek_v3" ? { config, tensors } : padHeads({ config, tensors }, HEAD_STEP);
}

const areFloats = (weights: StoredWeights): weights is Floats =>
  !Object.values(weights).some(isQuantizedMatrix);

/** @throws what loading the runtime throws */
export async function openModel(model: StoredModel, options: OpenOptions): Promise<OpenModel> {
  const { threads, slots, positions } = options;
  const runtime = await Runtime.create({ threads });
  const maxPositions = Math.min(positions, model.config.maxPositions);
  const engine = engineOf(runtime, model, { slots, maxPositions });
  const dispose = async (): Promise<void> => {
    await engine.dispose();
    runtime.dispose();
  };
  return { ...model, engine, runtime, dispose };
}

function engineOf(runtime: Runtime, { config, weights }: StoredModel, options: EngineOptions): Engine {
  if (!areFloats(weights)) return new Engine(runtime, config, { ...options, stored: { weights } });
  const widened = decodable(config, weights);
  const engine = new Engine(runtime, widened.config, options);
  engine.adopt(deviceWeights(runtime, widened.tensors));
  return engine;
}
