/**
 * One of those that run a GGUF file, in a process of its own: its memory is its own, and so are its threads. This module is both
 * ends: `startSide` forks the process, `serveSide` is what it runs.
 */

import { type ChildProcess, execFile, fork } from "node:child_process";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { PonderaError } from "../src/base/errors.ts";

export interface LoadOptions {
  readonly file: string;
  readonly threads: number;
  /** Sequences side by side, and positions of each. */
  readonly sequences: number;
  readonly positions: number;
}

export interface Generated {
  /** Of each prompt, greedily. */
  readonly ids: readonly (readonly number[])[];
  /** Seconds to the first token, and to the last. */
  readonly first: number;
  readonly all: number;
}

/** What a side can do. */
export interface GgufSide {
  /** Its name and version. */
  readonly name: string;
  /** Loads the library, which is not timed. */
  start(threads: number): Promise<void>;
  load(options: LoadOptions): Promise<void>;
  /** Exactly so many tokens after each prompt, past any end. */
  generate(prompts: readonly (readonly number[])[], newTokens: number): Promise<Generated>;
  /** Log-probability, nats, of each token but the first. */
  score(ids: readonly number[]): Promise<number[]>;
  dispose(): Promise<void>;
}

type Command =
  | { readonly cmd: "load"; readonly options: LoadOptions }
  | { readonly cmd: "generate"; readonly prompts: readonly (readonly number[])[]; readonly newTokens: number }
  | { readonly cmd: "score"; readonly ids: readonly number[] };

interface Answers {
  readonly load: number;
  readonly generate: Generated;
  readonly score: number[];
}

type Reply = { readonly value: unknown; readonly peakBytes: number } | { readonly error: string };

/** The parent's end. */
export class SideProcess {
  readonly name: string;
  readonly #child: ChildProcess;
  /** Most memory its process has had so far. */
  peakBytes = 0;

  constructor(name: string, child: ChildProcess) {
    this.name = name;
    this.#child = child;
  }

  async #ask<C extends Command>(command: C): Promise<Answers[C["cmd"]]> {
    const reply = await answerOf(this.#child, () => this.#child.send(command));
    this.peakBytes = reply.peakBytes;
    return reply.value as Answers[C["cmd"]];
  }

  /** Seconds from opening the file to the second token of a short text: by then all that is made once is made. */
  load(options: LoadOptions): Promise<number> {
    return this.#ask({ cmd: "load", options });
  }

  generate(prompts: readonly (readonly number[])[], newTokens: number): Promise<Generated> {
    return this.#ask({ cmd: "generate", prompts, newTokens });
  }

  score(ids: readonly number[]): Promise<number[]> {
    return this.#ask({ cmd: "score", ids });
  }

  close(): void {
    this.#child.kill();
  }
}

/** The child's next message. @throws Error with the child's own when it fails or ends */
function answerOf(child: ChildProcess, ask: () => void): Promise<{ value: unknown; peakBytes: number }> {
  return new Promise((resolve, reject) => {
    const ended = (code: number | null): void => reject(new Error(`a side ended with code ${code}`));
    child.once("exit", ended);
    child.once("message", (reply: Reply) => {
      child.off("exit", ended);
      if ("error" in reply) reject(new Error(reply.error));
      else resolve(reply);
    });
    ask();
  });
}

/** Both sides as their users have them: compiled. Transpiled on the way in, ours takes 0.6 s longer to load a file. */
let compiled: Promise<unknown> | undefined;

function compile(): Promise<unknown> {
  const { resolve } = createRequire(import.meta.url);
  const tsc = join(dirname(resolve("typescript/package.json")), "bin/tsc");
  const project = fileURLToPath(new URL("../tsconfig.bench.json", import.meta.url));
  return promisify(execFile)(process.execPath, [tsc, "-p", project]);
}

/** Starts a side. @param module  a file beside this one */
export async function startSide(module: string, threads: number): Promise<SideProcess> {
  compiled ??= compile();
  await compiled;
  const file = new URL(`../dist/bench/bench/${module.replace(/\.ts$/, ".js")}`, import.meta.url);
  // Without what this process was started with: a loader takes 30 MiB that neither side needs.
  const child = fork(fileURLToPath(file), [String(threads)], { execArgv: [] });
  const ready = await answerOf(child, () => {});
  return new SideProcess(String(ready.value), child);
}

/** What a side's module runs when it is a process. */
export async function serveSide(side: GgufSide): Promise<void> {
  const send = (reply: Reply): void => void process.send?.(reply);
  const answer = async (work: () => Promise<unknown>): Promise<void> => {
    try {
      const value = await work();
      send({ value, peakBytes: process.resourceUsage().maxRSS * 1024 });
    } catch (error) {
      send({ error: error instanceof PonderaError ? error.message : String((error as Error).stack) });
    }
  };
  const run = async (command: Command): Promise<unknown> => {
    switch (command.cmd) {
      case "load": {
        const began = performance.now();
        await side.load(command.options);
        await side.generate([[1]], 2);
        return (performance.now() - began) / 1000;
      }
      case "generate":
        return side.generate(command.prompts, command.newTokens);
      case "score":
        return side.score(command.ids);
    }
  };
  process.on("message", (command: Command) => void answer(() => run(command)));
  await answer(async () => {
    await side.start(Number(process.argv[2]));
    return side.name;
  });
}
