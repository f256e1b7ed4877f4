/** `pondera pull`: a model from a hub into the store. */

import { type Command, Option } from "commander";
import { Http } from "../../../model/store/http.ts";
import { type HubKind, type Pulled, pullModel } from "../../../model/store/pull.ts";
import { byteSize, clock } from "../../format.ts";
import { wholeNumber } from "../arguments.ts";
import { withExamples } from "../help.ts";
import { INTERRUPTED, interruptible } from "../interrupt.ts";
import { type Context, write, writeJson } from "../io.ts";
import { createPullView } from "../pull-view.ts";
import { openStore, STORE_OPTION, type StoreOptions } from "../store.ts";
import { printable } from "../text.ts";

interface PullArguments extends StoreOptions {
  readonly from?: HubKind;
  readonly revision?: string;
  readonly include?: readonly string[];
  readonly exclude?: readonly string[];
  readonly as?: string;
  readonly endpoint?: string;
  readonly connections: number;
  readonly check?: true;
  readonly json?: true;
}

function resultText({ model, fetched, upToDate }: Pulled, seconds: number): string {
  const share =
    fetched === 0
      ? "all of which was there already"
      : `${fetched < model.bytes ? `${byteSize(fetched)} of it ` : ""}fetched in ${clock(seconds)}`;
  const what = upToDate ? "is up to date" : `is here: ${byteSize(model.bytes)}, ${share}`;
  return `${printable(model.name)} ${what}.\n${model.path}\n`;
}

async function pull(name: string, options: PullArguments, io: Context): Promise<void> {
  const { store: _, json, ...asked } = options;
  const store = openStore(options, io);
  const http = new Http({ env: io.env });
  const view = createPullView(io);
  const begun = performance.now();
  const stopping = new AbortController();
  try {
    const onFirst = () => stopping.abort();
    const pulled = await interruptible({ onFirst }, (signal) =>
      pullModel(name, { ...asked, store, http, env: io.env, signal, onEvent: (event) => view.show(event) }),
    );
    view.stop();
    const { model, fetched, upToDate } = pulled;
    if (json) {
      const { name, path, folder, bytes, manifest } = model;
      const { source, files } = manifest;
      return await writeJson(io.stdout, { name, path, folder, bytes, fetched, upToDate, source, files });
    }
    await write(io.stdout, resultText(pulled, (performance.now() - begun) / 1000));
  } catch (error) {
    view.stop();
    if (!stopping.signal.aborted) throw error;
    io.stderr.write("Stopped. What has arrived is kept: the same command goes on from there.\n");
    io.exitWith(INTERRUPTED);
  } finally {
    http.close();
  }
}

const several = (value: string, before: readonly string[] | undefined): readonly string[] => [
  ...(before ?? []),
  value,
];

export function register(program: Command, io: Context): void {
  const command = program
    .command("pull")
    .summary("fetch a model from Hugging Face or Ollama")
    .description(
      "Fetches a model into the store, checks every byte by its hash, and goes on where an earlier attempt ended.\n\n" +
        "A name with an owner (Qwen/Qwen2.5-0.5B-Instruct) is of the Hugging Face hub, one without (deepseek-r1:1.5b) of " +
        "Ollama's registry. Short names for the models distilled from DeepSeek-R1: r1-1.5b, r1-7b, r1-8b, r1-14b, r1-32b " +
        "and r1-70b.\n\n" +
        "HF_TOKEN opens private and gated models, HF_ENDPOINT names a mirror, HTTPS_PROXY, HTTP_PROXY and NO_PROXY the way out, " +
        "NODE_EXTRA_CA_CERTS a file with certificates to trust.",
    )
    .argument("<name>", "owner/model[:revision], model[:tag] or a short name")
    .addOption(
      new Option("--from <hub>", "which hub, whatever the name looks like").choices(["hf", "ollama"]),
    )
    .option("--revision <revision>", "branch, tag or commit of a Hugging Face model")
    .option(
      "--include <pattern>",
      "only files like this (* is any text, ? a character); may be repeated",
      several,
    )
    .option("--exclude <pattern>", "no files like this; may be repeated", several)
    .option("--as <name>", "name in the store")
    .option("--endpoint <url>", "address of the hub")
    .option("--connections <n>", "requests at the same time", wholeNumber({ min: 1, max: 64 }), 4)
    .option("--check", "read the files that are here already, and fetch again what has changed")
    .option(...STORE_OPTION)
    .option("--json", "what was pulled, as one object")
    .action((name: string, options: PullArguments) => pull(name, options, io));
  withExamples(command, [
    ["pondera pull r1-1.5b", "DeepSeek-R1-Distill-Qwen-1.5B, 3.6 GB"],
    ["pondera pull deepseek-r1:1.5b", "the same in four bits, from Ollama, 1.1 GB"],
    ["pondera pull Qwen/Qwen2.5-0.5B-Instruct --revision main --exclude '*.md'", "any model of the hub"],
    [
      "pondera pull bartowski/DeepSeek-R1-Distill-Qwen-7B-GGUF --include '*Q4_K_M*'",
      "one of many quantizations",
    ],
  ]);
}
