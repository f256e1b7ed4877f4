/**
 * What a run is configured with: every number that its result depends on, as plain data. A run stores it in `run.json` and
 * reads it back when it goes on. All schedules count steps, never seconds, so that a run can be repeated on another machine.
 */

import { z } from "zod";
import { ConfigError, expectKnown } from "../../base/errors.ts";
import { valueAt } from "../../base/json.ts";
import { ADAPTER_TARGETS, checkAdapters } from "../../model/arch/adapters.ts";
import { architectureOf, type ModelConfig } from "../../model/arch/models.ts";
import { LOSS_SETTINGS, type LossSettings, POLICY_LOSSES, type PolicyLossName } from "../losses/settings.ts";
import type { Stage } from "../runs/records.ts";
import { COUNTDOWN_GAMES, type CountdownGame, type CountdownOptions } from "../tasks/countdown/task.ts";
import type { ExploreOptions } from "../tasks/countdown/traces.ts";
import { NUMBER_USES } from "../tasks/countdown/types.ts";
import { type Thoughts, WALKS } from "../tasks/countdown/walks.ts";
import type { Task } from "../tasks/task.ts";

const count = z.int("must be a whole number").min(1, "must be at least 1");
const countOrNone = z.int("must be a whole number").min(0, "must be at least 0");
const positive = z.number("must be a number").positive("must be above 0");
const nonNegative = z.number("must be a number").min(0, "must be at least 0");
const share = z.number("must be a number").min(0, "must be from 0 to 1").max(1, "must be from 0 to 1");
/** Runs from before there was one sampled from all tokens. */
const topP = share.gt(0, "must be above 0").default(1);
const belowOne = nonNegative.lt(1, "must be below 1");

const Rates = z.strictObject({
  /** Of embeddings, head and norms; and of the matrices where AdamW moves them. */
  adamW: nonNegative,
  /** Of the matrices, where Muon moves them. */
  muon: nonNegative,
});

const Schedule = z.strictObject({
  /** Steps over which the rates rise from 0. */
  warmup: countOrNone,
  /** Share of the stage, at its end, over which they fall. */
  decay: share,
  /** Factor at the end. */
  final: share,
});

const Optimizer = z.strictObject({
  matrices: z.enum(["muon", "adamw"]),
  beta1: belowOne,
  beta2: belowOne,
  epsilon: positive,
  /** Muon's momentum. */
  momentum: belowOne,
  weightDecay: nonNegative,
  /** Global norm to which gradients are clipped. */
  clipNorm: positive,
});

/** Training on text, each step on new text: `rows` rows of `rowLength` tokens. */
const LanguageStage = z.strictObject({
  /** 0 leaves the stage out. */
  steps: countOrNone,
  rows: count,
  rowLength: z.int("must be a whole number").min(8, "must be at least 8"),
  rates: Rates,
  schedule: Schedule,
  optimizer: Optimizer,
});

const PolicyStage = z.strictObject({
  steps: countOrNone,
  /** P: prompts a step. */
  prompts: count,
  /** G: samples a prompt. */
  samples: z.int("must be a whole number").min(2, "must be at least 2: a lone sample has no baseline"),
  maxNewTokens: count,
  temperature: positive,
  /** Sequences decoded side by side. */
  slots: count,
  loss: z.enum(POLICY_LOSSES),
  /** What an advantage is divided by: the spread of its group, of the batch, or nothing. */
  scaling: z.enum(["group", "batch", "none"]),
  /** A ratio is clipped to 1 − clipLow and 1 + clipHigh; each loss has its own, `LOSS_SETTINGS` in losses/settings.ts. */
  clipLow: nonNegative,
  clipHigh: nonNegative,
  /** Two-sided clipping: the largest ratio a negative advantage may be multiplied with. Absent: none. */
  ratioCap: positive.optional(),
  /** Weight of the KL term; 0 trains without a reference. */
  klBeta: nonNegative,
  /** Steps after which the reference becomes the policy. */
  referenceEvery: count,
  /** Mini-batches a rollout is split into, one update each. */
  updatesPerRollout: count,
  /** How often each mini-batch is trained on. */
  epochs: count,
  entropyBonus: nonNegative,
  /**
   * A sample whose advantage, its sign left out, is below this is trained on with a probability of |advantage| / thinBelow, at least 1/4, and
   * weighs as much more as that is rarer. 0 or absent: all are trained on.
   */
  thinBelow: nonNegative.optional(),
  /** How often a group of equal rewards may be replaced by a new prompt's; 0 is never. */
  resampleAttempts: countOrNone,
  /** What happens to completions cut at the limit: nothing, no loss, or a soft punishment before the limit. */
  overlong: z.enum(["keep", "mask", "penalty"]),
  /** Tokens before the limit over which the punishment grows. */
  overlongSlope: count,
  rates: Rates,
  schedule: Schedule,
  optimizer: Optimizer,
  /** Tokens that go through forward and backward at once; more take more memory. */
  batchTokens: count,
});

