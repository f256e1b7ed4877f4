/**
 * Choosing the next token from logits, on the host, in double precision.
 *
 * Filters apply in the order of Hugging Face's generate: temperature, top-k, top-p, min-p. The log-probability that is
 * reported is the one of the whole distribution at the temperature, before any filter: the quantity a trainer
 * recomputes.
 */

import { ConfigError } from "../../base/errors.ts";

export interface SamplingOptions {
  /** 0 takes the most likely token; log-probabilities are then those of temperature 1. */
  readonly temperature: number;
  /** Keeps the k most likely tokens, and those exactly as likely as the k-th; 0 keeps all. */
  readonly topK: number;
  /** Keeps the smallest set of most likely tokens whose probabilities reach p; 1 keeps all. */
  readonly topP: number;
  /** Keeps tokens at least this share as likely as the likeliest; 0 keeps all, 1 the likeliest alone. */
  readonly minP: number;
}

export const SAMPLING_DEFAULTS: SamplingOptions = { temperature: 1, topK: 0, topP: 1, minP: 0 };

/** @throws ConfigError naming the option outside its range */
export function checkSampling(options: SamplingOptions): void {
  const fail = (name: keyof SamplingOptions, rule: string): never => {
    throw new ConfigError({ where: `sampling: ${name}`, rule, got: String(options[name]) });
  };
  if (!(options.temperature >= 0 && options.temperature < Infinity))
    fail("temperature", "must be a number ≥ 0");
  if (!(Number.isSafeInteger(options.topK) && options.topK >= 0)) fail("topK", "must be a whole number ≥ 0");
  if (!(options.topP > 0 && options.topP <= 1)) fail("topP", "must be in (0, 1]");
  if (!(options.minP >= 0 && options.minP <= 1)) fail("minP", "must be in [0, 1]");
}

/** A token and its log-probability, nats. */
export interface Choice {
  id: number;
  logp: number;
}

/** Samples rows of logits; its buffers are reused from call to call. */
export class Sampler {
  readonly #options: SamplingOptions;
  readonly #vocabSize: number;
  /** Of the ids that may be drawn. */
  readonly #mass: Float64Array;
  readonly #ranking: Ranking;
  readonly #filters: boolean;

  /** @param tokens  ids below this alone are drawn; log-probabilities are of all there are. @default all */
  constructor(vocabSize: number, options: SamplingOptions, tokens = vocabSize) {
    checkSampling(options);
    this.#options = options;
    this.#vocabSize = vocabSize;
    this.#mass = new Float64Array(tokens);
    this.#ranking = new Ranking(this.#mass);
    this.#filters = options.topK > 0 || options.topP < 1 || options.minP > 0;
  }

