/**
 * Forward passes of weights that may change: they are inputs of the programs, so that a trainer's newest are read where they are.
 * A program has one shape; batches and prompts are padded to a few.
 */

import { invariant } from "../../base/errors.ts";
import type { Value } from "../../compute/graph/ir.ts";
import { trace } from "../../compute/graph/trace.ts";
import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import { ProgramCache } from "../../compute/runtime/jit.ts";
import type { Program } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";
import { cacheShapeOf } from "../arch/architecture.ts";
import { architectureOf, type ModelConfig, weightSpecs } from "../arch/models.ts";
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

export class AdoptedForward implements Forward {
  readonly promptRows = PREFILL_ROWS;
  readonly #runtime: Runtime;
  readonly #config: ModelConfig;
  readonly #caches: Caches;
  readonly #programs: ProgramCache;
  /** Decoders by batch size, for each set of weights seen: a trainer alternates between two. */
  readonly #decoders = new WeakMap<DeviceTensor, Map<number, Decoder>>();
  /** The tensor by which sets of weights are told apart: one that every training moves, adapters' among them. */
  readonly #mark: string;
  #weights: WeightTensors | undefined;

  constructor(runtime: Runtime, config: ModelConfig, caches: Caches) {
    this.#runtime = runtime;
    this.#config = config;
    this.#caches = caches;
    this.#programs = new ProgramCache(runtime);
    this.#mark = architectureOf(config).parameters(config).at(-1)!.name;
  }

  adopt(weights: WeightTensors): void {
    this.#weights = weights;
  }

  get #adopted(): WeightTensors {
    invariant(this.#weights !== undefined, "adopt weights before generating");
    return this.#weights;
  }

  async prefill(prompts: readonly Prompt[]): Promise<Prefix[]> {
    const { specs } = this.#caches;
    const { maxPositions, vocabSize: V } = this.#config;
    const B = bucketFor(prompts.length, PREFILL_ROWS);
    const longest = Math.max(...prompts.map(({ prompt }) => prompt.length));
    const T = Math.min(Math.ceil(longest / PREFILL_STEP) * PREFILL_STEP, maxPositions);
    const program = await this.#program(B, T);
    const caches = specs.map((spec) => this.#runtime.tensor("f32", cacheShapeOf(spec, B, T)));
    const inputs = {
      ids: this.#runtime.tensor("i32", [B, T]),
      lengths: this.#runtime.tensor("i32", [B]),
      total: this.#runtime.tensor("i32", [1], [T]),
      last: this.#runtime.tensor("i32", [B]),
    };
    for (const [row, { prompt }] of prompts.entries()) {
      inputs.ids.data.set(prompt, row * T);
      inputs.lengths.data[row] = prompt.length - 1;
      inputs.last.data[row] = row * T + prompt.length - 1;
    }
    const logits = this.#runtime.tensor("f32", [B, V]);
    await runOnce(bindForward(program, specs, caches, { ...this.#adopted, ...inputs }, logits));
    return prompts.map(({ prompt: { length } }, row) => {
      const compacted = caches.map(({ data }, i) => copyPositions(data, specs[i]!, row, T, length));
      const own = logits.data.slice(row * V, (row + 1) * V);
      return { length, caches: compacted, positions: length, logits: own };
    });
  }

  async decoder(active: number): Promise<Decoder> {
    const B = bucketFor(active, this.#caches.slots);
    const weights = this.#adopted;
    const mark = weights[this.#mark]!;
    let known = this.#decoders.get(mark);
    if (known === undefined) {
      known = new Map();
      this.#decoders.set(mark, known);
    }
    let decoder = known.get(B);
    if (decoder === undefined) {
      const program = await this.#program(B, 1);
      const logits = this.#runtime.tensor("f32", [B, this.#config.vocabSize]);
      decoder = bindDecoder(this.#runtime, program, this.#caches, weights, logits);
      known.set(B, decoder);
    }
    return decoder;
  }

  /** The program for B rows of T new tokens: over the shared cache for T = 1, over one of T positions for prompts. */
  async #program(B: number, T: number): Promise<Program> {
    const decoding = T === 1;
    const { program } = await this.#programs.get(`decode:${B}x${T}`, () => {
      const { specs } = this.#caches;
      const integers = (shape: number[]): TensorSpec => ({ dtype: "i32", shape });
      const positions = decoding ? this.#caches.maxPositions : T;
      const caches = specs.map((spec): [string, TensorSpec] => [
        spec.name,
        { dtype: "f32", shape: cacheShapeOf(spec, B, positions) },
      ]);
      const ports: Record<string, TensorSpec> = {
        ...weightSpecs(this.#config),
        ids: integers([B, T]),
        lengths: integers([B]),
        total: integers([1]),
        ...(decoding ? {} : { last: integers([B]) }),
        ...Object.fromEntries(caches),
      };
      const graph = trace(ports, (x: Record<string, Value>) => {
        const inputs = {
          ids: x["ids"]!,
          lengths: x["lengths"]!,
          total: x["total"]!,
          ...(x["last"] ? { last: x["last"] } : {}),
        };
        const decoded = architectureOf(this.#config).decode(x, inputs, x, this.#config);
        return { logits: decoded.logits, ...decoded.caches };
      });
      return { graph, options: { inPlace: cachePairs(specs) } };
    });
    return program;
  }

  dispose(): Promise<void> {
    return this.#programs.dispose();
  }
}
