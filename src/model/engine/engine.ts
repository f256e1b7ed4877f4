/**
 * Batched generation: many sequences decoded side by side over one key/value cache that is updated in place.
 *
 * A prompt is run once and its keys and values are copied to each of its samples. A sequence that ends makes room at
 * once: for the next in the queue, or, when none waits, the last active row moves into its place and the batch shrinks
 * to the next smaller program. What a sequence says depends on its own prompt and random stream alone, up to the
 * rounding of differently shaped products.
 */

import { invariant, NumericError } from "../../base/errors.ts";
import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { Random } from "../../compute/tensor/random.ts";
import { type CacheSpec, cacheShapeOf } from "../arch/architecture.ts";
import { architectureOf, type ModelConfig } from "../arch/models.ts";
import { AdoptedForward, type WeightTensors } from "./adopted-forward.ts";
import type { Forward, Prefix } from "./forward.ts";
import { expectCount, expectPositions, expectPrompt, tokensOf } from "./limits.ts";
import { SAMPLING_DEFAULTS, Sampler, type SamplingOptions } from "./sampler.ts";
import { LEAST_POSITIONS, StoredForward, type StoredOptions } from "./stored-forward.ts";

export type { WeightTensors } from "./adopted-forward.ts";

export interface GenerateRequest {
  readonly prompt: readonly number[];
  /** How many completions to draw. */
  readonly samples: number;
  /** Names the random streams: sample i draws from `Random(seed, ...path, i)`. */
  readonly seed: number;
  readonly path?: readonly number[];
}

export interface GenerateOptions extends Partial<SamplingOptions> {
  readonly maxNewTokens: number;
  readonly stopIds: readonly number[];
  /** Told of every token as it is chosen. */
  readonly onToken?: (request: number, sample: number, id: number) => void;
  readonly signal?: AbortSignal;
}

export interface Completion {
  /** The tokens after the prompt, the stop token included. */
  readonly ids: number[];
  /** Log-probability of each, nats, at the sampling temperature. */
  readonly logp: number[];
  /** `length`: cut at the limit. */
  readonly finish: "stop" | "length";
}

/** What completes prompts: the engine, or what takes its place. */
export interface TokenEngine {
  /** Longest sequence, prompt included. */
  readonly maxPositions: number;
  /** Completions of every request, in order; @throws as {@link Engine.generate} */
  generate(
    requests: readonly GenerateRequest[],
    options: GenerateOptions,
  ): Promise<readonly (readonly Pick<Completion, "ids" | "finish">[])[]>;
}

export interface EngineOptions {
  /** Sequences decoded side by side. */
  readonly slots: number;
  /** Longest sequence, prompt included. @default the model's own limit */
  readonly maxPositions?: number;
  /** Ids below this alone are written: a model may have more rows than its tokenizer has tokens, as Qwen's do. @default all */
  readonly tokens?: number;
  /**
   * Weights that stay: they are laid out for the processor once, and matrices of whole numbers are multiplied as they are. Such an
   * engine adopts no others.
   */
  readonly stored?: StoredOptions;
}

interface Waiting {
  readonly request: number;
  readonly sample: number;
}

interface Active extends Waiting {
  readonly random: Random;
  readonly ids: number[];
  readonly logp: number[];
  /** Valid positions in the cache. */
  length: number;
}

export class Engine implements TokenEngine {
  readonly config: ModelConfig;
  readonly slots: number;
  readonly maxPositions: number;
  readonly #tokens: number;
  readonly #cacheSpecs: readonly CacheSpec[];
  /** Of each row of the caches; sequences may be shorter at most. */
  readonly #positions: number;
  /** One per spec, for all slots. */
  readonly #caches: readonly DeviceTensor<"f32">[];
  readonly #forward: Forward;
  /** Once stored weights are all read and the last are being laid out, or one cannot be read: the time for others to do their part. */
  readonly allRead: Promise<void>;
  #busy = false;

