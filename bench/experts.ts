/**
 * What more experts cost where a token goes to as many as before: training steps, prompts and decoding with 8, 16, 32 and 64
 * experts, in turns. Work and active weights are the same in all; only unchosen experts are more. Prompts and decoding are of
 * a model so large that its weights fit no cache even with 8 experts, as in any model of use. Where several sequences decode
 * side by side they choose more different experts the more there are, and so more weights are read: that is no overhead. Nor is
 * it that weights chosen now and then are further away than weights chosen always. What the unchosen themselves cost shows in
 * the last of each, 64 experts of which corrections keep all but eight from being chosen.
 *
 *     node --import jiti/register bench/experts.ts
 */

import { Runtime } from "../src/compute/runtime/runtime.ts";
import type { HostArray } from "../src/compute/tensor/host.ts";
import { Random } from "../src/compute/tensor/random.ts";
import { CROSS_ENTROPY } from "../src/learn/losses/cross-entropy.ts";
import { packAll } from "../src/learn/optim/pack.ts";
import { Trainer } from "../src/learn/optim/trainer.ts";
import type { DeepseekV3Config } from "../src/model/arch/deepseek-v3.ts";
import { initializeModel, modelParameters } from "../src/model/arch/models.ts";
import { Engine } from "../src/model/engine/engine.ts";
import { deviceWeights } from "../src/model/engine/weights.ts";

/** How many there are, and how many of them are ever chosen. */
const SIDES = [
  [8, 8],
  [16, 16],
  [32, 32],
  [64, 64],
  [64, 8],
] as const;
const ROUNDS = 7;
const [ROWS, LENGTH] = [16, 128];
const [PROMPT, NEW] = [8, 48];
const BATCHES = [1, 4, 16];
const PROMPTS = 16;

interface Sizes {
  readonly hiddenSize: number;
  readonly expertSize: number;
  readonly layers: number;
}
const TRAINED: Sizes = { hiddenSize: 128, expertSize: 128, layers: 4 };
const DECODED: Sizes = { hiddenSize: 256, expertSize: 1024, layers: 3 };

const model = (routedExperts: number, sizes: Sizes): DeepseekV3Config => ({
  ...sizes,
  modelType: "deepseek_v3",
  vocabSize: 64,
  intermediateSize: 344,
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
  expertGroups: 1,
  groupsPerToken: 1,
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
/** Fresh weights; corrections exclude all experts after the first `chosen`. */
function weightsOf(config: DeepseekV3Config, chosen: number): Record<string, HostArray<"f32">> {
  const weights = initializeModel(config, 1);
  for (const { name, kind } of modelParameters(config)) {
    if (kind === "correction") weights[name]!.data.fill(-10, chosen);
  }
  return weights;
}

const sides = SIDES.map(([experts, chosen]) => {
  const trained = model(experts, TRAINED);
  const trainer = Trainer.create(runtime, trained, weightsOf(trained, chosen), {}, { correctionRate: 0 });
  const config = model(experts, DECODED);
  const engine = new Engine(runtime, config, { slots: Math.max(...BATCHES, PROMPTS) });
  engine.adopt(deviceWeights(runtime, weightsOf(config, chosen)));
  const generate = (size: number, prompt: number, maxNewTokens: number) => async () => {
    const requests = ids(size, prompt).map((tokens, i) => ({ prompt: tokens, samples: 1, seed: i }));
    await engine.generate(requests, { maxNewTokens, stopIds: [] });
  };
  const kinds: [string, () => Promise<unknown>][] = [
    [`train ${ROWS}x${LENGTH}`, () => trainer.accumulate(CROSS_ENTROPY, batch!)],
    [`prompts ${PROMPTS}x${LENGTH - 1}`, generate(PROMPTS, LENGTH - 1, 1)],
    ...BATCHES.map((size): [string, () => Promise<unknown>] => [
      `decode ${size}`,
      generate(size, PROMPT, NEW),
    ]),
  ];
  return { experts, chosen, kinds, times: new Map<string, number[]>() };
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
  for (const { experts, chosen, times } of sides) {
    const all = times.get(kind)!;
    const growth = `${((median(all) / base - 1) * 100).toFixed(0)} %`;
    const raw = all.map((ms) => ms.toFixed(1)).join(" ");
    process.stdout.write(
      `${kind}, ${experts} experts, ${chosen} ever chosen: ${median(all).toFixed(1)} ms, ${growth} (${raw})\n`,
    );
  }
}
// What is bound is freed with the process.
