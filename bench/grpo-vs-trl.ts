/**
 * Whole GRPO steps against TRL's GRPOTrainer: rollout, rewards, advantages, one AdamW update. The same weights, prompts,
 * reward and loss on both sides, every completion to its full length, in turns.
 *
 *     PONDERA_PYTHON=venv/bin/python node --import jiti/register bench/grpo-vs-trl.ts --rounds 3
 */

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { describeMachine } from "../src/app/bench/measure.ts";
import { type BenchModel, benchModel } from "../src/app/bench/model.ts";
import { wholeNumber } from "../src/app/cli/arguments.ts";
import { type ShapeOptions, shapeLine, shapeOf, withShape } from "../src/app/cli/shape.ts";
import { invariant } from "../src/base/errors.ts";
import { Runtime } from "../src/compute/runtime/runtime.ts";
import { Random } from "../src/compute/tensor/random.ts";
import { Trainer } from "../src/learn/optim/trainer.ts";
import type { Task } from "../src/learn/tasks/task.ts";
import type { PolicyStageConfig } from "../src/learn/train/config.ts";
import { rowLengthsFor } from "../src/learn/train/policy-batch.ts";
import { policyStep } from "../src/learn/train/policy-stage.ts";
import { PRESETS } from "../src/learn/train/presets.ts";
import { Engine } from "../src/model/engine/engine.ts";
import { encodePrompt } from "../src/model/engine/text.ts";
import type { Tokenizer } from "../src/model/text/tokenizer.ts";
import { benchFolder } from "./bench-folder.ts";
import {
  groupOf,
  isMain,
  main,
  type PeerOverride,
  startPeer,
  takeTurns,
  type VersusOptions,
  type VersusReport,
  versusCommand,
} from "./versus.ts";

export interface GrpoVersusOptions extends ShapeOptions, VersusOptions {
  readonly prompts: number;
  readonly samples: number;
  readonly prompt: number;
  readonly newTokens: number;
  /** Steps of each turn. */
  readonly steps: number;
  readonly slots: number;
  /** TRL's sequences that go through forward and backward at once. */
  readonly microBatch: number;
  /** Nothing that costs TRL time for nothing is turned off. @default false */
  readonly trlAsItComes?: boolean;
}

const Answer = z.object({
  seconds: z.array(z.number()),
  generationSeconds: z.array(z.number()),
  completionTokens: z.array(z.number()),
});

const LEARNING_RATE = 1e-4;

interface StepSeconds {
  readonly all: number;
  /** Of them, those in which completions were sampled. */
  readonly generating: number;
}

/** Our side: steps of reinforcement learning as `pondera train` takes them. */
async function preparePolicy(
  runtime: Runtime,
  { config, tensors, sizes }: BenchModel,
  texts: readonly string[],
  tokenizer: Tokenizer,
  options: GrpoVersusOptions,
): Promise<{ step: () => Promise<StepSeconds>; dispose: () => Promise<void> }> {
  const { prompts, samples, newTokens, slots } = options;
  const { rl } = PRESETS.quick.config;
  const stage: PolicyStageConfig = {
    ...rl,
    prompts,
    samples,
    slots,
    maxNewTokens: newTokens,
    loss: "dapo",
    scaling: "group",
    // The other side has none of these either, and trains on every sample.
    klBeta: 0,
    thinBelow: 0,
    clipHigh: rl.clipLow,
    rates: { adamW: LEARNING_RATE, muon: LEARNING_RATE },
    schedule: { warmup: 0, decay: 0, final: 1 },
    optimizer: { ...rl.optimizer, matrices: "adamw", beta2: 0.999, clipNorm: 1 },
  };
  const task: Task<undefined> = {
    name: "bench",
    alphabet: texts.join(""),
    train: {
      draw: (random) => {
        const index = random.integer(texts.length);
        return { id: `${index}`, prompt: texts[index]!, row: undefined };
      },
    },
    validation: [],
    rewards: { distinct: { weight: 1, reward: ({ text }) => new Set(text).size / 10 } },
  };
  const longest = Math.max(...texts.map((text) => encodePrompt(tokenizer, text).length)) + newTokens;
  const trainer = Trainer.create(runtime, config, tensors, stage.optimizer);
  const engine = new Engine(runtime, config, { slots, maxPositions: longest });
  let step = 0;
  return {
    async step() {
      const began = performance.now();
      engine.adopt(trainer.weights());
      const rows = rowLengthsFor(longest, newTokens);
      const { tokens, seconds } = await policyStep({
        ...{ trainer, engine, tokenizer, task, stage, sizes, rows },
        seed: 0,
        step: ++step,
      });
      invariant(tokens.rollout === prompts * samples * newTokens, "every completion has its full length");
      return { all: (performance.now() - began) / 1000, generating: seconds["rollout"]! };
    },
    async dispose() {
      await trainer.dispose();
      await engine.dispose();
    },
  };
}

