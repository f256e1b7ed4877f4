/** The sampler against transformers' logits processors, from test/reference/sampling.py, and at its edges. */

import { describe, expect, it } from "vitest";
import { ConfigError } from "../../../src/base/errors.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { SAMPLING_DEFAULTS, Sampler, type SamplingOptions } from "../../../src/model/engine/sampler.ts";
import { readFixture, type StoredArray } from "../../fixture.ts";

interface Filtered {
  readonly logits: StoredArray<"f32">;
  readonly cases: readonly {
    readonly config: {
      readonly temperature?: number;
      readonly top_k?: number;
      readonly top_p?: number;
      readonly min_p?: number;
    };
    readonly kept: StoredArray<"i32">;
    readonly probabilities: StoredArray<"f32">;
  }[];
}

const fixture = readFixture<Filtered & { readonly ties: Filtered }>("sampling.json");

const sampler = (vocabSize: number, options: Partial<SamplingOptions> = {}): Sampler =>
  new Sampler(vocabSize, { ...SAMPLING_DEFAULTS, ...options });

/** log softmax of a row at a temperature, in float64. */
function logSoftmax(logits: ArrayLike<number>, temperature = 1): number[] {
  const scaled = Array.from(logits, (x) => x / temperature);
  const largest = Math.max(...scaled);
  const total = scaled.reduce((sum, x) => sum + Math.exp(x - largest), 0);
  return scaled.map((x) => x - largest - Math.log(total));
}

describe.each([
  ["logits", fixture],
  ["ties", fixture.ties],
] as const)("%s of transformers", (_, { logits, cases }) => {
  it.each(cases)("are filtered alike: $config", ({ config, kept, probabilities }) => {
    const [rows, V] = logits.shape as readonly [number, number];
    const ours = sampler(V, {
      ...(config.temperature === undefined ? {} : { temperature: config.temperature }),
      ...(config.top_k === undefined ? {} : { topK: config.top_k }),
      ...(config.top_p === undefined ? {} : { topP: config.top_p }),
      ...(config.min_p === undefined ? {} : { minP: config.min_p }),
    });
    const data = Float32Array.from(logits.data);
    for (let row = 0; row < rows; row++) {
      for (const [id, p] of ours.probabilities(data, row * V).entries()) {
        const i = row * V + id;
        expect(Number(p > 0), `[${row}, ${id}] kept`).toBe(kept.data[i]);
        // transformers divides by the temperature in float32: 4e-6 of logits near 50.
        expect(Math.abs(p - probabilities.data[i]!), `[${row}, ${id}]`).toBeLessThan(4e-6);
      }
    }
  });
});

/** What the filters leave of a row's masses, by ranking all of them: the slow way. */
function filteredSlowly(logits: Float32Array, { topK, topP, minP }: Omit<SamplingOptions, "temperature">) {
  const largest = Math.max(...logits);
  const mass = Array.from(logits, (x) => Math.exp(x - largest));
  const order = [...mass.keys()].sort((a, b) => mass[b]! - mass[a]! || a - b);
  const last = topK > 0 && topK < order.length ? mass[order[topK - 1]!]! : 0;
  const candidates = order.filter((id) => mass[id]! >= last);
  const total = candidates.reduce((sum, id) => sum + mass[id]!, 0);
  let kept = 0;
  const likely = candidates.filter((_, i) => {
    const stays = topP === 1 || i === 0 || kept < topP * total;
    if (stays) kept += mass[candidates[i]!]!;
    return stays;
  });
  const stay = new Set(likely.filter((id, i) => i === 0 || mass[id]! >= minP * mass[order[0]!]!));
  return mass.map((m, id) => (stay.has(id) ? m : 0));
}

it("filters rank no further than they must, and keep what ranking all would", () => {
  const random = new Random(3);
  for (let round = 0; round < 300; round++) {
    const V = 2 + random.integer(60);
    // From flat to steep; whole numbers make ties, and some tokens are forbidden.
    const spread = 10 ** (random.uniform() * 4 - 1);
    const logits = Float32Array.from({ length: V }, (_, id) => {
      if (id > 0 && random.uniform() < 0.1) return -Infinity;
      const x = spread * random.normal();
      return round % 2 === 0 ? Math.round(x) : x;
    });
    const options = {
      topK: random.uniform() < 0.5 ? 0 : random.integer(V + 2),
      topP: random.uniform() < 0.3 ? 1 : 0.05 + 0.9 * random.uniform(),
      minP: random.uniform() < 0.5 ? 0 : random.uniform(),
    };
    const expected = filteredSlowly(logits, options);
    const kept = expected.reduce((a, b) => a + b, 0);
    const ours = sampler(V, options).probabilities(logits);
    for (const [id, m] of expected.entries())
      expect(ours[id], `round ${round}, ${id}`).toBeCloseTo(m / kept, 12);
  }
});

