/**
 * `pondera chat`: a model to talk to in the terminal. A model with a chat template is in a conversation: it reads what was said
 * before, without its earlier thoughts. To any other, as to one that was trained here on a task, every line is a prompt of
 * its own.
 */

import type { EventEmitter } from "node:events";
import type { Command } from "commander";
import { ConfigError, expectKnown, FormatError, NumericError, PonderaError } from "../../../base/errors.ts";
import { Random } from "../../../compute/tensor/random.ts";
import type { Judged } from "../../../learn/tasks/task.ts";
import { parameterCount } from "../../../model/arch/models.ts";
import { closing, loadStoredModel } from "../../../model/checkpoint/load.ts";
import { encodePrompt, generateText, type TextCompletion } from "../../../model/engine/text.ts";
import type { ChatMessage, ChatTemplate } from "../../../model/text/chat-template.ts";
import {
  endingTurns,
  fitConversation,
  opensThought,
  withoutThought,
} from "../../../model/text/conversation.ts";
import { compact } from "../../format.ts";
import { AnswerView } from "../answer-view.ts";
import { numberIn, type SamplingArguments, threadsOption, wholeNumber, withSampling } from "../arguments.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { interruptible } from "../interrupt.ts";
import { type Context, colorsFor, write } from "../io.ts";
import { type LineSource, lineSource } from "../lines.ts";
import type { Colors } from "../live-view.ts";
import { findModel, newTokensFor, type OpenModel, openModel, samplingFor } from "../model.ts";
import { progressOn } from "../progress.ts";
import { completePrompt, promptsOf, type TaskPrompts, typedPrompt, type Verdict } from "../prompts.ts";
import { printable } from "../text.ts";

export interface ChatOptions extends SamplingArguments {
  readonly runs: string;
  readonly hideThinking?: boolean;
  /** False: no template, every line is gone on from. */
  readonly template?: boolean;
  readonly system?: string;
  readonly context?: number;
  readonly seed: number;
  readonly threads: number;
}

const PROMPT = "> ";
const PAGE_TOKENS = 512;
/** Longest conversation where nobody says; more only takes memory. */
const CONVERSATION_TOKENS = 4096;

const PLAIN_COMMANDS = { "/new": "a fresh puzzle of the task, asked for you" };
const CONVERSATION_COMMANDS = {
  "/clear": "forget what was said",
  "/system TEXT": "what the model is told before the conversation, which begins anew",
};
const COMMANDS = {
  "/temperature T": "0 takes the likeliest token, 1 samples as trained",
  "/seed N": "start the random numbers again, from N",
  "/exit": "leave, as Ctrl-D does",
};

/** What may be typed with a slash, and what it does. */
const commandsOf = (isConversation: boolean): Readonly<Record<string, string>> => ({
  "/help": "this list",
  ...(isConversation ? CONVERSATION_COMMANDS : PLAIN_COMMANDS),
  ...COMMANDS,
});

/** What changes while people chat. */
interface State {
  temperature: number;
  seed: number;
  /** Prompts since the seed was set: each has random numbers of its own. */
  turn: number;
  judged: number;
  right: number;
}

/** What was said, where the model is told. */
interface Conversation {
  readonly template: ChatTemplate;
  /** Alternating turns, perhaps after what the system says. */
  messages: readonly ChatMessage[];
}

interface Chat {
  readonly io: Context;
  readonly colors: Colors;
  readonly lines: LineSource;
  readonly model: OpenModel;
  readonly prompts: TaskPrompts | undefined;
  /** Absent: every line is a prompt of its own. */
  readonly conversation?: Conversation;
  readonly options: ChatOptions;
  readonly state: State;
  readonly maxNewTokens: number;
  /** Where Ctrl-C arrives while the model writes. */
  readonly signals: EventEmitter;
}

type Judge = (answer: Judged) => Verdict | undefined | Promise<Verdict>;

