/** `pondera tokenize`: the tokens that a model reads a text as. */

import type { Command } from "commander";
import { loadModelText } from "../../../model/checkpoint/model-text.ts";
import { encodePrompt } from "../../../model/engine/text.ts";
import type { Tokenizer } from "../../../model/text/tokenizer.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { type Context, colorsFor, columnsOfOutput, isInteractive, write, writeJson } from "../io.ts";
import { findModel, MODEL_ARGUMENT } from "../model.ts";
import { table } from "../table.ts";
import { readTextArgument } from "../text-input.ts";

interface TokenizeOptions {
  readonly file?: string;
  readonly bos: boolean;
  readonly parseSpecial: boolean;
  readonly count?: true;
  readonly runs: string;
  readonly json?: true;
}

interface Token {
  readonly id: number;
  readonly piece: string;
  /** One of the tokens that mark begin, end and the like, as the model's files say. */
  readonly special: boolean;
}

/** Texts from here on may take seconds. */
const LONG_TEXT = 2 ** 22;

function describeToken(tokenizer: Tokenizer, id: number): Token {
  const special = tokenizer.decode([id]) !== tokenizer.decode([id], { skipSpecial: true });
  return { id, piece: tokenizer.piece(id), special };
}

async function tokenize(
  name: string,
  typed: string | undefined,
  options: TokenizeOptions,
  io: Context,
): Promise<void> {
  const found = await findModel(name, options.runs, io);
  const { tokenizer } = await loadModelText(found.folder);
  const text = await readTextArgument(typed, options.file, io);
  if (text.length >= LONG_TEXT && isInteractive(io.stderr, io.env)) {
    io.stderr.write(`taking ${text.length.toLocaleString("en")} characters apart…\n`);
  }
  const how = { allowSpecial: options.parseSpecial };
  const ids = options.bos ? encodePrompt(tokenizer, text, how) : tokenizer.encode(text, how);
  if (options.count) {
    if (options.json) await writeJson(io.stdout, { model: found.folder, count: ids.length });
    else await write(io.stdout, `${ids.length}\n`);
    return;
  }
  const known = new Map<number, Token>();
  const tokens = ids.map((id) => {
    const token = known.get(id) ?? describeToken(tokenizer, id);
    known.set(id, token);
    return token;
  });
  if (options.json) {
    await writeJson(io.stdout, { model: found.folder, count: tokens.length, tokens });
    return;
  }
  const colors = colorsFor(io.stdout, io.env);
  const lines = table(
    tokens,
    [
      { title: "id", value: ({ id }) => `${id}`, align: "right" },
      // Quoted, so that spaces and line breaks are seen.
      {
        title: "piece",
        value: ({ piece, special }) => `${JSON.stringify(piece)}${special ? "  special" : ""}`,
      },
    ],
    isInteractive(io.stdout, io.env) ? columnsOfOutput(io.stdout) : Infinity,
    colors,
  );
  const count = `${tokens.length.toLocaleString("en")} token${tokens.length === 1 ? "" : "s"}`;
  await write(io.stdout, `${[...lines, colors.dim(count)].join("\n")}\n`);
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("tokenize")
    .summary("show the tokens of a text")
    .description(
      "Takes a text apart as a model does: the id of each token and how it is spelled, with its leading space. Bytes that are " +
        "no whole character are written as <0xE2>. The weights are not loaded, so the model may be larger than memory.",
    )
    .argument(...MODEL_ARGUMENT)
    .argument("[text]", "the text, or - for standard input, which is also read if it is left out")
    .option("--file <file>", "take the text from a file, or from standard input with -")
    .option("--no-bos", "leave out the begin token that this model's texts begin with")
    .option("--no-parse-special", "take what is written like a special token for the characters it is")
    .option("--count", "only how many there are")
    .option(...RUNS_OPTION)
    .option("--json", "as one object")
    .action((name: string, text: string | undefined, options: TokenizeOptions) =>
      tokenize(name, text, options, io),
    );
  withExamples(command, [
    ['pondera tokenize smollm2 "Hello, world"', "ids and pieces, of a pulled model"],
    ["pondera tokenize model.gguf --file essay.txt --count", "how long a text is to a model in a file"],
    [
      'pondera tokenize my-run "6 4 = 24" --json | jq -c "[.tokens[].id]"',
      "the ids alone, for another program",
    ],
  ]);
}
