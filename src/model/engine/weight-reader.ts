/** Stored weights as the initializers of a program in stages: read when their stage is next, into memory that an earlier one has done with. */

import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import type { LateInitializers } from "../../compute/runtime/jit.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { BYTES, type DType } from "../../compute/tensor/dtype.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";
import {
  isQuantizedMatrix,
  type Room,
  type StoredForm,
  type StoredSource,
  type StoredWeight,
} from "../arch/stored.ts";
import { tensorOver } from "./weights.ts";

/** Between tensors in one piece of memory, so that no two share a cache line's end. */
const STEP = 64;
const inSteps = (bytes: number): number => Math.ceil(bytes / STEP) * STEP;

/** Memory for what a stage's weights are read into, which is another's as soon as the runtime reads it no more. */
class Slab {
  readonly #buffer: ArrayBuffer;
  #used = 0;
  /** Tensors in it that are still read. */
  readonly lent = new Set<string>();

  constructor(bytes: number) {
    this.#buffer = new ArrayBuffer(bytes);
  }

  clear(): void {
    this.#used = 0;
  }

  /** The next bytes, or some elsewhere where there are not so many left. */
  readonly room: Room = (bytes) => {
    const start = this.#used;
    if (start + bytes > this.#buffer.byteLength) return new Uint8Array(bytes);
    this.#used = inSteps(start + bytes);
    return new Uint8Array(this.#buffer, start, bytes);
  };

  holds({ buffer }: { readonly buffer: ArrayBufferLike }): boolean {
    return buffer === this.#buffer;
  }
}

/** What a matrix of whole numbers is made of, in the order of `dequantize`: each a graph input. */
export const MATRIX_PARTS = ["codes", "scales", "offsets"] as const;

/** The graph inputs that a weight is: itself, or its parts. */
function weightInputs(name: string, form: StoredForm): Record<string, TensorSpec> {
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

/** The tensors of a weight, by the names of graph inputs. */
function inputTensors(runtime: Runtime, name: string, weight: StoredWeight): Record<string, DeviceTensor> {
  if (!isQuantizedMatrix(weight)) return { [name]: tensorOver(runtime, weight) };
  const parts = MATRIX_PARTS.flatMap((part) => {
    const array = weight[part];
    return array === undefined ? [] : [[`${name}.${part}`, tensorOver<DType>(runtime, array)] as const];
  });
  return Object.fromEntries(parts);
}

/** Bytes of a weight that a {@link Room} is asked for: of codes and offsets. */
function roomBytes(form: StoredForm): number {
  if ("shape" in form) return 0;
  const { N, K, bits, blockSize, hasOffsets } = form;
  const offsets = hasOffsets ? N * (K / blockSize) * BYTES.f32 : 0;
  return inSteps((N * K * bits) / 8) + inSteps(offsets);
}

/** For one attempt at laying out a model. */
export class WeightReader implements LateInitializers {
  readonly specs: Readonly<Record<string, TensorSpec>>;
  readonly #runtime: Runtime;
  readonly #source: StoredSource;
  /** The weight that each graph input belongs to. */
  readonly #weightOf = new Map<string, string>();
  readonly #slabBytes: number;
  #slabs: Slab[] = [];
  /** What has been read and is still needed as it was. */
  readonly #tensors = new Map<string, DeviceTensor>();
  readonly afterLast: () => void;

  /**
   * @param stages      stages at most
   * @param afterLast  see {@link LateInitializers.afterLast}
   */
  constructor(runtime: Runtime, source: StoredSource, stages: number, afterLast: () => void) {
    this.#runtime = runtime;
    this.#source = source;
    this.afterLast = afterLast;
    const specs: Record<string, TensorSpec> = {};
    let all = 0;
    for (const [name, form] of Object.entries(source.forms)) {
      for (const [input, spec] of Object.entries(weightInputs(name, form))) {
        specs[input] = spec;
        this.#weightOf.set(input, name);
      }
      all += roomBytes(form);
    }
    this.specs = specs;
    // About a stage's share: what does not fit lies elsewhere, as a large head does, which is garbage by the time the others are read.
    this.#slabBytes = all / stages;
  }

  async read(inputs: readonly string[]): Promise<Record<string, DeviceTensor>> {
    const names = [...new Set(inputs.map((input) => this.#weightOf.get(input)!))];
    const slab = this.#freeSlab();
    const start = (name: string | undefined): Promise<StoredWeight> | undefined => {
      const reading = name === undefined ? undefined : this.#source.read(name, slab.room);
      // Told of when it is waited for, which may be never.
      reading?.catch(() => {});
      return reading;
    };
    // The file is read for one while another is put in order.
    let next = start(names[0]);
    for (const [i, name] of names.entries()) {
      const reading = next!;
      next = start(names[i + 1]);
      const tensors = inputTensors(this.#runtime, name, await reading);
      for (const [input, tensor] of Object.entries(tensors)) {
        this.#tensors.set(input, tensor);
        if (slab.holds(tensor.data)) slab.lent.add(input);
      }
    }
    return Object.fromEntries(inputs.map((input) => [input, this.#tensors.get(input)!]));
  }

  /** One that nothing is read from any more. */
  #freeSlab(): Slab {
    let slab = this.#slabs.find(({ lent }) => lent.size === 0);
    if (slab === undefined) {
      slab = new Slab(inSteps(this.#slabBytes));
      this.#slabs.push(slab);
    }
    slab.clear();
    return slab;
  }

  /** Gives up the memory of a weight, whoever may still know of it. */
  returned(input: string): void {
    this.#tensors.get(input)?.dispose();
    this.#tensors.delete(input);
    for (const { lent } of this.#slabs) lent.delete(input);
  }

  /** Once nothing more is read: what a program still reads it keeps itself. */
  finish(): void {
    this.#slabs = [];
    this.#tensors.clear();
  }
}
