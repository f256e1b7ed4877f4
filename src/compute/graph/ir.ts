/**
 * The intermediate representation: a list of primitive applications in single assignment, in topological order.
 *
 * Values carry dtype and static shape. A `Graph` is immutable data; it is made by `trace` (trace.ts), checked by
 * `checkGraph`, printed by `printGraph`, differentiated in grad/, lowered in onnx/ and evaluated slowly in
 * runtime/interpreter.ts. Each of those is a table with one row per primitive, typed so that a missing row does not
 * compile.
 */

import type { DType } from "../tensor/dtype.ts";
import type { HostArray } from "../tensor/host.ts";
import type { Shape, TensorSpec } from "../tensor/shape.ts";

/** No attributes. */
export type None = Record<never, never>;

/** How a matrix is stored as whole numbers, and how it is multiplied. */
export interface Quantization {
  readonly bits: 4 | 8;
  /** Columns of a row that share a scale. */
  readonly blockSize: 16 | 32;
  /**
   * What products with it make of the other operand: `f32` leaves it as it is; `i8` rounds each block of a row to bytes under a
   * scale of its own, which is faster on some processors.
   */
  readonly activations: "f32" | "i8";
}

/** Every primitive and its attributes. Axes are normalised (non-negative) and sorted. */
export interface Attributes {
  /** A value known while tracing. */
  constant: { readonly value: HostArray };

  // Elementwise, one argument.
  neg: None;
  abs: None;
  exp: None;
  log: None;
  sqrt: None;
  sigmoid: None;
  not: None;
  cast: { readonly dtype: DType };

  // Elementwise, two arguments that broadcast.
  add: None;
  sub: None;
  mul: None;
  div: None;
  min: None;
  max: None;
  less: None;
  equal: None;
  and: None;
  or: None;

  /** The value itself, which lets no gradient through. */
  stopGradient: None;

  /**
   * Its first input, with a gradient rule of its own: the cotangent goes through `rule` to the other inputs, and the way
   * in which the first was computed is not differentiated. For composites whose gradient is cheaper than the chain rule
   * makes it.
   */
  withGradient: { readonly rule: (g: Value) => readonly Value[] };

  /** `condition ? a : b`, all three broadcast. */
  where: None;

  // Reductions.
  reduceSum: { readonly axes: readonly number[]; readonly keepDims: boolean };
  reduceMax: { readonly axes: readonly number[]; readonly keepDims: boolean };
  /** Index of the first largest element along the last axis, which is dropped; i32. */
  argMax: None;
  /** Indices (i32) of the k largest elements along the last axis, largest first; of equal ones, the first first. */
  topK: { readonly k: number };
  /** Inclusive running sum along one axis. */
  cumulativeSum: { readonly axis: number };

  /** `[…, M, K] · […, K, N] → […, M, N]`; batch axes broadcast. */
  matmul: None;

  /**
   * Rows that belong to groups, each group times a matrix of its own; nothing is computed for an empty group.
   * Inputs: x `[M, K]`, its rows sorted by group, counts `i32[E]` (rows of each group, M together), and E matrices
   * `[N, K]`, or `[K, N]` when transposed. Output: `[M, N]`, x·Wᵀ or, transposed, x·W.
   */
  groupedMatmul: { readonly transposed: boolean };
  /**
   * The gradient of groupedMatmul by its matrices. Inputs: a `[M, N]` and b `[M, K]`, rows sorted by group, and counts
   * `i32[E]`. Outputs: E matrices `[N, K]`, aᵀ·b over the rows of each group; zeros for an empty one. Has no gradient.
   */
  groupedOuter: { readonly groups: number };

