/** `pondera export`: a model as a folder that other programs load. */

import { readdir } from "node:fs/promises";
import { relative, resolve } from "node:path";
import { type Command, Option } from "commander";
import { ConfigError, FileError } from "../../../base/errors.ts";
import { fileError } from "../../../base/files.ts";
import { loadModelFolder, saveModelFolder } from "../../../model/checkpoint/folder.ts";
import { RUNS_OPTION, withExamples } from "../help.ts";
import { type Context, write, writeJson } from "../io.ts";
import { findModel } from "../model.ts";

interface ExportOptions {
  readonly out: string;
  readonly runs: string;
  readonly force?: true;
  readonly json?: true;
}

/** Files of a model's folder: what may be written over when asked. */
const MODEL_FILES = /^(?:[\w.-]*\.(?:json|safetensors|jinja|txt|model|md)|\.gitattributes)$/;

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
  const foreign = content.find((name) => !MODEL_FILES.test(name));
  if (content.includes("config.json") && foreign === undefined) return;
  throw new FileError({
    where: out,
    rule: "only a model's folder may be replaced",
    got: foreign === undefined ? "a folder without config.json" : `a folder that also holds ${foreign}`,
    remedy: "Choose another, or empty it yourself",
  });
}

async function exportModel(name: string | undefined, options: ExportOptions, io: Context): Promise<void> {
  const found = await findModel(name, options.runs);
  const out = resolve(options.out);
  const fromSource = relative(found.folder, out);
  if (fromSource === "") {
    throw new ConfigError({ where: "--out", rule: "must not be the model's own folder", got: options.out });
  }
  await checkTarget(out, options.force === true);
  await saveModelFolder(out, await loadModelFolder(found.folder));
  const files = (await readdir(out)).sort();
  if (options.json) return writeJson(io.stdout, { model: found.folder, format: "hf", out, files });
  await write(
    io.stdout,
    [
      `${found.name} → ${out}`,
      ...files.map((file) => `  ${file}`),
      `In Python: transformers.AutoModelForCausalLM.from_pretrained(${JSON.stringify(out)})`,
      "",
    ].join("\n"),
  );
}

export function register(program: Command, io: Context): void {
  const command = program
    .command("export")
    .summary("write a model where other programs find it")
    .description(
      "Writes a model as a folder in Hugging Face layout, float32, which transformers, vLLM and llama.cpp load. The folder " +
        "appears whole or not at all.",
    )
    .argument("[model]", "a run's name or folder, or a model's folder; the newest run if left out")
    .addOption(
      new Option("--format <format>", "hf: config.json, model.safetensors and the tokenizer's files")
        .choices(["hf"])
        .default("hf"),
    )
    .requiredOption("--out <folder>", "where to write it; must be absent or empty")
    .option(...RUNS_OPTION)
    .option("--force", "replace the model that is there")
    .option("--json", "what was written, as one object")
    .action((name: string | undefined, options: ExportOptions) => exportModel(name, options, io));
  withExamples(command, [
    ["pondera export --out ./my-model", "the newest run's model"],
    ["pondera export my-run --format hf --out ./my-model --force", "a certain run's, over what was there"],
  ]);
}
