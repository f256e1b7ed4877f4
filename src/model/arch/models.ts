/** Every architecture, and what can be asked of a model whatever its architecture. */

import { z } from "zod";
import { ConfigError } from "../../base/errors.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import { sizeOf, type TensorSpec } from "../../compute/tensor/shape.ts";
import { type Architecture, type FreshOptions, freshWeights, type ParameterSpec } from "./architecture.ts";
import { isDeepseekArgs, parseDeepseekArgs } from "./deepseek-args.ts";
import { deepseekConfigJson, parseDeepseekConfig } from "./deepseek-json.ts";
import { DEEPSEEK_V3, type DeepseekV3Config } from "./deepseek-v3.ts";
import { LLAMA, type LlamaConfig, QWEN2 } from "./llama.ts";
import { llamaConfigJson, parseLlamaConfig } from "./llama-json.ts";

export type ModelConfig = LlamaConfig | DeepseekV3Config;

const ARCHITECTURES = { llama: LLAMA, qwen2: QWEN2, deepseek_v3: DEEPSEEK_V3 };

/** The architecture of a config. */
export function architectureOf(config: ModelConfig): Architecture<ModelConfig> {
  // The config says which it is; of the others, none will be asked about it.
  return ARCHITECTURES[config.modelType ?? "llama"] as Architecture<ModelConfig>;
}

/** Every tensor of the model, in order. */
export function modelParameters(config: ModelConfig): ParameterSpec[] {
  return architectureOf(config).parameters(config);
}

/** Number of weights. */
export function parameterCount(config: ModelConfig): number {
  return modelParameters(config).reduce((total, { shape }) => total + sizeOf(shape), 0);
}

const MOST_SHORT_PARAMETERS = 2 ** 24;

/**
 * Whether the operators of a model are so short that threads wait for each other: then it pays to divide sequences among threads,
 * each with operators of its own, and not every operator.
 */
export const hasShortOperators = (config: ModelConfig): boolean =>
  parameterCount(config) <= MOST_SHORT_PARAMETERS;

/** Graph-input specs of the weights. */
export function weightSpecs(config: ModelConfig): Record<string, TensorSpec> {
  return Object.fromEntries(
    modelParameters(config).map(({ name, shape }) => [name, { dtype: "f32" as const, shape }]),
  );
}

/** Numbers a token leaves in the caches of all layers. */
export function cachedNumbers(config: ModelConfig): number {
  return architectureOf(config)
    .caches(config)
    .reduce((total, { groups, width }) => total + groups * width, 0);
}

/** As {@link freshWeights}. @throws ConfigError naming the field that breaks its rule */
export function initializeModel(
  config: ModelConfig,
  seed: number,
  options: FreshOptions = {},
): Record<string, HostArray<"f32">> {
  architectureOf(config).check(config);
  return freshWeights(modelParameters(config), seed, options);
}

/** What a `config.json` says. */
export interface ParsedModelConfig {
  readonly config: ModelConfig;
  /** Keys that the architecture does not depend on, token ids among them. */
  readonly extra: Readonly<Record<string, unknown>>;
}

const TypeJson = z.looseObject({ model_type: z.string() });

/**
 * Reads a parsed `config.json` of any architecture, or the arguments of DeepSeek's reference inference.
 * @param where names the file in errors
 * @throws ConfigError when it is of no known architecture, or naming the key whose value is missing, malformed or not supported
 */
export function parseModelConfig(where: string, json: unknown): ParsedModelConfig {
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new ConfigError({ where, rule: "must be an object", got: JSON.stringify(json) });
  }
  if (isDeepseekArgs(json)) return { config: parseDeepseekArgs(where, json), extra: {} };
  const type = TypeJson.safeParse(json).data?.model_type;
  switch (type) {
    case "llama":
    case "qwen2":
      return parseLlamaConfig(where, json, type);
    case "deepseek_v3":
      return parseDeepseekConfig(where, json);
    default:
      throw new ConfigError({
        where: `${where}: model_type`,
        rule: `must be one of ${Object.keys(ARCHITECTURES).join(", ")}: no other architecture is supported`,
        got: JSON.stringify((json as { model_type?: unknown }).model_type) ?? "nothing",
      });
  }
}

/** The `config.json` of a float32 model; `extra` as {@link parseModelConfig} gave it. */
export function modelConfigJson({ config, extra }: ParsedModelConfig): Record<string, unknown> {
  return config.modelType === "deepseek_v3"
    ? deepseekConfigJson({ config, extra })
    : llamaConfigJson({ config, extra });
}
