/**
 * A llama model with wider heads that computes the same. The engine's attention kernel takes heads of certain widths alone; a
 * narrower head D becomes one of k·D by rows of zeros.
 *
 * Rotary pair i of D/2 turns at θ^(−2i/D), which is how pair k·i of k·D/2 turns: each pair goes there, and pairs of zeros lie
 * between. Scores stay what they were: the wider head divides by √(k·D), so queries are multiplied by √k. Values and the columns
 * of the output they meet go to the front. Nothing else changes, and but for the rounding of the queries nothing rounds
 * differently.
 */

import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import type { LlamaConfig } from "../arch/llama.ts";

export interface LlamaWeights {
  readonly config: LlamaConfig;
  readonly tensors: Readonly<Record<string, HostArray<"f32">>>;
}

/** The smallest k for which k·D is a multiple of `step`. */
export function factorFor(headDim: number, step: number): number {
  let factor = 1;
  while ((factor * headDim) % step !== 0) factor++;
  return factor;
}

/** Rows [H·D, C], or a bias [H·D], moved to [H·k·D, C]; `place` says where in its head each goes. */
function widenRows(
  x: HostArray<"f32">,
  heads: number,
  factor: number,
  place: (row: number, D: number) => number,
  scale: number,
): HostArray<"f32"> {
  const [rows, ...columns] = x.shape as readonly [number, ...number[]];
  const [C, D] = [columns[0] ?? 1, rows / heads];
  const y = hostArray("f32", [rows * factor, ...columns]);
  for (let row = 0; row < rows; row++) {
    const head = Math.floor(row / D);
    const to = (head * factor * D + place(row % D, D)) * C;
    for (let c = 0; c < C; c++) y.data[to + c] = x.data[row * C + c]! * scale;
  }
  return y;
}

/** Columns [C, H·D] moved to the front of [C, H·k·D]. */
function widenColumns(x: HostArray<"f32">, heads: number, factor: number): HostArray<"f32"> {
  const [C, columns] = x.shape as readonly [number, number];
  const D = columns / heads;
  const y = hostArray("f32", [C, columns * factor]);
  for (let c = 0; c < C; c++) {
    for (let head = 0; head < heads; head++) {
      const from = c * columns + head * D;
      y.data.set(x.data.subarray(from, from + D), (c * heads + head) * factor * D);
    }
  }
  return y;
}

/**
 * Heads widened to a multiple of `step`; the very same model where they are one already.
 * @param step 16 for the engine
 */
export function padHeads(model: LlamaWeights, step: number): LlamaWeights {
  const { config, tensors } = model;
  const factor = factorFor(config.headDim, step);
  if (factor === 1) return model;
  const pairs = (row: number, D: number) =>
    row < D / 2 ? factor * row : factor * (row - D / 2) + (factor * D) / 2;
  const front = (row: number) => row;
  const widen: Readonly<Record<string, (x: HostArray<"f32">) => HostArray<"f32">>> = {
    q_proj: (x) => widenRows(x, config.heads, factor, pairs, Math.sqrt(factor)),
    k_proj: (x) => widenRows(x, config.kvHeads, factor, pairs, 1),
    v_proj: (x) => widenRows(x, config.kvHeads, factor, front, 1),
    o_proj: (x) => widenColumns(x, config.heads, factor),
  };
  return {
    config: { ...config, headDim: factor * config.headDim },
    tensors: Object.fromEntries(
      Object.entries(tensors).map(([name, tensor]) => {
        const part = /\.self_attn\.([a-z_]+)\.(?:weight|bias)$/.exec(name)?.[1];
        return [name, part === undefined ? tensor : (widen[part]?.(tensor) ?? tensor)];
      }),
    ),
  };
}