const gameNames = Object.keys(COUNTDOWN_GAMES) as [CountdownGame, ...CountdownGame[]];

/** How exploration of the game is written; absent fields take the defaults of `explore`. */
const thoughtNames = Object.keys(WALKS) as [Thoughts, ...Thoughts[]];
const Explore = z.strictObject({
  thoughts: z.enum(thoughtNames).optional(),
  largest: count.optional(),
  skip: belowOne.optional(),
  stopAfterMiss: share.optional(),
  stopAfterHit: share.optional(),
  answerLast: share.optional(),
  pairs: share.optional(),
  checked: share.optional(),
} satisfies Record<keyof ExploreOptions, z.ZodType>);

/** DeepSeek-V3's layers in place of llama's: latent attention, and experts after the first dense layers. */
const Mixture = z.strictObject({
  /** Layers, from the first, that have the dense feed-forward. */
  denseLayers: countOrNone,
  experts: count,
  expertsPerToken: count,
  sharedExperts: countOrNone,
  /** Hidden width of an expert. */
  expertHidden: count,
  groups: count,
  groupsPerToken: count,
  expertScale: positive,
  /** Width of the latent of keys and values; of the queries' where they have one. */
  kvRank: count,
  queryRank: count.optional(),
  /** Width of a head's rotated part, beside the `headWidth` that is not; and of its value. */
  ropeWidth: count,
  valueWidth: count,
  /** Modules that predict the token after next: 0 or 1. */
  draftLayers: countOrNone,
  /** γ, α and λ of DeepSeek-V3. */
  auxiliary: z.strictObject({ correctionRate: nonNegative, balance: nonNegative, draft: nonNegative }),
});

const Model = z.strictObject({
  layers: count,
  /** C. */
  width: count,
  /** H, Hk. */
  heads: count,
  kvHeads: count,
  /** D. */
  headWidth: z
    .int("must be a whole number")
    .multipleOf(16, "must be a multiple of 16, as the decoding kernel asks"),
  /** F. */
  hidden: count,
  /** Absent: llama. Present: deepseek_v3, which has no use for kvHeads. */
  mixture: Mixture.optional(),
});

/** Low-rank adapters beside the matrices of a model that was loaded; they alone are trained. */
const Lora = z.strictObject({
  /** r. */
  rank: count,
  /** α: what an adapter adds is multiplied by α/r. */
  alpha: positive,
  /** Last parts of the matrices' names. */
  targets: z
    .array(z.string("must be names of matrices"), "must be a list of names")
    .min(1, "must not be empty"),
});

