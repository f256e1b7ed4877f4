/** `pondera inspect`: what a model is and what it takes, without its weights. */

import { stat } from "node:fs/promises";
import { totalmem } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import { fileError, readJson } from "../../../base/files.ts";
import {
  type Fit,
  fitsIn,
  type Inspection,
  inspectModel,
  type TensorNode,
} from "../../../model/arch/inspect.ts";
import { parseModelConfig } from "../../../model/arch/models.ts";
import { compact } from "../../format.ts";
import { withExamples } from "../help.ts";
import { type Context, colorsFor, columnsOfOutput, write, writeJson } from "../io.ts";
import { table } from "../table.ts";

interface InspectOptions {
  readonly json?: true;
}

/** A config's file, or that of a model's folder. @throws FileError when there is neither */
async function configFile(path: string): Promise<string> {
  try {
    return (await stat(path)).isDirectory() ? join(path, "config.json") : path;
  } catch (error) {
    throw fileError(path, "readable", error);
  }
}

const bytes = (n: number): string => `${compact(n)}B`;

/** One line a node: its name, how many there are, its weights. */
function treeLines(nodes: readonly TensorNode[], indent = ""): string[] {
  return nodes.flatMap(({ name, count, parameters, shape, children }) => {
    const many = count > 1 ? ` (${count})` : "";
    const what = shape === undefined ? "" : ` [${shape.join(", ")}]`;
    return [
      `${indent}${name}${many}${what}  ${compact(parameters)}`,
      ...treeLines(children ?? [], `${indent}  `),
    ];
  });
}

function report(inspection: Inspection, fits: readonly Fit[], memory: number, io: Context): string[] {
  const { architecture, parameters, cache, tensors } = inspection;
  const whole = (n: number): string => n.toLocaleString("en-US");
  const beside =
    parameters.draft > 0 ? `, and ${compact(parameters.draft)} that predict the token after next` : "";
  const fitting = table(
    fits,
    [
      { title: "weights in", value: ({ precision }) => precision },
      { title: "take", value: (fit) => bytes(fit.bytes), align: "right" },
      {
        title: `fit ${bytes(memory)}`,
        value: ({ fits: yes, positions }) => (yes ? `yes, with ${whole(positions)} tokens` : "no"),
      },
    ],
    columnsOfOutput(io.stdout),
    colorsFor(io.stdout, io.env),
  );
  return [
    `${architecture}: ${whole(parameters.total)} weights${beside}`,
    `${whole(parameters.active)} of them active for a token`,
    `${whole(cache.bytesPerToken)} bytes of cache a token in bfloat16, up to ${whole(cache.maxPositions)} tokens`,
    "",
    ...treeLines(tensors),
    "",
    ...fitting,
  ];
}

async function inspect(path: string, options: InspectOptions, io: Context): Promise<void> {
  const file = await configFile(path);
  const { config } = parseModelConfig(file, await readJson(file));
  const inspection = inspectModel(config);
  const memory = totalmem();
  const fits = fitsIn(memory, inspection);
  if (options.json) await writeJson(io.stdout, { ...inspection, machine: { memoryBytes: memory, fits } });
  else await write(io.stdout, `${report(inspection, fits, memory, io).join("\n")}\n`);
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("inspect")
    .description("show what a model is and what it takes, without loading its weights")
    .argument("<path>", "a config.json, or a model's folder")
    .option("--json", "as JSON")
    .action((path: string, options: InspectOptions) => inspect(path, options, io));
  withExamples(command, [
    [
      "pondera inspect models/r1/config.json",
      "its tensors, its weights, its cache, and at what precision it fits",
    ],
    ["pondera inspect models/r1 --json", "the same for a program"],
  ]);
}
