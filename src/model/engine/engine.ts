/**
 * Batched generation: many sequences decoded side by side over one key/value cache that is updated in place.
 *
 * A prompt is run once and its keys and values are copied to each of its samples. A sequence that ends makes room at
 * once: for the next in the queue, or, when none waits, the last active row moves into its place and the batch shrinks
 * to the next smaller program. What a sequence says depends on its own prompt and random stream alone, up to the
 * rounding of differently shaped products.
 */

import { ConfigError, invariant, NumericError } from "../../base/errors.ts";
import type { Value } from "../../compute/graph/ir.ts";
import { trace } from "../../compute/graph/trace.ts";
import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import { ProgramCache } from "../../compute/runtime/jit.ts";
import type { Call, Program } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { Random } from "../../compute/tensor/random.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";
import { type Architecture, type CacheSpec, cacheShapeOf } from "../arch/architecture.ts";
import { architectureOf, type ModelConfig, weightSpecs } from "../arch/models.ts";
import { SAMPLING_DEFAULTS, Sampler, type SamplingOptions } from "./sampler.ts";

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
}

export type WeightTensors = Readonly<Record<string, DeviceTensor<"f32">>>;

/** Prompts are run in batches of this many at most. */
const PREFILL_ROWS = 32;
/** Prompt lengths are padded to a multiple of this, so that few programs are compiled. */
const PREFILL_STEP = 16;

/** Batch sizes for which decoding programs exist: powers of two and one size between each. */
function bucketFor(active: number, slots: number): number {
  for (let size = 1; size < slots; size *= 2) {
    if (active <= size) return size;
    if (size >= 8 && size * 1.5 < slots && active <= size * 1.5) return size * 1.5;
  }
  return slots;
}

/** A prompt that has been run: what its samples start from. */
interface Prefix {
  readonly length: number;
  /** Its positions in each cache, [G, length, W]. */
  readonly caches: readonly Float32Array[];
  /** Logits of the first new token, [V]. */
  readonly logits: Float32Array;
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

interface Decoder {
  readonly call: Call;
  readonly ids: Int32Array;
  readonly lengths: Int32Array;
  readonly total: Int32Array;
  readonly logits: Float32Array;
}

export class Engine implements TokenEngine {
  readonly config: ModelConfig;
  readonly slots: number;
  readonly maxPositions: number;
  readonly #runtime: Runtime;
  readonly #programs: ProgramCache;
  readonly #architecture: Architecture<ModelConfig>;
  readonly #cacheSpecs: readonly CacheSpec[];
  /** One per spec, for all slots. */
  readonly #caches: readonly DeviceTensor<"f32">[];
  /** Decoders by batch size, for each set of weights seen: a trainer alternates between two. */
  readonly #decoders = new WeakMap<DeviceTensor, Map<number, Decoder>>();
  /** The tensor by which sets of weights are told apart: one that every training moves, adapters' among them. */
  readonly #mark: string;
  #weights: WeightTensors | undefined;
  #busy = false;

  constructor(runtime: Runtime, config: ModelConfig, options: EngineOptions) {
    const maxPositions = options.maxPositions ?? config.maxPositions;
    if (!Number.isSafeInteger(options.slots) || options.slots < 1) {
      throw new ConfigError({
        where: "engine: slots",
        rule: "must be a positive integer",
        got: String(options.slots),
      });
    }
    if (!Number.isSafeInteger(maxPositions) || maxPositions < 1 || maxPositions > config.maxPositions) {
      throw new ConfigError({
        where: "engine: maxPositions",
        rule: `must be from 1 to the model's ${config.maxPositions}`,
        got: String(maxPositions),
      });
    }
    this.#architecture = architectureOf(config);
    this.#architecture.checkDecoding(config);
    this.config = config;
    this.slots = options.slots;
    this.maxPositions = maxPositions;
    this.#runtime = runtime;
    this.#programs = new ProgramCache(runtime);
    this.#mark = this.#architecture.parameters(config).at(-1)!.name;
    this.#cacheSpecs = this.#architecture.caches(config);
    this.#caches = this.#cacheSpecs.map((spec) =>
      runtime.tensor("f32", cacheShapeOf(spec, this.slots, maxPositions)),
    );
  }

  /** Decodes with these weights from now on; they are read in place, not copied. */
  adopt(weights: WeightTensors): void {
    this.#weights = weights;
  }

