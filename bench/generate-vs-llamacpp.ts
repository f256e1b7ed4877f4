/**
 * A GGUF file against llama.cpp, through node-llama-cpp: how long it takes to load, to read a prompt, to write, and to write
 * sixteen texts at once; how much memory that takes; and, with `--agreement`, whether both say the same.
 *
 *     node --import jiti/register bench/generate-vs-llamacpp.ts --model SmolLM2-135M-Instruct.Q4_1.gguf --threads 2
 *
 * Each side is a process of its own. Both go on past the end of a text, greedily, and take a prompt anew each time.
 */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { describeMachine } from "../src/app/bench/measure.ts";
import { ConfigError } from "../src/base/errors.ts";
import { Runtime } from "../src/compute/runtime/runtime.ts";
import { openGgufModel } from "../src/model/checkpoint/gguf/model.ts";
import { tokenizerFromGguf } from "../src/model/text/gguf.ts";
import type { Tokenizer } from "../src/model/text/tokenizer.ts";
import { type Agreement, agreementLines, agreementOf } from "./gguf-agreement.ts";
import { type LoadOptions, type SideProcess, startSide } from "./gguf-side.ts";
import { TEXT } from "./gguf-texts.ts";
import {
  groupOf,
  isMain,
  main,
  takeTurns,
  type VersusGroup,
  type VersusOptions,
  type VersusReport,
  versusCommand,
} from "./versus.ts";

export interface LlamaCppOptions extends VersusOptions {
  readonly model: string;
  readonly agreement?: true;
}

export interface LlamaCppReport extends VersusReport {
  /** Most bytes of memory of each side, by the work it did. */
  readonly peakBytes: Readonly<Record<string, Readonly<Record<string, number>>>>;
  readonly agreement?: Agreement;
}

const SIDES = ["gguf-pondera.ts", "gguf-llamacpp.ts"] as const;
const PROMPT = 512;
const WRITTEN = 128;
const BATCH = { sequences: 16, prompt: 32, written: 64 };

type Pair = readonly [ours: SideProcess, theirs: SideProcess];

async function startPair(threads: number): Promise<Pair> {
  return [await startSide(SIDES[0], threads), await startSide(SIDES[1], threads)];
}

/** Starts both sides, loads the file and leaves them to `work`. */
async function withPair<T>(load: LoadOptions, work: (pair: Pair) => Promise<T>): Promise<T> {
  const pair = await startPair(load.threads);
  try {
    for (const side of pair) await side.load(load);
    return await work(pair);
  } finally {
    for (const side of pair) side.close();
  }
}

async function tokenizerOf(file: string): Promise<Tokenizer> {
  await using model = await openGgufModel(file);
  if (model.vocabulary === undefined) {
    throw new ConfigError({ where: "--model", rule: "must have a vocabulary", got: file });
  }
  return tokenizerFromGguf(model.vocabulary);
}

/** So many tokens of running text, from the `start`-th on. */
function tokensOfText(tokenizer: Tokenizer, count: number, start = 0): number[] {
  const ids = tokenizer.encode(TEXT);
  return Array.from({ length: count }, (_, i) => ids[(start + i) % ids.length]!);
}

