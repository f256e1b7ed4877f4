/** From what a person types to a model that writes: a model's folder or GGUF file, a run's name or folder, a pulled model. */

import type { Stats } from "node:fs";
import { access, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { z } from "zod";
import { FileError } from "../../base/errors.ts";
import { recoverFolder } from "../../base/files.ts";
import { Runtime } from "../../compute/runtime/runtime.ts";
import { findRun, type RunView, readRun } from "../../learn/train/run-folder.ts";
import type { ModelFolder } from "../../model/checkpoint/folder.ts";
import { padHeads } from "../../model/checkpoint/pad-heads.ts";
import { Engine } from "../../model/engine/engine.ts";
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

/** Whether a folder holds a model, or adapters to one. */
const holdsModel = async (folder: string): Promise<boolean> =>
  (await exists(join(folder, "config.json"))) || (await exists(join(folder, "adapter_config.json")));

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
export interface OpenModel extends ModelFolder {
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

/** The multiple of whose widths the decoding kernel takes heads. */
const HEAD_STEP = 16;

/** The same model in a form the engine decodes: heads that are too narrow are widened. */
function decodable({
  config,
  tensors,
}: Pick<ModelFolder, "config" | "tensors">): Pick<ModelFolder, "config" | "tensors"> {
  return config.modelType === "deepseek_v3" ? { config, tensors } : padHeads({ config, tensors }, HEAD_STEP);
}

/** @throws what loading the folder or the runtime throws */
export async function openModel(model: ModelFolder, options: OpenOptions): Promise<OpenModel> {
  const { threads, slots, positions } = options;
  const runtime = await Runtime.create({ threads });
  const maxPositions = Math.min(positions, model.config.maxPositions);
  const { config, tensors } = decodable(model);
  const engine = new Engine(runtime, config, { slots, maxPositions });
  engine.adopt(deviceWeights(runtime, tensors));
  const dispose = async (): Promise<void> => {
    await engine.dispose();
    runtime.dispose();
  };
  return { ...model, engine, runtime, dispose };
}
