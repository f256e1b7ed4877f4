/** What every command's help has in common. */

import type { Command } from "commander";

/** Adds examples under a command's help: what to type, and what it does. */
export function withExamples(
  command: Command,
  examples: readonly (readonly [command: string, meaning: string])[],
): Command {
  const lines = examples.map(([typed, meaning]) => `  $ ${typed}\n      ${meaning}`);
  return command.addHelpText("after", `\nExamples:\n${lines.join("\n")}`);
}

/** Where runs are kept if nobody says otherwise. */
export const DEFAULT_RUNS = "runs";

/** The folder of runs, an option of every command that names a run. */
export const RUNS_OPTION = ["--runs <folder>", "folder that holds the runs", DEFAULT_RUNS] as const;
