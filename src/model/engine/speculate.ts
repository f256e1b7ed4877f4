/**
 * Greedy decoding in which a model's own head for the token after next guesses ahead (arXiv:2412.19437 §5.4.3; speculative
 * decoding, arXiv:2211.17192): each pass of the model runs the newest token and a guess of the one after it side by side. If
 * the model would have chosen the guess, the pass yields two tokens, and otherwise one; the text is the same either way, up
 * to the rounding of products of two rows.
 */

import { ConfigError, invariant, NumericError } from "../../base/errors.ts";
import type { Value } from "../../compute/graph/ir.ts";
import { trace } from "../../compute/graph/trace.ts";
import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import { ProgramCache } from "../../compute/runtime/jit.ts";
import type { Call } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";
import { type Architecture, type CacheSpec, cacheShapeOf, type Draft } from "../arch/architecture.ts";
import { architectureOf, type ModelConfig, weightSpecs } from "../arch/models.ts";
import type {
  EngineOptions,
  GenerateOptions,
  GenerateRequest,
  TokenEngine,
  WeightTensors,
} from "./engine.ts";
import { cachePairs, cachePorts } from "./forward.ts";
import { expectCount, expectPositions, expectPrompt, tokensOf } from "./limits.ts";

export interface SpeculateOptions {
  readonly maxNewTokens: number;
  readonly stopIds: readonly number[];
  /** Told of every token as it is chosen. */
  readonly onToken?: (id: number) => void;
  /** Told of every pass of the model: how many guesses it tried, and how many of them were right. */
  readonly onPass?: (drafted: 0 | 1, accepted: 0 | 1) => void;
  readonly signal?: AbortSignal;
}

export interface Speculated {
  /** The tokens after the prompt, the stop token included. */
  readonly ids: number[];
  /** `length`: cut at the limit. */
  readonly finish: "stop" | "length";
  /** Passes of the model, that over the prompt included. */
  readonly passes: number;
  /** Guesses that a pass has tried, and those that were right. */
  readonly drafted: number;
  readonly accepted: number;
}

/** Share of the guesses that were right; 0 where there were none. */
export function acceptance({ drafted, accepted }: Pick<Speculated, "drafted" | "accepted">): number {
  return drafted === 0 ? 0 : accepted / drafted;
}

/** Prompt lengths are padded to a multiple of this, so that few programs are compiled. */
const PROMPT_STEP = 16;

/** One of the two: the model, or its drafting head, which takes hidden states beside tokens. */
type Part = "model" | "draft";

/** A program for T new tokens and the tensors it is bound to. */
interface Bound {
  readonly call: Call;
  readonly ids: Int32Array;
  readonly lengths: Int32Array;
  readonly total: Int32Array;
  /** Row whose logits are wanted; undefined where all are. */
  readonly last: Int32Array | undefined;
  readonly logits: Float32Array;
}

/** Options of the engine that have the same meaning here. */
export type SpeculatorOptions = Pick<EngineOptions, "maxPositions" | "tokens">;

export class Speculator {
  readonly config: ModelConfig;
  readonly maxPositions: number;
  readonly #tokens: number;
  readonly #runtime: Runtime;
  readonly #programs: ProgramCache;
  readonly #architecture: Architecture<ModelConfig>;
  readonly #draft: Draft<ModelConfig>;
  readonly #specs: Readonly<Record<Part, readonly CacheSpec[]>>;
  readonly #caches: Readonly<Record<Part, readonly DeviceTensor<"f32">[]>>;
  /** States of the newest pass, by how many tokens it had. */
  readonly #hidden = new Map<number, DeviceTensor<"f32">>();
  #bound = new Map<string, Bound>();
  #weights: WeightTensors | undefined;
  #busy = false;