describe("a token", () => {
  it("is none of the rows that stand for no token, though they count", () => {
    const logits = Float32Array.of(0, 1, 2, 900, 3);
    const exact = logSoftmax(logits);
    const greedy = new Sampler(5, { ...SAMPLING_DEFAULTS, temperature: 0 }, 3);
    expect(greedy.choose(logits, 0, 0)).toEqual({ id: 2, logp: exact[2] });
    const few = Float32Array.of(0, 1, 2, 2.5, 1);
    const random = new Random(1);
    for (const options of [{}, { topP: 0.9 }, { topK: 2 }, { minP: 0.2 }]) {
      const drawn = new Sampler(5, { ...SAMPLING_DEFAULTS, ...options }, 3);
      for (let i = 0; i < 200; i++) {
        const { id, logp } = drawn.choose(few, 0, random.uniform());
        expect(id).toBeLessThan(3);
        expect(logp).toBeCloseTo(logSoftmax(few)[id]!, 10);
      }
    }
  });

  const logits = Float32Array.from([0.5, -1, 2, 0, 2.5, -3]);

  it("is chosen as often as it is probable, and none that was filtered", () => {
    const N = 10_000;
    for (const options of [{}, { temperature: 0.7, topK: 4 }, { topP: 0.8 }, { temperature: 2, minP: 0.2 }]) {
      const ours = sampler(6, options);
      const counts = new Array<number>(6).fill(0);
      for (let i = 0; i < N; i++) counts[ours.choose(logits, 0, (i + 0.5) / N).id]!++;
      for (const [id, p] of ours.probabilities(logits).entries()) {
        expect(Math.abs(counts[id]! - p * N), `${JSON.stringify(options)}: ${id}`).toBeLessThanOrEqual(1);
      }
    }
  });

  it("comes with its log-probability at the temperature, before any filter", () => {
    for (const temperature of [1, 0.6, 1.7]) {
      const expected = logSoftmax(logits, temperature);
      for (const options of [{}, { topK: 2 }, { topP: 0.5, minP: 0.1 }]) {
        const { id, logp } = sampler(6, { temperature, ...options }).choose(logits, 0, 0.3);
        expect(logp).toBeCloseTo(expected[id]!, 12);
      }
    }
  });

  it("is the likeliest at temperature 0, its log-probability that of temperature 1", () => {
    const greedy = sampler(6, { temperature: 0, topP: 0.1 });
    for (const uniform of [0, 0.5, 0.999]) {
      expect(greedy.choose(logits, 0, uniform).id).toBe(4);
      expect(greedy.choose(logits, 0, uniform).logp).toBeCloseTo(logSoftmax(logits)[4]!, 12);
    }
    expect([...greedy.probabilities(logits)]).toEqual([0, 0, 0, 0, 1, 0]);
    expect(greedy.choose(Float32Array.from([1, 3, 3, 3, 0, 0]), 0, 0.9).id, "the first of equals").toBe(1);
  });

  it("is found at both ends of the uniform range, and never where there is no mass", () => {
    const last = 1 - 2 ** -53;
    expect(sampler(6).choose(logits, 0, 0).id).toBe(0);
    expect(sampler(6).choose(logits, 0, last).id).toBe(5);
    // Ids 0 and 5 are filtered.
    expect(sampler(6, { topK: 2 }).choose(logits, 0, 0).id).toBe(2);
    expect(sampler(6, { topK: 2 }).choose(logits, 0, last).id).toBe(4);
    const barred = Float32Array.from([-Infinity, 0, -Infinity]);
    for (const uniform of [0, 0.5, last])
      expect(sampler(3).choose(barred, 0, uniform)).toEqual({ id: 1, logp: 0 });
    const random = new Random(1);
    for (let i = 0; i < 2000; i++) {
      const row = Float32Array.from({ length: 40 }, () => 4 * random.normal());
      const ours = sampler(40, { topP: 0.9 });
      const { id } = ours.choose(row, 0, i % 2 === 0 ? random.uniform() : last);
      expect(ours.probabilities(row)[id]).toBeGreaterThan(0);
    }
  });

  it("is read from its own row of a batch of logits", () => {
    const batch = Float32Array.from([9, 0, 0, 0, 0, 9]);
    expect(sampler(3).choose(batch, 0, 0.5).id).toBe(0);
    expect(sampler(3).choose(batch, 3, 0.5).id).toBe(2);
  });

  it("of huge logits has a finite log-probability", () => {
    const huge = Float32Array.from([3e38, -3e38, 3e38]);
    expect(sampler(3).choose(huge, 0, 0.1).logp).toBeCloseTo(-Math.LN2, 12);
    expect(sampler(3, { temperature: 1e-3 }).choose(Float32Array.from([1, 2, 3]), 0, 0.5)).toEqual({
      id: 2,
      logp: 0,
    });
  });

  it("of logits that are no numbers has a log-probability that is none", () => {
    for (const bad of [Number.NaN, Infinity]) {
      for (const options of [{}, { temperature: 0 }, { topK: 2 }]) {
        expect(sampler(3, options).choose(Float32Array.from([1, bad, 0]), 0, 0.5).logp).toBeNaN();
      }
    }
  });
});

describe("options", () => {
  it.each([
    [{ temperature: -1 }, "sampling: temperature: must be a number ≥ 0; got -1."],
    [{ temperature: Infinity }, "sampling: temperature: must be a number ≥ 0; got Infinity."],
    [{ topK: 1.5 }, "sampling: topK: must be a whole number ≥ 0; got 1.5."],
    [{ topK: -1 }, "sampling: topK: must be a whole number ≥ 0; got -1."],
    [{ topP: 0 }, "sampling: topP: must be in (0, 1]; got 0."],
    [{ topP: 1.01 }, "sampling: topP: must be in (0, 1]; got 1.01."],
    [{ minP: -0.1 }, "sampling: minP: must be in [0, 1]; got -0.1."],
    [{ minP: Number.NaN }, "sampling: minP: must be in [0, 1]; got NaN."],
  ])("%o are refused", (options, message) => {
    expect(() => sampler(6, options)).toThrow(ConfigError);
    expect(() => sampler(6, options)).toThrow(message);
  });
});