  /**
   * Completions of every request, in order.
   * @throws ConfigError when a prompt is empty, leaves no room for a new token or holds an id outside the vocabulary, when
   *   there is nothing to generate, or when a sampling option is outside its range
   * @throws NumericError when logits are not finite
   */
  async generate(requests: readonly GenerateRequest[], options: GenerateOptions): Promise<Completion[][]> {
    invariant(!this.#busy, "one generation at a time");
    invariant(this.#weights !== undefined, "adopt weights before generating");
    const { vocabSize } = this.config;
    for (const { prompt, samples } of requests) {
      if (prompt.length === 0 || prompt.length >= this.maxPositions) {
        throw new ConfigError({
          where: "generate: prompt",
          rule: `must have from 1 to ${this.maxPositions - 1} tokens`,
          got: `${prompt.length}`,
          remedy: "Shorten it, or load the model with more positions",
        });
      }
      const stranger = prompt.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
      if (stranger !== undefined) {
        throw new ConfigError({
          where: "generate: prompt",
          rule: `token ids must be whole numbers below the vocabulary's ${vocabSize}`,
          got: String(stranger),
          remedy: "Encode the prompt with the model's own tokenizer",
        });
      }
      expectCount("samples", samples);
    }
    expectCount("maxNewTokens", options.maxNewTokens);
    this.#busy = true;
    try {
      return await this.#generate(requests, options, this.#weights);
    } finally {
      this.#busy = false;
    }
  }

  async #generate(
    requests: readonly GenerateRequest[],
    options: GenerateOptions,
    weights: WeightTensors,
  ): Promise<Completion[][]> {
    const { vocabSize } = this.config;
    const sampler = new Sampler(vocabSize, { ...SAMPLING_DEFAULTS, ...pickSampling(options) });
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
          const until = Math.min(requests.length, prefetched + PREFILL_ROWS);
          const batch = await this.#prefill(requests.slice(prefetched, until), weights);
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
      const decoder = await this.#decoder(bucketFor(rows.length, this.slots), weights);
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
      await decoder.call.run();
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

  /** Runs prompts through the model once. */
  async #prefill(requests: readonly GenerateRequest[], weights: WeightTensors): Promise<Prefix[]> {
    const B = bucketFor(requests.length, PREFILL_ROWS);
    const longest = Math.max(...requests.map(({ prompt }) => prompt.length));
    const T = Math.min(Math.ceil(longest / PREFILL_STEP) * PREFILL_STEP, this.config.maxPositions);
    const program = await this.#program(B, T);
    const caches = this.#cacheSpecs.map((spec) => this.#runtime.tensor("f32", cacheShapeOf(spec, B, T)));
    const inputs = {
      ids: this.#runtime.tensor("i32", [B, T]),
      lengths: this.#runtime.tensor("i32", [B]),
      total: this.#runtime.tensor("i32", [1], [T]),
      last: this.#runtime.tensor("i32", [B]),
    };
    for (const [row, { prompt }] of requests.entries()) {
      inputs.ids.data.set(prompt, row * T);
      inputs.lengths.data[row] = prompt.length - 1;
      inputs.last.data[row] = row * T + prompt.length - 1;
    }
    const logits = this.#runtime.tensor("f32", [B, this.config.vocabSize]);
    const call = this.#bind(program, weights, inputs, caches, logits);
    try {
      await call.run();
    } finally {
      call.dispose();
    }
    const V = this.config.vocabSize;
    return requests.map(({ prompt: { length } }, row) => {
      const compacted = caches.map(({ data }, i) => {
        const { groups, width } = this.#cacheSpecs[i]!;
        const copy = new Float32Array(groups * length * width);
        for (let group = 0; group < groups; group++) {
          const from = (row * groups + group) * T * width;
          copy.set(data.subarray(from, from + length * width), group * length * width);
        }
        return copy;
      });
      return { length, caches: compacted, logits: logits.data.slice(row * V, (row + 1) * V) };
    });
  }

  /** Puts a prompt's keys and values into a slot. */
  #copyPrefix(prefix: Prefix, slot: number): void {
    for (const [i, part] of prefix.caches.entries()) {
      const { groups, width } = this.#cacheSpecs[i]!;
      const size = prefix.length * width;
      for (let group = 0; group < groups; group++) {
        const to = (slot * groups + group) * this.maxPositions * width;
        this.#caches[i]!.data.set(part.subarray(group * size, (group + 1) * size), to);
      }
    }
  }

