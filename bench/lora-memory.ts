/**
 * What adapters save: the peak memory of reinforcement learning on a pretrained model, all weights against LoRA, each in a
 * process of its own; and how fast the same adapters decode beside the matrices and taken into them. Steps are whole: a rollout,
 * the reference's log-probabilities, gradients on two micro-batches, an update. Weights are random, of the shape of
 * SmolLM2-135M unless a model is named: memory and time do not depend on their values.
 *
 *     node --import jiti/register bench/lora-memory.ts
 *     node --import jiti/register bench/lora-memory.ts --model ./SmolLM2-135M-Instruct --rank 8
 */

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ConfigError, expectKnown } from "../src/base/errors.ts";
import { Runtime } from "../src/compute/runtime/runtime.ts";
import { f32, type HostArray } from "../src/compute/tensor/host.ts";
import { Random } from "../src/compute/tensor/random.ts";
import { policyLoss } from "../src/learn/losses/grpo.ts";
import { packAll } from "../src/learn/optim/pack.ts";
import type { TrainingSequence } from "../src/learn/optim/rows.ts";
import { Scorer } from "../src/learn/optim/score.ts";
import { Trainer } from "../src/learn/optim/trainer.ts";
import { trainedConfig } from "../src/learn/train/base-model.ts";
import { withLora } from "../src/learn/train/config.ts";
import { PRESETS } from "../src/learn/train/presets.ts";
import { freshWeights } from "../src/model/arch/architecture.ts";
import type { LlamaConfig } from "../src/model/arch/llama.ts";
import {
  initializeModel,
  type ModelConfig,
  modelParameters,
  parameterCount,
} from "../src/model/arch/models.ts";
import { withAdaptersMerged } from "../src/model/checkpoint/adapter.ts";
import { loadModelWeights } from "../src/model/checkpoint/folder.ts";
import { Engine } from "../src/model/engine/engine.ts";
import { deviceWeights } from "../src/model/engine/weights.ts";

/** SmolLM2-135M's shape, from its `config.json`. */
const SMOLLM2_135M: LlamaConfig = {
  vocabSize: 49_152,
  hiddenSize: 576,
  intermediateSize: 1536,
  layers: 30,
  heads: 9,
  kvHeads: 3,
  headDim: 64,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 100_000,
  maxPositions: 8192,
  tieEmbeddings: true,
};

const VARIANTS = ["full", "lora", "beside", "merged"] as const;
type Variant = (typeof VARIANTS)[number];

const HELP = `Usage: node --import jiti/register bench/lora-memory.ts [options]

  --model <folder>   Hugging Face folder (default: random weights in the shape of SmolLM2-135M)
  --rank <r>         rank of the adapters (default: 16)
  --tokens <n>       tokens of a micro-batch (default: the preset tune's, ${PRESETS.tune.config.rl.batchTokens})
  --steps <n>        steps (default: 2)
  --rounds <n>       times that each way of decoding is timed, in turns (default: 3)
  --threads <n>      threads (default: 1)
  --json             every number as one object
  --help             this text
`;

interface Options {
  readonly model?: string;
  readonly rank: number;
  readonly tokens: number;
  readonly steps: number;
  readonly rounds: number;
  readonly threads: number;
}

/** What a child reports. */
interface Report {
  /** Highest resident memory of the process, bytes. */
  readonly peakBytes: number;
  readonly seconds: number;
  readonly parameters: number;
  readonly trained: number;
  /** Of decoding. */
  readonly tokensPerSecond: number;
}

const ROW = 256;
const [PROMPT, PROMPTS, SAMPLES] = [48, 4, 4];
const NEW_TOKENS = 32;

type Tensors = Record<string, HostArray<"f32">>;

async function modelOf(folder: string | undefined): Promise<{ config: ModelConfig; tensors: Tensors }> {
  if (folder === undefined) return { config: SMOLLM2_135M, tensors: initializeModel(SMOLLM2_135M, 1) };
  const { config, tensors } = await loadModelWeights(folder);
  return { config, tensors: { ...tensors } };
}

/** Adapters that have learnt something: B is no longer zero. */
function adaptersOf(config: ModelConfig): Tensors {
  const specs = modelParameters(config).filter(({ kind }) => kind === "adapter");
  const random = new Random(7);
  return Object.fromEntries(
    Object.entries(freshWeights(specs, 1)).map(([name, { shape, data }]) => [
      name,
      f32(shape, name.includes("lora_B") ? data.map(() => 1e-3 * random.normal()) : data),
    ]),
  );
}

