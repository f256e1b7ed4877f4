import { describe, expect, it } from "vitest";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { CROSS_ENTROPY } from "../../../src/learn/losses/cross-entropy.ts";
import type { PackedBatch } from "../../../src/learn/optim/rows.ts";
import { Scorer } from "../../../src/learn/optim/score.ts";
import { divideRows, eachShard, shardsOf, threadsOfShard } from "../../../src/learn/optim/shards.ts";
import { Trainer } from "../../../src/learn/optim/trainer.ts";
import { initializeLlama } from "../../../src/model/arch/llama.ts";
import { batchOf, randomSequences, SMALL } from "../train/batches.ts";

const LENGTHS = [6, 3, 8, 2, 5];
const sequences = randomSequences(1, LENGTHS, SMALL.vocabSize);
const rowsOf = (...rows: number[]): PackedBatch =>
  batchOf(
    sequences,
    rows.map((i) => [i]),
    8,
  );
const ALL = rowsOf(0, 1, 2, 3, 4);

describe("divideRows", () => {
  it.each([
    [1, [5]],
    [2, [3, 2]],
    [3, [2, 2, 1]],
    [4, [2, 2, 1]],
    [9, [1, 1, 1, 1, 1]],
  ])("keeps every row, in order: %i parts", (parts, sizes) => {
    const divided = divideRows(ALL, parts);
    expect(divided.map(({ ids }) => ids.shape)).toEqual(sizes.map((size) => [size, 8]));
    for (const name of ["ids", "positions", "segments", "targets", "weights"] as const) {
      expect(divided.flatMap((part) => [...part[name].data])).toEqual([...ALL[name].data]);
    }
    expect(divided.reduce((sum, { tokens }) => sum + tokens, 0)).toBe(ALL.tokens);
  });

  it("counts the tokens of each part", () => {
    expect(divideRows(ALL, 2).map(({ tokens }) => tokens)).toEqual([17, 7]);
  });
});

describe("eachShard", () => {
  it.each([
    [1, ["+0", "-0", "+1", "-1"]],
    [2, ["+0", "+1", "-0", "-1"]],
  ])("runs side by side where there are threads, else in turn: %i", async (threads, order) => {
    const log: string[] = [];
    const run = async (part: string, shard: number): Promise<string> => {
      log.push(`+${shard}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
      log.push(`-${shard}`);
      return part.toUpperCase();
    };
    expect(await eachShard({ threads } as Runtime, ["a", "b"], run)).toEqual(["A", "B"]);
    expect(log).toEqual(order);
  });

  it("throws the first error, once all have ended", async () => {
    let ended = false;
    const run = async (part: number): Promise<void> => {
      if (part === 0) throw new Error("the first");
      await new Promise((resolve) => setTimeout(resolve, 20));
      ended = true;
    };
    await expect(eachShard({ threads: 2 } as Runtime, [0, 1], run)).rejects.toThrow("the first");
    expect(ended).toBe(true);
  });

  it("divides the threads", () => {
    expect([1, 2, 5].map((threads) => threadsOfShard({ threads } as Runtime, 2))).toEqual([1, 1, 2]);
    expect(shardsOf(SMALL)).toBe(2);
    expect(shardsOf({ ...SMALL, vocabSize: 2 ** 22 })).toBe(1);
  });
});

/** Three updates on batches of unlike numbers of rows: some have rows for one shard alone. */
async function trained(threads: number): Promise<{ weights: number[]; losses: number[]; logp: number[] }> {
  const runtime = await Runtime.create({ threads });
  try {
    const trainer = Trainer.create(runtime, SMALL, initializeLlama(SMALL, 1));
    const losses: number[] = [];
    for (const batches of [[ALL], [rowsOf(2), rowsOf(0, 1), rowsOf(3, 4)], [rowsOf(0, 1), rowsOf(2)]]) {
      for (const batch of batches) losses.push((await trainer.accumulate(CROSS_ENTROPY, batch)).loss);
      await trainer.apply({ adamW: 0.01, muon: 0.02 });
    }
    const scorer = new Scorer(runtime, SMALL);
    const logp = [...(await scorer.score(trainer.weights(), ALL, 1))];
    const weights = Object.values(trainer.snapshot()).flatMap(({ data }) => [...data]);
    await scorer.dispose();
    await trainer.dispose();
    return { weights, losses, logp };
  } finally {
    runtime.dispose();
  }
}

describe("training in shards", () => {
  it("is the same to the bit with one thread and with two", async () => {
    const one = await trained(1);
    expect(await trained(2)).toEqual(one);
    expect(one.losses.every((loss) => loss > 0)).toBe(true);
    expect(one.logp.length).toBe(40);
  });

  it("counts every row once, however many each shard has", async () => {
    const runtime = await Runtime.create({ threads: 2 });
    const gradientsOf = async (batches: readonly PackedBatch[]): Promise<number[]> => {
      const trainer = Trainer.create(runtime, SMALL, initializeLlama(SMALL, 1));
      for (const batch of batches) await trainer.accumulate(CROSS_ENTROPY, batch);
      const gradients = Object.values(trainer.gradients()).flatMap(({ data }) => [...data]);
      await trainer.dispose();
      return gradients;
    };
    const whole = await gradientsOf([ALL]);
    for (const parts of [
      [[0], [1, 2], [3, 4]],
      [[0, 1], [2], [3], [4]],
      [[0], [1], [2], [3], [4]],
    ]) {
      const sums = await gradientsOf(parts.map((rows) => rowsOf(...rows)));
      for (const [i, g] of sums.entries()) expect(Math.abs(g - whole[i]!)).toBeLessThan(1e-6);
    }
    expect(Math.max(...whole.map(Math.abs))).toBeGreaterThan(1e-2);
    runtime.dispose();
  });
});
