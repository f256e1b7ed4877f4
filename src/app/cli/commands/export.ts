/** `pondera export`: a model as a folder or a file that other programs load. */

import { readdir, stat } from "node:fs/promises";
import { basename, join, relative, resolve } from "node:path";
import { type Command, Option } from "commander";
import { ConfigError, FileError } from "../../../base/errors.ts";
import { fileError } from "../../../base/files.ts";
import { saveModelFolder } from "../../../model/checkpoint/folder.ts";
import { WRITABLE_TYPES, type WritableType } from "../../../model/checkpoint/gguf/quantize.ts";
import { saveModelGguf } from "../../../model/checkpoint/gguf/save.ts";
import { loadModel } from "../../../model/checkpoint/load.ts";
import { GRAPHS, ONNX_TYPES, saveOnnxFolder } from "../../../model/onnx/save.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { type Context, write, writeJson } from "../io.ts";
import { type FoundModel, findModel } from "../model.ts";
import { progressOn } from "../progress.ts";
import { printable } from "../text.ts";

const FORMATS = ["hf", "gguf", "onnx"] as const;
const TYPES = {
  hf: ["F32"],
  gguf: WRITABLE_TYPES,
  onnx: ONNX_TYPES,
} as const;

interface ExportOptions {
  readonly format: (typeof FORMATS)[number];
  readonly type?: WritableType;
  readonly out: string;
  readonly runs: string;
  readonly force?: true;
  readonly json?: true;
}

/** Files of a model's folder, and of the one of graphs in it: what may be written over when asked. */
const MODEL_FILES = /^(?:[\w.-]*\.(?:json|safetensors|jinja|txt|model|md)|\.gitattributes)$/;
const GRAPH_FILES = /^[\w.-]*\.onnx(?:_data(?:_\d+)?)?$/;