const Schema = z.strictObject({
  seed: z.int("must be a whole number"),
  /** Threads of every operator. Another number gives another rounding. */
  threads: count,
  /** Of a model made from nothing; absent where one is loaded. */
  model: Model.optional(),
  /** Absent: all weights are trained. */
  lora: Lora.optional(),
  /**
   * How a model that was loaded is given its prompts: `chat`, as a conversation by its own template where it has one, or
   * `text`, as they are. @default "chat"
   */
  prompts: z.enum(["chat", "text"]).optional(),
  /** Training on the task's exploration: makes the base. */
  pretrain: LanguageStage,
  /** Training on the task's good traces: a cold start. */
  sft: LanguageStage,
  rl: PolicyStage,
  /** Before and after reinforcement learning, on held-out prompts. */
  evaluation: z.strictObject({ count, samples: count, temperature: nonNegative, topP }),
  /** During it; `every` 0 is never. */
  validation: z.strictObject({ every: countOrNone, count, temperature: nonNegative, topP }),
  /** Steps between checkpoints. */
  checkpointEvery: count,
  /** Samples of each step that are kept in samples.jsonl. */
  samplesPerStep: countOrNone,
  /** The built-in game; other tasks pass it over. */
  countdown: z.strictObject({
    game: z.enum(gameNames),
    formatWeight: nonNegative,
    /** How often each number is to be used. Absent: at most once. */
    use: z.enum(NUMBER_USES).optional(),
    /** Of a punishment for writing the same again. Absent: 0. */
    repetitionWeight: nonNegative.optional(),
    /** Of a reward for right answers that are short and wrong ones that are not. Absent: 0. */
    lengthWeight: nonNegative.optional(),
    explore: Explore,
  }),
});

export type RunConfig = Readonly<z.infer<typeof Schema>>;
export type LanguageStageConfig = RunConfig["pretrain"];
export type PolicyStageConfig = RunConfig["rl"];
export type ModelSizes = NonNullable<RunConfig["model"]>;
/** The stages of a run in order, those without steps left out. */
export function stagesOf(config: RunConfig): { readonly stage: Stage; readonly steps: number }[] {
  const all: readonly Stage[] = ["pretrain", "sft", "rl"];
  return all.map((stage) => ({ stage, steps: config[stage].steps })).filter(({ steps }) => steps > 0);
}

/** The configuration of a run that makes its own model. */
export type FreshRunConfig = RunConfig & { readonly model: ModelSizes };

/** The names a section of the configuration has; undefined for a field. */
function namesAt(path: readonly PropertyKey[]): readonly string[] | undefined {
  let schema: z.core.$ZodType = Schema;
  for (const key of path) {
    if (!(schema instanceof z.ZodObject)) return undefined;
    schema = (schema.shape as Record<PropertyKey, z.core.$ZodType>)[key]!;
    if (schema instanceof z.ZodOptional) schema = schema.unwrap() as z.core.$ZodType;
  }
  return schema instanceof z.ZodObject ? Object.keys(schema.shape) : undefined;
}

/** Every field by its path, `rl.clipHigh`. */
function fieldPaths(path: readonly string[] = []): string[] {
  const names = namesAt(path);
  return names === undefined ? [path.join(".")] : names.flatMap((name) => fieldPaths([...path, name]));
}

/**
 * A configuration read from JSON, checked.
 * @throws ConfigError naming the first field that breaks its rule, or that does not exist with the nearest that does
 */
export function parseRunConfig(value: unknown): RunConfig {
  const parsed = Schema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    const where = ["config", ...issue.path].join(".");
    if (issue.code === "unrecognized_keys") expectKnown(where, issue.keys[0]!, namesAt(issue.path) ?? []);
    const got = JSON.stringify(valueAt(value, issue.path));
    throw new ConfigError({ where, rule: issue.message, got: got ?? "nothing" });
  }
  const config = parsed.data;
  if (config.model !== undefined) checkModel(config.model);
  if (config.lora !== undefined) {
    checkAdapters(config.lora);
    if (config.model !== undefined) {
      throw new ConfigError({
        where: "config.lora",
        rule: "is for a model that is loaded: one made from nothing has nothing to keep",
        got: "it beside config.model",
        remedy: "Name a model with --model, or leave it out",
      });
    }
  }
  checkExploration(config.countdown);
  const { prompts, samples, updatesPerRollout, maxNewTokens, overlong, overlongSlope, loss } = config.rl;
  const { ratioCap, clipHigh } = config.rl;
  if (ratioCap !== undefined && (loss === "cispo" || ratioCap <= 1 + clipHigh)) {
    throw new ConfigError({
      where: "config.rl.ratioCap",
      rule:
        loss === "cispo"
          ? "has no meaning for cispo, which clips ratios from above on both sides"
          : `must be above 1 + clipHigh (${1 + clipHigh}): a smaller one would clip what is rewarded, too`,
      got: `${ratioCap}`,
    });
  }
  if (updatesPerRollout > prompts * samples) {
    throw new ConfigError({
      where: "config.rl.updatesPerRollout",
      rule: `must be at most the ${prompts * samples} samples of a step`,
      got: `${updatesPerRollout}`,
    });
  }
  if (overlong === "penalty" && overlongSlope > maxNewTokens) {
    throw new ConfigError({
      where: "config.rl.overlongSlope",
      rule: `must be at most maxNewTokens (${maxNewTokens})`,
      got: `${overlongSlope}`,
    });
  }
  return config;
}

