/** Lines that a person types, with a history and a cursor to edit them, or that come through a pipe. */

import { createInterface, type Interface } from "node:readline";
import { type Io, isInteractive } from "./io.ts";

export interface LineSource {
  /** Whether a person sits there. */
  readonly interactive: boolean;
  /** The next line; undefined at the end. */
  next(): Promise<string | undefined>;
  close(): void;
}

/** @param prompt what stands before the line that is typed */
export function lineSource(io: Io, prompt: string): LineSource {
  const interactive = io.stdin.isTTY === true && isInteractive(io.stdout, io.env);
  return interactive ? new Typed(io, prompt) : new Piped(io);
}

class Piped implements LineSource {
  readonly interactive = false;
  readonly #interface: Interface;
  readonly #lines: AsyncIterator<string>;

  constructor(io: Io) {
    this.#interface = createInterface({ input: io.stdin, crlfDelay: Number.POSITIVE_INFINITY });
    this.#lines = this.#interface[Symbol.asyncIterator]();
  }

  async next(): Promise<string | undefined> {
    const line = await this.#lines.next();
    return line.done ? undefined : line.value;
  }

  close(): void {
    this.#interface.close();
  }
}

/**
 * A fresh interface for every line, so that between lines the terminal is its usual self: Ctrl-C is a signal, and keys are
 * kept for later. Ctrl-C on a line clears it, on an empty line says how to leave, and twice there leaves, as Ctrl-D does.
 */
class Typed implements LineSource {
  readonly interactive = true;
  readonly #io: Io;
  readonly #prompt: string;
  #history: string[] = [];
  /** Lines that were pasted together with the one given out. */
  #pasted: string[] = [];

  constructor(io: Io, prompt: string) {
    this.#io = io;
    this.#prompt = prompt;
  }

  next(): Promise<string | undefined> {
    const pasted = this.#pasted.shift();
    if (pasted !== undefined) {
      this.#io.stdout.write(`${this.#prompt}${pasted}\n`);
      return Promise.resolve(pasted);
    }
    return new Promise((resolve) => {
      const editor = createInterface({
        input: this.#io.stdin,
        output: this.#io.stdout,
        terminal: true,
        prompt: this.#prompt,
        history: this.#history,
        removeHistoryDuplicates: true,
      });
      const lines: string[] = [];
      let warned = false;
      editor.on("history", (history: string[]) => {
        this.#history = [...history];
      });
      editor.on("line", (line) => {
        warned = false;
        // Lines pasted at once arrive one after another before anything else happens.
        if (lines.push(line) === 1) setImmediate(() => editor.close());
      });
      editor.on("SIGINT", () => {
        if (editor.line !== "") editor.write(null, { ctrl: true, name: "e" });
        if (editor.line !== "") editor.write(null, { ctrl: true, name: "u" });
        else if (warned) editor.close();
        else {
          warned = true;
          this.#io.stdout.write("\n(Ctrl-C again leaves, as Ctrl-D and /exit do)\n");
          editor.prompt();
        }
      });
      editor.on("close", () => {
        const [line, ...rest] = lines;
        this.#pasted = rest;
        if (line === undefined) this.#io.stdout.write("\n");
        resolve(line);
      });
      editor.prompt();
    });
  }

  close(): void {}
}