/** What lies in a folder; undefined when there is none. @throws FileError when it cannot be read, or is a file */
async function contentOf(folder: string): Promise<readonly string[] | undefined> {
  try {
    return await readdir(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw fileError(folder, "readable", error);
  }
}

/** @throws FileError when writing there would destroy something that nobody asked to replace */
async function checkTarget(out: string, force: boolean): Promise<void> {
  const content = await contentOf(out);
  if (content === undefined || content.length === 0) return;
  if (!force) {
    throw new FileError({
      where: out,
      rule: "must be absent or empty",
      got: `a folder with ${content.length} entries`,
      remedy: "Choose another, or replace it with --force",
    });
  }
  // The whole folder is replaced, so it must hold a model and nothing else.
  const graphs = content.includes(GRAPHS) ? await contentOf(join(out, GRAPHS)) : [];
  const foreign =
    content.find((name) => !MODEL_FILES.test(name) && name !== GRAPHS) ??
    graphs?.find((name) => !GRAPH_FILES.test(name));
  if (content.includes("config.json") && foreign === undefined) return;
  throw new FileError({
    where: out,
    rule: "only a model's folder may be replaced",
    got: foreign === undefined ? "a folder without config.json" : `a folder that also holds ${foreign}`,
    remedy: "Choose another, or empty it yourself",
  });
}

/** @throws FileError when there is something that nobody asked to replace, or that is no GGUF file */
async function checkTargetFile(out: string, force: boolean): Promise<void> {
  const found = await stat(out).catch(() => undefined);
  if (found === undefined) return;
  const replaceable = found.isFile() && /\.gguf$/i.test(out);
  if (force && replaceable) return;
  throw new FileError({
    where: out,
    rule: "must be absent",
    got: found.isFile() ? "a file" : "a folder",
    remedy: replaceable ? "Choose another, or replace it with --force" : "Choose another",
  });
}

async function exportModel(name: string | undefined, options: ExportOptions, io: Context): Promise<void> {
  const { format } = options;
  const types: readonly string[] = TYPES[format];
  if (options.type !== undefined && !types.includes(options.type)) {
    throw new ConfigError({
      where: "--type",
      rule: `must be ${types.join(" or ")} for --format ${format}`,
      got: options.type,
    });
  }
  const found = await findModel(name, options.runs, io);
  const out = resolve(options.out);
  if (relative(found.folder, out) === "") {
    throw new ConfigError({ where: "--out", rule: "must not be the model itself", got: options.out });
  }
  const force = options.force === true;
  const progress = progressOn(io);
  progress.say(`writing ${printable(found.name)} as ${format}…`);
  const lines = await WRITERS[format](found, out, options, force).finally(() => progress.done());
  const files = lines.files;
  if (options.json) return writeJson(io.stdout, { model: found.folder, format, out, files });
  await write(
    io.stdout,
    [`${found.name} → ${out}`, ...files.map((file) => `  ${file}`), lines.next, ""].join("\n"),
  );
}

interface Exported {
  readonly files: readonly string[];
  /** What to do with it. */
  readonly next: string;
}

type Writer = (found: FoundModel, out: string, options: ExportOptions, force: boolean) => Promise<Exported>;

const WRITERS: { readonly [F in (typeof FORMATS)[number]]: Writer } = {
  async hf(found, out, _, force) {
    await checkTarget(out, force);
    await saveModelFolder(out, await loadModel(found.folder));
    return {
      files: (await readdir(out)).sort(),
      next: `In Python: transformers.AutoModelForCausalLM.from_pretrained(${JSON.stringify(out)})`,
    };
  },

  async gguf(found, out, { type = "F16" }, force) {
    await checkTargetFile(out, force);
    await saveModelGguf(out, await loadModel(found.folder), { type, name: found.name });
    return { files: [basename(out)], next: `With llama.cpp: llama-cli -m ${JSON.stringify(out)}` };
  },

  async onnx(found, out, { type }, force) {
    await checkTarget(out, force);
    const onnxType = ONNX_TYPES.find((one) => one === type) ?? "F32";
    await saveOnnxFolder(out, await loadModel(found.folder), { type: onnxType });
    const files = [
      ...(await readdir(out)),
      ...(await readdir(join(out, GRAPHS))).map((name) => `${GRAPHS}/${name}`),
    ];
    return {
      files: files.filter((name) => name !== GRAPHS).sort(),
      next: `With transformers.js: await pipeline("text-generation", ${JSON.stringify(out)})`,
    };
  },
};

export function register(program: Command, io: Context): void {
  const command = program
    .command("export")
    .summary("write a model where other programs find it")
    .description(
      "Writes a model as a folder in Hugging Face layout, float32, which transformers and vLLM load, or as a GGUF file, which " +
        "llama.cpp runs. It appears whole or not at all.",
    )
    .argument(
      "[model]",
      "a run's name or folder, or a model's folder, file or name; the newest run if left out",
    )
    .addOption(
      new Option(
        "--format <format>",
        "hf: config.json, model.safetensors and the tokenizer's files; gguf: one file; onnx: as hf, with a graph in onnx/",
      )
        .choices(FORMATS)
        .default("hf"),
    )
    .addOption(
      new Option("--type <type>", "of the matrices: F16 if left out for gguf, F32 for onnx").choices(
        WRITABLE_TYPES,
      ),
    )
    .requiredOption("--out <path>", "where to write it; must be absent, or an empty folder")
    .option(...RUNS_OPTION)
    .option("--force", "replace the model that is there")
    .option("--json", "what was written, as one object")
    .action((name: string | undefined, options: ExportOptions) => exportModel(name, options, io));
  withExamples(command, [
    ["pondera export --out ./my-model", "the newest run's model"],
    ["pondera export my-run --format hf --out ./my-model --force", "a certain run's, over what was there"],
    ["pondera export --format gguf --type Q8_0 --out ./my-model.gguf", "for llama.cpp, in 8 bits"],
    [
      "pondera export my-run --format onnx --out ./my-web-model",
      "for transformers.js, in a browser or in Node",
    ],
  ]);
}