/** @throws ConfigError where results may not be as large as the numbers they are made of */
function checkExploration({ game, explore }: RunConfig["countdown"]): void {
  const { max } = COUNTDOWN_GAMES[game].numbers;
  const { largest = max } = explore;
  if (largest >= max) return;
  throw new ConfigError({
    where: "config.countdown.explore.largest",
    rule: `must be at least ${max}, the largest number of the game ${game}`,
    got: `${largest}`,
  });
}

/** @throws ConfigError naming the field that no model can have */
function checkModel(sizes: ModelSizes): void {
  // The vocabulary and the longest sequence come with the task; the rest of the model can be checked now.
  const model = modelConfig(sizes, { vocabSize: 1, maxPositions: 1 });
  architectureOf(model).check(model);
  architectureOf(model).checkDecoding(model);
  if (sizes.width % sizes.heads !== 0) {
    throw new ConfigError({
      where: "config.model.width",
      rule: "must be a multiple of heads, as other programs that load the model demand",
      got: `width ${sizes.width}, heads ${sizes.heads}`,
    });
  }
}

/**
 * A configuration with one field set from text, `rl.clipHigh=0.28`. Rules between fields are left to
 * {@link parseRunConfig}, so that several may be set one after another.
 * @throws ConfigError when the field does not exist, suggesting one that does
 */
export function setOption(config: RunConfig, assignment: string): RunConfig {
  const at = assignment.indexOf("=");
  if (at < 1) {
    throw new ConfigError({
      where: "--set",
      rule: "takes field=value",
      got: JSON.stringify(assignment),
      remedy: "For example --set rl.temperature=1.1",
    });
  }
  const path = assignment.slice(0, at).trim().split(".");
  const text = assignment.slice(at + 1).trim();
  for (const [depth, name] of path.entries()) {
    const names = namesAt(path.slice(0, depth)) ?? [];
    const elsewhere = fieldPaths().find((field) => field.endsWith(`.${path.join(".")}`));
    if (!names.includes(name) && elsewhere !== undefined) {
      throw new ConfigError({
        where: `--set ${path.join(".")}`,
        rule: "must be a field's whole name",
        got: JSON.stringify(path.join(".")),
        remedy: `Did you mean ${JSON.stringify(elsewhere)}?`,
      });
    }
    expectKnown(["--set", ...path.slice(0, depth)].join(" "), name, names);
  }
  const fields = namesAt(path);
  if (fields !== undefined) {
    throw new ConfigError({
      where: `--set ${path.join(".")}`,
      rule: "must name one field, not a section",
      got: JSON.stringify(path.join(".")),
      remedy: `It has ${fields.join(", ")}`,
    });
  }
  let value: unknown = text;
  try {
    value = JSON.parse(text);
  } catch {
    // Not JSON: a name such as dr_grpo, kept as text and held to its rule by parseRunConfig.
  }
  return withValue(config, path, value) as RunConfig;
}

/** A configuration with another policy loss, and the clip bounds and scaling that belong to it. */
export function withLoss(config: RunConfig, loss: PolicyLossName): RunConfig {
  return { ...config, rl: { ...config.rl, loss, ...LOSS_SETTINGS[loss] } };
}