/** A verdict as one line, glad or not. */
export function verdictLine(verdict: Verdict, colors: Colors): string {
  const { correct, reason, failedTries, solution } = verdict;
  if (correct) {
    const tries =
      failedTries === 0 ? "" : `, after ${failedTries === 1 ? "a try" : `${failedTries} tries`} that failed`;
    return `${colors.green(`✓ ${reason}`)}${colors.dim(`${tries}  ${failedTries > 1 ? "\\(^‿^)/" : "(^‿^)"}`)}`;
  }
  const hint =
    solution === undefined
      ? ""
      : solution === null
        ? "  but nobody could: these numbers do not make it (·_·)"
        : `  one way: ${solution}`;
  return `${colors.red(`✗ ${printable(reason)}`)}${colors.dim(hint)}`;
}

/** Shows what the model writes after a prompt, and says where it did not end by itself. */
async function show(chat: Chat, prompt: string): Promise<TextCompletion> {
  const { io, colors, model, options, state, signals } = chat;
  const view = new AnswerView({
    output: io.stdout,
    colors,
    interactive: chat.lines.interactive,
    hideThinking: options.hideThinking === true,
    thinkOpened: opensThought(prompt),
  });
  const [completion] = await interruptible({ source: signals, onFirst() {} }, (signal) =>
    generateText(
      model.engine,
      model,
      { prompt, seed: state.seed, path: [state.turn] },
      {
        ...samplingFor(model, options),
        temperature: state.temperature,
        maxNewTokens: chat.maxNewTokens,
        signal,
        onText: (_, piece) => view.push(piece),
        onToken: () => view.token(),
      },
    ),
  );
  state.turn++;
  view.end();
  const { tokens, finish } = completion!;
  if (finish === "interrupted") await write(io.stdout, `${colors.dim("  (stopped)")}\n`);
  if (finish === "length") await write(io.stdout, `${colors.dim(`  (cut off after ${tokens} tokens)`)}\n`);
  return completion!;
}

/** Asks the model and shows what it says. What is wrong with the prompt is said, and the chat goes on. */
async function ask(chat: Chat, prompt: string, judge: Judge | undefined): Promise<void> {
  const { io, colors, prompts, state } = chat;
  try {
    const { text, tokens, finish } = await show(chat, prompt);
    if (finish === "interrupted") return;
    const verdict = await judge?.({ text, tokens, truncated: finish === "length" });
    if (verdict === undefined) return;
    state.judged++;
    if (verdict.correct) state.right++;
    await write(io.stdout, `  ${verdictLine(verdict, colors)}\n`);
  } catch (error) {
    if (!(error instanceof FormatError || error instanceof ConfigError)) throw error;
    const example = prompts === undefined ? "" : ` A prompt looks like: ${typedPrompt(prompts.example)}`;
    const what =
      error instanceof FormatError
        ? `This model has never seen ${error.got ?? "such a character"}.`
        : `The prompt ${error.rule}; it has ${error.got}.`;
    await write(io.stdout, `${colors.yellow(`  ${printable(what)}`)}${colors.dim(printable(example))}\n`);
  }
}

/** The next turn of a conversation. Where it has grown too long for the model, its oldest turns are left out for good. */
async function say(chat: Chat, conversation: Conversation, typed: string): Promise<void> {
  const { io, colors, model, maxNewTokens } = chat;
  const { maxPositions } = model.engine;
  // The answer gets the room that it may need, but not more than what was said before it.
  const limit = maxPositions - Math.min(maxNewTokens, Math.floor(maxPositions / 2));
  const { prompt, messages, dropped } = fitConversation(
    conversation.template,
    [...conversation.messages, { role: "user", content: typed }],
    { limit, lengthOf: (text) => encodePrompt(model.tokenizer, text).length },
  );
  if (dropped > 0) {
    const what = `the oldest ${dropped} messages no longer fit and are left out`;
    await write(io.stdout, `${colors.dim(`  (${what}: --context is ${maxPositions})`)}\n`);
  }
  const { text } = await show(chat, prompt);
  const content = withoutThought(text, opensThought(prompt));
  // Of a turn that came to nothing but a thought, nothing is remembered.
  conversation.messages =
    content.trim() === "" ? messages.slice(0, -1) : [...messages, { role: "assistant", content }];
}

/** The number a command was given; undefined without one. */
function argument(command: string, text: string, parse: (text: string) => number): number | undefined {
  if (text === "") return undefined;
  try {
    return parse(text);
  } catch (error) {
    throw new ConfigError({
      where: command,
      rule: (error as Error).message.replace(/\.$/, ""),
      got: text,
      cause: error,
    });
  }
}

