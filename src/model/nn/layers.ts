/** Layers as pure functions of (weights, x). Weights have the layout and names of Hugging Face checkpoints. */

import { type Application, isPrimitive, type Value } from "../../compute/graph/ir.ts";
import {
  add,
  and,
  constant,
  dequantize,
  equal,
  gatherRows,
  less,
  matmul,
  matmulNBits,
  mul,
  not,
  or,
  type QuantizedParts,
  reshape,
  transposeLast,
  where,
} from "../../compute/graph/primitives.ts";
import { gatedSilu } from "../../compute/ops/stable.ts";
import { i32 } from "../../compute/tensor/host.ts";

/**
 * Masked positions get this score: finite, so that a fully masked row stays a number, and small enough that adding any
 * score to it changes nothing.
 */
const MASKED = -1e30;

/** A matrix [out, in] with a low-rank adapter beside it (arXiv:2106.09685): a [r, in], b [out, r]. */
export interface AdaptedMatrix {
  readonly weight: Value;
  readonly a: Value;
  readonly b: Value;
  /** α/r. */
  readonly scale: number;
}

export type Matrix = Value | AdaptedMatrix;

/**
 * x · Wᵀ, plus scale · (x · Aᵀ) · Bᵀ where there is an adapter, plus a bias where there is one. A matrix that is stored as whole
 * numbers (`dequantize`) is multiplied as it is stored.
 * @param x […, rows, in]; @param matrix [out, in]; @param bias [out]
 */
export function linear(x: Value, matrix: Matrix, bias?: Value): Value {
  let product: Value;
  if ("weight" in matrix) {
    const { weight, a, b, scale } = matrix;
    const low = mul(matmul(x, transposeLast(a)), scale); // […, rows, r]
    product = add(linear(x, weight), matmul(low, transposeLast(b)));
  } else if (isPrimitive(matrix.node, "dequantize")) {
    product = matmulNBits(x, quantizedParts(matrix.node), matrix.node.attributes);
  } else {
    product = matmul(x, transposeLast(matrix));
  }
  return bias === undefined ? product : add(product, bias);
}

/**
 * Rows of a table by ids; of one that is stored as whole numbers, only these are widened.
 * @param table [V, C]; @param ids i32[…] @returns […, C]
 */
export function embed(table: Value, ids: Value): Value {
  const stored = table.node;
  if (!isPrimitive(stored, "dequantize")) return gatherRows(table, ids);
  const parts = stored.inputs.map((part) => gatherRows(part, ids));
  return dequantize(parts as readonly Value[] as QuantizedParts, stored.attributes);
}

const quantizedParts = ({ inputs }: Application<"dequantize">): QuantizedParts =>
  inputs as readonly Value[] as QuantizedParts;

/**
 * SwiGLU (arXiv:2002.05202): down(silu(gate(x)) · up(x)).
 * @param x […, rows, C]; gate and up [F, C], down [C, F]
 */
export function swiglu(
  x: Value,
  weights: { readonly gate: Matrix; readonly up: Matrix; readonly down: Matrix },
): Value {
  return linear(gatedSilu(linear(x, weights.gate), linear(x, weights.up)), weights.down);
}

/**
 * The additive mask of packed rows: a position sees itself and earlier positions, of its own segment and of its prefix.
 * @param rows  segments, i32[B, T], one number per packed sequence; prefixes, i32[B, T], the segment that a sequence goes on from, its
 *   own where there is none
 * @returns f32[B, 1, 1, T, T]
 */
export function packedCausalMask(rows: { readonly segments: Value; readonly prefixes?: Value }): Value {
  const { segments, prefixes } = rows;
  const [B, T] = segments.shape as readonly [number, number];
  const positions = constant(
    segments,
    i32(
      [T],
      Array.from({ length: T }, (_, t) => t),
    ),
  );
  const future = less(reshape(positions, [T, 1]), reshape(positions, [1, T])); // query t, key s: t < s
  const key = reshape(segments, [B, 1, T]);
  const within = (seen: Value): Value => equal(reshape(seen, [B, T, 1]), key);
  const together = prefixes === undefined ? within(segments) : or(within(segments), within(prefixes));
  return reshape(where(and(together, not(future)), 0, MASKED), [B, 1, 1, T, T]);
}
