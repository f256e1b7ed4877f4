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
import { cacheNames, cacheShape, type LlamaConfig, llamaDecode, weightSpecs } from "../arch/llama.ts";
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

/** Head widths that ONNX Runtime's GroupQueryAttention rotates are multiples of this. */
const HEAD_STEP = 16;

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
  /** Per layer, keys and values [Hk, length, D]. */
  readonly layers: readonly { readonly keys: Float32Array; readonly values: Float32Array }[];
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

export class Engine {
  readonly config: LlamaConfig;
  readonly slots: number;
  readonly maxPositions: number;
  readonly #runtime: Runtime;
  readonly #programs: ProgramCache;
  readonly #caches: readonly { readonly keys: DeviceTensor<"f32">; readonly values: DeviceTensor<"f32"> }[];
  /** Decoders by batch size, for each set of weights seen: a trainer alternates between two. */
  readonly #decoders = new WeakMap<DeviceTensor, Map<number, Decoder>>();
  #weights: WeightTensors | undefined;
  #busy = false;

  constructor(runtime: Runtime, config: LlamaConfig, options: EngineOptions) {
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
    if (config.headDim % HEAD_STEP !== 0) {
      throw new ConfigError({
        where: "engine: headDim",
        rule: `must be a multiple of ${HEAD_STEP}, which the attention kernel asks for`,
        got: String(config.headDim),
        remedy: "Train a model with wider heads",
      });
    }
    this.config = config;
    this.slots = options.slots;
    this.maxPositions = maxPositions;
    this.#runtime = runtime;
    this.#programs = new ProgramCache(runtime);
    const shape = cacheShape(config, this.slots, maxPositions);
    this.#caches = Array.from({ length: config.layers }, () => ({
      keys: runtime.tensor("f32", shape),
      values: runtime.tensor("f32", shape),
    }));
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
    const caches = this.#caches.map(() => ({
      keys: this.#runtime.tensor("f32", cacheShape(this.config, B, T)),
      values: this.#runtime.tensor("f32", cacheShape(this.config, B, T)),
    }));
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
    const call = bindProgram(program, weights, inputs, caches, logits);
    try {
      await call.run();
    } finally {
      call.dispose();
    }
    const { kvHeads: Hk, headDim: D, vocabSize: V } = this.config;
    return requests.map(({ prompt: { length } }, row) => {
      const compact = ({ data }: DeviceTensor<"f32">): Float32Array => {
        const copy = new Float32Array(Hk * length * D);
        for (let head = 0; head < Hk; head++) {
          const from = (row * Hk + head) * T * D;
          copy.set(data.subarray(from, from + length * D), head * length * D);
        }
        return copy;
      };
      const layers = caches.map(({ keys, values }) => ({ keys: compact(keys), values: compact(values) }));
      return { length, layers, logits: logits.data.slice(row * V, (row + 1) * V) };
    });
  }

  /** Puts a prompt's keys and values into a slot. */
  #copyPrefix(prefix: Prefix, slot: number): void {
    const { kvHeads: Hk, headDim: D } = this.config;
    const size = prefix.length * D;
    for (const [layer, { keys, values }] of prefix.layers.entries()) {
      const cache = this.#caches[layer]!;
      for (let head = 0; head < Hk; head++) {
        const to = (slot * Hk + head) * this.maxPositions * D;
        cache.keys.data.set(keys.subarray(head * size, (head + 1) * size), to);
        cache.values.data.set(values.subarray(head * size, (head + 1) * size), to);
      }
    }
  }

  /** Moves a row's first `length` positions from one slot to another. */
  #moveRow(from: number, to: number, length: number): void {
    const { kvHeads: Hk, headDim: D } = this.config;
    const stride = this.maxPositions * D;
    for (const { keys, values } of this.#caches) {
      for (let head = 0; head < Hk; head++) {
        const source = (from * Hk + head) * stride;
        keys.data.copyWithin((to * Hk + head) * stride, source, source + length * D);
        values.data.copyWithin((to * Hk + head) * stride, source, source + length * D);
      }
    }
  }

  async #decoder(B: number, weights: WeightTensors): Promise<Decoder> {
    const first = weights["model.embed_tokens.weight"]!;
    let known = this.#decoders.get(first);
    if (known === undefined) {
      known = new Map();
      this.#decoders.set(first, known);
    }
    let decoder = known.get(B);
    if (decoder === undefined) {
      const program = await this.#program(B, 1);
      const shape = cacheShape(this.config, B, this.maxPositions);
      // Smaller batches work on the first rows of the same memory.
      const caches = this.#caches.map(({ keys, values }) => ({
        keys: keys.view(shape),
        values: values.view(shape),
      }));
      const inputs = {
        ids: this.#runtime.tensor("i32", [B, 1]),
        lengths: this.#runtime.tensor("i32", [B]),
        total: this.#runtime.tensor("i32", [1]),
      };
      const logits = this.#runtime.tensor("f32", [B, this.config.vocabSize]);
      const call = bindProgram(program, weights, inputs, caches, logits);
      const { ids, lengths, total } = inputs;
      decoder = { call, ids: ids.data, lengths: lengths.data, total: total.data, logits: logits.data };
      known.set(B, decoder);
    }
    return decoder;
  }

  /** The program for B rows of T new tokens: over the shared cache for T = 1, over one of T positions for prompts. */
  async #program(B: number, T: number): Promise<Program> {
    const decoding = T === 1;
    const { config } = this;
    const { program } = await this.#programs.get(`decode:${B}x${T}`, () => {
      const cache: TensorSpec = {
        dtype: "f32",
        shape: cacheShape(config, B, decoding ? this.maxPositions : T),
      };
      const names = Array.from({ length: config.layers }, (_, layer) => cacheNames(layer));
      const integers = (shape: number[]): TensorSpec => ({ dtype: "i32", shape });
      const specs: Record<string, TensorSpec> = {
        ...weightSpecs(config),
        ids: integers([B, T]),
        lengths: integers([B]),
        total: integers([1]),
        ...(decoding ? {} : { last: integers([B]) }),
      };
      for (const { keys, values } of names) {
        specs[keys] = cache;
        specs[values] = cache;
      }
      const graph = trace(specs, (x: Record<string, Value>) => {
        const inputs = {
          ids: x["ids"]!,
          lengths: x["lengths"]!,
          total: x["total"]!,
          ...(x["last"] ? { last: x["last"] } : {}),
        };
        const caches = names.map(({ keys, values }) => ({ keys: x[keys]!, values: x[values]! }));
        const { logits, caches: extended } = llamaDecode(x, inputs, caches, config);
        const outputs: Record<string, Value> = { logits };
        for (const [layer, { keys, values }] of names.entries()) {
          outputs[nextName(keys)] = extended[layer]!.keys;
          outputs[nextName(values)] = extended[layer]!.values;
        }
        return outputs;
      });
      const inPlace = names.flatMap(({ keys, values }) =>
        [keys, values].map((name) => [name, nextName(name)] as const),
      );
      return { graph, options: { inPlace } };
    });
    return program;
  }

  async dispose(): Promise<void> {
    await this.#programs.dispose();
    for (const { keys, values } of this.#caches) {
      keys.dispose();
      values.dispose();
    }
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

const nextName = (name: string): string => `next.${name}`;

function bindProgram(
  program: Program,
  weights: WeightTensors,
  inputs: Readonly<Record<string, DeviceTensor>>,
  caches: readonly { readonly keys: DeviceTensor; readonly values: DeviceTensor }[],
  logits: DeviceTensor,
): Call {
  const past: Record<string, DeviceTensor> = {};
  const next: Record<string, DeviceTensor> = {};
  for (const [layer, cache] of caches.entries()) {
    const { keys, values } = cacheNames(layer);
    past[keys] = cache.keys;
    past[values] = cache.values;
    next[nextName(keys)] = cache.keys;
    next[nextName(values)] = cache.values;
  }
  return program.bind({ ...weights, ...inputs, ...past }, { logits, ...next });
}

function pickSampling({ temperature, topK, topP, minP }: Partial<SamplingOptions>): Partial<SamplingOptions> {
  const given = { temperature, topK, topP, minP };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}