/** A configuration with the limit on completions that a task names. */
export function withTaskLimits(config: RunConfig, task: Pick<Task<unknown>, "maxNewTokens">): RunConfig {
  const { maxNewTokens } = task;
  if (maxNewTokens === undefined) return config;
  const overlongSlope = Math.min(config.rl.overlongSlope, maxNewTokens);
  return { ...config, rl: { ...config.rl, maxNewTokens, overlongSlope } };
}

/** The field that `field=value` sets. */
const fieldOf = (assignment: string): string => assignment.split("=")[0]!.trim();

/** Whether a field is among those that are set. */
export function sets(assignments: readonly string[], field: string): boolean {
  return assignments.some((assignment) => fieldOf(assignment) === field);
}

/**
 * A configuration with several fields set, one after another. A loss that is set brings its clip bounds and scaling, but for what
 * is set, too.
 * @throws ConfigError as {@link setOption}
 */
export function setOptions(config: RunConfig, assignments: readonly string[]): RunConfig {
  const set = assignments.reduce(setOption, config);
  // A loss that does not exist is left to be refused with the whole.
  const own: LossSettings | undefined = sets(assignments, "rl.loss") ? LOSS_SETTINGS[set.rl.loss] : undefined;
  if (own === undefined) return set;
  const theirs = Object.entries(own).filter(([field]) => !sets(assignments, `rl.${field}`));
  return { ...set, rl: { ...set.rl, ...Object.fromEntries(theirs) } };
}

/** What a run's tensors, data or records depend on from its first step. */
const FIXED = [
  "seed",
  "model",
  "lora",
  "prompts",
  "countdown",
  // Before and after are measured alike, and what is measured is cut where training cuts.
  "evaluation",
  "rl.maxNewTokens",
  "pretrain.steps",
  "sft.steps",
  "pretrain.optimizer.matrices",
  "sft.optimizer.matrices",
  "rl.optimizer.matrices",
];

/**
 * The configuration of a run that goes on with some fields set anew.
 * @throws ConfigError when a field may not change once a run has begun; as {@link setOptions}, {@link parseRunConfig}
 */
export function changedConfig(config: RunConfig, assignments: readonly string[]): RunConfig {
  for (const assignment of assignments) {
    const field = fieldOf(assignment);
    if (!FIXED.some((fixed) => field === fixed || field.startsWith(`${fixed}.`))) continue;
    throw new ConfigError({
      where: `--set ${field}`,
      rule: "must stay as it is once a run has begun",
      got: assignment,
      remedy: "Start a new run with it",
    });
  }
  return parseRunConfig(setOptions(config, assignments));
}

function withValue(root: unknown, path: readonly string[], value: unknown): unknown {
  const [key, ...rest] = path;
  if (key === undefined) return value;
  // A section that may be absent begins with the field that is set; what it lacks is named when it is parsed.
  const object = (root ?? {}) as Record<string, unknown>;
  return { ...object, [key]: withValue(object[key], rest, value) };
}

/**
 * The one dial. Width grows with depth; heads are 32 wide and share their keys and values in pairs, since decoding is
 * bound by reading those; F is 8/3 of the width, as SwiGLU's third matrix asks.
 * @param depth  number of layers; 4 is width 128
 */
export function sizesOf(depth: number): ModelSizes {
  if (!Number.isSafeInteger(depth) || depth < 1) {
    throw new ConfigError({ where: "--depth", rule: "must be a whole number from 1", got: String(depth) });
  }
  const width = 64 * Math.max(1, Math.round(depth / 2));
  const heads = width / 32;
  return {
    layers: depth,
    width,
    heads,
    kvHeads: heads / 2,
    headWidth: 32,
    hidden: 8 * Math.ceil(width / 3),
  };
}

/**
 * A configuration at another depth. AdamW's rates fall with the square root of the width; Muon's, whose updates have a size
 * of their own, stay; batches of text grow with the depth.
 * @throws ConfigError for a configuration without a model of its own
 */