  /** @throws ConfigError when the model has no head for the token after next, or the engine cannot decode it */
  constructor(runtime: Runtime, config: ModelConfig, options: SpeculatorOptions = {}) {
    const maxPositions = options.maxPositions ?? config.maxPositions;
    expectPositions("speculator", maxPositions, config);
    this.#tokens = tokensOf("speculator", options.tokens, config);
    this.#architecture = architectureOf(config);
    this.#architecture.checkDecoding(config);
    const draft = this.#architecture.draft(config);
    if (draft === undefined) {
      throw new ConfigError({
        where: "speculator",
        rule: "needs a model with a head for the token after next",
        got: `a ${this.#architecture.name} without one`,
        remedy: "Generate with the engine",
      });
    }
    this.config = config;
    this.maxPositions = maxPositions;
    this.#runtime = runtime;
    this.#programs = new ProgramCache(runtime);
    this.#draft = draft;
    this.#specs = { model: this.#architecture.caches(config), draft: draft.caches(config) };
    const memory = (specs: readonly CacheSpec[]) =>
      specs.map((spec) => runtime.tensor("f32", cacheShapeOf(spec, 1, maxPositions)));
    this.#caches = { model: memory(this.#specs.model), draft: memory(this.#specs.draft) };
  }

  /** Decodes with these weights from now on; they are read in place, not copied. */
  adopt(weights: WeightTensors): void {
    this.#forget();
    this.#weights = weights;
  }

  /**
   * The greedy continuation of a prompt.
   * @throws ConfigError when the prompt is empty, leaves no room for a new token or holds an id outside the vocabulary, or when
   *   there is nothing to generate; NumericError when logits are not finite
   */
  async generate(prompt: readonly number[], options: SpeculateOptions): Promise<Speculated> {
    invariant(!this.#busy, "one generation at a time");
    this.#check(prompt, options.maxNewTokens);
    this.#busy = true;
    try {
      return await this.#generate(prompt, options);
    } finally {
      this.#busy = false;
    }
  }

  #check(prompt: readonly number[], maxNewTokens: number): void {
    expectPrompt("speculate", prompt, { maxPositions: this.maxPositions, vocabSize: this.config.vocabSize });
    expectCount("speculate: maxNewTokens", maxNewTokens);
  }

  async #generate(prompt: readonly number[], options: SpeculateOptions): Promise<Speculated> {
    const stops = new Set(options.stopIds);
    // A sequence ends where the positions do, its newest token not run.
    const room = Math.min(options.maxNewTokens, this.maxPositions - prompt.length);
    const ids: number[] = [];
    let [passes, drafted, accepted] = [1, 0, 0];
    /** Takes tokens in until one ends the text. @returns whether one did */
    const ended = (tokens: readonly number[]): boolean => {
      for (const id of tokens) {
        ids.push(id);
        options.onToken?.(id);
        if (stops.has(id) || ids.length >= room) return true;
      }
      return false;
    };
    const done = (): Speculated => {
      const finish = stops.has(ids.at(-1)!) ? "stop" : "length";
      return { ids, finish, passes, drafted, accepted };
    };

