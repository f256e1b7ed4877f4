/**
 * What more experts cost where a token goes to as many as before: training steps and decoding of one shape with 8, 16, 32 and
 * 64 experts, in turns. Work and active weights are the same in all; only unchosen experts are more.
 *
 *     node --import jiti/register bench/experts.ts
 */

import { Runtime } from "../src/compute/runtime/runtime.ts";
import { Random } from "../src/compute/tensor/random.ts";
import { CROSS_ENTROPY } from "../src/learn/train/losses.ts";
import { packAll } from "../src/learn/train/pack.ts";
import { Trainer } from "../src/learn/train/trainer.ts";
import type { DeepseekV3Config } from "../src/model/arch/deepseek-v3.ts";
import { initializeModel, parameterCount } from "../src/model/arch/models.ts";
import { Engine } from "../src/model/engine/engine.ts";

const EXPERTS = [8, 16, 32, 64];
const ROUNDS = 7;
const [ROWS, LENGTH] = [16, 128];
const [PROMPT, NEW] = [8, 48];
const BATCHES = [1, 16, 64];

const model = (routedExperts: number): DeepseekV3Config => ({
  modelType: "deepseek_v3",
  vocabSize: 64,
  hiddenSize: 128,
  intermediateSize: 344,
  expertSize: 128,
  layers: 4,
  denseLayers: 1,
  heads: 4,
  queryRank: 64,
  kvRank: 48,
  nopeHeadDim: 32,
  ropeHeadDim: 16,
  valueHeadDim: 32,
  routedExperts,
  sharedExperts: 1,
  expertsPerToken: 4,
  expertGroups: 4,
  groupsPerToken: 2,
  normalizeExperts: true,
  expertScale: 2.5,
  draftLayers: 0,
  rmsNormEpsilon: 1e-6,
  ropeTheta: 1e4,
  maxPositions: LENGTH,
  tieEmbeddings: false,
});

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;

/** Milliseconds. */
async function timed(run: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await run();
  return performance.now() - began;
}

const ids = (rows: number, length: number): number[][] =>
  Array.from({ length: rows }, (_, row) => {
    const random = new Random(0, row);
    return Array.from({ length }, () => random.integer(64));
  });

const runtime = await Runtime.create({ threads: 2 });
const sequences = ids(ROWS, LENGTH).map((tokens) => ({
  ids: tokens,
  weights: tokens.map(() => 1 / (ROWS * (LENGTH - 1))),
}));
const [batch] = packAll(sequences, { batch: ROWS, rowLength: LENGTH, padId: 0 });
const sides = EXPERTS.map((experts) => {
  const config = model(experts);
  const trainer = Trainer.create(runtime, config, initializeModel(config, 1));
  const engine = new Engine(runtime, config, { slots: Math.max(...BATCHES) });
  engine.adopt(trainer.weights());
  const generate = (size: number) => async () => {
    const requests = ids(size, PROMPT).map((prompt, i) => ({ prompt, samples: 1, seed: i }));
    await engine.generate(requests, { maxNewTokens: NEW, stopIds: [] });
  };
  const kinds: [string, () => Promise<unknown>][] = [
    [`train ${ROWS}x${LENGTH}`, () => trainer.accumulate(CROSS_ENTROPY, batch!)],
    ...BATCHES.map((size): [string, () => Promise<unknown>] => [`decode ${size}`, generate(size)]),
  ];
  return { experts, config, kinds, times: new Map<string, number[]>() };
});
for (let round = -1; round < ROUNDS; round++) {
  for (const { kinds, times } of sides) {
    for (const [kind, run] of kinds) {
      const ms = await timed(run);
      // The first round compiles.
      if (round >= 0) times.set(kind, [...(times.get(kind) ?? []), ms]);
    }
  }
}
for (const [kind] of sides[0]!.kinds) {
  const base = median(sides[0]!.times.get(kind)!);
  for (const { experts, config, times } of sides) {
    const all = times.get(kind)!;
    const growth = `${((median(all) / base - 1) * 100).toFixed(0)} %`;
    const raw = all.map((ms) => ms.toFixed(1)).join(" ");
    process.stdout.write(
      `${kind}, ${experts} experts, ${parameterCount(config)} weights: ${median(all).toFixed(1)} ms, ${growth} (${raw})\n`,
    );
  }
}
// What is bound is freed with the process.
