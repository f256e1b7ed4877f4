/**
 * Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 * A stream is named by a seed and a path of integers (step, prompt, sample, …), so any sample can be drawn again
 * without replaying what came before it: a run resumed after a kill is the run that was never killed.
 */

import { invariant } from "../../base/errors.ts";

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** High 32 bits of the unsigned product; `Math.imul` gives the low ones. */
function mulHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const low = aLow * bLow;
  const mid1 = aHigh * bLow + (low >>> 16);
  const mid2 = aLow * bHigh + (mid1 & 0xffff);
  return (aHigh * bHigh + (mid1 >>> 16) + (mid2 >>> 16)) >>> 0;
}

/** One Philox 4x32-10 block: four words from a counter of four words and a key of two. */
export function philox(counter: readonly number[], key: readonly number[]): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter as [number, number, number, number];
  let [k0, k1] = key as [number, number];
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(M0, c0);
    const low0 = Math.imul(M0, c0) >>> 0;
    const high1 = mulHigh(M1, c2);
    const low1 = Math.imul(M1, c2) >>> 0;
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** A source of random numbers that yields the same sequence wherever and whenever it is made. */
export class Random {
  readonly #key: readonly [number, number];
  readonly #stream: readonly [number, number];
  #block = 0;
  #words: readonly number[] = [];
  #next = 4;

  /** @param seed any integer; @param path integers that name the stream under that seed */
  constructor(seed: number, ...path: readonly number[]) {
    let key: [number, number] = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0];
    let stream: [number, number] = [path.length, 0];
    // Each element of the path is absorbed through one block, so (1, 23) and (12, 3) name different streams.
    for (const part of path) {
      const mixed = philox([part >>> 0, Math.floor(part / 2 ** 32) >>> 0, stream[0], stream[1]], key);
      key = [mixed[0], mixed[1]];
      stream = [mixed[2], mixed[3]];
    }
    this.#key = key;
    this.#stream = stream;
  }

  /** 32 uniform bits, as an unsigned integer. */
  bits(): number {
    if (this.#next === 4) {
      const block = this.#block++;
      this.#words = philox([block >>> 0, Math.floor(block / 2 ** 32), ...this.#stream], this.#key);
      this.#next = 0;
    }
    return this.#words[this.#next++]!;
  }

  /** Uniform in [0, 1), 53 bits. */
  uniform(): number {
    const high = this.bits() >>> 5;
    const low = this.bits() >>> 6;
    return (high * 2 ** 26 + low) / 2 ** 53;
  }

  /** Uniform integer in [0, n); n from 1 to 2³². Rejection keeps it exact. */
  integer(n: number): number {
    invariant(Number.isInteger(n) && n >= 1 && n <= 2 ** 32, `integer below ${n}`);
    const limit = 2 ** 32 - (2 ** 32 % n);
    for (;;) {
      const word = this.bits();
      if (word < limit) return word % n;
    }
  }

  /** Standard normal, by Box–Muller. */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** One element, uniformly. The array must not be empty. */
  pick<T>(items: readonly T[]): T {
    return items[this.integer(items.length)]!;
  }

  /** Fisher–Yates, in place. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      [items[i], items[j]] = [items[j]!, items[i]!];
    }
    return items;
  }
}
