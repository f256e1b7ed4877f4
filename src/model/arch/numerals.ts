/** First weights of tokens that are whole numbers. */

import type { HostArray } from "../../compute/tensor/host.ts";
import type { Random } from "../../compute/tensor/random.ts";

/**
 * Replaces the rows of numerals by random combinations of their features.
 * @param std  of a row's elements: large beside a step of the optimizer, which would otherwise undo the circles at once
 */
export function writeNumerals(
  { shape, data }: HostArray<"f32">,
  numerals: ReadonlyMap<number, number>,
  random: Random,
  std: number,
): void {
  const width = shape[1]!;
  const features = numeralFeatures(0).length;
  // Cosines and sines of the same angles: the squares of all features sum to half their number.
  const scale = std / Math.sqrt(features / 2);
  const directions = Float64Array.from({ length: features * width }, () => random.normal() * scale);
  for (const [id, number] of numerals) {
    const row = data.subarray(id * width, (id + 1) * width).fill(0);
    for (const [f, feature] of numeralFeatures(number).entries())
      for (let i = 0; i < width; i++) row[i]! += feature * directions[f * width + i]!;
  }
}

/** Turns of the circles on which numbers lie: in units of the number, and of its natural logarithm. */
const LINEAR_PERIODS = [2, 5, 10, 20, 50, 100, 200, 500];
const LOG_PERIODS = [0.25, 0.5, 1, 2, 4, 8];

/**
 * A number as points on circles, cosine and sine of each (FoNE, arXiv:2502.09741, has those of powers of ten). To add is to
 * turn a point by another's angle, which a gated layer can do: what is left to learn of a sum is a rotation and no table.
 * Circles of the logarithm do the same for products.
 */
export function numeralFeatures(number: number): number[] {
  // Nothing is lost by a zero beside the one: the linear circles tell them apart.
  const log = Math.log(Math.max(1, number));
  const turns = [...LINEAR_PERIODS.map((p) => number / p), ...LOG_PERIODS.map((p) => log / p)];
  return turns.flatMap((turn) => [Math.cos(2 * Math.PI * turn), Math.sin(2 * Math.PI * turn)]);
}
