/** `pondera generate`: what a model writes after a prompt. */

import { type Command, InvalidArgumentError, Option } from "commander";
import { ConfigError } from "../../../base/errors.ts";
import { closing, loadStoredModel, type StoredModel } from "../../../model/checkpoint/load.ts";
import { encodePrompt, generateText, type TextCompletion } from "../../../model/engine/text.ts";
import { endingTurns } from "../../../model/text/conversation.ts";
import { splitCompletion } from "../../thought.ts";
import { type SamplingArguments, threadsOption, wholeNumber, withSampling } from "../arguments.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { INTERRUPTED, interruptible } from "../interrupt.ts";
import { type Context, colorsFor, isInteractive, write, writeJson } from "../io.ts";
import {
  findModel,
  greedyFor,
  guessesLine,
  guessesReport,
  newTokensFor,
  openModel,
  SPECULATE_OPTION,
  samplingFor,
} from "../model.ts";
import { countTokens, progressOn } from "../progress.ts";
import { completePrompt, promptsOf } from "../prompts.ts";
import { printable } from "../text.ts";
import { readStdin, STDIN, withoutLastBreak } from "../text-input.ts";

interface GenerateOptions extends SamplingArguments {
  readonly model?: string;
  readonly runs: string;
  readonly prompt: string;
  readonly samples: number;
  readonly seed: number;
  readonly stop: readonly string[];
  readonly raw?: true;
  readonly chat?: true;
  readonly system?: string;
  readonly speculate?: true;
  readonly threads: number;
  readonly json?: true;
}

/** More samples than this wait for others to end. */
const MOST_SLOTS = 64;

/** The prompt as typed; from standard input without its last line break, which the shell or the editor put there. */
async function readPrompt(options: GenerateOptions, io: Context): Promise<string> {
  const prompt = options.prompt === "-" ? withoutLastBreak(await readStdin(io)) : options.prompt;
  if (prompt !== "") return prompt;
  throw new ConfigError({
    where: options.prompt === "-" ? STDIN : "--prompt",
    rule: "must hold a prompt",
    got: "nothing",
  });
}

/** What a person says, as the model's template has it. */
function asConversation(
  loaded: StoredModel,
  typed: string,
  { system }: GenerateOptions,
  where: string,
): { readonly model: StoredModel; readonly prompt: string } {
  const { chatTemplate } = loaded;
  if (chatTemplate === undefined) {
    throw new ConfigError({
      where: "--chat",
      rule: "needs a model with a chat template",
      got: `${where}, which has none`,
      remedy: "Leave it out, and the model goes on from the prompt",
    });
  }
  const told = system === undefined ? [] : [{ role: "system", content: system }];
  return {
    model: endingTurns(loaded, chatTemplate),
    prompt: chatTemplate.render([...told, { role: "user", content: typed }]),
  };
}

