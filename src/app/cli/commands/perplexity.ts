/** `pondera perplexity`: how well a model foresees a text. */

import { basename } from "node:path";
import { type Command, Option } from "commander";
import { ConfigError } from "../../../base/errors.ts";
import { Runtime } from "../../../compute/runtime/runtime.ts";
import {
  CONVENTIONS,
  measurePerplexity,
  type Perplexity,
  type PerplexityConvention,
} from "../../../learn/eval/perplexity.ts";
import { type LoadedModel, loadModel } from "../../../model/checkpoint/load.ts";
import { encodePrompt } from "../../../model/engine/text.ts";
import { TokenScorer } from "../../../model/engine/token-scorer.ts";
import { weightsInPlace } from "../../../model/engine/weights.ts";
import { compact } from "../../format.ts";
import { threadsOption, wholeNumber } from "../arguments.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { INTERRUPTED, interruptible } from "../interrupt.ts";
import { type Context, colorsFor, write, writeJson } from "../io.ts";
import { decodable, findModel, MODEL_ARGUMENT } from "../model.ts";
import { type Progress, progressOn, timeLeft } from "../progress.ts";
import { printable } from "../text.ts";
import { readFileOrStdin, STDIN } from "../text-input.ts";

interface PerplexityOptions {
  readonly context?: number;
  readonly stride?: number;
  readonly convention: PerplexityConvention;
  readonly parseSpecial?: true;
  readonly runs: string;
  readonly threads: number;
  readonly json?: true;
}

/** Tokens of a window where nobody says: llama-perplexity's default too. */
const CONTEXT = 512;

/** The text as tokens, with the begin token that the model's texts have. @throws ConfigError when there is none */
function tokensOf(model: LoadedModel, text: string, options: PerplexityOptions, where: string) {
  if (text === "") throw new ConfigError({ where, rule: "must hold a text", got: "nothing" });
  const { tokenizer } = model;
  const ids = encodePrompt(tokenizer, text, { allowSpecial: options.parseSpecial === true });
  return { ids, bosId: tokenizer.addsBos ? tokenizer.bosId : undefined };
}

interface Measured extends Perplexity {
  readonly seconds: number;
  readonly tokensPerSecond: number;
}

async function measure(
  model: LoadedModel,
  text: string,
  options: PerplexityOptions & { readonly context: number; readonly where: string },
  progress: Progress,
  signal: AbortSignal,
): Promise<Measured> {
  const { context, stride, convention, threads, where } = options;
  const { ids, bosId } = tokensOf(model, text, options, where);
  const runtime = await Runtime.create({ threads });
  const { config, tensors } = decodable(model);
  const scorer = new TokenScorer(runtime, config, {
    maxPositions: Math.min(context, Math.max(2, ids.length)),
  });
  try {
    scorer.adopt(weightsInPlace(runtime, tensors));
    const began = performance.now();
    const measured = await measurePerplexity((window) => scorer.score(window), ids, {
      convention,
      context,
      bytes: Buffer.byteLength(text),
      signal,
      ...(stride === undefined ? {} : { stride }),
      ...(bosId === undefined ? {} : { bosId }),
      onWindow({ windows, totalWindows, perplexity }) {
        const far = `window ${windows} of ${totalWindows}: perplexity ${perplexity.toFixed(3)} so far`;
        progress.say(`${far}${timeLeft(began, windows / totalWindows)}`);
      },
    });
    const seconds = (performance.now() - began) / 1000;
    return { ...measured, seconds, tokensPerSecond: measured.evaluated / seconds };
  } finally {
    await scorer.dispose();
    runtime.dispose();
  }
}

function lines(name: string, what: string, measured: Measured, context: number): string[] {
  const { perplexity, standardError, bitsPerToken, bitsPerByte, scored, tokens, windows, seconds } = measured;
  const row = (key: string, text: string): string => `  ${key.padEnd(12)} ${text}`;
  const whole = (n: number): string => n.toLocaleString("en");
  return [
    `${printable(name)} on ${printable(what)}`,
    row("perplexity", `${perplexity.toFixed(4)} ± ${standardError.toFixed(5)}`),
    row("bits", `${bitsPerByte.toFixed(4)} a byte, ${bitsPerToken.toFixed(4)} a token`),
    row(
      "scored",
      `${whole(scored)} of ${whole(tokens)} tokens, in ${whole(windows)} window${windows === 1 ? "" : "s"} of ${whole(context)}`,
    ),
    row("took", `${seconds.toFixed(1)} s, ${compact(Math.round(measured.tokensPerSecond))} tokens/s`),
  ];
}