  /** Moves a row's first `length` positions from one slot to another. */
  #moveRow(from: number, to: number, length: number): void {
    for (const [i, { data }] of this.#caches.entries()) {
      const { groups, width } = this.#cacheSpecs[i]!;
      const stride = this.maxPositions * width;
      for (let group = 0; group < groups; group++) {
        const source = (from * groups + group) * stride;
        data.copyWithin((to * groups + group) * stride, source, source + length * width);
      }
    }
  }

  async #decoder(B: number, weights: WeightTensors): Promise<Decoder> {
    const mark = weights[this.#mark]!;
    let known = this.#decoders.get(mark);
    if (known === undefined) {
      known = new Map();
      this.#decoders.set(mark, known);
    }
    let decoder = known.get(B);
    if (decoder === undefined) {
      const program = await this.#program(B, 1);
      // Smaller batches work on the first rows of the same memory.
      const caches = this.#caches.map((cache, i) =>
        cache.view(cacheShapeOf(this.#cacheSpecs[i]!, B, this.maxPositions)),
      );
      const inputs = {
        ids: this.#runtime.tensor("i32", [B, 1]),
        lengths: this.#runtime.tensor("i32", [B]),
        total: this.#runtime.tensor("i32", [1]),
      };
      const logits = this.#runtime.tensor("f32", [B, this.config.vocabSize]);
      const call = this.#bind(program, weights, inputs, caches, logits);
      const { ids, lengths, total } = inputs;
      decoder = { call, ids: ids.data, lengths: lengths.data, total: total.data, logits: logits.data };
      known.set(B, decoder);
    }
    return decoder;
  }

  /** The program for B rows of T new tokens: over the shared cache for T = 1, over one of T positions for prompts. */
  async #program(B: number, T: number): Promise<Program> {
    const decoding = T === 1;
    const { program } = await this.#programs.get(`decode:${B}x${T}`, () => {
      const integers = (shape: number[]): TensorSpec => ({ dtype: "i32", shape });
      const positions = decoding ? this.maxPositions : T;
      const caches = this.#cacheSpecs.map((spec): [string, TensorSpec] => [
        spec.name,
        { dtype: "f32", shape: cacheShapeOf(spec, B, positions) },
      ]);
      const specs: Record<string, TensorSpec> = {
        ...weightSpecs(this.config),
        ids: integers([B, T]),
        lengths: integers([B]),
        total: integers([1]),
        ...(decoding ? {} : { last: integers([B]) }),
        ...Object.fromEntries(caches),
      };
      const graph = trace(specs, (x: Record<string, Value>) => {
        const inputs = {
          ids: x["ids"]!,
          lengths: x["lengths"]!,
          total: x["total"]!,
          ...(x["last"] ? { last: x["last"] } : {}),
        };
        const decoded = this.#architecture.decode(x, inputs, x, this.config);
        return { logits: decoded.logits, ...decoded.caches };
      });
      const inPlace = this.#cacheSpecs.flatMap(({ name, outputs }) =>
        outputs.map((output) => [name, output] as const),
      );
      return { graph, options: { inPlace } };
    });
    return program;
  }

  #bind(
    program: Program,
    weights: WeightTensors,
    inputs: Readonly<Record<string, DeviceTensor>>,
    caches: readonly DeviceTensor[],
    logits: DeviceTensor,
  ): Call {
    const past: Record<string, DeviceTensor> = {};
    const next: Record<string, DeviceTensor> = {};
    for (const [i, { name, outputs }] of this.#cacheSpecs.entries()) {
      past[name] = caches[i]!;
      for (const output of outputs) next[output] = caches[i]!;
    }
    return program.bind({ ...weights, ...inputs, ...past }, { logits, ...next });
  }

  async dispose(): Promise<void> {
    await this.#programs.dispose();
    for (const cache of this.#caches) cache.dispose();
  }
}

/** @throws ConfigError unless there is something to generate */
function expectCount(option: string, count: number): void {
  if (Number.isSafeInteger(count) && count >= 1) return;
  throw new ConfigError({
    where: `generate: ${option}`,
    rule: "must be a positive integer",
    got: String(count),
  });
}

function pickSampling({ temperature, topK, topP, minP }: Partial<SamplingOptions>): Partial<SamplingOptions> {
  const given = { temperature, topK, topP, minP };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}