async function generate(asked: GenerateOptions, io: Context): Promise<void> {
  const options = asked.speculate ? greedyFor(asked) : asked;
  if (options.system !== undefined && !options.chat) {
    throw new ConfigError({
      where: "--system",
      rule: "is for conversations",
      got: "no --chat",
      remedy: "Add --chat",
    });
  }
  const found = await findModel(options.model, options.runs, io);
  const typed = await readPrompt(options, io);
  const progress = progressOn(io);
  progress.say(`loading ${printable(found.name)}…`);
  const loaded = await loadStoredModel(found.folder).finally(() => progress.done());
  await using _ = closing(loaded);
  const prompts =
    options.raw || options.chat || found.run === undefined ? undefined : await promptsOf(found.run);
  const { model, prompt } = options.chat
    ? asConversation(loaded, typed, options, found.name)
    : { model: loaded, prompt: completePrompt(typed, prompts) };
  const { samples, seed, stop, json } = options;
  const sampling = samplingFor(model, options);
  const maxNewTokens = newTokensFor(model, options.maxNewTokens);
  const open = await openModel(model, {
    threads: options.threads,
    slots: Math.min(samples, MOST_SLOTS),
    positions: encodePrompt(model.tokenizer, prompt).length + maxNewTokens,
    speculate: options.speculate === true,
  });
  const streams = samples === 1 && !json && isInteractive(io.stdout, io.env);
  const writing = progressOn(io);
  const began = performance.now();
  let completions: TextCompletion[];
  try {
    completions = await interruptible({ onFirst: () => io.exitWith(INTERRUPTED) }, (signal) =>
      generateText(
        open.engine,
        model,
        { prompt, samples, seed },
        {
          ...sampling,
          maxNewTokens,
          stop,
          signal,
          ...(streams
            ? { onText: (_: number, piece: string) => io.stdout.write(printable(piece, { keepLines: true })) }
            : { onToken: countTokens(writing) }),
        },
      ),
    );
  } finally {
    writing.done();
    await open.dispose();
  }
  const seconds = (performance.now() - began) / 1000;
  const tokens = completions.reduce((sum, completion) => sum + completion.tokens, 0);
  const guesses = open.guesses?.();
  if (json) {
    await writeJson(io.stdout, {
      model: found.folder,
      chat: options.chat === true,
      prompt,
      seed,
      sampling,
      maxNewTokens,
      seconds,
      tokensPerSecond: tokens / seconds,
      ...(guesses === undefined ? {} : { speculation: guessesReport(guesses, tokens) }),
      samples: completions.map((completion) => ({
        ...completion,
        ...splitCompletion(prompt, completion.text),
      })),
    });
    return;
  }
  if (streams) await write(io.stdout, "\n");
  else await write(io.stdout, describe(completions, io));
  // Asked for, the rate of right guesses is told to whoever reads; the speed only to a person.
  if (isInteractive(io.stderr, io.env) || guesses !== undefined) {
    const speed = `${tokens} tokens, ${Math.round(tokens / seconds)} a second`;
    const guessed = guesses === undefined ? "" : `; ${guessesLine(guesses, tokens)}`;
    io.stderr.write(`${colorsFor(io.stderr, io.env).dim(`${speed}${guessed}`)}\n`);
  }
}

/** Completions for a person: as they are, with a heading each when there are several. */
function describe(completions: readonly TextCompletion[], io: Context): string {
  const colors = colorsFor(io.stdout, io.env);
  return completions
    .map(({ text, tokens, finish }, i) => {
      const cut = finish === "length" ? ", cut off" : finish === "interrupted" ? ", interrupted" : "";
      const heading = colors.dim(`sample ${i + 1} of ${completions.length}: ${tokens} tokens${cut}`);
      return `${completions.length > 1 ? `${heading}\n` : ""}${printable(text, { keepLines: true })}\n`;
    })
    .join("\n");
}

function nonEmpty(text: string, previous: readonly string[] = []): string[] {
  if (text === "") throw new InvalidArgumentError("It must not be empty.");
  return [...previous, text];
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("generate")
    .summary("complete a prompt")
    .description(
      "Writes what a model says after a prompt. The same seed, prompt and threads give the same text. A prompt for a " +
        "model of a run is ended as the run's task ends it. Other models go on from the prompt as it is, or, with --chat, " +
        "answer it as what a person says.",
    )
    .requiredOption("--prompt <text>", "the prompt, or - for standard input")
    .option(
      "--model <model>",
      "a model's folder or .gguf file, a run's name or folder, or the name a model was pulled under; the newest run if left out",
    )
    .option(...RUNS_OPTION)
    .option("--samples <n>", "completions to draw", wholeNumber({ min: 1 }), 1)
    .option("--seed <n>", "names the random numbers", wholeNumber(), 0);
  withSampling(command)
    .addOption(
      new Option("--stop <text>", "end before this text; may be given several times")
        .argParser(nonEmpty)
        .default([], "only where the model ends by itself"),
    )
    .addOption(
      new Option("--chat", "write the prompt as the model's chat template has what a person says").conflicts(
        "raw",
      ),
    )
    .option("--system <text>", "what the model is told before, with --chat")
    .option("--raw", "take the prompt as it is")
    .option(...SPECULATE_OPTION)
    .addOption(threadsOption())
    .option("--json", "everything as one object")
    .action((options: GenerateOptions) => generate(options, io));
  withExamples(command, [
    ['pondera generate --prompt "3 25 12 = 39"', "ask the model of the newest run"],
    [
      'pondera generate --model ./my-model --prompt "Once" --temperature 0.7 --samples 3',
      "any model's folder",
    ],
    ['pondera generate --model smollm2 --chat --prompt "Why is the sky blue?"', "a pulled model, asked"],
    ["cat prompt.txt | pondera generate --model my-run --prompt - --json", "from a pipe, to a program"],
  ]);
}
