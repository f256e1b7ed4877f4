/** `pondera inspect`: what a model is and what it takes, without its weights. */

import { open, stat } from "node:fs/promises";
import { totalmem } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import { ConfigError, FormatError, type PonderaError } from "../../../base/errors.ts";
import { readJson } from "../../../base/files.ts";
import { valueAt } from "../../../base/json.ts";
import {
  type Fit,
  fitIn,
  fitsIn,
  type Inspection,
  inspectModel,
  type TensorNode,
} from "../../../model/arch/inspect.ts";
import { parseModelConfig } from "../../../model/arch/models.ts";
import { openTensors } from "../../../model/checkpoint/folder.ts";
import { openGgufModel } from "../../../model/checkpoint/gguf/model.ts";
import { openSplitGguf } from "../../../model/checkpoint/gguf/split.ts";
import { byteSize, compact } from "../../format.ts";
import {
  type GgufFacts,
  ggufFacts,
  ggufLines,
  type StoredFacts,
  safetensorsFacts,
  storedLines,
  sumOf,
} from "../header-facts.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { type Context, colorsFor, columnsOfOutput, write, writeJson } from "../io.ts";
import { findModel } from "../model.ts";
import { table } from "../table.ts";
import { printable } from "../text.ts";

interface InspectOptions {
  readonly runs: string;
  readonly json?: true;
}

interface Found {
  readonly path: string;
  readonly gguf?: GgufFacts;
  readonly safetensors?: StoredFacts;
}

/** A model that is supported. */
interface Inspected extends Found {
  readonly inspection: Inspection;
}

/** One that is not, of which there is only what its files' headers say. */
interface Unsupported extends Found {
  /** What it calls its architecture; absent where it says nothing. */
  readonly architecture?: string;
  /** What is not supported, in a sentence. */
  readonly unsupported: string;
}

const MAGIC = "GGUF";

/** Whether a file begins as GGUF files do, whatever it is called. */
async function isGguf(path: string): Promise<boolean> {
  const handle = await open(path);
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(MAGIC.length), 0, MAGIC.length, 0);
    return bytesRead === MAGIC.length && buffer.toString("latin1") === MAGIC;
  } finally {
    await handle.close();
  }
}

/** What a model is refused for, with which its files may be sound all the same. */
const isRefusal = (error: unknown): error is PonderaError =>
  error instanceof ConfigError || error instanceof FormatError;

const named = (architecture: unknown): Pick<Unsupported, "architecture"> =>
  typeof architecture === "string" ? { architecture } : {};

async function inspectGguf(path: string): Promise<Inspected | Unsupported> {
  try {
    await using model = await openGgufModel(path);
    const { config } = parseModelConfig(path, model.config);
    return {
      path,
      inspection: inspectModel(config),
      gguf: ggufFacts(model.header, model.vocabulary, config),
    };
  } catch (error) {
    if (!isRefusal(error)) throw error;
    // Throws the same where the header itself is what is wrong.
    await using file = await openSplitGguf(path);
    const architecture = named(file.metadata.get("general.architecture"));
    return { path, ...architecture, unsupported: error.message, gguf: ggufFacts(file) };
  }
}

async function inspectConfig(path: string): Promise<Inspected> {
  const { config } = parseModelConfig(path, await readJson(path));
  return { path, inspection: inspectModel(config) };
}

async function inspectFolder(folder: string): Promise<Inspected | Unsupported> {
  const path = join(folder, "config.json");
  try {
    return await inspectConfig(path);
  } catch (error) {
    const found = isRefusal(error) ? await openTensors(folder) : undefined;
    if (!isRefusal(error) || found === undefined) throw error;
    await using source = found.source;
    const architecture = named(valueAt(await readJson(path), ["model_type"]));
    return { path, ...architecture, unsupported: error.message, safetensors: safetensorsFacts(source) };
  }
}

