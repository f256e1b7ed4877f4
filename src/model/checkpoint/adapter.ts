/**
 * Adapters as a folder in PEFT's layout: `adapter_config.json`, which names the model they belong to, and
 * `adapter_model.safetensors`. A model may be read through such a folder: its base is read, and the adapters are taken into it.
 *
 * @source huggingface.co/docs/peft/developer_guides/checkpoint
 */

import { isAbsolute, join, resolve } from "node:path";
import { z } from "zod";
import { FileError, FormatError } from "../../base/errors.ts";
import { exists, readJson, writeFileAtomic, writeFolderAtomic } from "../../base/files.ts";
import { jsonText, parsedBy } from "../../base/json.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import { sameShape } from "../../compute/tensor/shape.ts";
import { type AdapterConfig, adapterNames, mergeAdapter } from "../arch/adapters.ts";
import { openSafetensors, writeSafetensors } from "./safetensors.ts";
import { safetensorsFloats } from "./safetensors-floats.ts";

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
const GENERATION = "generation_config.json";
/** What PEFT's names begin with, before the model's own. */
const PREFIX = "base_model.model.";

/** What of PEFT's LoRA is understood; anything else would be another function. */
const Config = z.looseObject(
  {
    peft_type: z.literal("LORA", "must be LORA: no other kind is supported"),
    base_model_name_or_path: z.string("must name the base model").min(1, "must name the base model"),
    r: z.int("must be a whole number").min(1, "must be at least 1"),
    lora_alpha: z.number("must be a number").positive("must be above 0"),
    use_rslora: z.boolean().nullish(),
    use_dora: z.literal(false, "must be false: DoRA is not supported").nullish(),
    fan_in_fan_out: z.literal(false, "must be false").nullish(),
    bias: z.literal("none", "must be none: trained biases are not supported").nullish(),
    modules_to_save: z.array(z.never("must be empty: whole modules are not supported")).nullish(),
    rank_pattern: z.strictObject({}, "must be empty: one rank for all is supported").nullish(),
    alpha_pattern: z.strictObject({}, "must be empty: one alpha for all is supported").nullish(),
  },
  "must be an object",
);

const GenerationConfig = z.record(z.string(), z.unknown(), "must be an object");

/** The paths of a folder's own files, for reading and for errors. */
export const adapterPaths = (folder: string): { readonly config: string; readonly weights: string } => ({
  config: join(folder, CONFIG),
  weights: join(folder, WEIGHTS),
});

/** Adapters that were read, and the model they belong to. */
export interface AdapterFolder {
  /** The base's folder or file; absolute. */
  readonly base: string;
  /** α/r. */
  readonly scale: number;
  /** By the names of `adapterNames`. */
  readonly tensors: Readonly<Record<string, HostArray<"f32">>>;
  /** `generation_config.json`; undefined where there is none. */
  readonly generationConfig?: Readonly<Record<string, unknown>>;
}

/** Whether a folder holds adapters and no model of its own. */
export async function isAdapterFolder(folder: string): Promise<boolean> {
  return (await exists(join(folder, CONFIG))) && !(await exists(join(folder, "config.json")));
}

/** The base as the config names it: from the adapters' folder, or from the working directory. */
async function findBase(folder: string, name: string): Promise<string> {
  const candidates = isAbsolute(name) ? [name] : [resolve(folder, name), resolve(name)];
  for (const path of candidates) if (await exists(path)) return path;
  throw new FileError({
    where: `${adapterPaths(folder).config}: base_model_name_or_path`,
    rule: "must be the folder or file of the model that the adapters belong to",
    got: `${JSON.stringify(name)}, which is not there`,
    remedy: "Put the model back, or write its new place into the file",
  });
}

/** A JSON file's content. @throws FormatError naming the key that is missing, malformed or not supported */
async function readAs<T>(file: string, schema: z.ZodType<T>): Promise<T> {
  return parsedBy(schema, file, await readJson(file));
}

const readConfig = (folder: string) => readAs(adapterPaths(folder).config, Config);

/** The base's folder or file, without reading the adapters. @throws as {@link loadAdapterFolder} */
export async function baseOfAdapters(folder: string): Promise<string> {
  return findBase(folder, (await readConfig(folder)).base_model_name_or_path);
}

/**
 * Reads adapters.
 * @throws FileError when a file or the base is missing; FormatError when they are not LoRA as it is understood here, or a file
 *   breaks its format
 */