  /**
   * Rows of K numbers, `[…, K]`, from blocks of whole numbers: (code − 2^(bits − 1)) · scale + offset, scale and offset being those
   * of its block of a row. Inputs: codes `u8[…, K/blockSize, blockSize·bits/8]` (of four bits, the lower half of a byte comes
   * first), scales `f32[…, K/blockSize]` and, where there are any, offsets of the same shape. Has no gradient.
   */
  dequantize: Quantization;
  /**
   * x · Wᵀ for a matrix W [N, K] as `dequantize` takes it, without widening it first (ONNX Runtime's MatMulNBits). Inputs: x
   * `[…, M, K]`, then those of `dequantize`. Output: `[…, M, N]`. Has no gradient.
   */
  matmulNBits: Quantization;

  // Layout.
  reshape: { readonly shape: Shape };
  transpose: { readonly permutation: readonly number[] };
  broadcast: { readonly shape: Shape };
  slice: { readonly axis: number; readonly start: number; readonly end: number };
  concat: { readonly axis: number };

  /** Rows of a table `[N, …]` by ids `i32[…]`. */
  gatherRows: None;
  /** Adds updates `[…, row]` into a zero table of `rows` rows at ids `i32[…]`; the transpose of gatherRows. */
  scatterAddRows: { readonly rows: number };
  /** `x[…, indices]` along the last axis: `[…, N]` and `i32[…, M]` → `[…, M]`. */
  takeAlongLast: None;
  /** Adds updates `[…, M]` into zeros `[…, size]` at `i32[…, M]`; the transpose of takeAlongLast. */
  scatterAddLast: { readonly size: number };

  // Fused, because the engine has a kernel; each has an unfused twin in ops/ as its oracle.
  /** Softmax along the last axis. */
  softmax: None;
  /** `x / sqrt(mean(x²) + epsilon) · weight` along the last axis. */
  rmsNorm: { readonly epsilon: number };
  /**
   * Rotary position embedding (arXiv:2104.09864), half-split pairs (j, j + D/2) as in Hugging Face's llama, or interleaved
   * pairs (2j, 2j + 1) as in DeepSeek-V3.
   * Inputs: x `[B,T,H·D]`, positions `i32[B,T]`, cos and sin `[S, D/2]`.
   */
  rotary: { readonly interleaved: boolean };
  /**
   * Attention of new positions over a cache that is updated in place (ONNX Runtime's GroupQueryAttention).
   * Inputs: q `[B,T,H·D]`, k and v `[B,T,Hk·D]`, past keys and values `[B,Hk,S,D]`, lengths `i32[B]` (valid positions
   * after this call, minus one), total `i32[1]` (largest of them, plus one), and cos and sin `[S, D/2]`; without these
   * two nothing is rotated. Keys and values, and their pasts, may be the same. With total = T the
   * call is a first prompt: it starts at position 0, and each row may be padded on the right. Any other call appends T
   * positions to each row; the engine then wants T = 1 or B = 1.
   * Outputs: attended `[B,T,H·D]` and the two caches. Inference only: it has no gradient.
   */
  cachedAttention: { readonly heads: number; readonly kvHeads: number; readonly scale: number };
}

export type PrimitiveName = keyof Attributes;

/** A typed, shaped value: a graph input or one output of an application. */
export interface Value extends TensorSpec {
  readonly id: number;
  /** The application that makes it; undefined for a graph input. */
  readonly node: Application | undefined;
  /** The trace it belongs to; mixing traces is an error. */
  readonly trace: object;
}

/** One primitive applied to values. */
export interface Application<P extends PrimitiveName = PrimitiveName> {
  readonly primitive: P;
  readonly inputs: readonly Value[];
  readonly attributes: Attributes[P];
  readonly outputs: readonly Value[];
}

export interface Graph {
  readonly inputs: ReadonlyMap<string, Value>;
  readonly applications: readonly Application[];
  readonly outputs: ReadonlyMap<string, Value>;
}

/** Narrows an application to one primitive, so that its attributes are typed. */
export function isPrimitive<P extends PrimitiveName>(
  application: Application | undefined,
  primitive: P,
): application is Application<P> {
  return application?.primitive === primitive;
}
