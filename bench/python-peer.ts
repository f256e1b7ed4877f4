/**
 * The TypeScript end of a benchmark whose other half is Python. The script (see peer.py) announces itself with one JSON
 * line and then answers each request line with one line, so that a driver can let both halves take turns: A B A B.
 *
 * `PONDERA_PYTHON` names the interpreter (default `python3`); it needs the packages of bench/requirements.txt.
 */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { ConfigError, FormatError, invariant, RuntimeError } from "../src/base/errors.ts";

const Greeting = z.union([
  z.looseObject({ ready: z.literal(true), versions: z.record(z.string(), z.string()) }),
  z.object({ ready: z.literal(false), missing: z.string() }),
  z.object({ ready: z.literal(false), error: z.string() }),
]);
const Failure = z.looseObject({ error: z.string() });

/** What a script says when it is ready: versions of what it measures, and facts such as `parameters`. */
export type PeerFacts = Extract<z.infer<typeof Greeting>, { ready: true }>;

/** How long a script that was told to quit may take before it is killed. */
const quitMs = 5000;
/** How much of the script's standard error an error message quotes. */
const quotedCharacters = 1500;

export class PythonPeer {
  readonly facts: PeerFacts;
  readonly #script: string;
  readonly #link: Link;
  #busy = false;

  private constructor(script: string, link: Link, facts: PeerFacts) {
    this.#script = script;
    this.#link = link;
    this.facts = facts;
  }

  /**
   * Starts a script of bench/ and waits until it is ready, which includes its warm-up.
   * @param script   file name in bench/, or an absolute path
   * @param options  the script's options, sent as JSON; the script refuses unknown ones
   * @throws ConfigError when the interpreter or a package is missing: the message says what to install
   * @throws RuntimeError when the script refuses its options or dies while starting
   */
  static async start(
    script: string,
    options: Readonly<Record<string, unknown>>,
    { python = process.env["PONDERA_PYTHON"] ?? "python3" }: { python?: string } = {},
  ): Promise<PythonPeer> {
    const link = await Link.open(python, fileURLToPath(new URL(script, import.meta.url)), options);
    try {
      const greeting = parse(script, await link.read(script), Greeting);
      if (greeting.ready) return new PythonPeer(script, link, greeting);
      if ("missing" in greeting)
        throw new ConfigError({
          where: `bench/${script}`,
          rule: "needs the Python packages of bench/requirements.txt",
          got: `no module ${JSON.stringify(greeting.missing)} in ${python}`,
          remedy: `Run \`${python} -m pip install -r bench/requirements.txt\`, or set PONDERA_PYTHON to a Python that has them`,
        });
      throw new RuntimeError({ where: `bench/${script}`, rule: "must start", got: greeting.error });
    } catch (error) {
      link.kill();
      throw error;
    }
  }

  /**
   * Sends one request and waits for its answer; one request at a time.
   * @throws RuntimeError when the script reports a failure or dies
   * @throws FormatError when the answer is not what `answer` describes
   */
  async request<T>(
    request: { readonly cmd: string; readonly [key: string]: unknown },
    answer: z.ZodType<T>,
  ): Promise<T> {
    invariant(!this.#busy, "a peer answers one request at a time");
    this.#busy = true;
    try {
      this.#link.write(request);
      const value = await this.#link.read(this.#script);
      const failure = Failure.safeParse(value);
      if (failure.success)
        throw new RuntimeError({
          where: `bench/${this.#script}: ${request.cmd}`,
          rule: "must succeed",
          got: failure.data.error,
        });
      return parse(this.#script, value, answer);
    } finally {
      this.#busy = false;
    }
  }

  /** Lets the script quit, or kills it after five seconds. */
  async close(): Promise<void> {
    this.#link.write({ cmd: "quit" });
    await this.#link.end();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** JSON lines to and from a child process. */
class Link {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  readonly #exit: Promise<string>;
  #stderr = "";

  private constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    this.#exit = new Promise((resolve) => {
      child.once("close", (code, signal) =>
        resolve(signal === null ? `exit code ${code}` : `signal ${signal}`),
      );
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-quotedCharacters);
    });
    // A write to a dead child: the read that follows reports its end, with the reason.
    child.stdin.on("error", () => undefined);
  }

  static async open(python: string, file: string, options: Readonly<Record<string, unknown>>): Promise<Link> {
    const child = spawn(python, [file, JSON.stringify(options)], {
      env: { ...process.env, PYTHONDONTWRITEBYTECODE: "1" },
    });
    const link = new Link(child);
    try {
      await once(child, "spawn");
    } catch (cause) {
      throw new ConfigError({
        where: "PONDERA_PYTHON",
        rule: "must name a Python interpreter (3.10 or newer)",
        got: `${JSON.stringify(python)}: ${cause instanceof Error ? cause.message : String(cause)}`,
        remedy:
          "Install Python, run `python3 -m pip install -r bench/requirements.txt`, or set PONDERA_PYTHON to a Python that has them",
        cause,
      });
    }
    return link;
  }

  write(value: unknown): void {
    this.#child.stdin.write(`${JSON.stringify(value)}\n`);
  }

  async read(script: string): Promise<unknown> {
    const line = await this.#lines.next();
    if (!line.done) {
      try {
        return JSON.parse(line.value);
      } catch (cause) {
        throw new FormatError({
          where: `bench/${script}`,
          rule: "answers in JSON lines",
          got: line.value,
          cause,
        });
      }
    }
    throw new RuntimeError({
      where: `bench/${script}`,
      rule: "must answer",
      got: `${await this.#exit}, its last words: ${this.#stderr.trim() || "none"}`,
    });
  }

  async end(): Promise<void> {
    this.#child.stdin.end();
    const timer = setTimeout(() => this.kill(), quitMs);
    await this.#exit;
    clearTimeout(timer);
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }
}

function parse<T>(script: string, value: unknown, schema: z.ZodType<T>): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new FormatError({
    where: `bench/${script}`,
    rule: `answers as its driver expects (${z.prettifyError(parsed.error)})`,
    got: JSON.stringify(value).slice(0, quotedCharacters),
  });
}
