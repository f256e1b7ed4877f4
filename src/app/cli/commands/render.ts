/** `pondera render`: a conversation as the text that a model reads. */

import type { Command } from "commander";
import { z } from "zod";
import { ConfigError, FormatError } from "../../../base/errors.ts";
import { readText } from "../../../base/files.ts";
import { valueAt } from "../../../base/json.ts";
import { loadModelText } from "../../../model/checkpoint/model-text.ts";
import { encodePrompt } from "../../../model/engine/text.ts";
import { type ChatMessage, ChatTemplate } from "../../../model/text/chat-template.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { type Context, isInteractive, write, writeJson } from "../io.ts";
import { findModel, MODEL_ARGUMENT } from "../model.ts";
import { printable } from "../text.ts";
import { readFileOrStdin, STDIN } from "../text-input.ts";

interface RenderCommandOptions {
  readonly generationPrompt: boolean;
  readonly template?: string;
  readonly variables?: string;
  readonly runs: string;
  readonly json?: true;
}

const Message = z.looseObject({
  role: z.string("must be a text, such as user").min(1, "must not be empty"),
  // Null where a message only calls tools; parts as OpenAI's protocol has them.
  content: z.union([z.string(), z.null(), z.array(z.looseObject({ type: z.string() }))], {
    error: "must be a text, a list of parts with a type each, or null",
  }),
});
const MessageList = z.array(Message, "must be a list").nonempty("must hold a message");
/** The list itself, or, as in requests of OpenAI's protocol, an object with the list and perhaps tools. */
const Conversation = z.looseObject({ messages: MessageList, tools: z.array(z.unknown()).nullish() });

interface Parsed {
  readonly messages: readonly ChatMessage[];
  readonly tools?: readonly unknown[];
}

function parseJson(where: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FormatError({ where, rule: "must be JSON", got: (cause as Error).message, cause });
  }
}

const EXAMPLE = `Write [{"role": "user", "content": "Hello"}]`;

/** Where in the JSON: `[1].role`. */
const pathOf = (path: readonly PropertyKey[]): string =>
  path
    .map((key) => (typeof key === "number" ? `[${key}]` : `.${String(key)}`))
    .join("")
    .replace(/^\./, "");

/** @throws FormatError naming the message and the field that break the form */
function parseMessages(where: string, text: string): Parsed {
  const json = parseJson(where, text);
  const isList = Array.isArray(json);
  const parsed = isList ? MessageList.safeParse(json) : Conversation.safeParse(json);
  if (!parsed.success) {
    const { path, message } = parsed.error.issues[0]!;
    const isObject = isList || (typeof json === "object" && json !== null);
    const value = valueAt(json, path);
    const got = value === undefined ? "nothing" : JSON.stringify(value);
    throw new FormatError({
      where: path.length === 0 ? where : `${where}: ${pathOf(path)}`,
      rule: isObject ? message : "must be a list of messages, or an object with one under messages",
      got: got.length > 80 ? `${got.slice(0, 80)}…` : got,
      remedy: EXAMPLE,
    });
  }
  const { data } = parsed;
  if (Array.isArray(data)) return { messages: data };
  const { messages, tools } = data as z.infer<typeof Conversation>;
  return tools === null || tools === undefined ? { messages } : { messages, tools };
}

/** Further variables of the template. @throws FormatError unless it is an object of JSON */
function parseVariables(text: string): Record<string, unknown> {
  const parsed = z.record(z.string(), z.unknown()).safeParse(parseJson("--variables", text));
  if (parsed.success) return parsed.data;
  throw new FormatError({
    where: "--variables",
    rule: "must be an object of JSON",
    got: text,
    remedy: `For example '{"enable_thinking": false}'`,
  });
}

async function render(name: string, file: string, options: RenderCommandOptions, io: Context): Promise<void> {
  const found = await findModel(name, options.runs, io);
  const { tokenizer, chatTemplate: own } = await loadModelText(found.folder);
  const template =
    options.template === undefined
      ? own
      : new ChatTemplate(await readText(options.template), {
          variables: own?.variables ?? {},
          where: options.template,
        });
  if (template === undefined) {
    throw new ConfigError({
      where: found.folder,
      rule: "must have a chat template, for conversations to be written as the model reads them",
      got: "a model without one",
      remedy: "Give it one with --template FILE.jinja",
    });
  }
  const where = file === "-" ? STDIN : file;
  const { messages, tools } = parseMessages(where, await readFileOrStdin(file, io));
  const given = options.variables === undefined ? {} : parseVariables(options.variables);
  const variables = { ...(tools === undefined ? {} : { tools }), ...given };
  const text = template.render(messages, { addGenerationPrompt: options.generationPrompt, variables });
  if (options.json) {
    const ids = encodePrompt(tokenizer, text);
    await writeJson(io.stdout, { model: found.folder, text, tokens: ids.length, ids });
    return;
  }
  // A terminal gets no escape sequences from a template or a message; a program gets the text as it is.
  const shown = isInteractive(io.stdout, io.env) ? printable(text, { keepLines: true }) : text;
  await write(io.stdout, `${shown}\n`);
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("render")
    .summary("write a conversation as the text that a model reads")
    .description(
      "Runs a model's chat template over messages, and writes the text that the model would be given, and a line break. The " +
        "weights are not loaded.",
    )
    .argument(...MODEL_ARGUMENT)
    .argument("<messages>", "JSON: a list of {role, content}, or {messages, tools}; - for standard input")
    .option("--no-generation-prompt", "end after the last message, not where the assistant is to go on")
    .option("--template <file>", "a Jinja file to run instead of the model's own template")
    .option("--variables <json>", "further variables of the template, an object")
    .option(...RUNS_OPTION)
    .option("--json", "the text, and its tokens, as one object")
    .action((name: string, file: string, options: RenderCommandOptions) => render(name, file, options, io));
  withExamples(command, [
    ["pondera render smollm2 messages.json", "the prompt of a pulled model"],
    [
      `echo '[{"role": "user", "content": "Hello"}]' | pondera render model.gguf -`,
      "through a pipe, of a model in a file",
    ],
    [
      `pondera render qwen3 messages.json --variables '{"enable_thinking": false}' --json`,
      "with a switch that the template knows, and the tokens that come of it",
    ],
  ]);
}