/** A config's file, a folder with one, a GGUF file, or whatever else names a model. @throws FileError when there is none */
async function inspectAny(
  name: string,
  options: InspectOptions,
  io: Context,
): Promise<Inspected | Unsupported> {
  const isFile = await stat(name).then(
    (found) => found.isFile(),
    () => false,
  );
  if (isFile && !(await isGguf(name))) return inspectConfig(name);
  const { folder } = await findModel(name, options.runs, io);
  return (await stat(folder)).isDirectory() ? inspectFolder(folder) : inspectGguf(folder);
}

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

interface NamedFit extends Fit {
  readonly precision: string;
}

function report({ inspection, gguf }: Inspected, fits: readonly NamedFit[], memory: number, io: Context) {
  const { architecture, parameters, cache, tensors } = inspection;
  const whole = (n: number): string => n.toLocaleString("en-US");
  const beside =
    parameters.draft > 0 ? `, and ${compact(parameters.draft)} that predict the token after next` : "";
  const fitting = table(
    fits,
    [
      { title: "weights in", value: ({ precision }) => precision },
      { title: "take", value: (fit) => byteSize(fit.bytes), align: "right" },
      {
        title: `fit ${byteSize(memory)}`,
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
    ...(gguf === undefined ? [""] : ggufLines(gguf, true, io)),
    ...treeLines(tensors),
    "",
    ...fitting,
  ];
}

/** Of a model that is not supported. */
function reportHeader({ architecture, unsupported, gguf, safetensors }: Unsupported, io: Context): string[] {
  const { tensors, weights } = sumOf((gguf ?? safetensors)?.stored ?? []);
  const count = (n: number, what: string): string => `${n.toLocaleString("en-US")} ${what}`;
  return [
    `${printable(architecture ?? "no architecture named")}: ${count(weights, "numbers")} in ${count(tensors, "tensors")}`,
    `Not supported: ${printable(unsupported)}`,
    "",
    ...(gguf === undefined ? [] : ggufLines(gguf, false, io)),
    ...(safetensors === undefined ? [] : storedLines(safetensors, io)),
  ];
}

async function inspect(name: string, options: InspectOptions, io: Context): Promise<void> {
  const inspected = await inspectAny(name, options, io);
  if ("unsupported" in inspected) {
    if (options.json) await writeJson(io.stdout, inspected);
    else await write(io.stdout, `${reportHeader(inspected, io).join("\n")}\n`);
    return;
  }
  const { path, inspection, gguf } = inspected;
  const memory = totalmem();
  const asStored =
    gguf === undefined ? [] : [{ precision: "stored", ...fitIn(memory, gguf.bytes, inspection) }];
  const fits: NamedFit[] = [...asStored, ...fitsIn(memory, inspection)];
  if (options.json) {
    const machine = { memoryBytes: memory, fits };
    await writeJson(io.stdout, { path, ...inspection, ...(gguf === undefined ? {} : { gguf }), machine });
  } else await write(io.stdout, `${report(inspected, fits, memory, io).join("\n")}\n`);
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("inspect")
    .summary("show what a model is and what it takes")
    .description(
      "Shows a model's tensors, its weights, its cache, and in which forms it fits this machine's memory, from its config or, " +
        "of a GGUF file, from the header: of that also how each type of block runs, and how far from what is stored. Of a model " +
        "that is not supported, what its files' headers say. No weights are read: the file may be larger than memory.",
    )
    .argument(
      "<model>",
      "a config.json, or one of DeepSeek's own form, a model's folder or .gguf file, a run's name or folder, or the name a model was pulled under",
    )
    .option(...RUNS_OPTION)
    .option("--json", "as JSON")
    .action((name: string, options: InspectOptions) => inspect(name, options, io));
  withExamples(command, [
    [
      "pondera inspect models/r1/config.json",
      "its tensors, its weights, its cache, and at what precision it fits",
    ],
    [
      "pondera inspect model.Q4_K_M.gguf",
      "of a file, also which block formats it stores, what they take, and how they run",
    ],
    ["pondera inspect smollm2 --json", "of a pulled model, for a program"],
  ]);
}