    /** Positions in the model's cache. */
    let length = prompt.length;
    const width = Math.min(Math.ceil(length / PROMPT_STEP) * PROMPT_STEP, this.maxPositions);
    let newest = (await this.#run("model", width, prompt, length, width))[0]!;
    options.onPass?.(0, 0);
    if (ended([newest])) return done();
    let guess = (await this.#run("draft", width, [...prompt.slice(1), newest], length, width))[0]!;
    for (;;) {
      options.signal?.throwIfAborted();
      passes++;
      // No room for a guess in the cache: the last token is run alone.
      if (length + 2 > this.maxPositions) {
        const last = await this.#run("model", 1, [newest], length + 1);
        options.onPass?.(0, 0);
        ended(last);
        return done();
      }
      const [next, afterNext] = (await this.#run("model", 2, [newest, guess], length + 2)) as [
        number,
        number,
      ];
      drafted++;
      const right = next === guess;
      if (right) accepted++;
      options.onPass?.(1, right ? 1 : 0);
      // What a wrong guess left in the cache is written over by the next pass.
      const tokens = right ? [next, afterNext] : [next];
      length += tokens.length;
      if (ended(tokens)) return done();
      newest = tokens.at(-1)!;
      guess = (await this.#run("draft", tokens.length, tokens, length))[0]!;
    }
  }

  /**
   * Runs tokens through one of the two, after which `length` positions are valid.
   * @param total  T for a first prompt. @default length
   * @returns the likeliest token of each row that is wanted: the last one, or both of two of the model
   */
  async #run(
    part: Part,
    T: number,
    tokens: readonly number[],
    length: number,
    total = length,
  ): Promise<number[]> {
    const bound = await this.#bind(part, T);
    bound.ids.fill(0);
    bound.ids.set(tokens);
    bound.lengths[0] = length - 1;
    bound.total[0] = total;
    if (bound.last !== undefined) bound.last[0] = tokens.length - 1;
    await bound.call.run();
    const V = this.config.vocabSize;
    return Array.from({ length: bound.logits.length / V }, (_, row) =>
      likeliest(bound.logits.subarray(row * V, row * V + this.#tokens)),
    );
  }

  /** States of the model's rows, [T, C]; of two rows the first is a view of both. */
  #hiddenOf(part: Part, T: number): DeviceTensor<"f32"> {
    const C = this.config.hiddenSize;
    // A guess was wrong: of the two rows that the model ran, the first is what the draft goes on from.
    if (part === "draft" && T === 1) return this.#hiddenOf("model", 2).view([1, C]);
    let hidden = this.#hidden.get(T);
    if (hidden === undefined) {
      hidden = this.#runtime.tensor("f32", [T, C]);
      this.#hidden.set(T, hidden);
    }
    return hidden;
  }

  async #bind(part: Part, T: number): Promise<Bound> {
    const key = `${part}:${T}`;
    const known = this.#bound.get(key);
    if (known !== undefined) return known;
    invariant(this.#weights !== undefined, "adopt weights before generating");
    const C = this.config.hiddenSize;
    // Both logits of the newest token and its guess are wanted; otherwise the last row's.
    const all = part === "model" && T === 2;
    const integers = (shape: readonly number[]): TensorSpec => ({ dtype: "i32", shape });
    const specs = this.#specs[part];
    const inputs: Record<string, TensorSpec> = {
      ids: integers([1, T]),
      lengths: integers([1]),
      total: integers([1]),
      ...(all ? {} : { last: integers([1]) }),
    };
    const states: Record<string, TensorSpec> =
      part === "draft" ? { hidden: { dtype: "f32", shape: [T, C] } } : {};
    const memory = Object.fromEntries(
      specs.map((spec): [string, TensorSpec] => [
        spec.name,
        { dtype: "f32", shape: cacheShapeOf(spec, 1, this.maxPositions) },
      ]),
    );
    const { program } = await this.#programs.get(key, () => ({
      graph: trace(
        { ...weightSpecs(this.config), ...inputs, ...states, ...memory },
        (x: Record<string, Value>) => {
          const { ids, lengths, total, last, hidden } = x as Record<string, Value>;
          const given = {
            ids: ids!,
            lengths: lengths!,
            total: total!,
            ...(last === undefined ? {} : { last }),
          };
          const decoded =
            part === "draft"
              ? this.#draft.decode(x, { ...given, hidden: hidden! }, x, this.config)
              : this.#architecture.decode(x, given, x, this.config);
          const outputs = { logits: decoded.logits, ...decoded.caches };
          return part === "draft" ? outputs : { ...outputs, states: decoded.hidden };
        },
      ),
      options: { inPlace: cachePairs(specs) },
    }));
    const tensors = Object.fromEntries(
      Object.entries(inputs).map(([name, { shape }]) => [name, this.#runtime.tensor("i32", shape)]),
    );
    const { past, next } = cachePorts(specs, this.#caches[part]);
    const logits = this.#runtime.tensor("f32", [all ? 2 : 1, this.config.vocabSize]);
    const hidden = this.#hiddenOf(part, T);
    const call = program.bind(
      { ...this.#weights, ...tensors, ...past, ...(part === "draft" ? { hidden } : {}) },
      { logits, ...next, ...(part === "draft" ? {} : { states: hidden }) },
    );
    const data = (name: string): Int32Array => tensors[name]!.data;
    const bound: Bound = {
      call,
      ids: data("ids"),
      lengths: data("lengths"),
      total: data("total"),
      last: all ? undefined : data("last"),
      logits: logits.data,
    };
    this.#bound.set(key, bound);
    return bound;
  }

  /** Drops what is bound to the weights of before. */
  #forget(): void {
    for (const { call } of this.#bound.values()) call.dispose();
    this.#bound = new Map();
  }

  async dispose(): Promise<void> {
    this.#forget();
    await this.#programs.dispose();
    for (const cache of [...this.#caches.model, ...this.#caches.draft]) cache.dispose();
  }
}

/** What guessing ahead has come to. */
export type Guesses = Pick<Speculated, "passes" | "drafted" | "accepted">;

/** A speculator in the engine's place: greedy, one prompt after the other, each completed once. */
export class SpeculatingEngine implements TokenEngine {
  readonly #speculator: Speculator;
  #guesses: Guesses = { passes: 0, drafted: 0, accepted: 0 };

  constructor(speculator: Speculator) {
    this.#speculator = speculator;
  }

  get maxPositions(): number {
    return this.#speculator.maxPositions;
  }

  /** Of all that has been generated, what was broken off included. */
  get guesses(): Guesses {
    return this.#guesses;
  }

  adopt(weights: WeightTensors): void {
    this.#speculator.adopt(weights);
  }

  /** @throws ConfigError unless the temperature is 0 and every prompt is to be completed once; as {@link Speculator.generate} */
  async generate(
    requests: readonly GenerateRequest[],
    options: GenerateOptions,
  ): Promise<Pick<Speculated, "ids" | "finish">[][]> {
    const { temperature, maxNewTokens, stopIds, signal, onToken } = options;
    const refuse = (what: string, rule: string, got: number | undefined): never => {
      throw new ConfigError({ where: `speculate: ${what}`, rule, got: `${got ?? "nothing"}` });
    };
    if (temperature !== 0) refuse("temperature", "must be 0: what is guessed is the likeliest", temperature);
    const several = requests.find(({ samples }) => samples !== 1);
    if (several !== undefined) {
      refuse("samples", "must be 1: greedy completions are all alike", several.samples);
    }
    const completions: Pick<Speculated, "ids" | "finish">[][] = [];
    for (const [request, { prompt }] of requests.entries()) {
      signal?.throwIfAborted();
      const { ids, finish } = await this.#speculator.generate(prompt, {
        maxNewTokens,
        stopIds,
        onToken: (id) => onToken?.(request, 0, id),
        onPass: (drafted, accepted) => {
          const sum = this.#guesses;
          this.#guesses = {
            passes: sum.passes + 1,
            drafted: sum.drafted + drafted,
            accepted: sum.accepted + accepted,
          };
        },
        ...(signal === undefined ? {} : { signal }),
      });
      completions.push([{ ids, finish }]);
    }
    return completions;
  }

  dispose(): Promise<void> {
    return this.#speculator.dispose();
  }
}

/** The first largest. @throws NumericError when one is not a number */
function likeliest(logits: Float32Array): number {
  let best = 0;
  for (const [id, logit] of logits.entries()) {
    if (Number.isNaN(logit)) {
      throw new NumericError({
        where: "speculate",
        rule: "logits must be finite",
        remedy: "Check the weights for NaN",
      });
    }
    if (logit > logits[best]!) best = id;
  }
  return best;
}
