/**
 * The command line as a whole: its commands, and the habits they share.
 *
 * Results go to standard output, everything else to standard error. Exit codes: 0 done; 1 it failed; 2 it was asked for
 * something that does not exist; 3 the doctor found a problem; 130 interrupted.
 */

import { readFileSync } from "node:fs";
import { inspect } from "node:util";
import { Command, CommanderError } from "commander";
import { ConfigError, PonderaError } from "../../base/errors.ts";
import { register as registerBench } from "./commands/bench.ts";
import { register as registerChat } from "./commands/chat.ts";
import { register as registerEval } from "./commands/eval.ts";
import { register as registerExport } from "./commands/export.ts";
import { register as registerGenerate } from "./commands/generate.ts";
import { register as registerGrade } from "./commands/grade.ts";
import { register as registerInspect } from "./commands/inspect.ts";
import { register as registerModels } from "./commands/models.ts";
import { register as registerPerplexity } from "./commands/perplexity.ts";
import { register as registerPull } from "./commands/pull.ts";
import { register as registerRender } from "./commands/render.ts";
import { register as registerRuns } from "./commands/runs.ts";
import { register as registerTokenize } from "./commands/tokenize.ts";
import { register as registerTrain } from "./commands/train.ts";
import { withExamples } from "./help.ts";
import type { Context, Io } from "./io.ts";
import { printable } from "./text.ts";

const FAILED = 1;
const MISUSED = 2;

/** The version in package.json, which lies three folders up both from the sources and from the build. */
function version(): string {
  const text = readFileSync(new URL("../../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

/** The program with every command registered. */
export function createProgram(io: Context): Command {
  const program = new Command("pondera");
  program
    .description(
      "Teach a language model to reason by reinforcement learning, run it, and measure it honestly.",
    )
    .version(version(), "-v, --version", "print the version")
    .helpOption("-h, --help", "show help")
    .option("--debug", "show stack traces of errors (or set PONDERA_DEBUG=1)")
    .exitOverride()
    .configureOutput({
      writeOut: (text) => io.stdout.write(text),
      writeErr: (text) => io.stderr.write(text),
      getOutHelpWidth: () => io.stdout.columns || 80,
      getErrHelpWidth: () => io.stderr.columns || 80,
    })
    .showHelpAfterError("(add --help to see what there is)");
  withExamples(program, [
    ["pondera train countdown", "teach a small model to reason, in about ten minutes"],
    ["pondera chat", "talk to the newest model"],
    ["pondera eval --samples 8", "how often it is right, and how sure that is"],
    ["pondera runs list", "what has been trained here"],
  ]);
  for (const register of [
    registerTrain,
    registerEval,
    registerPerplexity,
    registerChat,
    registerGenerate,
    registerRuns,
    registerPull,
    registerModels,
    registerExport,
    registerInspect,
    registerTokenize,
    registerRender,
    registerGrade,
    registerBench,
  ])
    register(program, io);
  return program;
}

/** What a person needs of an error: its message; and the stack when they ask for it, or when it is our own fault. */
function describe(error: unknown, debug: boolean): string {
  if (debug) return `error: ${inspect(error)}\n`;
  if (error instanceof PonderaError) return `error: ${printable(error.message, { keepLines: true })}\n`;
  const message = error instanceof Error ? error.message : String(error);
  return `error: ${printable(message, { keepLines: true })}\nThis should not have happened; --debug shows where it did.\n`;
}

/**
 * Runs the command line.
 * @param argv   what was typed after `pondera`
 * @returns the exit code
 */
export async function run(argv: readonly string[], io: Io): Promise<number> {
  let code = 0;
  const { stdin, stdout, stderr, env } = io;
  const program = createProgram({
    stdin,
    stdout,
    stderr,
    env,
    exitWith(chosen) {
      code = chosen;
    },
  });
  if (argv.length === 0) {
    program.outputHelp();
    return 0;
  }
  try {
    await program.parseAsync(argv, { from: "user" });
    return code;
  } catch (error) {
    // Commander has already written its message; asking for help or the version also ends this way, with code 0.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : MISUSED;
    const debug = program.opts<{ debug?: true }>().debug === true || io.env["PONDERA_DEBUG"] === "1";
    io.stderr.write(describe(error, debug));
    return error instanceof ConfigError ? MISUSED : FAILED;
  }
}
