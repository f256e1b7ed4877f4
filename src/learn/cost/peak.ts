/** The machine's own peak, against which utilizations are measured. */

import { matmul } from "../../compute/graph/primitives.ts";
import { trace } from "../../compute/graph/trace.ts";
import { compile } from "../../compute/runtime/jit.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { Random } from "../../compute/tensor/random.ts";
import type { TensorSpec } from "../../compute/tensor/shape.ts";

/** Large enough that packing and threading cost little, small enough that the inputs stay in cache. */
const SIZE = 768;

/**
 * Seconds of each of several square float32 matrix products with this runtime's threads.
 * @param size      rows and columns; a product takes 2·size³ operations
 * @param budgetMs  how long to measure; there is at least one
 */
export async function timeMatmul(runtime: Runtime, size: number, budgetMs: number): Promise<number[]> {
  const spec: TensorSpec = { dtype: "f32", shape: [size, size] };
  const graph = trace({ a: spec, b: spec }, ({ a, b }) => ({ product: matmul(a, b) }));
  const { program } = await compile(runtime, graph, { name: `matmul ${size}` });
  const random = new Random(0);
  const values = Float32Array.from({ length: size * size }, () => random.uniform());
  const call = program.bind(
    { a: runtime.tensor("f32", spec.shape, values), b: runtime.tensor("f32", spec.shape, values) },
    { product: runtime.tensor("f32", spec.shape) },
  );
  try {
    call.runSync(); // The first run allocates.
    const seconds: number[] = [];
    const began = performance.now();
    do {
      const start = performance.now();
      call.runSync();
      seconds.push((performance.now() - start) / 1000);
    } while (performance.now() - began < budgetMs);
    return seconds;
  } finally {
    program.dispose();
  }
}

/**
 * Floating-point operations per second of a square float32 matrix product with this runtime's threads, best of several.
 * @param budgetMs  how long to measure. @default 300
 */
export async function measureMatmulPeak(runtime: Runtime, budgetMs = 300): Promise<number> {
  return (2 * SIZE ** 3) / Math.min(...(await timeMatmul(runtime, SIZE, budgetMs)));
}
