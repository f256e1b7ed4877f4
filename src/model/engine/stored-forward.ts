/**
 * Forward passes of weights that stay, as their file has them. They are initializers, which the runtime lays out for its kernels
 * once for each program; so there is one program alone, for any number of sequences and of new tokens: prompts are run one at a
 * time in pieces, and sequences are decoded as many at once as there are.
 */

import { invariant } from "../../base/errors.ts";
import type { Quantization, Value } from "../../compute/graph/ir.ts";
import { dequantize } from "../../compute/graph/primitives.ts";
import { trace } from "../../compute/graph/trace.ts";
import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import { compileInStages, ProgramCache } from "../../compute/runtime/jit.ts";
import type { Program } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";
import { cacheShapeOf } from "../arch/architecture.ts";
import { EMBEDDING } from "../arch/llama.ts";
import { architectureOf, type ModelConfig } from "../arch/models.ts";
import type { StoredSource } from "../arch/stored.ts";
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
import { MATRIX_PARTS, WeightReader } from "./weight-reader.ts";

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
 * Programs that one is cut into: two are laid out for the processor at a time, so in memory twice, as they were and as they are laid out,
 * are the weights of two or three of them.
 */
const STAGES = 4;

/** When memory that weights were read into is given back, once all are laid out; before the second prompt in any case. */
const SOON_MS = 500;

export class StoredForward implements Forward {
  readonly promptRows = 1;
  /** See {@link Engine.allRead}. */
  readonly allRead: Promise<void>;
  readonly #runtime: Runtime;
  readonly #config: ModelConfig;
  readonly #caches: Caches;
  readonly #programs: ProgramCache;
  readonly #weights: StoredSource;
  #freeing: NodeJS.Timeout | undefined;
  /** Whether a prompt has been asked for. */
  #asked = false;
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
    this.allRead = new Promise((resolve) => {
      this.#program(resolve).then(
        () => resolve(),
        () => resolve(),
      );
    });
  }

  /** Not while the first prompt is run, if it is a short one: somebody waits for it, and it takes every core. */
  #freeSoon(): void {
    this.#freeing = setTimeout(() => this.#free(), SOON_MS).unref();
  }

  #free(): void {
    if (this.#freeing === undefined) return;
    clearTimeout(this.#freeing);
    this.#freeing = undefined;
    this.#runtime.freeGarbage();
  }

  async prefill(prompts: readonly Prompt[]): Promise<Prefix[]> {
    if (this.#asked) this.#free();
    this.#asked = true;
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
        run: async () => {
          this.#embed(bound.ids, embedded.data);
          await bound.run();
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

  /** @param onAllRead  called when all weights are read */
  async #program(onAllRead: () => void = () => {}): Promise<Program> {
    const { program } = await this.#programs.getCompiled("decode", () => {
      const { specs, maxPositions } = this.#caches;
      const reader = new WeightReader(this.#runtime, this.#weights, STAGES, onAllRead);
      const fixed: Record<string, TensorSpec> = { ...reader.specs, total: { dtype: "i32", shape: [1] } };
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
      const options = { name: "decode", inPlace: cachePairs(specs), open: [B, T] };
      return compileInStages(this.#runtime, graph, STAGES, reader, options).finally(() => {
        reader.finish();
        this.#freeSoon();
      });
    });
    return program;
  }

  /** Weights as the architecture takes them: matrices of whole numbers are the floats they stand for. */
  #traced(x: Readonly<Record<string, Value>>): Record<string, Value> {
    return Object.fromEntries(
      Object.entries(this.#weights.forms).map(([name, form]) => {
        if ("shape" in form) return [name, x[name]!];
        const { bits, blockSize } = form;
        const [codes, scales, offsets] = MATRIX_PARTS.map((part) => x[`${name}.${part}`]);
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