const randomIds = (random: Random, count: number, vocabSize: number): number[] =>
  Array.from({ length: count }, () => random.integer(vocabSize));

async function generate(engine: Engine, step: number): Promise<number> {
  const random = new Random(3, step);
  const requests = Array.from({ length: PROMPTS }, (_, i) => ({
    prompt: randomIds(random, PROMPT, engine.config.vocabSize),
    samples: SAMPLES,
    seed: 1,
    path: [step, i],
  }));
  const began = performance.now();
  const completions = await engine.generate(requests, { maxNewTokens: NEW_TOKENS, stopIds: [] });
  const tokens = completions.flat().reduce((sum, { ids }) => sum + ids.length, 0);
  return (1000 * tokens) / (performance.now() - began);
}

const { rl } = PRESETS.tune.config;

/** Whole steps of reinforcement learning. */
async function train(variant: "full" | "lora", options: Options): Promise<Report> {
  const runtime = await Runtime.create({ threads: options.threads });
  const began = performance.now();
  const { config: base, tensors } = await modelOf(options.model);
  const { lora } = withLora(PRESETS.tune.config, options.rank);
  const config = trainedConfig({ ...base, maxPositions: ROW }, variant === "lora" ? lora : undefined);
  const frozen = variant === "lora" ? deviceWeights(runtime, tensors) : {};
  const first = variant === "lora" ? adaptersOf(config) : { ...tensors };
  for (const name of Object.keys(tensors)) delete tensors[name];
  const trainer = Trainer.create(runtime, config, first, rl.optimizer, {}, frozen);
  for (const name of Object.keys(first)) delete first[name];
  const reference = { ...frozen, ...deviceWeights(runtime, trainer.moved()) };
  const engine = new Engine(runtime, config, { slots: rl.slots, maxPositions: ROW });
  const scorer = new Scorer(runtime, config);
  const loss = policyLoss({ loss: rl.loss, kl: true, dualClip: false });
  const scalars = { temperature: 1, clipLow: 0.2, clipHigh: 0.28, entropyBonus: 0, klBeta: rl.klBeta };
  const rates = [];
  for (let step = 1; step <= options.steps; step++) {
    engine.adopt(trainer.weights());
    rates.push(await generate(engine, step));
    const random = new Random(5, step);
    const sequences = Array.from({ length: (2 * options.tokens) / ROW }, (_, i): TrainingSequence => {
      const each = (value: number) => Array.from({ length: ROW }, () => value);
      return {
        ids: randomIds(random, ROW, config.vocabSize),
        weights: each(1 / ROW),
        extra: {
          counts: each(1),
          advantage: each(i % 2 === 0 ? 1 : -1),
          sampledLogp: each(-Math.log(config.vocabSize)),
          referenceLogp: each(0),
        },
      };
    });
    const names = ["counts", "advantage", "sampledLogp", "referenceLogp"];
    const shape = { batch: options.tokens / ROW, rowLength: ROW, padId: 0 };
    for (const batch of packAll(sequences, shape, names)) {
      batch.extra["referenceLogp"]!.data.set(await scorer.score(reference, batch, 1));
      await trainer.accumulate(loss, batch, scalars);
    }
    await trainer.apply({ adamW: 1e-5, muon: 0 });
  }
  const trained = Object.values(trainer.moved()).reduce((sum, { data }) => sum + data.length, 0);
  return {
    // KiB on Linux and macOS alike, by Node's account.
    peakBytes: 1024 * process.resourceUsage().maxRSS,
    seconds: (performance.now() - began) / 1000,
    parameters: parameterCount(base),
    trained,
    tokensPerSecond: Math.max(...rates),
  };
}