export async function generateVersusLlamaCpp(options: LlamaCppOptions): Promise<LlamaCppReport> {
  const { model: file, threads, rounds, onRound } = options;
  const versions = { "node-llama-cpp": versionOf("node-llama-cpp") };
  const tokenizer = await tokenizerOf(file);
  const groups: VersusGroup[] = [];
  const peakBytes: Record<string, Record<string, number>> = {};
  const single: LoadOptions = { file, threads, sequences: 1, positions: PROMPT + WRITTEN + 64 };
  const positions = BATCH.prompt + BATCH.written + 32;
  const batched: LoadOptions = { file, threads, sequences: BATCH.sequences, positions };

  const compare = async (
    name: string,
    tokens: number,
    pair: Pair,
    seconds: (side: SideProcess) => Promise<number>,
  ): Promise<void> => {
    for (const side of pair) await seconds(side); // Not looked at: caches fill, programs are built.
    const sides = pair.map((side) => ({ name: side.name, turn: async () => [await seconds(side)] }));
    groups.push(groupOf(name, tokens, await takeTurns(sides, rounds, onRound)));
  };
  const remember = (name: string, pair: Pair): void => {
    peakBytes[name] = Object.fromEntries(pair.map((side) => [side.name, side.peakBytes]));
  };

  const loads = SIDES.map((module) => async () => {
    const side = await startSide(module, threads);
    try {
      return [await side.load(single)];
    } finally {
      side.close();
    }
  });
  for (const load of loads) await load(); // Afterwards the file is in memory for both.
  const names = ["Pondera", "llama.cpp"];
  const loaded = await takeTurns(
    loads.map((turn, i) => ({ name: names[i]!, turn })),
    rounds,
    onRound,
  );
  groups.push(groupOf("from opening the file to the second token", 0, loaded));

  await withPair(single, async (pair) => {
    // Another one each time: what the last one began with we do not run again.
    let asked = 0;
    await compare(
      `a prompt of ${PROMPT}`,
      PROMPT,
      pair,
      async (side) => (await side.generate([tokensOfText(tokenizer, PROMPT, 31 * asked++)], 1)).all,
    );
    const start = tokensOfText(tokenizer, 16);
    await compare(`${WRITTEN} tokens after 16`, WRITTEN, pair, async (side) => {
      const { first, all } = await side.generate([start], WRITTEN + 1);
      return all - first;
    });
    remember("one sequence", pair);
  });
  await withPair(batched, async (pair) => {
    const prompts = Array.from({ length: BATCH.sequences }, (_, i) =>
      tokensOfText(tokenizer, BATCH.prompt, 17 * i),
    );
    const name = `${BATCH.sequences} sequences at once, ${BATCH.written} tokens after ${BATCH.prompt} each`;
    await compare(name, BATCH.sequences * BATCH.written, pair, async (side) => {
      return (await side.generate(prompts, BATCH.written)).all;
    });
    remember(`${BATCH.sequences} sequences`, pair);
  });
  const agreement = options.agreement
    ? await withPair(single, (pair) => agreementOf(tokenizer, ...pair))
    : undefined;

  const runtime = await Runtime.create({ threads });
  const machine = describeMachine(runtime);
  runtime.dispose();
  return {
    benchmark: "generate-vs-llamacpp",
    what: `${file.split("/").at(-1)}, ${threads} threads`,
    machine,
    versions,
    groups,
    peakBytes,
    ...(agreement === undefined ? {} : { agreement }),
    notes: [
      ...Object.entries(peakBytes).map(([work, bytes]) => memoryLine(work, bytes)),
      ...(agreement === undefined ? [] : agreementLines(agreement)),
    ],
  };
}

function memoryLine(work: string, bytes: Readonly<Record<string, number>>): string {
  const each = Object.entries(bytes).map(([name, size]) => `${name} ${Math.round(size / 2 ** 20)} MiB`);
  const [ours, theirs] = Object.values(bytes) as [number, number];
  return `peak memory, ${work}: ${each.join(", ")} (${(ours / theirs).toFixed(2)}×)`;
}

/** The version of an installed package, which need not export its package.json. */
function versionOf(name: string): string {
  const folders = createRequire(import.meta.url).resolve.paths(name) ?? [];
  const file = folders.map((folder) => join(folder, name, "package.json")).find((path) => existsSync(path));
  if (file === undefined) {
    throw new ConfigError({ where: name, rule: "must be installed", remedy: "Run npm ci" });
  }
  return (JSON.parse(readFileSync(file, "utf8")) as { version: string }).version;
}

if (isMain(import.meta.url)) {
  const command = versusCommand(
    "generate-vs-llamacpp",
    "A GGUF file against llama.cpp.",
    "node-llama-cpp is a development dependency.",
  )
    .requiredOption("--model <file>", "a GGUF file")
    .option("--agreement", "compare what both say, too: minutes");
  await main(command, generateVersusLlamaCpp);
}