async function perplexity(
  name: string,
  file: string,
  options: PerplexityOptions,
  io: Context,
): Promise<void> {
  const found = await findModel(name, options.runs, io);
  const where = file === "-" ? STDIN : file;
  const text = await readFileOrStdin(file, io);
  const progress = progressOn(io);
  try {
    progress.say(`loading ${printable(found.name)}…`);
    const model = await loadModel(found.folder);
    const { maxPositions } = model.config;
    if (options.context !== undefined && options.context > maxPositions) {
      throw new ConfigError({
        where: "--context",
        rule: `must be at most the model's ${maxPositions} positions`,
        got: `${options.context}`,
      });
    }
    const context = options.context ?? Math.min(CONTEXT, maxPositions);
    progress.say(`measuring ${printable(found.name)}…`);
    const measured = await interruptible({ onFirst() {} }, async (signal) => {
      try {
        return await measure(model, text, { ...options, context, where }, progress, signal);
      } catch (error) {
        if (signal.aborted && error === signal.reason) return undefined;
        throw error;
      }
    });
    progress.done();
    if (measured === undefined) return io.exitWith(INTERRUPTED);
    const { convention, threads } = options;
    if (options.json) {
      const stride = convention === "sliding" ? (options.stride ?? Math.floor(context / 2)) : context;
      await writeJson(io.stdout, {
        model: found.folder,
        text: where,
        convention,
        context,
        stride,
        threads,
        ...measured,
      });
      return;
    }
    const what = `${file === "-" ? STDIN : basename(file)}${convention === "sliding" ? "" : ` as ${convention} counts`}`;
    const [title, ...rest] = lines(found.name, what, measured, context);
    await write(io.stdout, `${[colorsFor(io.stdout, io.env).bold(title!), ...rest].join("\n")}\n`);
  } finally {
    progress.done();
  }
}

const WHAT = `
What is computed:
  exp of the mean of −log p(token | the tokens before it in its window), over the scored tokens. The text is
  taken apart as a whole, by default without reading special tokens in it, and begins with the begin token where
  the model's texts do.
  sliding    Windows of --context tokens begin --stride apart. Each scores the tokens that none before it has, so
             that every token of the text counts once (without a begin token, all but the first).
  llama.cpp  As llama-perplexity: windows lie side by side, what is left over at the end is dropped, and of a window
             of n tokens those after the first ⌊n/2⌋ + 1 are scored. Each begins with the begin token, in
             place of what stood there, where the model's texts do. Its default context is 512, as here.
  Bits a byte are bits a token × tokens of the text / its bytes in UTF-8: these compare models whose vocabularies
  differ. ± is a standard error as if tokens were independent, as llama-perplexity prints it; it is too small.`;

export function register(program: Command, io: Context): void {
  const command = program
    .command("perplexity")
    .summary("measure how well a model foresees a text")
    .description(
      "Measures the perplexity of a text: lower is better, and 1 would be a model that knew every token beforehand. Figures " +
        "compare between runs with the same text, vocabulary, convention, context and stride.",
    )
    .argument(...MODEL_ARGUMENT)
    .argument("<file>", "the text, in UTF-8; - for standard input")
    .option(
      "--context <n>",
      `tokens of a window; ${CONTEXT}, or as many as the model takes, if left out`,
      wholeNumber({ min: 2 }),
    )
    .option(
      "--stride <n>",
      "tokens from one window's start to the next; half the context if left out",
      wholeNumber({ min: 1 }),
    )
    .addOption(
      new Option("--convention <name>", "which tokens of a window count, see below")
        .choices(CONVENTIONS)
        .default("sliding"),
    )
    .option("--parse-special", "read special tokens that are written out in the text, such as <think>")
    .option(...RUNS_OPTION)
    .addOption(threadsOption())
    .option("--json", "everything as one object")
    .action((name: string, file: string, options: PerplexityOptions) => perplexity(name, file, options, io));
  command.addHelpText("after", WHAT);
  withExamples(command, [
    ["pondera perplexity smollm2 wiki.test.raw", "every token of a text, with half a window before it"],
    [
      "pondera perplexity model.gguf wiki.test.raw --convention llama.cpp",
      "to compare with llama-perplexity -m model.gguf -f wiki.test.raw",
    ],
    ["cat essay.txt | pondera perplexity my-model - --context 256 --json", "from a pipe, to a program"],
  ]);
}