  /**
   * @param logits   at least `offset + V` numbers, none of them NaN
   * @param uniform  a number in [0, 1) that decides
   */
  choose(logits: Float32Array, offset: number, uniform: number): Choice {
    const mass = this.#mass;
    const { temperature } = this.#options;
    const [T, V] = [mass.length, this.#vocabSize];
    let best = 0;
    for (let id = 1; id < T; id++) if (logits[offset + id]! > logits[offset + best]!) best = id;
    let largest = logits[offset + best]!;
    for (let id = T; id < V; id++) largest = Math.max(largest, logits[offset + id]!);
    const scale = temperature === 0 ? 1 : 1 / temperature;
    const above = (id: number): number => (logits[offset + id]! - largest) * scale;
    let kept = 0;
    for (let id = 0; id < T; id++) {
      const m = Math.exp(above(id));
      mass[id] = m;
      kept += m;
    }
    let total = kept;
    for (let id = T; id < V; id++) total += Math.exp(above(id));
    const logpOf = (id: number): number => above(id) - Math.log(total);
    if (temperature === 0) return { id: best, logp: logpOf(best) };

    if (this.#filters) kept = this.#filter(kept);
    let left = uniform * kept;
    let id = best;
    // Rounding may leave a crumb after the last token; the likeliest token takes it.
    for (let i = 0; i < T; i++) {
      left -= mass[i]!;
      if (left < 0) {
        id = i;
        break;
      }
    }
    return { id, logp: logpOf(id) };
  }

  /** The probabilities a row of logits is sampled with, filters applied; for tests and inspection. */
  probabilities(logits: Float32Array, offset = 0): Float64Array {
    this.choose(logits, offset, 0);
    if (this.#options.temperature === 0) {
      const { id } = this.choose(logits, offset, 0);
      return Float64Array.from(this.#mass, (_, i) => (i === id ? 1 : 0));
    }
    const kept = this.#mass.reduce((a, b) => a + b, 0);
    return this.#mass.map((m) => m / kept);
  }

  /** Zeroes the mass of what the filters drop. @returns the mass that stays */
  #filter(total: number): number {
    const { topK, topP, minP } = this.#options;
    const mass = this.#mass;
    const V = mass.length;
    if (topK === 0 && topP === 1) return this.#atLeast(minP);
    const ranking = this.#ranking;
    ranking.start();
    let afterTopK = V;
    if (topK > 0 && topK < V) {
      afterTopK = topK;
      const last = mass[ranking.at(topK - 1)]!;
      while (afterTopK < V && mass[ranking.at(afterTopK)]! === last) afterTopK++;
    }
    let candidates = total;
    if (afterTopK < V) {
      candidates = 0;
      for (let i = 0; i < afterTopK; i++) candidates += mass[ranking.at(i)]!;
    }
    // Top-p counts within what top-k left; the token that crosses p stays in. All of it keeps also what is too small to
    // be seen in the sum.
    let keep = topP < 1 ? 0 : afterTopK;
    let kept = topP < 1 ? 0 : candidates;
    while (keep < afterTopK && (keep === 0 || kept < topP * candidates)) kept += mass[ranking.at(keep++)]!;
    const least = minP * mass[ranking.at(0)]!;
    while (keep > 1 && mass[ranking.at(keep - 1)]! < least) kept -= mass[ranking.at(--keep)]!;
    if (keep === V) return total;
    const last = ranking.at(keep - 1);
    const smallest = mass[last]!;
    for (let id = 0; id < V; id++) {
      if (mass[id]! < smallest || (mass[id]! === smallest && id > last)) mass[id] = 0;
    }
    return kept;
  }

  /** Min-p alone, for which nothing need be ranked. @returns the mass that stays */
  #atLeast(share: number): number {
    const mass = this.#mass;
    let largest = 0;
    for (const m of mass) if (m > largest) largest = m;
    let kept = 0;
    for (let id = 0; id < mass.length; id++) {
      if (mass[id]! < share * largest) mass[id] = 0;
      else kept += mass[id]!;
    }
    return kept;
  }
}

/** How much smaller than the last a mass may be to be ranked along with it, the next time more are asked for. */
const STEP = 2 ** -5;

/**
 * Ids by falling mass, ranked no further than somebody looks: of the 150,000 tokens of a large vocabulary top-p often keeps one.
 * Equal masses keep the order of their ids, so that the result does not depend on the sort.
 */
class Ranking {
  readonly #mass: Float64Array;
  readonly #order: Uint32Array;
  #ranked = 0;
  /** Ids of at least this mass are ranked. */
  #floor = Infinity;

  constructor(mass: Float64Array) {
    this.#mass = mass;
    this.#order = new Uint32Array(mass.length);
  }

  /** Begins anew: to be called when masses have changed. */
  start(): void {
    this.#ranked = 0;
    this.#floor = Infinity;
  }

  /** The id at a rank, from 0. */
  at(rank: number): number {
    while (rank >= this.#ranked) this.#rankMore();
    return this.#order[rank]!;
  }

  #rankMore(): void {
    const mass = this.#mass;
    const above = this.#floor;
    // The largest that is left, so that every call ranks at least one.
    let largest = -1;
    for (const m of mass) if (m < above && m > largest) largest = m;
    const floor = largest * STEP;
    const from = this.#ranked;
    let end = from;
    for (let id = 0; id < mass.length; id++) {
      // What is no number comes last.
      const isNext = largest < 0 ? Number.isNaN(mass[id]) : mass[id]! < above && mass[id]! >= floor;
      if (isNext) this.#order[end++] = id;
    }
    this.#order.subarray(from, end).sort((a, b) => mass[b]! - mass[a]! || a - b);
    this.#ranked = end;
    this.#floor = floor;
  }
}