/** Carries out a line that begins with a slash. @returns false when the chat is over */
async function command(chat: Chat, line: string): Promise<boolean> {
  const { io, colors, state, prompts, conversation } = chat;
  const tell = (text: string): Promise<void> => write(io.stdout, `${colors.dim(text)}\n`);
  const commands = commandsOf(conversation !== undefined);
  const [name = "", value = ""] = line.split(/\s+/);
  expectKnown("command", name, [...Object.keys(commands).map((key) => key.split(" ")[0]!), "/quit"]);
  switch (name) {
    case "/exit":
    case "/quit":
      return false;
    case "/help":
      for (const [key, meaning] of Object.entries(commands)) await tell(`  ${key.padEnd(15)}  ${meaning}`);
      await tell(
        conversation === undefined
          ? "  Ctrl-C stops an answer. Each line is a prompt of its own; the model remembers none."
          : "  Ctrl-C stops an answer. The model reads the conversation so far, without its thoughts.",
      );
      return true;
    case "/clear":
      conversation!.messages = conversation!.messages.filter(({ role }) => role === "system");
      await tell("  forgotten");
      return true;
    case "/system": {
      const content = line.slice(name.length).trim();
      conversation!.messages = content === "" ? [] : [{ role: "system", content }];
      await tell(content === "" ? "  no system message" : `  system: ${printable(content)}`);
      return true;
    }
    case "/temperature":
      state.temperature = argument(name, value, numberIn({ min: 0 })) ?? state.temperature;
      await tell(`  temperature ${state.temperature}`);
      return true;
    case "/seed":
      state.seed = argument(name, value, wholeNumber()) ?? state.seed;
      state.turn = 0;
      await tell(`  seed ${state.seed}`);
      return true;
    default: {
      if (prompts?.draw === undefined) {
        await tell("  No task is known to draw a puzzle from.");
        return true;
      }
      const { prompt, judge } = await prompts.draw(new Random(state.seed, state.turn, 1));
      await write(io.stdout, `${PROMPT}${printable(typedPrompt(prompt))}\n`);
      await ask(chat, prompt, judge);
      return true;
    }
  }
}

async function converse(chat: Chat): Promise<void> {
  const { io, colors, lines, prompts, conversation, state } = chat;
  for (;;) {
    const line = (await lines.next())?.trim();
    if (line === undefined) break;
    if (line === "") continue;
    if (!lines.interactive) await write(io.stdout, `${PROMPT}${printable(line)}\n`);
    try {
      if (line.startsWith("/")) {
        if (!(await command(chat, line))) break;
      } else if (conversation !== undefined) {
        await say(chat, conversation, line);
      } else {
        const prompt = completePrompt(line, prompts);
        await ask(chat, prompt, (answer) => prompts?.judge?.(prompt, answer));
      }
    } catch (error) {
      // Also a task's file that has gone or fails: the model can still be talked to.
      if (!(error instanceof PonderaError) || error instanceof NumericError) throw error;
      await write(io.stdout, `${colors.yellow(`  ${printable(error.message)}`)}\n`);
    }
  }
  if (state.judged > 1) {
    await write(io.stdout, colors.dim(`${state.right} of ${state.judged} right. Until next time!\n`));
  }
}

/** What the chat begins with: who answers, and what to ask. */
function greeting(
  name: string,
  model: OpenModel,
  prompts: TaskPrompts | undefined,
  isConversation: boolean,
): string[] {
  const { runtime, config } = model;
  const threads = `${runtime.threads} thread${runtime.threads === 1 ? "" : "s"}`;
  const title = `${printable(name)} · ${compact(parameterCount(config))} parameters · ${threads}`;
  if (isConversation) {
    const room = model.engine.maxPositions.toLocaleString("en");
    return [title, `It reads the conversation so far, up to ${room} tokens. /help shows what else there is.`];
  }
  return [
    title,
    prompts === undefined
      ? "It goes on from whatever you type. /help shows what else there is."
      : `It was trained on ${printable(prompts.task)}. A prompt looks like:  ${printable(typedPrompt(prompts.example))}`,
    ...(prompts?.draw === undefined ? [] : ["/new asks it one for you; /help shows what else there is."]),
  ];
}

