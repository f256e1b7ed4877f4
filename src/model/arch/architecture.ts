/** What a family of models is to the rest: its tensors, its forward passes and its caches. */

import { ConfigError } from "../../base/errors.ts";
import type { Value } from "../../compute/graph/ir.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { Random } from "../../compute/tensor/random.ts";
import type { Shape } from "../../compute/tensor/shape.ts";
import { writeNumerals } from "./numerals.ts";

/**
 * What a tensor is to the optimiser: matrices go to Muon, the rest to AdamW; norms and biases are not decayed. A
 * correction has no gradient: it is moved by the loads of the experts (see `nn/moe.ts`). Where there are adapters, they alone
 * are trained (see `adapters.ts`).
 */
export type ParameterKind = "matrix" | "embedding" | "head" | "norm" | "bias" | "correction" | "adapter";

export interface ParameterSpec {
  readonly name: string;
  readonly shape: Shape;
  readonly kind: ParameterKind;
  /** Standard deviation of the initial values; 0: all are alike, 1 for norms and 0 otherwise. */
  readonly initialStd: number;
}

/** Weights by name, traced. */
export type Weights = Readonly<Record<string, Value>>;

/** @throws ConfigError naming the weight that is missing */
export function weightOf(weights: Weights, name: string, architecture: string): Value {
  const weight = weights[name];
  if (weight === undefined) throw new ConfigError({ where: architecture, rule: `needs the weight ${name}` });
  return weight;
}

export interface FreshOptions {
  /**
   * Ids of tokens that are whole numbers, and those numbers: their rows of embedding and head begin as
   * `numeralFeatures` of `numerals.ts`.
   */
  readonly numerals?: ReadonlyMap<number, number>;
}

/** Fresh weights; each tensor has its own random stream, so adding one does not move the others. */
export function freshWeights(
  specs: readonly ParameterSpec[],
  seed: number,
  { numerals }: FreshOptions = {},
): Record<string, HostArray<"f32">> {
  const entries = specs.map(({ name, shape, kind, initialStd }, index) => {
    const array = hostArray("f32", shape);
    const random = new Random(seed, 0x1417, index);
    if (kind === "norm") array.data.fill(1);
    else if (initialStd > 0)
      for (let i = 0; i < array.data.length; i++) array.data[i] = random.normal() * initialStd;
    if ((kind === "embedding" || kind === "head") && numerals !== undefined) {
      const std = kind === "embedding" ? 1 : 1 / Math.sqrt(shape[1]!);
      writeNumerals(array, numerals, new Random(seed, 0x1418, index), std);
    }
    return [name, array] as const;
  });
  return Object.fromEntries(entries);
}

/** Rows in which several sequences may be packed; each i32[B, T]. */
export interface PackedRows {
  readonly ids: Value;
  /** Position of each token in its own sequence. */
  readonly positions: Value;
  /** Which sequence of the row a token belongs to; 0 is padding. */
  readonly segments: Value;
  /** The segment that a token sees beside its own, what several sequences begin with. @default none */
  readonly prefixes?: Value;
}

/** What the gate of one layer did with a batch. */
export interface Routing {
  /** The layer's correction, a parameter. */
  readonly correction: string;
  /** f32[E]: tokens that chose each expert, padding not counted. */
  readonly load: Value;
  /** f32[B, T]: the sequence-wise balance loss, without its factor α, of the sequence each token belongs to. */
  readonly balance: Value;
}

export interface TrainOutputs {
  /** [B·T, V] */
  readonly logits: Value;
  /** After the final norm, [B·T, C]. */
  readonly hidden: Value;
  /** The matrix that makes logits of it, [V, C]. */
  readonly head: Value;
  /** One per layer with a gate. */
  readonly routing: readonly Routing[];
}

/** A cache of past positions, [B, G, S, W]: G vectors of width W a position. */
export interface CacheSpec {
  /** Graph input. */
  readonly name: string;
  readonly groups: number;
  readonly width: number;
  /** Graph outputs that extend it in the same memory. */
  readonly outputs: readonly string[];
}

/** Shape of a cache of `batch` rows and `positions` positions. */
export function cacheShapeOf({ groups, width }: CacheSpec, batch: number, positions: number): Shape {
  return [batch, groups, positions, width];
}

export interface DecodeInputs {
  /** i32[B, T]; or f32[B, T, C], their rows of the embedding, where those were looked up elsewhere: of llama and qwen2. */
  readonly ids: Value;
  /** i32[B], valid positions after this call minus one. */
  readonly lengths: Value;
  /** i32[1], the largest of them plus one. */
  readonly total: Value;
  /** i32[B], row of the flattened [B·T] whose logits are wanted; absent: every row. */
  readonly last?: Value;
}

export interface DecodeOutputs {
  /** [B, V], or [B·T, V] where every row is wanted. */
  readonly logits: Value;
  /** After the final norm, of all rows, [B·T, C]. */
  readonly hidden: Value;
  /** By the names of {@link CacheSpec.outputs}. */
  readonly caches: Readonly<Record<string, Value>>;
}

/** A further head that guesses the token after next (multi-token prediction), and what it needs to decode. */
export interface Draft<Config> {
  /** Its caches, beside the model's. */
  caches(config: Config): readonly CacheSpec[];
  /**
   * Logits, at each position i, of token i + 2.
   * @param hidden  the model's, [B·T, C]
   * @param batch.next  i32[B, T], token i + 1
   */
  train(
    weights: Weights,
    hidden: Value,
    batch: PackedRows & { readonly next: Value },
    config: Config,
  ): TrainOutputs;
  /** As the model's decoding forward, of positions whose hidden states and next tokens are known. */
  decode(
    weights: Weights,
    inputs: DecodeInputs & { readonly hidden: Value },
    caches: Readonly<Record<string, Value>>,
    config: Config,
  ): DecodeOutputs;
}

/** Names of matrices with the same input, and what they are called when the rows of each follow those of the one before. */
export interface JoinedWeights {
  readonly parts: readonly string[];
  readonly joined: string;
}

export interface Architecture<Config> {
  /** `model_type` of its `config.json`. */
  readonly name: string;
  /** @throws ConfigError naming the field that breaks its rule */
  check(config: Config): void;
  /** @throws ConfigError when the engine cannot decode such a model */
  checkDecoding(config: Config): void;
  /** Every tensor of the model, in order. */
  parameters(config: Config): ParameterSpec[];
  /** The training forward: differentiable. */
  train(weights: Weights, batch: PackedRows, config: Config): TrainOutputs;
  caches(config: Config): readonly CacheSpec[];
  /**
   * The decoding forward: T new tokens a row (right-padded when rows differ), attending to the caches and extending them.
   * @param caches  by name, as {@link Architecture.caches} lists them
   */
  decode(
    weights: Weights,
    inputs: DecodeInputs,
    caches: Readonly<Record<string, Value>>,
    config: Config,
  ): DecodeOutputs;
  /** Matrices that {@link Architecture.decode} takes as one where it is given them so: fewer, larger products. */
  joins(config: Config): readonly JoinedWeights[];
  /** Weights that one token is multiplied with, the embedding's look-up not counted. */
  activeParameters(config: Config): number;
  /** The head for the token after next, where the model has one. */
  draft(config: Config): Draft<Config> | undefined;
}
