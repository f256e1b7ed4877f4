/** `pondera list`, `show`, `rm` and `cp`: the models in the store. */

import type { Command } from "commander";
import { FormatError } from "../../../base/errors.ts";
import type { ModelStore, StoredModel } from "../../../model/store/store.ts";
import { byteSize } from "../../format.ts";
import { withExamples } from "../help.ts";
import { type Context, colorsFor, columnsOfOutput, commandName, type Io, write, writeJson } from "../io.ts";
import { openStore, STORE_OPTION, type StoreOptions, unreadableTo } from "../store.ts";
import { type Column, table } from "../table.ts";
import { printable } from "../text.ts";

interface JsonOptions extends StoreOptions {
  readonly json?: true;
}

/** What the files are: their layout decides which programs open them. */
function formatOf({ manifest, path }: StoredModel): "gguf" | "hf" | "files" {
  if (/\.gguf$/i.test(path)) return "gguf";
  return manifest.files.some((file) => file.path === "config.json") ? "hf" : "files";
}

/** Branch and commit, or tag: where exactly it came from. */
function originOf({ manifest: { source } }: StoredModel): string {
  if (source.hub === "ollama") return `${source.repo}:${source.tag}`;
  return `${source.repo}@${source.revision === source.commit ? source.commit.slice(0, 7) : source.revision}`;
}

function brief(model: StoredModel) {
  const { source, pulled, files } = model.manifest;
  const { name, path, bytes } = model;
  return { name, path, format: formatOf(model), bytes, files: files.length, source, pulled };
}

const columns: readonly Column<StoredModel>[] = [
  { title: "model", value: (m) => m.name },
  { title: "size", value: (m) => byteSize(m.bytes), align: "right" },
  { title: "format", value: formatOf },
  { title: "hub", value: (m) => m.manifest.source.hub },
  { title: "pulled", value: (m) => m.manifest.pulled.slice(0, 16).replace("T", " ") },
  // Last, since a narrow table is cut there, and this is mostly the name once more.
  { title: "from", value: originOf },
];

async function list(options: JsonOptions, io: Io): Promise<void> {
  const store = openStore(options, io);
  const models = await store.list(unreadableTo(io));
  if (options.json) return writeJson(io.stdout, models.map(brief));
  const lines =
    models.length === 0
      ? [`No models in ${store.root}. Fetch one with: ${commandName(io.env)} pull r1-1.5b`]
      : table(models, columns, columnsOfOutput(io.stdout), colorsFor(io.stdout, io.env));
  await write(io.stdout, `${lines.join("\n")}\n`);
}

interface ShowOptions extends JsonOptions {
  readonly path?: true;
  readonly check?: true;
}

/** @throws FormatError naming what is broken */
async function check(store: ModelStore, model: StoredModel): Promise<void> {
  const broken = await store.verify(model);
  if (broken.length === 0) return;
  throw new FormatError({
    where: model.name,
    rule: "every file must have the content it was pulled with",
    got: `${broken.length} of ${model.manifest.files.length} that have not: ${broken
      .slice(0, 5)
      .map((file) => file.path)
      .join(", ")}${broken.length > 5 ? ", …" : ""}`,
    remedy: `Mend it: pondera pull ${model.name} --check`,
  });
}

async function show(name: string, options: ShowOptions, io: Context): Promise<void> {
  const store = openStore(options, io);
  const model = await store.get(name);
  if (options.check) await check(store, model);
  if (options.json) {
    const checked = options.check ? { checked: true } : {};
    return writeJson(io.stdout, { ...brief(model), ...checked, files: model.manifest.files });
  }
  if (options.path) return write(io.stdout, `${model.path}\n`);
  const { source, pulled, files } = model.manifest;
  const colors = colorsFor(io.stdout, io.env);
  const facts: readonly (readonly [string, string])[] = [
    ["from", `${originOf(model)} at ${source.endpoint}`],
    source.hub === "hf" ? ["commit", source.commit] : ["digest", `sha256:${source.digest}`],
    ["pulled", pulled.slice(0, 16).replace("T", " ")],
    ["size", `${byteSize(model.bytes)} in ${files.length} file${files.length === 1 ? "" : "s"}`],
    ["path", model.path],
    ...(options.check ? [["checked", "every file is as it was pulled"] as const] : []),
  ];
  const fileColumns: readonly Column<(typeof files)[number]>[] = [
    { title: "file", value: (file) => file.path },
    { title: "size", value: (file) => byteSize(file.size), align: "right" },
    { title: "sha256", value: (file) => file.sha256.slice(0, 12) },
  ];
  const lines = [
    colors.bold(printable(model.name)),
    ...facts.map(([title, value]) => `${colors.dim(title.padEnd(8))} ${printable(value)}`),
    "",
    ...table(files, fileColumns, columnsOfOutput(io.stdout), colors),
  ];
  await write(io.stdout, `${lines.join("\n")}\n`);
}