export function withDepth(config: RunConfig, depth: number): FreshRunConfig {
  const { model: own } = config;
  if (own === undefined) {
    throw new ConfigError({
      where: "--depth",
      rule: "is for a model made from nothing",
      got: "a configuration for one that is loaded",
      remedy: "Leave it out: a model that is loaded has its layers",
    });
  }
  const model = sizesOf(depth);
  const rate = Math.sqrt(own.width / model.width);
  const scaledRates = <S extends { readonly rates: RunConfig["rl"]["rates"] }>(stage: S): S => ({
    ...stage,
    rates: { ...stage.rates, adamW: stage.rates.adamW * rate },
  });
  const scaledText = (stage: LanguageStageConfig): LanguageStageConfig => ({
    ...scaledRates(stage),
    rows: Math.max(1, Math.round((stage.rows * depth) / own.layers)),
  });
  return {
    ...config,
    model,
    pretrain: scaledText(config.pretrain),
    sft: scaledText(config.sft),
    rl: scaledRates(config.rl),
  };
}

/** α of adapters of rank r, as twice the rank: the custom that their learning rate goes with. */
const ALPHA_PER_RANK = 2;
/** Adapters begin at zero and take a rate that would wreck full weights (arXiv:2106.09685, appendix D). */
const LORA_RATE = 2e-4;

/** A configuration for adapters of a rank in place of full weights, on all matrices, with rates that fit them. */
export function withLora(config: RunConfig, rank: number): RunConfig {
  const rates = { ...config.rl.rates, adamW: LORA_RATE };
  return {
    ...config,
    lora: { rank, alpha: ALPHA_PER_RANK * rank, targets: [...ADAPTER_TARGETS] },
    sft: { ...config.sft, rates },
    rl: { ...config.rl, rates },
  };
}

/** The model of given sizes, for a vocabulary and a longest sequence. */
export function modelConfig(
  sizes: ModelSizes,
  task: { readonly vocabSize: number; readonly maxPositions: number },
): ModelConfig {
  const { mixture } = sizes;
  if (mixture !== undefined) {
    return {
      modelType: "deepseek_v3",
      vocabSize: task.vocabSize,
      hiddenSize: sizes.width,
      intermediateSize: sizes.hidden,
      expertSize: mixture.expertHidden,
      layers: sizes.layers,
      denseLayers: mixture.denseLayers,
      heads: sizes.heads,
      ...(mixture.queryRank === undefined ? {} : { queryRank: mixture.queryRank }),
      kvRank: mixture.kvRank,
      nopeHeadDim: sizes.headWidth,
      ropeHeadDim: mixture.ropeWidth,
      valueHeadDim: mixture.valueWidth,
      routedExperts: mixture.experts,
      sharedExperts: mixture.sharedExperts,
      expertsPerToken: mixture.expertsPerToken,
      expertGroups: mixture.groups,
      groupsPerToken: mixture.groupsPerToken,
      normalizeExperts: true,
      expertScale: mixture.expertScale,
      draftLayers: mixture.draftLayers,
      rmsNormEpsilon: 1e-6,
      ropeTheta: 10_000,
      maxPositions: task.maxPositions,
      tieEmbeddings: false,
    };
  }
  return {
    vocabSize: task.vocabSize,
    hiddenSize: sizes.width,
    intermediateSize: sizes.hidden,
    layers: sizes.layers,
    heads: sizes.heads,
    kvHeads: sizes.kvHeads,
    headDim: sizes.headWidth,
    rmsNormEpsilon: 1e-6,
    ropeTheta: 10_000,
    maxPositions: task.maxPositions,
    tieEmbeddings: false,
  };
}

/** The built-in game as a configuration asks for it. */
export function countdownOptions({ countdown, rl }: Pick<RunConfig, "countdown" | "rl">): CountdownOptions {
  const { game, formatWeight, use, repetitionWeight = 0, lengthWeight = 0 } = countdown;
  const explore = Object.entries(countdown.explore).filter(([, value]) => value !== undefined);
  return {
    ...{ game, formatWeight, repetitionWeight },
    ...(use === undefined ? {} : { use }),
    length: { weight: lengthWeight, maxTokens: rl.maxNewTokens },
    explore: Object.fromEntries(explore),
  };
}
