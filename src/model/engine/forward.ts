/** What the engine asks of a model's weights: to run prompts, and to run one more token of several sequences. */

import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import type { Call, Program } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { type CacheSpec, cacheShapeOf } from "../arch/architecture.ts";

/** A prompt that has been run: what its samples start from. */
export interface Prefix {
  readonly length: number;
  /** Its positions in each cache, [G, positions, W], the first `length` of them. */
  readonly caches: readonly Float32Array[];
  readonly positions: number;
  /** Logits of the first new token, [V]. */
  readonly logits: Float32Array;
}

/** A program for one more token of B sequences, and what it reads and writes. */
export interface Decoder {
  run(): Promise<void>;
  /** [B] */
  readonly ids: Int32Array;
  /** [B] */
  readonly lengths: Int32Array;
  /** [1] */
  readonly total: Int32Array;
  /** [B, V] */
  readonly logits: Float32Array;
}

export interface Prompt {
  readonly prompt: readonly number[];
  /** Sequences that start from it. */
  readonly samples: number;
}

export interface Forward {
  /** Most prompts that are run together. */
  readonly promptRows: number;
  /** Runs prompts. What it returns holds until the next call, and for longer where several samples start from it. */
  prefill(prompts: readonly Prompt[]): Promise<Prefix[]>;
  /** A decoder for at least so many sequences, in the first rows of the engine's caches. */
  decoder(active: number): Promise<Decoder>;
  dispose(): Promise<void>;
}

/** The engine's caches and what they are of. */
export interface Caches {
  readonly specs: readonly CacheSpec[];
  /** One per spec, [slots, G, maxPositions, W]. */
  readonly tensors: readonly DeviceTensor<"f32">[];
  readonly slots: number;
  readonly maxPositions: number;
}

/** Graph inputs and outputs of the caches, by name. */
export function cachePorts(
  specs: readonly CacheSpec[],
  tensors: readonly DeviceTensor[],
): { readonly past: Record<string, DeviceTensor>; readonly next: Record<string, DeviceTensor> } {
  const past: Record<string, DeviceTensor> = {};
  const next: Record<string, DeviceTensor> = {};
  for (const [i, { name, outputs }] of specs.entries()) {
    past[name] = tensors[i]!;
    for (const output of outputs) next[output] = tensors[i]!;
  }
  return { past, next };
}

/** Pairs of a cache and an output that extends it in the same memory. */
export function cachePairs(specs: readonly CacheSpec[]): (readonly [input: string, output: string])[] {
  return specs.flatMap(({ name, outputs }) => outputs.map((output) => [name, output] as const));
}

/** The first `length` positions of a row of a cache [rows, G, positions, W], in memory of their own: [G, length, W]. */
export function copyPositions(
  cache: Float32Array,
  { groups, width }: CacheSpec,
  row: number,
  positions: number,
  length: number,
): Float32Array {
  const copy = new Float32Array(groups * length * width);
  for (let group = 0; group < groups; group++) {
    const from = (row * groups + group) * positions * width;
    copy.set(cache.subarray(from, from + length * width), group * length * width);
  }
  return copy;
}

type Inputs = Readonly<Record<string, DeviceTensor>>;

/** Binds a program that goes on with caches. @param inputs all others, weights among them if the program takes any */
export function bindForward(
  program: Program,
  specs: readonly CacheSpec[],
  caches: readonly DeviceTensor[],
  inputs: Inputs,
  logits: DeviceTensor,
): Call {
  const { past, next } = cachePorts(specs, caches);
  return program.bind({ ...inputs, ...past }, { logits, ...next });
}

/** Runs a call that was bound for this once. */
export async function runOnce(call: Call): Promise<void> {
  try {
    await call.run();
  } finally {
    call.dispose();
  }
}

/**
 * A decoder of B sequences, in the first rows of the caches: smaller batches work on the same memory.
 * @param others   what else the program takes: weights, or what it takes for ids
 * @param logits   [B, V]
 */
export function bindDecoder(
  runtime: Runtime,
  program: Program,
  { specs, tensors, maxPositions }: Caches,
  others: Inputs,
  logits: DeviceTensor<"f32">,
): Decoder {
  const B = logits.shape[0]!;
  const caches = tensors.map((cache, i) => cache.view(cacheShapeOf(specs[i]!, B, maxPositions)));
  const ids = runtime.tensor("i32", [B, 1]);
  const lengths = runtime.tensor("i32", [B]);
  const total = runtime.tensor("i32", [1]);
  const call = bindForward(program, specs, caches, { ids, ...others, lengths, total }, logits);
  return {
    run: () => call.run(),
    ids: ids.data,
    lengths: lengths.data,
    total: total.data,
    logits: logits.data,
  };
}
