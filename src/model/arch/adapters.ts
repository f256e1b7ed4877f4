/**
 * Low-rank adapters (LoRA, arXiv:2106.09685 §4.1): beside a matrix W that stays as it is, W·x + (α/r)·B·(A·x), of which A [r, in]
 * and B [out, r] alone learn. B begins as zeros, so that an adapted model begins as the model it adapts. Names are PEFT's.
 */

import { ConfigError, expectKnown } from "../../base/errors.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import type { ParameterSpec } from "./architecture.ts";

export interface AdapterConfig {
  /** r. */
  readonly rank: number;
  /** α: what an adapter adds is multiplied by α/r. */
  readonly alpha: number;
  /** The matrices that have one, by the last part of their names: `q_proj`. */
  readonly targets: readonly string[];
}

/** Every matrix of a llama layer: adapting all of them is what makes LoRA learn like full training (arXiv:2305.14314 §4). */
export const ADAPTER_TARGETS = [
  "q_proj",
  "k_proj",
  "v_proj",
  "o_proj",
  "gate_proj",
  "up_proj",
  "down_proj",
] as const;

const WEIGHT = ".weight";

/** The names of the adapter of a matrix `….q_proj.weight`. */
export function adapterNames(weight: string): { readonly a: string; readonly b: string } {
  const stem = weight.slice(0, -WEIGHT.length);
  return { a: `${stem}.lora_A.weight`, b: `${stem}.lora_B.weight` };
}

/** The last part of a weight's name: `q_proj`. */
const lastPart = (weight: string): string => weight.slice(0, -WEIGHT.length).split(".").at(-1)!;

/** Whether a matrix has an adapter. */
export function isAdapted(weight: string, config: AdapterConfig | undefined): boolean {
  return config?.targets.includes(lastPart(weight)) === true;
}

/** @throws ConfigError naming the field that breaks its rule */
export function checkAdapters(config: AdapterConfig): void {
  const { rank, alpha, targets } = config;
  const fail = (field: keyof AdapterConfig, rule: string, got: string): never => {
    throw new ConfigError({ where: `lora.${field}`, rule, got });
  };
  if (!Number.isSafeInteger(rank) || rank < 1) fail("rank", "must be a positive integer", String(rank));
  if (!(alpha > 0)) fail("alpha", "must be positive", String(alpha));
  if (targets.length === 0)
    fail("targets", `must name at least one of ${ADAPTER_TARGETS.join(", ")}`, "none");
  for (const target of targets) expectKnown("lora.targets", target, ADAPTER_TARGETS);
}

/** The tensors of all adapters of a model with these matrices, in their order. */
export function adapterParameters(specs: readonly ParameterSpec[], config: AdapterConfig): ParameterSpec[] {
  const { rank } = config;
  return specs
    .filter(({ name, kind }) => kind === "matrix" && isAdapted(name, config))
    .flatMap(({ name, shape }): ParameterSpec[] => {
      const [rows, columns] = shape as readonly [number, number];
      const { a, b } = adapterNames(name);
      // As wide as PEFT's first values, which are uniform up to 1/√in.
      return [
        { name: a, shape: [rank, columns], kind: "adapter", initialStd: 1 / Math.sqrt(3 * columns) },
        { name: b, shape: [rows, rank], kind: "adapter", initialStd: 0 },
      ];
    });
}

/** W + scale·B·A, in new memory. @param weight [out, in]; @param a [r, in]; @param b [out, r] */
export function mergeAdapter(
  weight: HostArray<"f32">,
  a: HostArray<"f32">,
  b: HostArray<"f32">,
  scale: number,
): HostArray<"f32"> {
  const [rows, columns] = weight.shape as readonly [number, number];
  const rank = a.shape[0]!;
  const merged = hostArray("f32", weight.shape, weight.data.slice());
  const sum = new Float64Array(columns);
  for (let row = 0; row < rows; row++) {
    sum.fill(0);
    for (let k = 0; k < rank; k++) {
      const factor = scale * b.data[row * rank + k]!;
      if (factor === 0) continue;
      const from = k * columns;
      for (let c = 0; c < columns; c++) sum[c]! += factor * a.data[from + c]!;
    }
    const to = row * columns;
    for (let c = 0; c < columns; c++) merged.data[to + c]! += sum[c]!;
  }
  return merged;
}
