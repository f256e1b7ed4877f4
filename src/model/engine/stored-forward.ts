/**
 * Forward passes of weights that stay, as their file has them. They are initializers, which the runtime lays out for its kernels
 * once for each program; so there is one program alone, for any number of sequences and of new tokens: prompts are run one at a
 * time in pieces, and sequences are decoded as many at once as there are.
 */

import { invariant } from "../../base/errors.ts";
import type { Quantization, Value } from "../../compute/graph/ir.ts";
import { dequantize } from "../../compute/graph/primitives.ts";
import { trace } from "../../compute/graph/trace.ts";
import { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import { compileInStages, type LateInitializers, ProgramCache } from "../../compute/runtime/jit.ts";
import type { Program } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { BYTES, type DType } from "../../compute/tensor/dtype.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import { sizeOf, type TensorSpec } from "../../compute/tensor/shape.ts";
import { cacheShapeOf } from "../arch/architecture.ts";
import { EMBEDDING } from "../arch/llama.ts";
import { architectureOf, type ModelConfig } from "../arch/models.ts";
import {
  isQuantizedMatrix,
  type Room,
  type StoredForm,
  type StoredSource,
  type StoredWeight,
} from "../arch/stored.ts";
import {
  bindDecoder,
  bindForward,
  type Caches,
  cachePairs,
  copyPositions,
  type Decoder,
  type Forward,
  type Prefix,
  type Prompt,
  runOnce,
} from "./forward.ts";

export interface StoredOptions {
  /** The engine's own from now on: it is closed when the engine is disposed of. */
  readonly weights: StoredSource;
  /**
   * What products with four-bit matrices make of their rows: `i8` is faster, `f32` exact. Products with eight-bit matrices are always
   * `i8`, since those are the fastest.
   * @default "i8"
   */
  readonly activations?: Quantization["activations"];
}

/** Tokens of a prompt that are run at once: what they are on the way stays in a core's cache. */
const PIECE = 128;
/** Caches have so many positions at least, among which there are sizes that stand for any; see `openSizesFor`. */
export const LEAST_POSITIONS = 256;

/** Tokens of the whole pieces that both begin with, less than all of `prompt`. */
function commonPieces(held: readonly number[], prompt: readonly number[]): number {
  const most = Math.min(held.length, prompt.length - 1);
  let same = 0;
  while (same < most && held[same] === prompt[same]) same++;
  return same - (same % PIECE);
}

/** Two primes below `limit` that divide none of the sizes, and no size of a block. */
function openSizesFor(limit: number, specs: Iterable<TensorSpec>): [number, number] {
  const sizes = new Set([...specs].flatMap(({ shape }) => shape));
  const isPrime = (n: number): boolean => {
    for (let divisor = 2; divisor * divisor <= n; divisor++) if (n % divisor === 0) return false;
    return true;
  };
  const found: number[] = [];
  for (let n = limit - 1; n > 32 && found.length < 2; n--) {
    if (isPrime(n) && ![...sizes].some((size) => size % n === 0)) found.push(n);
  }
  invariant(found.length === 2, `two primes below ${limit} divide no size of the model`);
  return found as [number, number];
}

/**
 * Programs that one is cut into: while the weights of one are laid out for the processor the next ones are read, and in memory twice, as
 * they were and as they are laid out, are those of a stage alone.
 */
const STAGES = 4;

/** When what weights were read into is given back, once all are laid out; before the second prompt in any case. */
const SOON_MS = 500;

/** Where in memory tensors begin. */
const ALIGNMENT = 64;
const aligned = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** Memory for what a stage's weights are read into, which is the next but one's as soon as the runtime reads it no more. */
class Slab {
  readonly #buffer: ArrayBuffer;
  #used = 0;
  /** Tensors in it that are still read. */
  readonly lent = new Set<string>();

  constructor(bytes: number) {
    this.#buffer = new ArrayBuffer(aligned(bytes));
  }

  clear(): void {
    this.#used = 0;
  }

  /** The next bytes, or some elsewhere where there are not so many left. */
  readonly room: Room = (bytes) => {
    const start = this.#used;
    if (start + bytes > this.#buffer.byteLength) return new Uint8Array(bytes);
    this.#used = aligned(start + bytes);
    return new Uint8Array(this.#buffer, start, bytes);
  };

  holds({ buffer }: { readonly buffer: ArrayBufferLike }): boolean {
    return buffer === this.#buffer;
  }
}
/** Below this an ArrayBuffer may lie within V8's heap, and move. */
const SMALL_BYTES = 4096;

/** A tensor over an array's own memory. */
function over<D extends DType>(runtime: Runtime, { dtype, shape, data }: HostArray<D>): DeviceTensor {
  return data.byteLength < SMALL_BYTES
    ? runtime.tensor(dtype as "f32", shape, data as Float32Array)
    : new DeviceTensor(dtype, shape, data);
}

/** What a weight is as graph inputs: itself, or its parts. */
function inputSpecs(name: string, form: StoredForm): Record<string, TensorSpec> {
  if ("shape" in form) return { [name]: { dtype: "f32", shape: form.shape } };
  const { N, K, bits, blockSize, hasOffsets } = form;
  const blocks = [N, K / blockSize];
  const each: TensorSpec = { dtype: "f32", shape: blocks };
  return {
    [`${name}.codes`]: { dtype: "u8", shape: [...blocks, (blockSize * bits) / 8] },
    [`${name}.scales`]: each,
    ...(hasOffsets ? { [`${name}.offsets`]: each } : {}),
  };
}

const bytesOf = (specs: Readonly<Record<string, TensorSpec>>): number =>
  Object.values(specs).reduce((sum, { dtype, shape }) => sum + aligned(sizeOf(shape) * BYTES[dtype]), 0);

/** The tensors of a weight, by the names of graph inputs. */
function inputTensors(runtime: Runtime, name: string, weight: StoredWeight): Record<string, DeviceTensor> {
  if (!isQuantizedMatrix(weight)) return { [name]: over(runtime, weight) };
  const { codes, scales, offsets } = weight;
  return {
    [`${name}.codes`]: over(runtime, codes),
    [`${name}.scales`]: over(runtime, scales),
    ...(offsets === undefined ? {} : { [`${name}.offsets`]: over(runtime, offsets) }),
  };
}

export class StoredForward implements Forward {
  readonly promptRows = 1;
  /** Once most weights are being laid out for the processor, or one cannot be read: the time for others to do their part. */
  readonly waiting: Promise<void>;
  readonly #runtime: Runtime;
  readonly #config: ModelConfig;
  readonly #caches: Caches;
  readonly #programs: ProgramCache;
  readonly #weights: StoredSource;
  /** Weights that have been read and are still needed as they were, by graph input. */
  readonly #inputs = new Map<string, DeviceTensor>();
  #slabs: Slab[] = [];
  #freeing: NodeJS.Timeout | undefined;
  /** Whether a prompt has been run. */
  #used = false;
  readonly #activations: Quantization["activations"];
  readonly #decoders = new Map<number, Decoder>();
  /** Of all slots; a batch uses the first rows. */
  readonly #logits: DeviceTensor<"f32">;
  /** What a prompt is run in: a cache of one sequence. With one slot it is that slot's, which needs no copy then. */
  #scratch: readonly DeviceTensor<"f32">[] | undefined;
  /** The tokens whose keys and values are in it. */
  #held: readonly number[] = [];

  constructor(runtime: Runtime, config: ModelConfig, caches: Caches, options: StoredOptions) {
    this.#runtime = runtime;
    this.#config = config;
    this.#caches = caches;
    this.#programs = new ProgramCache(runtime);
    this.#weights = options.weights;
    this.#activations = options.activations ?? "i8";
    this.#logits = runtime.tensor("f32", [caches.slots, config.vocabSize]);
    // Whoever runs it first is told what is wrong.
    this.waiting = new Promise((resolve) => {
      this.#program(resolve)
        .catch(() => {})
        .then(() => {
          resolve();
          this.#slabs = [];
          this.#freeing = setTimeout(() => this.#free(), SOON_MS).unref();
        });
    });
  }

  /** Gives back what weights were read into. The first prompt comes first: somebody waits for it, and it takes every core. */
  #free(): void {
    if (this.#freeing === undefined) return;
    clearTimeout(this.#freeing);
    this.#freeing = undefined;
    this.#runtime.freeGarbage();
  }

  async prefill(prompts: readonly Prompt[]): Promise<Prefix[]> {
    if (this.#used) this.#free();
    this.#used = true;
    const results: Prefix[] = [];
    for (const prompt of prompts) results.push(await this.#run(prompt));
    return results;
  }

  async #run({ prompt, samples }: Prompt): Promise<Prefix> {
    const { specs, tensors, slots, maxPositions } = this.#caches;
    const program = await this.#program();
    this.#scratch ??=
      slots === 1
        ? tensors
        : specs.map((spec) => this.#runtime.tensor("f32", cacheShapeOf(spec, 1, maxPositions)));
    const logits = this.#runtime.tensor("f32", [1, this.#config.vocabSize]);
    // Whole pieces that this prompt begins with like the last one are there already, to the bit: a conversation that goes on, or many
    // prompts after the same instructions. The last token is run in any case, for its logits.
    const known = commonPieces(this.#held, prompt);
    this.#held = this.#held.slice(0, known);
    for (let done = known; done < prompt.length; done += PIECE) {
      const piece = prompt.slice(done, done + PIECE);
      const end = done + piece.length;
      const inputs = {
        ids: this.#embedded(piece),
        lengths: this.#runtime.tensor("i32", [1], [end - 1]),
        total: this.#runtime.tensor("i32", [1], [end]),
        last: this.#runtime.tensor("i32", [1], [piece.length - 1]),
      };
      await runOnce(bindForward(program, specs, this.#scratch, inputs, logits));
      this.#held = prompt.slice(0, end);
    }
    const { length } = prompt;
    const whole = this.#scratch.map(({ data }) => data);
    if (samples === 1) return { length, caches: whole, positions: maxPositions, logits: logits.data };
    const kept = whole.map((data, i) => copyPositions(data, specs[i]!, 0, maxPositions, length));
    return { length, caches: kept, positions: length, logits: logits.data };
  }

  async decoder(active: number): Promise<Decoder> {
    let decoder = this.#decoders.get(active);
    if (decoder === undefined) {
      const program = await this.#program();
      const logits = this.#logits.view([active, this.#config.vocabSize]);
      const rows = Array.from({ length: active }, (_, row) => row);
      const embedded = this.#runtime.tensor("f32", [active, 1, this.#config.hiddenSize]);
      const inputs = { ids: embedded, last: this.#runtime.tensor("i32", [active], rows) };
      const bound = bindDecoder(this.#runtime, program, this.#caches, inputs, logits);
      decoder = {
        ...bound,
        run: () => {
          this.#embed(bound.ids, embedded.data);
          return bound.run();
        },
      };
      this.#decoders.set(active, decoder);
    }
    return decoder;
  }

  /** Rows of the embedding, which are read from the file: few are needed at a time, and all of them would take much memory. */
  #embed(ids: ArrayLike<number>, into: Float32Array): void {
    const { hiddenSize: C } = this.#config;
    for (let i = 0; i < ids.length; i++) {
      this.#weights.readRow(EMBEDDING, ids[i]!, into.subarray(i * C, (i + 1) * C));
    }
  }

  #embedded(ids: readonly number[]): DeviceTensor<"f32"> {
    const rows = this.#runtime.tensor("f32", [1, ids.length, this.#config.hiddenSize]);
    this.#embed(ids, rows.data);
    return rows;
  }

  /** @param onWaiting  as {@link LateInitializers.waiting} */
  async #program(onWaiting: () => void = () => {}): Promise<Program> {
    const { program } = await this.#programs.getCompiled("decode", () => {
      const { specs, maxPositions } = this.#caches;
      const weights = Object.assign(
        {},
        ...Object.entries(this.#weights.forms).map(([name, form]) => inputSpecs(name, form)),
      ) as Record<string, TensorSpec>;
      const fixed: Record<string, TensorSpec> = { ...weights, total: { dtype: "i32", shape: [1] } };
      const cacheSpecs = specs.map(
        (spec): TensorSpec => ({ dtype: "f32", shape: cacheShapeOf(spec, 1, maxPositions) }),
      );
      const [B, T] = openSizesFor(maxPositions, [...Object.values(fixed), ...cacheSpecs]);
      const ports: Record<string, TensorSpec> = {
        ...fixed,
        ids: { dtype: "f32", shape: [B, T, this.#config.hiddenSize] },
        lengths: { dtype: "i32", shape: [B] },
        last: { dtype: "i32", shape: [B] },
        ...Object.fromEntries(
          specs.map((spec) => [spec.name, { dtype: "f32", shape: cacheShapeOf(spec, B, maxPositions) }]),
        ),
      };
      const graph = trace(ports, (x: Record<string, Value>) => {
        const inputs = x as Record<"ids" | "lengths" | "total" | "last", Value>;
        const decoded = architectureOf(this.#config).decode(this.#traced(x), inputs, x, this.#config);
        return { logits: decoded.logits, ...decoded.caches };
      });
      const late: LateInitializers = {
        specs: weights,
        read: (names) => this.#read(names),
        waiting: onWaiting,
        returned: (name) => this.#release(name),
      };
      const options = { name: "decode", inPlace: cachePairs(specs), open: [B, T] };
      return compileInStages(this.#runtime, graph, STAGES, late, options);
    });
    return program;
  }

  async #read(names: readonly string[]): Promise<Record<string, DeviceTensor>> {
    const inputs = new Set(names);
    const wanted = Object.entries(this.#weights.forms)
      .filter(([name, form]) => Object.keys(inputSpecs(name, form)).some((input) => inputs.has(input)))
      .map(([name]) => name);
    const slab = this.#freeSlab();
    const start = (name: string | undefined): Promise<StoredWeight> | undefined => {
      const reading = name === undefined ? undefined : this.#weights.read(name, slab.room);
      // Told of when it is waited for, which may be never.
      reading?.catch(() => {});
      return reading;
    };
    // The file is read for one while another is put in order.
    let next = start(wanted[0]);
    for (const [i, name] of wanted.entries()) {
      const reading = next!;
      next = start(wanted[i + 1]);
      const tensors = inputTensors(this.#runtime, name, await reading);
      for (const [input, tensor] of Object.entries(tensors)) {
        this.#inputs.set(input, tensor);
        if (slab.holds(tensor.data)) slab.lent.add(input);
      }
    }
    return Object.fromEntries(names.map((input) => [input, this.#inputs.get(input)!]));
  }

  /** One that nothing is read from any more. */
  #freeSlab(): Slab {
    let slab = this.#slabs.find(({ lent }) => lent.size === 0);
    if (slab === undefined) {
      // A stage's share, or the largest weight where that is more; scales, which lie elsewhere, leave room for an uneven cut.
      const sizes = Object.entries(this.#weights.forms).map(([name, form]) =>
        bytesOf(inputSpecs(name, form)),
      );
      slab = new Slab(Math.max(sizes.reduce((sum, size) => sum + size, 0) / STAGES, ...sizes));
      this.#slabs.push(slab);
    }
    slab.clear();
    return slab;
  }

  /** Gives up the memory of a weight, whoever may still know of it. */
  #release(input: string): void {
    this.#inputs.get(input)!.dispose();
    this.#inputs.delete(input);
    for (const { lent } of this.#slabs) lent.delete(input);
  }

  /** Weights as the architecture takes them: matrices of whole numbers are the floats they stand for. */
  #traced(x: Readonly<Record<string, Value>>): Record<string, Value> {
    return Object.fromEntries(
      Object.entries(this.#weights.forms).map(([name, form]) => {
        if ("shape" in form) return [name, x[name]!];
        const { bits, blockSize } = form;
        const [codes, scales, offsets] = ["codes", "scales", "offsets"].map((part) => x[`${name}.${part}`]);
        const exact = bits === 4 && this.#activations === "f32";
        const parts = [codes!, scales!, ...(offsets === undefined ? [] : [offsets])] as [
          Value,
          Value,
          Value?,
        ];
        return [name, dequantize(parts, { bits, blockSize, activations: exact ? "f32" : "i8" })];
      }),
    );
  }

  async dispose(): Promise<void> {
    await this.#programs.dispose();
    clearTimeout(this.#freeing);
    await this.#weights.close();
  }
}