/** The same adapters, decoded beside the matrices or taken into them; the time it takes to take them in is counted. */
async function decode(variant: "beside" | "merged", options: Options): Promise<Report> {
  const runtime = await Runtime.create({ threads: options.threads });
  const { config: base, tensors } = await modelOf(options.model);
  const { lora } = withLora(PRESETS.tune.config, options.rank);
  const adapted = trainedConfig({ ...base, maxPositions: ROW }, lora);
  const adapters = adaptersOf(adapted);
  const began = performance.now();
  const weights =
    variant === "beside"
      ? { ...tensors, ...adapters }
      : withAdaptersMerged("bench", tensors, { tensors: adapters, scale: lora!.alpha / lora!.rank });
  const config = variant === "beside" ? adapted : { ...base, maxPositions: ROW };
  const engine = new Engine(runtime, config, { slots: PROMPTS * SAMPLES, maxPositions: ROW });
  engine.adopt(deviceWeights(runtime, weights));
  const seconds = (performance.now() - began) / 1000;
  const rates = [];
  for (let round = 0; round < 2; round++) rates.push(await generate(engine, round));
  return {
    peakBytes: 1024 * process.resourceUsage().maxRSS,
    seconds,
    parameters: parameterCount(base),
    trained: 0,
    tokensPerSecond: Math.max(...rates),
  };
}

function child(variant: Variant, argv: readonly string[]): Report {
  const file = fileURLToPath(import.meta.url);
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ["--import", "jiti/register", file, "--variant", variant, ...argv],
    { encoding: "utf8", maxBuffer: 1 << 24 },
  );
  if (status !== 0) throw new Error(`${variant} ended with ${status}: ${stderr}`);
  return JSON.parse(stdout) as Report;
}

const { values } = parseArgs({
  options: {
    model: { type: "string" },
    rank: { type: "string", default: "16" },
    tokens: { type: "string", default: String(rl.batchTokens) },
    steps: { type: "string", default: "2" },
    rounds: { type: "string", default: "3" },
    threads: { type: "string", default: "1" },
    variant: { type: "string" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

function whole(name: "rank" | "tokens" | "steps" | "rounds" | "threads", step = 1, least = step): number {
  const value = Number(values[name]);
  if (Number.isSafeInteger(value) && value >= least && value % step === 0) return value;
  throw new ConfigError({
    where: `--${name}`,
    rule: `must be a multiple of ${step} from ${least}`,
    got: values[name],
  });
}

const options: Options = {
  ...(values.model === undefined ? {} : { model: values.model }),
  rank: whole("rank"),
  tokens: whole("tokens", ROW),
  steps: whole("steps"),
  rounds: whole("rounds", 1, 0),
  threads: whole("threads"),
};
const argv = [
  ...(options.model === undefined ? [] : ["--model", options.model]),
  ...(["rank", "tokens", "steps", "threads"] as const).flatMap((name) => [
    `--${name}`,
    String(options[name]),
  ]),
];
const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
const millions = (count: number): string => `${(count / 1e6).toFixed(1)} M`;

if (values.help) {
  process.stdout.write(HELP);
} else if (values.variant !== undefined) {
  expectKnown("--variant", values.variant, VARIANTS);
  const variant = values.variant as Variant;
  const report =
    variant === "full" || variant === "lora" ? await train(variant, options) : await decode(variant, options);
  process.stdout.write(JSON.stringify(report));
} else {
  const [full, lora] = [child("full", argv), child("lora", argv)];
  const ratio = lora.peakBytes / full.peakBytes;
  const decoding: Record<"beside" | "merged", Report[]> = { beside: [], merged: [] };
  for (let round = 0; round < options.rounds; round++) {
    for (const way of ["beside", "merged"] as const) decoding[way].push(child(way, argv));
  }
  if (values.json) {
    process.stdout.write(`${JSON.stringify({ options, full, lora, ratio, decoding }, undefined, 2)}\n`);
  } else {
    const row = (name: string, { peakBytes, trained, seconds }: Report): string =>
      `${name.padEnd(12)} ${millions(trained).padStart(8)} trained   peak ${gib(peakBytes)}   ${seconds.toFixed(1)} s\n`;
    process.stdout.write(
      `${millions(full.parameters)} parameters, ${options.steps} steps of 2 × ${options.tokens} tokens\n`,
    );
    process.stdout.write(row("all weights", full) + row(`LoRA r=${options.rank}`, lora));
    process.stdout.write(`LoRA's peak is ${ratio.toFixed(2)} of that of all weights\n`);
    for (const [way, reports] of Object.entries(decoding)) {
      if (reports.length === 0) continue;
      const rates = reports.map(({ tokensPerSecond }) => tokensPerSecond.toFixed(1)).join(", ");
      const setUp = reports.map(({ seconds }) => seconds.toFixed(1)).join(", ");
      process.stdout.write(`decoding, adapters ${way}: ${rates} tokens/s; made ready in ${setUp} s\n`);
    }
  }
}
