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
import { ProgramCache } from "../../compute/runtime/jit.ts";
import type { Program } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import type { DType } from "../../compute/tensor/dtype.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";
import { cacheShapeOf } from "../arch/architecture.ts";
import { architectureOf, type ModelConfig } from "../arch/models.ts";
import { isQuantizedMatrix, type StoredWeights } from "../arch/stored.ts";
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
  /** By Hugging Face name; matrices may be joined as {@link Architecture.joins} says. */
  readonly weights: StoredWeights;
  /**
   * What products with four-bit matrices make of their rows: `i8` is faster, `f32` exact. Products with eight-bit matrices are always
   * `i8`, since those are the fastest.
   * @default "i8"
   */
  readonly activations?: Quantization["activations"];
  /**
   * Whether the weights are the engine's own, which it then frees as soon as the runtime has laid them out anew: nobody else can use
   * them any more. @default false
   */
  readonly taken?: boolean;
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

/** Programs that one is cut into where that saves memory: most of it at most is a stage's weights as they were and as they are laid out. */
const STAGES = 2;
/** Garbage to wait for before it is collected. */
const COLLECTED_BYTES = 24 * 2 ** 20;

/** Below this an ArrayBuffer may lie within V8's heap, and move. */
const SMALL_BYTES = 4096;

/** A tensor over an array's own memory. */
function over<D extends DType>(runtime: Runtime, { dtype, shape, data }: HostArray<D>): DeviceTensor {
  return data.byteLength < SMALL_BYTES
    ? runtime.tensor(dtype as "f32", shape, data as Float32Array)
    : new DeviceTensor(dtype, shape, data);
}

/** The tensors of stored weights, by the names of graph inputs. */
function weightInputs(runtime: Runtime, weights: StoredWeights): Record<string, DeviceTensor> {
  const inputs: Record<string, DeviceTensor> = {};
  for (const [name, weight] of Object.entries(weights)) {
    if (!isQuantizedMatrix(weight)) {
      inputs[name] = over(runtime, weight);
      continue;
    }
    const { codes, scales, offsets } = weight;
    for (const [part, array] of Object.entries({ codes, scales, offsets })) {
      if (array !== undefined) inputs[`${name}.${part}`] = over(runtime, array);
    }
  }
  return inputs;
}

export class StoredForward implements Forward {
  readonly promptRows = 1;
  readonly #runtime: Runtime;
  readonly #config: ModelConfig;
  readonly #caches: Caches;
  readonly #programs: ProgramCache;
  readonly #weights: StoredWeights;
  readonly #inputs: Readonly<Record<string, DeviceTensor>>;
  readonly #taken: boolean;
  /** Bytes of weights that are read no more, since garbage was collected. */
  #released = 0;
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
    this.#inputs = weightInputs(runtime, this.#weights);
    this.#activations = options.activations ?? "i8";
    this.#taken = options.taken ?? false;
    this.#logits = runtime.tensor("f32", [caches.slots, config.vocabSize]);
    // Laying out the weights takes a while, in which others may do their part; whoever runs it first is told what is wrong.
    this.#program().catch(() => {});
  }

  async prefill(prompts: readonly Prompt[]): Promise<Prefix[]> {
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
        ids: this.#runtime.tensor("i32", [1, piece.length], piece),
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
      const inputs = { last: this.#runtime.tensor("i32", [active], rows) };
      decoder = bindDecoder(this.#runtime, program, this.#caches, inputs, logits);
      this.#decoders.set(active, decoder);
    }
    return decoder;
  }

  async #program(): Promise<Program> {
    const { program } = await this.#programs.get("decode", () => {
      const { specs, maxPositions } = this.#caches;
      const fixed: Record<string, TensorSpec> = { ...this.#inputs, total: { dtype: "i32", shape: [1] } };
      const cacheSpecs = specs.map(
        (spec): TensorSpec => ({ dtype: "f32", shape: cacheShapeOf(spec, 1, maxPositions) }),
      );
      const [B, T] = openSizesFor(maxPositions, [...Object.values(fixed), ...cacheSpecs]);
      const ports: Record<string, TensorSpec> = {
        ...fixed,
        ids: { dtype: "i32", shape: [B, T] },
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
      const options = { initializers: this.#inputs, inPlace: cachePairs(specs), open: [B, T] };
      if (!this.#taken) return { graph, options };
      const returned = (name: string): void => this.#release(this.#inputs[name]!);
      return { graph, options: { ...options, returned, stages: STAGES } };
    });
    return program;
  }

  /** Gives up a tensor's memory, whoever else may still know of it. */
  #release(tensor: DeviceTensor): void {
    if (tensor.disposed) return;
    const { buffer, byteLength } = tensor.data;
    // What is handed over is gone from everywhere else, and nobody keeps what it is handed to.
    if (buffer instanceof ArrayBuffer && buffer.byteLength === byteLength)
      structuredClone(buffer, { transfer: [buffer] });
    tensor.dispose();
    this.#released += byteLength;
    if (this.#released < COLLECTED_BYTES) return;
    this.#runtime.freeGarbage();
    this.#released = 0;
  }

  /** Weights as the architecture takes them: matrices of whole numbers are the floats they stand for. */
  #traced(x: Readonly<Record<string, Value>>): Record<string, Value> {
    return Object.fromEntries(
      Object.entries(this.#weights).map(([name, weight]) => {
        if (!isQuantizedMatrix(weight)) return [name, x[name]!];
        const { bits, blockSize } = weight;
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

  dispose(): Promise<void> {
    return this.#programs.dispose();
  }
}
