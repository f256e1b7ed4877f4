/**
 * Log-probabilities of the tokens of a given text: what perplexity is made of. The text runs through the decoding forward a
 * chunk at a time over one cache, so that the logits of a chunk, not of the text, are in memory at once.
 */

import { ConfigError, invariant, NumericError } from "../../base/errors.ts";
import type { Value } from "../../compute/graph/ir.ts";
import { reshape, sub, takeAlongLast } from "../../compute/graph/primitives.ts";
import { trace } from "../../compute/graph/trace.ts";
import { logSumExp } from "../../compute/ops/stable.ts";
import { ProgramCache } from "../../compute/runtime/jit.ts";
import type { Call } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";
import { cacheShapeOf } from "../arch/architecture.ts";
import { architectureOf, type ModelConfig, weightSpecs } from "../arch/models.ts";
import type { WeightTensors } from "./engine.ts";
import { cachePairs, cachePorts } from "./forward.ts";
import { expectPositions } from "./limits.ts";

export interface TokenScorerOptions {
  /** Longest text. @default the model's own limit */
  readonly maxPositions?: number;
  /** Tokens that run at once. @default 256 */
  readonly chunk?: number;
}

const CHUNK = 256;

interface Bound {
  readonly call: Call;
  readonly ids: Int32Array;
  readonly targets: Int32Array;
  readonly lengths: Int32Array;
  readonly total: Int32Array;
  readonly logp: Float32Array;
}

export class TokenScorer {
  readonly config: ModelConfig;
  readonly maxPositions: number;
  readonly #runtime: Runtime;
  readonly #programs: ProgramCache;
  readonly #chunk: number;
  #weights: WeightTensors | undefined;
  #bound: Bound | undefined;
  #busy = false;

  /** @throws ConfigError when the engine cannot decode such a model, or the length is beyond it */
  constructor(runtime: Runtime, config: ModelConfig, options: TokenScorerOptions = {}) {
    const { maxPositions = config.maxPositions, chunk = CHUNK } = options;
    expectPositions("token scorer", maxPositions, config);
    invariant(Number.isSafeInteger(chunk) && chunk >= 1, "a chunk is a whole number of tokens");
    architectureOf(config).checkDecoding(config);
    this.config = config;
    this.maxPositions = maxPositions;
    this.#runtime = runtime;
    this.#programs = new ProgramCache(runtime);
    this.#chunk = Math.min(chunk, maxPositions);
  }

  /** Scores with these weights from now on; they are read in place, not copied. */
  adopt(weights: WeightTensors): void {
    this.#bound?.call.dispose();
    this.#bound = undefined;
    this.#weights = weights;
  }

  /**
   * log p of every token but the first, given all before it, in nats.
   * @param ids  at least two; the first is context alone
   * @returns f32[ids.length − 1]
   * @throws ConfigError when there are too few or too many, or one is outside the vocabulary; NumericError when logits are not
   *   finite
   */
  async score(ids: readonly number[]): Promise<Float32Array> {
    invariant(!this.#busy, "one text at a time");
    this.#check(ids);
    this.#busy = true;
    try {
      return await this.#score(ids);
    } finally {
      this.#busy = false;
    }
  }

  #check(ids: readonly number[]): void {
    const where = "token scorer";
    if (ids.length < 2 || ids.length > this.maxPositions) {
      throw new ConfigError({
        where,
        rule: `a text must have from 2 to ${this.maxPositions} tokens`,
        got: `${ids.length}`,
      });
    }
    const { vocabSize } = this.config;
    const stranger = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
    if (stranger !== undefined) {
      throw new ConfigError({
        where,
        rule: `token ids must be whole numbers below the vocabulary's ${vocabSize}`,
        got: String(stranger),
        remedy: "Encode the text with the model's own tokenizer",
      });
    }
  }

  async #score(ids: readonly number[]): Promise<Float32Array> {
    const bound = await this.#bind();
    const T = this.#chunk;
    // The last token is nobody's context.
    const count = ids.length - 1;
    const logp = new Float32Array(count);
    for (let at = 0; at < count; at += T) {
      const size = Math.min(T, count - at);
      bound.ids.fill(0);
      bound.targets.fill(0);
      bound.ids.set(ids.slice(at, at + size));
      bound.targets.set(ids.slice(at + 1, at + 1 + size));
      // What pads the last chunk comes after the text, where no token of it looks.
      bound.lengths[0] = at + T - 1;
      bound.total[0] = at + T;
      await bound.call.run();
      logp.set(bound.logp.subarray(0, size), at);
    }
    if (logp.every(Number.isFinite)) return logp;
    throw new NumericError({
      where: "token scorer",
      rule: "logits must be finite",
      remedy: "Check the weights for NaN",
    });
  }

  async #bind(): Promise<Bound> {
    if (this.#bound !== undefined) return this.#bound;
    invariant(this.#weights !== undefined, "adopt weights before scoring");
    const architecture = architectureOf(this.config);
    const specs = architecture.caches(this.config);
    const T = this.#chunk;
    const positions = Math.ceil(this.maxPositions / T) * T;
    const integers: Record<string, TensorSpec> = {
      ids: { dtype: "i32", shape: [1, T] },
      targets: { dtype: "i32", shape: [T, 1] },
      lengths: { dtype: "i32", shape: [1] },
      total: { dtype: "i32", shape: [1] },
    };
    const shapes = specs.map((spec) => cacheShapeOf(spec, 1, positions));
    const memory = Object.fromEntries(
      specs.map(({ name }, i): [string, TensorSpec] => [name, { dtype: "f32", shape: shapes[i]! }]),
    );
    const { program } = await this.#programs.get("score", () => ({
      graph: trace({ ...weightSpecs(this.config), ...integers, ...memory }, (x: Record<string, Value>) => {
        const given = { ids: x["ids"]!, lengths: x["lengths"]!, total: x["total"]! };
        const { logits, caches } = architecture.decode(x, given, x, this.config);
        const chosen = takeAlongLast(logits, x["targets"]!); // [T, V] → [T, 1]
        return { logp: sub(reshape(chosen, [T]), reshape(logSumExp(logits), [T])), ...caches };
      }),
      options: { inPlace: cachePairs(specs) },
    }));
    const tensors = Object.fromEntries(
      Object.entries(integers).map(([name, { shape }]) => [name, this.#runtime.tensor("i32", shape)]),
    );
    const { past, next } = cachePorts(
      specs,
      shapes.map((shape) => this.#runtime.tensor("f32", shape)),
    );
    const logp = this.#runtime.tensor("f32", [T]);
    const data = (name: string): Int32Array => tensors[name]!.data;
    this.#bound = {
      call: program.bind({ ...this.#weights, ...tensors, ...past }, { logp, ...next }),
      ids: data("ids"),
      targets: data("targets"),
      lengths: data("lengths"),
      total: data("total"),
      logp: logp.data,
    };
    return this.#bound;
  }

  async dispose(): Promise<void> {
    this.#bound?.call.dispose();
    await this.#programs.dispose();
  }
}