export async function loadAdapterFolder(folder: string): Promise<AdapterFolder> {
  const { base_model_name_or_path: name, r, lora_alpha: alpha, use_rslora } = await readConfig(folder);
  const base = await findBase(folder, name);
  const { weights: file } = adapterPaths(folder);
  await using source = safetensorsFloats(file, await openSafetensors(file));
  const tensors: Record<string, HostArray<"f32">> = {};
  for (const [full, shape] of source.shapes) {
    const name = full.startsWith(PREFIX) ? full.slice(PREFIX.length) : full;
    const [part] = /lora_[AB](?=\.weight$)/.exec(name) ?? [];
    const rank = part === "lora_A" ? shape[0] : shape[1];
    if (part === undefined || shape.length !== 2 || rank !== r) {
      throw new FormatError({
        where: `${file}: ${full}`,
        rule: `must be a matrix lora_A [${r}, in] or lora_B [out, ${r}]`,
        got: `[${shape.join(",")}]`,
      });
    }
    tensors[name] = await source.readF32(full);
  }
  const generation = join(folder, GENERATION);
  const generationConfig = (await exists(generation))
    ? await readAs(generation, GenerationConfig)
    : undefined;
  return {
    base,
    // Rank-stabilised LoRA (arXiv:2312.03732) divides by the root.
    scale: alpha / (use_rslora === true ? Math.sqrt(r) : r),
    tensors,
    ...(generationConfig === undefined ? {} : { generationConfig }),
  };
}

/**
 * A model's tensors with adapters taken in; those without one are shared.
 * @param where  names the adapters' file in errors
 * @throws FormatError when an adapter has no matrix that it fits, or only half of it is there
 */
export function withAdaptersMerged(
  where: string,
  tensors: Readonly<Record<string, HostArray<"f32">>>,
  adapters: Pick<AdapterFolder, "tensors" | "scale">,
): Record<string, HostArray<"f32">> {
  const merged: Record<string, HostArray<"f32">> = { ...tensors };
  const used = new Set<string>();
  for (const [name, weight] of Object.entries(tensors)) {
    if (!name.endsWith(".weight")) continue;
    const { a: aName, b: bName } = adapterNames(name);
    const [a, b] = [adapters.tensors[aName], adapters.tensors[bName]];
    if (a === undefined || b === undefined) continue;
    const [rows, columns] = weight.shape;
    if (!sameShape(a.shape, [a.shape[0]!, columns!]) || !sameShape(b.shape, [rows!, a.shape[0]!])) continue;
    merged[name] = mergeAdapter(weight, a, b, adapters.scale);
    used.add(aName).add(bName);
  }
  const stranger = Object.keys(adapters.tensors).find((name) => !used.has(name));
  if (stranger === undefined) return merged;
  throw new FormatError({
    where: `${where}: ${stranger}`,
    rule: "must be one of two that fit a matrix of the base",
    got: `[${adapters.tensors[stranger]!.shape.join(",")}]`,
    remedy: "Name the model in adapter_config.json that the adapters were trained on",
  });
}

/**
 * Writes adapters whole or not at all, replacing a folder that is there. PEFT loads them onto the base.
 * @param model.base              the base's folder or file
 * @param model.tensors           by the names of `adapterNames`
 * @param model.generationConfig  how to sample, beside them. @default nothing
 * @throws FileError when the folder cannot be written
 */
export async function saveAdapterFolder(
  folder: string,
  model: {
    readonly base: string;
    readonly adapters: AdapterConfig;
    readonly tensors: Readonly<Record<string, HostArray<"f32">>>;
    readonly generationConfig?: Readonly<Record<string, unknown>>;
  },
): Promise<void> {
  const { base, adapters, tensors, generationConfig } = model;
  const config = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: base,
    r: adapters.rank,
    lora_alpha: adapters.alpha,
    target_modules: adapters.targets,
    lora_dropout: 0,
    bias: "none",
    fan_in_fan_out: false,
    use_rslora: false,
    use_dora: false,
    modules_to_save: null,
    rank_pattern: {},
    alpha_pattern: {},
    inference_mode: true,
  };
  const named = Object.entries(tensors).map(([name, tensor]) => [PREFIX + name, tensor]);
  await writeFolderAtomic(folder, async (partial) => {
    await writeFileAtomic(join(partial, CONFIG), jsonText(config));
    if (generationConfig !== undefined)
      await writeFileAtomic(join(partial, GENERATION), jsonText(generationConfig));
    await writeSafetensors(join(partial, WEIGHTS), Object.fromEntries(named), { format: "pt" });
  });
}
