/** `pondera bench`: how fast this machine trains and generates, and how near that is to the most it could do. */

import { type Command, Option } from "commander";
import { ConfigError } from "../../../base/errors.ts";
import { Runtime } from "../../../compute/runtime/runtime.ts";
import { timeMatmul } from "../../../learn/cost/peak.ts";
import { prepareGeneration } from "../../bench/generate.ts";
import { describeMachine, type Measured, machineLine, measured, repeat } from "../../bench/measure.ts";
import { benchModel } from "../../bench/model.ts";
import { prepareTraining } from "../../bench/train.ts";
import { compact, percent } from "../../format.ts";
import { threadsOption, wholeNumber, wholeNumbers } from "../arguments.ts";
import { withExamples } from "../help.ts";
import { type Context, isInteractive, write, writeJson } from "../io.ts";
import { type ShapeOptions, shapeLine, shapeOf, withShape } from "../shape.ts";

interface CommonOptions {
  readonly threads: number;
  readonly json?: true;
}

interface TrainOptions extends ShapeOptions, CommonOptions {
  readonly batch: number;
  readonly tokens: number;
  readonly parts: number;
  readonly optimizer: "adamw" | "muon";
  readonly steps: number;
  readonly peakMs: number;
}

interface GenerateOptions extends ShapeOptions, CommonOptions {
  readonly batch: readonly number[];
  readonly prompt: number;
  readonly newTokens: number;
  readonly repeats: number;
}

interface MatmulOptions extends CommonOptions {
  readonly sizes: readonly number[];
  readonly milliseconds: number;
}

const WARMUP = { steps: 2, generations: 1 };
/** Square products from those that fit a core's cache to those that fit none. */
const MATMUL_SIZES = [256, 512, 768, 1024, 2048];

/** Tells somebody who waits what is going on. */
function tell(io: Context, text: string): void {
  if (isInteractive(io.stderr, io.env)) io.stderr.write(`\r\u001b[K${text}`);
}

/** `540.1 (min 520.0, max 590.2, 10 of them)`. */
const spread = ({ median, min, max, all }: Measured, digits = 1): string =>
  `${median.toFixed(digits)} (min ${min.toFixed(digits)}, max ${max.toFixed(digits)}, ${all.length} of them)`;

const row = (name: string, text: string): string => `  ${name.padEnd(12)} ${text}`;

/** Runs a benchmark on a runtime of its own, and reports it as JSON or as lines, the machine in both. */
async function report<T extends object>(
  options: CommonOptions,
  io: Context,
  run: (runtime: Runtime) => Promise<{ readonly data: T; readonly lines: readonly string[] }>,
): Promise<void> {
  const runtime = await Runtime.create({ threads: options.threads });
  try {
    const machine = describeMachine(runtime);
    const { data, lines } = await run(runtime);
    tell(io, "");
    if (options.json) await writeJson(io.stdout, { ...data, machine });
    else await write(io.stdout, `${[...lines, row("machine", machineLine(machine))].join("\n")}\n`);
  } finally {
    runtime.dispose();
  }
}

interface MatmulSpeed {
  readonly size: number;
  /** 10⁹ operations a second. */
  readonly gflops: Measured;
}

async function matmulSpeeds(
  runtime: Runtime,
  sizes: readonly number[],
  budgetMs: number,
): Promise<MatmulSpeed[]> {
  const speeds: MatmulSpeed[] = [];
  for (const size of sizes) {
    const seconds = await timeMatmul(runtime, size, budgetMs);
    speeds.push({ size, gflops: measured(seconds.map((s) => (2 * size ** 3) / s / 1e9)) });
  }
  return speeds;
}

/** The fastest product of all: what a share is measured against. */
const peakOf = (speeds: readonly MatmulSpeed[]): number =>
  Math.max(...speeds.map(({ gflops }) => gflops.max));

async function benchTrain(options: TrainOptions, io: Context): Promise<void> {
  const { batch, tokens, parts, optimizer, steps } = options;
  if (batch % parts !== 0) {
    throw new ConfigError({ where: "--parts", rule: `must divide the batch of ${batch}`, got: `${parts}` });
  }
  await report(options, io, async (runtime) => {
    const shape = shapeOf(options);
    const bench = await prepareTraining(runtime, { shape, batch, tokens, parts, optimizer });
    let before: MatmulSpeed[];
    let seconds: number[];
    try {
      tell(io, "measuring matrix products…");
      before = await matmulSpeeds(runtime, MATMUL_SIZES, options.peakMs);
      tell(io, "building the training step…");
      seconds = await repeat(steps, WARMUP.steps, bench.step, (done) => tell(io, `step ${done} of ${steps}`));
    } finally {
      await bench.dispose();
    }
    // Once more, so that a machine that has become faster or slower meanwhile does not flatter the share.
    const after = await matmulSpeeds(runtime, MATMUL_SIZES, options.peakMs);
    const peakGflops = Math.max(peakOf(before), peakOf(after));
    const milliseconds = measured(seconds.map((s) => 1000 * s));
    const median = milliseconds.median / 1000;
    const tokensPerSecond = bench.tokensPerStep / median;
    const gflops = bench.flopsPerStep / median / 1e9;
    const data = {
      model: { ...shape, parameters: bench.parameters },
      batch,
      tokens,
      parts,
      optimizer,
      flopsPerStep: bench.flopsPerStep,
      milliseconds,
      tokensPerSecond,
      gflops,
      peakGflops,
      share: gflops / peakGflops,
    };
    const lines = [
      `training ${shapeLine(shape, bench.parameters)}, batch ${batch} × ${tokens}, ${optimizer}`,
      row("ms a step", spread(milliseconds)),
      row("tokens/s", compact(Math.round(tokensPerSecond))),
      row(
        "GFLOP/s",
        `${gflops.toFixed(0)}, ${percent(data.share)} of the ${peakGflops.toFixed(0)} that matrix products reach`,
      ),
    ];
    return { data, lines };
  });
}

