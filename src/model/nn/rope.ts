/** Rotary position embedding: the frequencies of its pairs, scaled for longer texts, and the tables made of them. */

import { type HostArray, hostArray } from "../../compute/tensor/host.ts";

/**
 * Llama 3's scaling: slow pairs turn `factor` times slower, fast ones as before, and those between are blended.
 * @source Hugging Face transformers, modeling_rope_utils.py, `llama3`
 */
export interface Llama3Scaling {
  readonly type: "llama3";
  readonly factor: number;
  /** Turns over the original positions below which a pair is slowed down fully. */
  readonly lowFrequencyFactor: number;
  /** Turns over the original positions above which a pair stays as it is. */
  readonly highFrequencyFactor: number;
  readonly originalPositions: number;
}

/**
 * YaRN (arXiv:2309.00071) as DeepSeek-V3 uses it (arXiv:2412.19437 §4.3): cosines and sines keep their size, the softmax
 * scale grows instead, by {@link yarnMagnitude} squared.
 */
export interface YarnScaling {
  readonly type: "yarn";
  readonly factor: number;
  /** Turns over the original positions from which on a pair stays as it is. */
  readonly betaFast: number;
  /** Turns over the original positions up to which a pair is slowed down fully. */
  readonly betaSlow: number;
  readonly originalPositions: number;
  /** 0: the softmax scale stays as it is. */
  readonly mscale: number;
}

export type RopeScaling = Llama3Scaling | YarnScaling;

/** √ of what YaRN multiplies the softmax scale by: 0.1·mscale·ln(factor) + 1. */
export function yarnMagnitude({ factor, mscale }: YarnScaling): number {
  return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
}

const clamp = (x: number): number => Math.min(1, Math.max(0, x));

/** What llama 3 makes of a frequency, in radians a position. */
function llama3Frequency(frequency: number, scaling: Llama3Scaling): number {
  const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalPositions } = scaling;
  const turns = (originalPositions * frequency) / (2 * Math.PI);
  const kept = clamp((turns - low) / (high - low));
  return kept * frequency + (1 - kept) * (frequency / factor);
}

/** What YaRN makes of the frequency of pair j. */
function yarnFrequency(
  frequency: number,
  j: number,
  headDim: number,
  theta: number,
  scaling: YarnScaling,
): number {
  const { factor, betaFast, betaSlow, originalPositions } = scaling;
  /** The pair, as a real number, that makes so many turns over the original positions. */
  const pairOf = (turns: number): number =>
    (headDim * Math.log(originalPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const first = Math.max(0, Math.floor(pairOf(betaFast)));
  const last = Math.min(headDim - 1, Math.ceil(pairOf(betaSlow)));
  // The reference widens an empty range by this, so that nothing is divided by zero.
  const slowed = clamp((j - first) / (last === first ? 0.001 : last - first));
  return (frequency / factor) * slowed + frequency * (1 - slowed);
}

/** Radians a position turns pair j by: θ^(−2j/D), scaled. @returns D/2 numbers */
export function rotaryFrequencies(headDim: number, theta: number, scaling?: RopeScaling): Float64Array {
  return Float64Array.from({ length: headDim / 2 }, (_, j) => {
    const frequency = theta ** ((-2 * j) / headDim);
    if (scaling === undefined) return frequency;
    return scaling.type === "llama3"
      ? llama3Frequency(frequency, scaling)
      : yarnFrequency(frequency, j, headDim, theta, scaling);
  });
}

/**
 * Cosines and sines of the rotary embedding: angle(position, j) = position · frequency(j).
 * @returns two f32[S, D/2], computed in double precision
 */
export function rotaryTables(
  maxPositions: number,
  headDim: number,
  theta: number,
  scaling?: RopeScaling,
): { cos: HostArray<"f32">; sin: HostArray<"f32"> } {
  const half = headDim / 2;
  const frequencies = rotaryFrequencies(headDim, theta, scaling);
  const cos = hostArray("f32", [maxPositions, half]);
  const sin = hostArray("f32", [maxPositions, half]);
  for (let position = 0; position < maxPositions; position++) {
    for (let j = 0; j < half; j++) {
      const angle = position * frequencies[j]!;
      cos.data[position * half + j] = Math.cos(angle);
      sin.data[position * half + j] = Math.sin(angle);
    }
  }
  return { cos, sin };
}
