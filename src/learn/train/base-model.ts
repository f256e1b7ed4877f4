/** The pretrained model that a run begins with: read whole, and known again by a hash of its files. */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir } from "node:fs/promises";
import { basename, join } from "node:path";
import { ConfigError, FileError, invariant } from "../../base/errors.ts";
import { fileError } from "../../base/files.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import type { AdapterConfig } from "../../model/arch/adapters.ts";
import { architectureOf, type ModelConfig } from "../../model/arch/models.ts";
import { baseOfAdapters, isAdapterFolder } from "../../model/checkpoint/adapter.ts";
import { type LoadedModel, loadModel } from "../../model/checkpoint/load.ts";
import { isModelFolder } from "../../model/checkpoint/model-text.ts";

/** Where a model is, and what people call it. */
export interface BasePlace {
  readonly name: string;
  /** Its folder or file; absolute. */
  readonly path: string;
}

/** A model as a run's manifest names it. */
export interface BaseIdentity extends BasePlace {
  /** Of its files' names and contents. */
  readonly sha256: string;
}

type Weights = Readonly<Record<string, HostArray<"f32">>>;

export interface BaseModel extends Omit<LoadedModel, "tensors"> {
  readonly identity: BaseIdentity;
  /** The weights, once: whoever takes them holds the only reference, and may let them go. */
  takeTensors(): Weights;
}

/** Files whose content makes the model. */
const MODEL_FILE = /\.(?:json|safetensors|jinja|model)$/;

/** The files of a model, with the names that their hash goes by; those of its base too, where it is adapters. */
async function filesOf(path: string): Promise<{ readonly name: string; readonly file: string }[]> {
  if (!(await isModelFolder(path))) return [{ name: "", file: path }];
  let names: string[];
  try {
    names = (await readdir(path)).filter((name) => MODEL_FILE.test(name)).sort();
  } catch (error) {
    throw fileError(path, "readable", error);
  }
  const own = names.map((name) => ({ name, file: join(path, name) }));
  if (!(await isAdapterFolder(path))) return own;
  const base = await filesOf(await baseOfAdapters(path));
  return [...own, ...base.map(({ name, file }) => ({ name: `base/${name}`, file }))];
}

/** SHA-256 of a model's files: their names and contents, in the order of their names. @throws FileError */
export async function modelHash(path: string): Promise<string> {
  const hash = createHash("sha256");
  for (const { name, file } of await filesOf(path)) {
    const content = createHash("sha256");
    try {
      for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 })) content.update(chunk);
    } catch (error) {
      throw fileError(file, "readable", error);
    }
    hash.update(`${name}\0${content.digest("hex")}\n`);
  }
  return hash.digest("hex");
}

/**
 * Reads a model to be trained.
 * @param adapters  whether adapters to it are to be written, which name it as their base
 * @throws what {@link loadModel} throws; ConfigError for adapters to what is itself adapters
 */
export async function openBaseModel({ name, path }: BasePlace, adapters: boolean): Promise<BaseModel> {
  if (adapters && (await isModelFolder(path)) && (await isAdapterFolder(path))) {
    throw new ConfigError({
      where: `model ${name}`,
      rule: "must be whole, for other programs to load the adapters that are trained to it",
      got: "adapters to another model",
      remedy: "Merge those first: pondera export",
    });
  }
  return read({ name, path, sha256: await modelHash(path) });
}

async function read(identity: BaseIdentity): Promise<BaseModel> {
  const { tensors, ...model } = await loadModel(identity.path);
  let waiting: Weights | undefined = tensors;
  return {
    ...model,
    identity,
    takeTensors() {
      invariant(waiting !== undefined, "a base's weights are taken once");
      const taken = waiting;
      waiting = undefined;
      return taken;
    },
  };
}

/**
 * Reads the model that a run began with.
 * @throws FileError when it is another by now: the run would no longer be the one that was begun
 */
export async function reopenBaseModel(identity: BaseIdentity): Promise<BaseModel> {
  const found = await modelHash(identity.path);
  if (found !== identity.sha256) {
    throw new FileError({
      where: identity.path,
      rule: "must be the model the run began with",
      got: `another content (SHA-256 ${found.slice(0, 12)}… instead of ${identity.sha256.slice(0, 12)}…)`,
      remedy: `Put ${basename(identity.path)} back as it was, or start a new run`,
    });
  }
  return read(identity);
}

/**
 * The config of a model to be trained, with adapters if they are asked for.
 * @throws ConfigError for adapters to an architecture without them, or a model the engine cannot decode
 */
export function trainedConfig(config: ModelConfig, adapters: AdapterConfig | undefined): ModelConfig {
  if (adapters === undefined) return config;
  if (config.modelType === "deepseek_v3") {
    throw new ConfigError({
      where: "lora",
      rule: "is for llama and qwen2",
      got: "deepseek_v3",
      remedy: "Train all weights: leave --lora-rank out",
    });
  }
  const adapted = { ...config, adapters };
  architectureOf(adapted).check(adapted);
  return adapted;
}