async function benchGenerate(options: GenerateOptions, io: Context): Promise<void> {
  const { prompt: promptTokens, newTokens, repeats } = options;
  await report(options, io, async (runtime) => {
    const shape = shapeOf(options);
    const model = benchModel(shape, promptTokens + newTokens);
    const results = [];
    for (const batch of options.batch) {
      tell(io, `batch ${batch}…`);
      const bench = await prepareGeneration(runtime, model, { batch, promptTokens, newTokens });
      let times: number[];
      try {
        const onDone = (done: number): void => tell(io, `batch ${batch}: ${done} of ${repeats}`);
        times = await repeat(repeats, WARMUP.generations, bench.generate, onDone);
      } finally {
        await bench.dispose();
      }
      const seconds = measured(times);
      results.push({
        batch,
        seconds,
        tokensPerSecond: bench.newTokens / seconds.median,
        millisecondsPerToken: (1000 * seconds.median) / newTokens,
        gflops: bench.flops / seconds.median / 1e9,
      });
    }
    const { parameters } = model.shape;
    const lines = [
      `generating ${newTokens} tokens after prompts of ${promptTokens}, ${shapeLine(shape, parameters)}`,
      ...results.flatMap(({ batch, seconds, tokensPerSecond, millisecondsPerToken }) => [
        row(
          `batch ${batch}`,
          `${compact(Math.round(tokensPerSecond))} tokens/s, ${millisecondsPerToken.toFixed(2)} ms for one of each row`,
        ),
        row("", `${spread(seconds, 2)} s`),
      ]),
    ];
    return { data: { model: model.shape, promptTokens, newTokens, results }, lines };
  });
}

async function benchMatmul(options: MatmulOptions, io: Context): Promise<void> {
  await report(options, io, async (runtime) => {
    const results = await matmulSpeeds(runtime, options.sizes, options.milliseconds);
    const lines = [
      "float32 matrix products, GFLOP/s",
      ...results.map(({ size, gflops }) => row(`${size}²`, spread(gflops, 0))),
    ];
    return { data: { results, peakGflops: peakOf(results) }, lines };
  });
}

const withCommon = (command: Command): Command =>
  command.addOption(threadsOption()).option("--json", "everything as one object, every measurement in it");

export function register(program: Command, io: Context): void {
  const count = wholeNumber({ min: 1 });
  const bench = program
    .command("bench")
    .summary("measure how fast this machine trains and generates")
    .description(
      "Measures with random weights, after a warm-up: medians, and the ends. bench/ holds the comparisons with PyTorch, " +
        "transformers and TRL.",
    );
  const train = bench
    .command("train")
    .description(
      "Times training steps: forward, backward, clipping, update; and the share of the matrix-product peak.",
    );
  withCommon(withShape(train))
    .option("--batch <n>", "rows", count, 32)
    .option("--tokens <n>", "tokens in each", count, 128)
    .option("--parts <n>", "parts the batch is worked on in, one after the other", count, 1)
    .addOption(
      new Option("--optimizer <name>", "of the matrices").choices(["adamw", "muon"]).default("adamw"),
    )
    .option("--steps <n>", "steps to time", count, 10)
    .option("--peak-ms <n>", "time for each size of matrix product, before and after the steps", count, 400)
    .action((options: TrainOptions) => benchTrain(options, io));
  withExamples(train, [
    ["pondera bench train --json", "depth 6, width 256, batch 32 × 128"],
    ["pondera bench train --depth 4 --width 128 --optimizer muon", "what the quick preset trains"],
  ]);
  const generate = bench
    .command("generate")
    .description("Times batched generation, every prompt and answer of one length.");
  withCommon(withShape(generate))
    .option("--batch <n,…>", "rows side by side", wholeNumbers({ min: 1 }), [64, 256])
    .option("--prompt <n>", "tokens of each prompt", count, 32)
    .option("--new-tokens <n>", "tokens of each answer", count, 128)
    .option("--repeats <n>", "generations to time", count, 5)
    .action((options: GenerateOptions) => benchGenerate(options, io));
  withExamples(generate, [
    ["pondera bench generate --json", "batch 64 and 256, prompt 32, 128 new tokens"],
    ["pondera bench generate --batch 1 --kv-heads 2", "a single answer, with shared keys and values"],
  ]);
  const matmul = bench
    .command("matmul")
    .description("Times square float32 matrix products: the most this machine can do.");
  withCommon(matmul)
    .option("--sizes <n,…>", "rows and columns", wholeNumbers({ min: 1 }), MATMUL_SIZES)
    .option("--milliseconds <n>", "time for each size", count, 1000)
    .action((options: MatmulOptions) => benchMatmul(options, io));
  withExamples(matmul, [["pondera bench matmul", "products of 256² to 2048²"]]);
  withExamples(bench, [
    ["pondera bench train", "tokens a second, and how near to the peak"],
    ["pondera bench generate", "tokens a second at batch 64 and 256"],
  ]);
}
