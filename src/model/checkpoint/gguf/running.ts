/**
 * How an engine runs what a GGUF file stores, and how far that is from the file. All of it follows from the types: no weights are
 * read.
 */

import type { Shape } from "../../../compute/tensor/shape.ts";
import { HEAD_STEP } from "../../arch/llama.ts";
import type { ModelConfig } from "../../arch/models.ts";
import { factorFor } from "../pad-heads.ts";
import { HALF_UNIT, isQuantized } from "./matmul-nbits.ts";
import type { GgmlType } from "./types.ts";
import { type QuantizedType, UNPACKERS } from "./unpack.ts";

export interface StoredRun {
  /**
   * `blocks`: whole numbers and scales as they are stored. `blocks and offsets`: the same, and minima beside them in float32.
   * `float32`: widened.
   */
  readonly as: "blocks" | "blocks and offsets" | "float32";
  /** Most that a weight is off, as a share of {@link StoredRun.of}; 0: it is what the file says. */
  readonly rounding: number;
  /** What is rounded, once: the offset that a block's weights have in common, or each weight. Absent where nothing is. */
  readonly of?: "offset" | "weight";
}

/** Whether a tensor is a matrix of whole numbers, which products may take as it is. */
export function isBlockMatrix(type: GgmlType | undefined, shape: Shape): type is QuantizedType {
  return type !== undefined && isQuantized(type) && shape.length === 2;
}

/** Why weights of such a model are widened, whatever their file stores; undefined where matrices of whole numbers stay. */
export function wideningReason(config: ModelConfig): string | undefined {
  if (config.modelType === "deepseek_v3") {
    return "experts and latent attention of deepseek_v3 take matrices apart";
  }
  const factor = factorFor(config.headDim, HEAD_STEP);
  if (factor === 1) return undefined;
  // Queries are multiplied by its root.
  const queries = Number.isInteger(Math.sqrt(factor)) ? "" : ", which rounds the weights of queries once";
  return `heads are ${config.headDim} wide, and are made ${factor * config.headDim}, a multiple of ${HEAD_STEP}${queries}`;
}

/** How a tensor runs. @param widened  whether all of the model is */
export function runOf(type: GgmlType, shape: Shape, widened: boolean): StoredRun {
  const hasMinima = isQuantized(type) && UNPACKERS[type].center !== 0;
  const rounding = hasMinima ? HALF_UNIT : 0;
  if (widened || !isBlockMatrix(type, shape)) {
    // Scales times whole numbers are exact in float32; a minimum makes a sum of it.
    return { as: "float32", rounding, ...(hasMinima ? { of: "weight" } : {}) };
  }
  return hasMinima ? { as: "blocks and offsets", rounding, of: "offset" } : { as: "blocks", rounding };
}