/** The tokenizer with an end that no token is, so that no completion ends before its limit. */
const endless = (tokenizer: Tokenizer): Tokenizer => ({
  vocabSize: tokenizer.vocabSize,
  ...(tokenizer.bosId === undefined ? {} : { bosId: tokenizer.bosId }),
  eosId: tokenizer.vocabSize,
  padId: tokenizer.padId,
  addsBos: tokenizer.addsBos,
  encode: (text, options) => tokenizer.encode(text, options),
  decode: (ids, how) => tokenizer.decode(ids, how),
  piece: (id) => tokenizer.piece(id),
  save: (folder) => tokenizer.save(folder),
});

export async function grpoVersusTrl(
  options: GrpoVersusOptions,
  override: PeerOverride = {},
): Promise<VersusReport> {
  const { prompts, samples, prompt, newTokens, steps, microBatch, threads, rounds, onRound } = options;
  const shape = shapeOf(options);
  // One position more than both need: our prompts begin with a token of their own.
  const model = benchModel(shape, 1 + prompt + newTokens);
  const folder = await benchFolder(model);
  const runtime = await Runtime.create({ threads });
  try {
    const random = new Random(0);
    const text = (): string => Array.from({ length: prompt }, () => random.pick(folder.alphabet)).join("");
    const texts = Array.from({ length: prompts }, text);
    const promptsFile = join(folder.path, "prompts.json");
    await writeFile(promptsFile, JSON.stringify(texts));
    const asked = { model: folder.path, promptsFile, prompts, samples, newTokens, microBatch, threads };
    const settings = {
      learningRate: LEARNING_RATE,
      ignoreEos: true,
      loss: "dapo",
      asItComes: options.trlAsItComes ?? false,
    };
    const peer = await startPeer("grpo_trl.py", { ...asked, ...settings }, override);
    try {
      const ours = await preparePolicy(runtime, model, texts, endless(folder.tokenizer), options);
      try {
        // Builds the programs, and binds them to both copies of the weights; the peer warmed up before it was ready.
        for (let i = 0; i < 2; i++) await ours.step();
        const generating: Record<"Pondera" | "TRL", number[]> = { Pondera: [], TRL: [] };
        const sides = [
          {
            name: "Pondera",
            turn: async () => {
              const seconds: number[] = [];
              for (let i = 0; i < steps; i++) {
                const step = await ours.step();
                seconds.push(step.all);
                generating.Pondera.push(step.generating);
              }
              return seconds;
            },
          },
          {
            name: options.trlAsItComes ? "TRL, as it comes" : "TRL GRPOTrainer",
            turn: async () => {
              const answer = await peer.request({ cmd: "steps", n: steps }, Answer);
              const full = prompts * samples * newTokens;
              invariant(
                answer.completionTokens.every((n) => n === full),
                "every completion has its full length",
              );
              generating.TRL.push(...answer.generationSeconds);
              return answer.seconds;
            },
          },
        ];
        const timed = await takeTurns(sides, rounds, onRound);
        return {
          benchmark: "grpo-vs-trl",
          what: `a GRPO step of ${prompts} prompts × ${samples} samples, ${newTokens} new tokens, ${shapeLine(shape, model.shape.parameters)}, ${threads} threads`,
          machine: describeMachine(runtime),
          versions: peer.facts.versions,
          groups: [groupOf("a step", prompts * samples * newTokens, timed)],
          notes: Object.entries(generating).map(
            ([name, seconds]) =>
              `${name}: ${(seconds.reduce((a, b) => a + b) / seconds.length).toFixed(1)} s of a step sample completions`,
          ),
        };
      } finally {
        await ours.dispose();
      }
    } finally {
      await peer.close();
    }
  } finally {
    runtime.dispose();
    await folder.remove();
  }
}

if (isMain(import.meta.url)) {
  const count = wholeNumber({ min: 1 });
  const command = withShape(versusCommand("grpo-vs-trl", "Whole GRPO steps against TRL's GRPOTrainer."))
    .option("--prompts <n>", "prompts of a step", count, 64)
    .option("--samples <n>", "completions of each", wholeNumber({ min: 2 }), 8)
    .option("--prompt <n>", "characters of each prompt", count, 32)
    .option("--new-tokens <n>", "tokens of each completion", count, 96)
    .option("--steps <n>", "steps of each turn", count, 1)
    .option("--slots <n>", "sequences our side decodes side by side", count, 256)
    .option(
      "--trl-as-it-comes",
      "TRL with all that it does by itself: autocast to bfloat16, activations computed again",
    )
    .option("--micro-batch <n>", "sequences TRL trains on at once", count, 64);
  await main(command, grpoVersusTrl);
}