/**
 * Chats until the person leaves or the input ends.
 * @param name     a model's folder, or a run's name or folder; the newest run if undefined
 * @param signals  where Ctrl-C arrives while the model writes
 */
export async function chat(
  name: string | undefined,
  options: ChatOptions,
  io: Context,
  signals: EventEmitter = process,
): Promise<void> {
  const found = await findModel(name, options.runs, io);
  const progress = progressOn(io);
  progress.say(`loading ${printable(found.name)}…`);
  const loaded = await loadStoredModel(found.folder).finally(() => progress.done());
  await using _ = closing(loaded);
  const prompts = found.run === undefined ? undefined : await promptsOf(found.run);
  // A model of a run speaks as its task does, whatever its files say.
  const template = options.template === false || found.run !== undefined ? undefined : loaded.chatTemplate;
  if (options.system !== undefined && template === undefined) {
    throw new ConfigError({
      where: "--system",
      rule: "needs a model with a chat template, that reads conversations",
      got: found.name,
    });
  }
  const folder = template === undefined ? loaded : endingTurns(loaded, template);
  const maxNewTokens = newTokensFor(folder, options.maxNewTokens);
  // A prompt may be as long as the answer, or as a page; more only takes memory.
  const enough = maxNewTokens + Math.max(maxNewTokens, PAGE_TOKENS);
  const positions =
    options.context ?? (template === undefined ? enough : Math.max(enough, CONVERSATION_TOKENS));
  const model = await openModel(folder, { threads: options.threads, slots: 1, positions });
  const colors = colorsFor(io.stdout, io.env);
  const lines = lineSource(io, PROMPT);
  const { temperature } = samplingFor(folder, options);
  const state: State = { temperature, seed: options.seed, turn: 0, judged: 0, right: 0 };
  const told = options.system === undefined ? [] : [{ role: "system", content: options.system }];
  const conversation = template === undefined ? {} : { conversation: { template, messages: told } };
  try {
    if (lines.interactive) {
      const [first, ...rest] = greeting(found.name, model, prompts, template !== undefined);
      await write(io.stdout, `${[colors.bold(first!), ...rest.map(colors.dim)].join("\n")}\n\n`);
    }
    await converse({
      io,
      colors,
      lines,
      model,
      prompts,
      ...conversation,
      options,
      state,
      maxNewTokens,
      signals,
    });
  } finally {
    lines.close();
    await model.dispose();
  }
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("chat")
    .summary("talk to a model in the terminal")
    .description(
      "Talks to a model: thoughts are shown dim, answers plain, and countdown answers checked on the spot. A model with a chat " +
        "template reads the conversation so far, without its earlier thoughts; what no longer fits its context is left out, " +
        "the oldest first. To any other, and to a run's, every line is a prompt of its own. Also reads lines from a pipe.",
    )
    .argument(
      "[model]",
      "a model's folder or .gguf file, a run's name or folder, or the name a model was pulled under; the newest run if left out",
    )
    .option(...RUNS_OPTION)
    .option("--system <text>", "what the model is told before the conversation")
    .option("--no-template", "go on from every line as it is, without the model's chat template")
    .option(
      "--context <n>",
      `longest conversation, in tokens; ${CONVERSATION_TOKENS}, or as many as the model takes, if left out`,
      wholeNumber({ min: 2 }),
    )
    .option("--hide-thinking", "count the tokens of a thought instead of showing it")
    .option("--seed <n>", "names the random numbers", wholeNumber(), 0);
  withSampling(command)
    .addOption(threadsOption())
    .action((name: string | undefined, options: ChatOptions) => chat(name, options, io));
  withExamples(command, [
    ["pondera chat", "talk to the newest run's model"],
    ["pondera chat my-run --hide-thinking --temperature 0.6", "its answers alone"],
    ['pondera chat smollm2 --system "Answer in one sentence."', "a conversation with a pulled model"],
    ['echo "3 25 12 = 39" | pondera chat ./my-model', "one prompt from a pipe"],
  ]);
}
