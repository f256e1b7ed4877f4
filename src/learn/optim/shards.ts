/**
 * The operators of a small model are too short to be divided among threads. So the rows of a batch are, and each part runs
 * through a program of its own, side by side where there are threads for it, else in turn. Into how many parts does not depend on
 * the threads, so that a run is the same to the bit with one and with many.
 */

import type { Runtime } from "../../compute/runtime/runtime.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { hasShortOperators, type ModelConfig } from "../../model/arch/models.ts";
import type { PackedBatch } from "./rows.ts";

const SHARDS = 2;

/** Into how many parts the batches of a model are divided. Of a large one they are not: its gradients are too many to have twice. */
export const shardsOf = (config: ModelConfig): number => (hasShortOperators(config) ? SHARDS : 1);

/** Threads for each of so many programs that run side by side. */
export const threadsOfShard = ({ threads }: Runtime, shards: number): number =>
  Math.max(1, Math.floor(threads / shards));

/** The rows of a batch in at most so many parts, in their order; the first has a row more where they do not divide. */
export function divideRows(batch: PackedBatch, parts: number): PackedBatch[] {
  const [B, T] = batch.ids.shape as readonly [number, number];
  const size = Math.ceil(B / parts);
  const starts = Array.from({ length: Math.ceil(B / size) }, (_, i) => i * size);
  if (starts.length === 1) return [batch];
  return starts.map((start) => {
    const end = Math.min(B, start + size);
    const rows = <D extends "i32" | "f32">({ dtype, data }: HostArray<D>): HostArray<D> =>
      hostArray(dtype, [end - start, T], data.subarray(start * T, end * T) as typeof data);
    const segments = rows(batch.segments);
    return {
      ids: rows(batch.ids),
      positions: rows(batch.positions),
      segments,
      ...(batch.prefixes === undefined ? {} : { prefixes: rows(batch.prefixes) }),
      targets: rows(batch.targets),
      weights: rows(batch.weights),
      extra: Object.fromEntries(Object.entries(batch.extra).map(([name, x]) => [name, rows(x)])),
      // Padding is in segment 0.
      tokens: segments.data.reduce((count, segment) => count + (segment === 0 ? 0 : 1), 0),
    };
  });
}

/**
 * What each part yields, in their order.
 * @throws the error of the first part that failed, once all have ended
 */
export async function eachShard<Part, Result>(
  runtime: Runtime,
  parts: readonly Part[],
  run: (part: Part, shard: number) => Promise<Result>,
): Promise<Result[]> {
  if (runtime.threads < parts.length) {
    const results: Result[] = [];
    for (const [shard, part] of parts.entries()) results.push(await run(part, shard));
    return results;
  }
  const outcomes = await Promise.allSettled(parts.map(run));
  return outcomes.map((outcome) => {
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  });
}