  constructor(runtime: Runtime, config: ModelConfig, options: EngineOptions) {
    const maxPositions = options.maxPositions ?? config.maxPositions;
    expectCount("engine: slots", options.slots);
    expectPositions("engine", maxPositions, config);
    this.#tokens = tokensOf("engine", options.tokens, config);
    const architecture = architectureOf(config);
    architecture.checkDecoding(config);
    this.config = config;
    this.slots = options.slots;
    this.maxPositions = maxPositions;
    this.#cacheSpecs = architecture.caches(config);
    this.#positions = options.stored === undefined ? maxPositions : Math.max(maxPositions, LEAST_POSITIONS);
    this.#caches = this.#cacheSpecs.map((spec) =>
      runtime.tensor("f32", cacheShapeOf(spec, this.slots, this.#positions)),
    );
    const caches = {
      specs: this.#cacheSpecs,
      tensors: this.#caches,
      slots: this.slots,
      maxPositions: this.#positions,
    };
    if (options.stored === undefined) {
      this.#forward = new AdoptedForward(runtime, config, caches);
      this.allRead = Promise.resolve();
    } else {
      const stored = new StoredForward(runtime, config, caches, options.stored);
      this.#forward = stored;
      this.allRead = stored.allRead;
    }
  }

  /** Decodes with these weights from now on; they are read in place, not copied. Not for an engine of stored weights. */
  adopt(weights: WeightTensors): void {
    invariant(this.#forward instanceof AdoptedForward, "an engine of stored weights adopts no others");
    this.#forward.adopt(weights);
  }

  /**
   * Completions of every request, in order.
   * @throws ConfigError when a prompt is empty, leaves no room for a new token or holds an id outside the vocabulary, when
   *   there is nothing to generate, or when a sampling option is outside its range
   * @throws NumericError when logits are not finite
   */
  async generate(requests: readonly GenerateRequest[], options: GenerateOptions): Promise<Completion[][]> {
    invariant(!this.#busy, "one generation at a time");
    const { vocabSize } = this.config;
    for (const { prompt, samples } of requests) {
      expectPrompt("generate", prompt, { maxPositions: this.maxPositions, vocabSize });
      expectCount("generate: samples", samples);
    }
    expectCount("generate: maxNewTokens", options.maxNewTokens);
    this.#busy = true;
    try {
      return await this.#generate(requests, options);
    } finally {
      this.#busy = false;
    }
  }

  async #generate(requests: readonly GenerateRequest[], options: GenerateOptions): Promise<Completion[][]> {
    const { vocabSize } = this.config;
    const sampler = new Sampler(vocabSize, { ...SAMPLING_DEFAULTS, ...pickSampling(options) }, this.#tokens);
    const stops = new Set(options.stopIds);
    const results: Completion[][] = requests.map(() => []);
    const queue: Waiting[] = requests.flatMap(({ samples }, request) =>
      Array.from({ length: samples }, (_, sample) => ({ request, sample })),
    );
    let next = 0;
    let prefetched = 0;
    const prefixes: (Prefix | undefined)[] = [];
    const rows: Active[] = [];

    /** Takes a token into a sequence; true when that ends it. */
    const take = (row: Active, logits: Float32Array, offset: number): boolean => {
      const { id, logp } = sampler.choose(logits, offset, row.random.uniform());
      if (Number.isNaN(logp)) {
        throw new NumericError({
          where: "generate",
          rule: "logits must be finite",
          remedy: "Check the weights for NaN",
        });
      }
      row.ids.push(id);
      row.logp.push(logp);
      options.onToken?.(row.request, row.sample, id);
      const stopped = stops.has(id);
      const full = row.ids.length >= options.maxNewTokens || row.length + 1 >= this.maxPositions;
      if (!stopped && !full) return false;
      results[row.request]![row.sample] = {
        ids: row.ids,
        logp: row.logp,
        finish: stopped ? "stop" : "length",
      };
      return true;
    };

    /** Fills a slot with the next waiting sequence that does not end at once; false when none is left. */
    const admit = async (slot: number): Promise<boolean> => {
      while (next < queue.length) {
        const waiting = queue[next++]!;
        const { request, sample } = waiting;
        if (request >= prefetched) {
          options.signal?.throwIfAborted();
          const until = Math.min(requests.length, prefetched + this.#forward.promptRows);
          const batch = await this.#forward.prefill(requests.slice(prefetched, until));
          for (const [i, prefix] of batch.entries()) prefixes[prefetched + i] = prefix;
          prefetched = until;
        }
        const prefix = prefixes[request]!;
        const { seed, path = [], samples } = requests[request]!;
        const random = new Random(seed, ...path, sample);
        const row: Active = { ...waiting, random, ids: [], logp: [], length: prefix.length };
        const ended = take(row, prefix.logits, 0);
        if (!ended) {
          rows[slot] = row;
          this.#copyPrefix(prefix, slot);
        }
        if (sample === samples - 1) prefixes[request] = undefined; // its last sample has started
        if (!ended) return true;
      }
      return false;
    };

    while (rows.length < this.slots && (await admit(rows.length)));
    while (rows.length > 0) {
      options.signal?.throwIfAborted();
      const decoder = await this.#forward.decoder(rows.length);
      let longest = 0;
      for (const [slot, row] of rows.entries()) {
        decoder.ids[slot] = row.ids.at(-1)!;
        decoder.lengths[slot] = row.length;
        longest = Math.max(longest, row.length);
      }
      // Rows beyond the active ones compute on one position of their own and are not read.
      decoder.ids.fill(0, rows.length);
      decoder.lengths.fill(0, rows.length);
      decoder.total[0] = longest + 1;
      await decoder.run();
      for (let slot = rows.length - 1; slot >= 0; slot--) {
        const row = rows[slot]!;
        row.length++;
        if (!take(row, decoder.logits, slot * vocabSize)) continue;
        if (await admit(slot)) continue;
        const last = rows.pop()!;
        if (slot < rows.length) {
          rows[slot] = last;
          this.#moveRow(rows.length, slot, last.length);
        }
      }
    }
    return results;
  }

  /** Puts a prompt's keys and values into a slot. */
  #copyPrefix(prefix: Prefix, slot: number): void {
    for (const [i, part] of prefix.caches.entries()) {
      if (part === this.#caches[i]!.data) continue; // It was run there.
      const { groups, width } = this.#cacheSpecs[i]!;
      for (let group = 0; group < groups; group++) {
        const from = group * prefix.positions * width;
        const to = (slot * groups + group) * this.#positions * width;
        this.#caches[i]!.data.set(part.subarray(from, from + prefix.length * width), to);
      }
    }
  }

  /** Moves a row's first `length` positions from one slot to another. */
  #moveRow(from: number, to: number, length: number): void {
    for (const [i, { data }] of this.#caches.entries()) {
      const { groups, width } = this.#cacheSpecs[i]!;
      const stride = this.#positions * width;
      for (let group = 0; group < groups; group++) {
        const source = (from * groups + group) * stride;
        data.copyWithin((to * groups + group) * stride, source, source + length * width);
      }
    }
  }

  async dispose(): Promise<void> {
    await this.#forward.dispose();
    for (const cache of this.#caches) cache.dispose();
  }
}

function pickSampling({ temperature, topK, topP, minP }: Partial<SamplingOptions>): Partial<SamplingOptions> {
  const given = { temperature, topK, topP, minP };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}
