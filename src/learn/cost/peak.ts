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
 * Floating-point operations per second of a square float32 matrix product with this runtime's threads, best of several.
 * @param budgetMs  how long to measure. @default 300
 */
export async function measureMatmulPeak(runtime: Runtime, budgetMs = 300): Promise<number> {
  const spec: TensorSpec = { dtype: "f32", shape: [SIZE, SIZE] };
  const graph = trace({ a: spec, b: spec }, ({ a, b }) => ({ product: matmul(a, b) }));
  const { program } = await compile(runtime, graph, { name: "matmul peak" });
  const random = new Random(0);
  const values = Float32Array.from({ length: SIZE * SIZE }, () => random.uniform());
  const call = program.bind(
    { a: runtime.tensor("f32", spec.shape, values), b: runtime.tensor("f32", spec.shape, values) },
    { product: runtime.tensor("f32", spec.shape) },
  );
  try {
    call.runSync(); // The first run allocates.
    let best = Number.POSITIVE_INFINITY;
    for (const began = performance.now(); performance.now() - began < budgetMs; ) {
      const start = performance.now();
      call.runSync();
      best = Math.min(best, performance.now() - start);
    }
    return (2 * SIZE ** 3) / (best / 1000);
  } finally {
    program.dispose();
  }
}