interface RemoveOptions extends JsonOptions {
  readonly unused?: true;
}

async function remove(names: readonly string[], options: RemoveOptions, io: Context): Promise<void> {
  const store = openStore(options, io);
  const removed = names.length === 0 ? { names: [], bytes: 0 } : await store.remove(names);
  const bytes = removed.bytes + (options.unused ? await store.prune() : 0);
  if (options.json) return writeJson(io.stdout, { removed: removed.names, bytes });
  if (removed.names.length === 0 && bytes === 0) return write(io.stdout, "There was nothing to remove.\n");
  const what = [...removed.names, ...(options.unused ? ["what no model needs"] : [])];
  const text = [what.slice(0, -1).join(", "), ...what.slice(-1)].filter((part) => part !== "").join(" and ");
  await write(io.stdout, `Removed ${printable(text)}: ${byteSize(bytes)} free again.\n`);
}

interface CopyOptions extends JsonOptions {
  readonly force?: true;
}

async function copy(from: string, to: string, options: CopyOptions, io: Io): Promise<void> {
  const copied = await openStore(options, io).copy(from, to, { replace: options.force === true });
  if (options.json) return writeJson(io.stdout, brief(copied));
  await write(io.stdout, `${printable(from)} is also ${printable(copied.name)}.\n`);
}

export function register(program: Command, io: Context): void {
  withExamples(
    program
      .command("list")
      .summary("list the models that have been pulled")
      .description("Lists the models in the store, by name.")
      .option(...STORE_OPTION)
      .option("--json", "an array instead of a table")
      .action((options: JsonOptions) => list(options, io)),
    [["pondera list", "names, sizes and where they came from"]],
  );
  withExamples(
    program
      .command("show")
      .summary("show a pulled model, or where its files are")
      .description(
        "Shows a model of the store: where it came from, its files, and the path for other programs.",
      )
      .argument("<model>", "name of a model in the store")
      .option("--path", "only the path: a folder in Hugging Face layout, or a GGUF file")
      .option("--check", "read every file and compare it with what was pulled")
      .option(...STORE_OPTION)
      .option("--json", "everything as one object")
      .action((name: string, options: ShowOptions) => show(name, options, io)),
    [
      ["pondera show r1-1.5b", "what it is made of"],
      ['llama-cli -m "$(pondera show deepseek-r1:1.5b --path)"', "the same file in another program"],
    ],
  );
  withExamples(
    program
      .command("rm")
      .summary("remove pulled models")
      .description("Removes models from the store, and the content that no other model there needs.")
      .argument("[models...]", "names of models in the store")
      .option("--unused", "also remove content that no model needs, and downloads that were cut off")
      .option(...STORE_OPTION)
      .option("--json", "what was removed, as one object")
      .action((names: readonly string[], options: RemoveOptions, command: Command) => {
        if (names.length === 0 && options.unused !== true)
          command.error("error: missing required argument 'models'");
        return remove(names, options, io);
      }),
    [
      ["pondera rm r1-1.5b deepseek-r1:7b", "two models"],
      ["pondera rm --unused", "what interrupted downloads left"],
    ],
  );
  withExamples(
    program
      .command("cp")
      .summary("give a pulled model a second name")
      .description(
        "Gives a model in the store a second name. Its files are shared, and stay while either name does.",
      )
      .argument("<from>", "name of a model in the store")
      .argument("<to>", "the new name: [owner/]model[:tag]")
      .option("--force", "also when the new name is that of another model")
      .option(...STORE_OPTION)
      .option("--json", "the new model as one object")
      .action((from: string, to: string, options: CopyOptions) => copy(from, to, options, io)),
    [["pondera cp r1-1.5b thinker", "a short name of your own"]],
  );
}
