/** `pondera inspect`: what a model is and what it takes, without its weights. */

import { open, stat } from "node:fs/promises";
import { totalmem } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import { readJson } from "../../../base/files.ts";
import { sizeOf } from "../../../compute/tensor/shape.ts";
import {
  type Fit,
  fitIn,
  fitsIn,
  type Inspection,
  inspectModel,
  type TensorNode,
} from "../../../model/arch/inspect.ts";
import { parseModelConfig } from "../../../model/arch/models.ts";
import { type GgufModel, openGgufModel } from "../../../model/checkpoint/gguf/model.ts";
import { byteSize, compact } from "../../format.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { type Context, colorsFor, columnsOfOutput, write, writeJson } from "../io.ts";
import { findModel } from "../model.ts";
import { table } from "../table.ts";
import { printable } from "../text.ts";

interface InspectOptions {
  readonly runs: string;
  readonly json?: true;
}

/** Tensors of a file that are stored alike. */
interface StoredType {
  readonly type: string;
  readonly tensors: number;
  readonly weights: number;
  readonly bytes: number;
}

/** What a GGUF file says of itself. */
interface GgufFacts {
  readonly version: number;
  /** The model's name, as whoever made the file calls it. */
  readonly name?: string;
  readonly stored: readonly StoredType[];
  /** Of all tensors. */
  readonly bytes: number;
  readonly vocabulary?: {
    readonly model: string;
    readonly pre?: string;
    readonly tokens: number;
    readonly chatTemplate: boolean;
  };
}

interface Inspected {
  readonly path: string;
  readonly inspection: Inspection;
  readonly gguf?: GgufFacts;
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

function factsOf({ header, vocabulary }: GgufModel): GgufFacts {
  const types = new Map<string, StoredType>();
  for (const { type, shape, bytes } of header.tensors.values()) {
    const sum = types.get(type) ?? { type, tensors: 0, weights: 0, bytes: 0 };
    types.set(type, {
      type,
      tensors: sum.tensors + 1,
      weights: sum.weights + sizeOf(shape),
      bytes: sum.bytes + bytes,
    });
  }
  const stored = [...types.values()].sort((a, b) => b.bytes - a.bytes);
  const name = header.metadata.get("general.name");
  return {
    version: header.version,
    ...(typeof name === "string" ? { name } : {}),
    stored,
    bytes: stored.reduce((sum, { bytes }) => sum + bytes, 0),
    ...(vocabulary === undefined
      ? {}
      : {
          vocabulary: {
            model: vocabulary.model,
            ...(vocabulary.pre === undefined ? {} : { pre: vocabulary.pre }),
            tokens: vocabulary.tokens.length,
            chatTemplate: vocabulary.chatTemplate !== undefined,
          },
        }),
  };
}

async function inspectGguf(path: string): Promise<Inspected> {
  await using model = await openGgufModel(path);
  const { config } = parseModelConfig(path, model.config);
  return { path, inspection: inspectModel(config), gguf: factsOf(model) };
}

async function inspectConfig(path: string): Promise<Inspected> {
  const { config } = parseModelConfig(path, await readJson(path));
  return { path, inspection: inspectModel(config) };
}

/** A config's file, a folder with one, a GGUF file, or whatever else names a model. @throws FileError when there is none */
async function inspectAny(name: string, options: InspectOptions, io: Context): Promise<Inspected> {
  const isFile = await stat(name).then(
    (found) => found.isFile(),
    () => false,
  );
  if (isFile && !(await isGguf(name))) return inspectConfig(name);
  const { folder } = await findModel(name, options.runs, io);
  return (await stat(folder)).isDirectory()
    ? inspectConfig(join(folder, "config.json"))
    : inspectGguf(folder);
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

function ggufLines(facts: GgufFacts, io: Context): string[] {
  const { name, version, vocabulary, stored, bytes } = facts;
  const text =
    vocabulary === undefined
      ? "no tokenizer"
      : `tokenizer ${[vocabulary.model, vocabulary.pre].filter((part) => part !== undefined).join(" ")} of ` +
        `${vocabulary.tokens.toLocaleString("en-US")} tokens, ${vocabulary.chatTemplate ? "with" : "without"} a chat template`;
  return [
    `GGUF version ${version}${name === undefined ? "" : `, ${printable(name)}`}: ${printable(text)}`,
    "",
    ...table(
      [...stored, { type: "all", ...sumOf(stored), bytes }],
      [
        { title: "stored as", value: ({ type }) => type },
        { title: "tensors", value: ({ tensors }) => `${tensors}`, align: "right" },
        { title: "weights", value: ({ weights }) => compact(weights), align: "right" },
        { title: "take", value: (type) => byteSize(type.bytes), align: "right" },
        { title: "bits each", value: (type) => ((8 * type.bytes) / type.weights).toFixed(2), align: "right" },
      ],
      columnsOfOutput(io.stdout),
      colorsFor(io.stdout, io.env),
    ),
    "",
  ];
}

const sumOf = (stored: readonly StoredType[]): Pick<StoredType, "tensors" | "weights"> => ({
  tensors: stored.reduce((sum, { tensors }) => sum + tensors, 0),
  weights: stored.reduce((sum, { weights }) => sum + weights, 0),
});

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
    ...(gguf === undefined ? [""] : ggufLines(gguf, io)),
    ...treeLines(tensors),
    "",
    ...fitting,
  ];
}

async function inspect(name: string, options: InspectOptions, io: Context): Promise<void> {
  const inspected = await inspectAny(name, options, io);
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
        "of a GGUF file, from the header. No weights are read: the file may be larger than memory.",
    )
    .argument(
      "<model>",
      "a config.json, a model's folder or .gguf file, a run's name or folder, or the name a model was pulled under",
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
      "of a file, also which block formats it stores, and what they take",
    ],
    ["pondera inspect smollm2 --json", "of a pulled model, for a program"],
  ]);
}
