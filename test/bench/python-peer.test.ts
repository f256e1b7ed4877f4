/** The protocol's TypeScript end, against a stand-in script run by Node: no Python is needed. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { PythonPeer } from "../../bench/python-peer.ts";
import { ConfigError, FormatError, RuntimeError } from "../../src/base/errors.ts";

let folder: string;
const node = { python: process.execPath };

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "python-peer-"));
});
afterAll(() => rm(folder, { recursive: true }));

/** Writes a stand-in script and returns how PythonPeer may name it. */
async function script(name: string, body: string): Promise<string> {
  const file = join(folder, `${name}.mjs`);
  await writeFile(
    file,
    `import { createInterface } from "node:readline";
     const say = (value) => console.log(JSON.stringify(value));
     const options = JSON.parse(process.argv[2]);
     const requests = createInterface({ input: process.stdin });
     ${body}`,
  );
  return pathToFileURL(file).href;
}

const echo = `
  say({ ready: true, versions: { torch: "2" }, parameters: options.size });
  requests.on("line", (line) => {
    const request = JSON.parse(line);
    if (request.cmd === "quit") process.exit(0);
    if (request.cmd === "die") { console.error("out of memory"); process.exit(9); }
    say(request.cmd === "twice" ? { value: 2 * request.n } : { error: "KeyError: " + request.cmd });
  });`;

describe("PythonPeer", () => {
  it("passes options, reports facts and answers requests in turn", async () => {
    const peer = await PythonPeer.start(await script("echo", echo), { size: 5 }, node);
    expect(peer.facts).toEqual({ ready: true, versions: { torch: "2" }, parameters: 5 });
    const answer = z.object({ value: z.number() });
    expect(await peer.request({ cmd: "twice", n: 4 }, answer)).toEqual({ value: 8 });
    expect(await peer.request({ cmd: "twice", n: 5 }, answer)).toEqual({ value: 10 });
    await peer.close();
  });

  it("goes on after a request that failed", async () => {
    const peer = await PythonPeer.start(await script("fail", echo), { size: 5 }, node);
    await expect(peer.request({ cmd: "fly" }, z.unknown())).rejects.toThrow(
      /fly: must succeed; got KeyError: fly/,
    );
    expect(await peer.request({ cmd: "twice", n: 1 }, z.unknown())).toEqual({ value: 2 });
    await peer.close();
  });

  it("says how a script died, with its last words", async () => {
    const peer = await PythonPeer.start(await script("die", echo), {}, node);
    const died = peer.request({ cmd: "die" }, z.unknown());
    await expect(died).rejects.toThrow(RuntimeError);
    await expect(died).rejects.toThrow(/must answer; got exit code 9, its last words: out of memory/);
    await peer.close();
  });

  it("refuses an answer of another shape", async () => {
    const peer = await PythonPeer.start(await script("shape", echo), {}, node);
    const wrong = peer.request({ cmd: "twice", n: 1 }, z.object({ ms: z.array(z.number()) }));
    await expect(wrong).rejects.toThrow(FormatError);
    await peer.close();
  });

  it("names the missing package and the command that installs it", async () => {
    const missing = PythonPeer.start(
      await script("missing", `say({ ready: false, missing: "torch" });`),
      {},
      node,
    );
    await expect(missing).rejects.toThrow(ConfigError);
    await expect(missing).rejects.toThrow(/no module "torch".*-m pip install -r bench\/requirements\.txt/);
  });

  it("passes on why a script would not start", async () => {
    const refused = PythonPeer.start(
      await script("refuse", `say({ ready: false, error: "unknown options depth" });`),
      {},
      node,
    );
    await expect(refused).rejects.toThrow(/must start; got unknown options depth/);
  });

  it("says what to do without an interpreter", async () => {
    const absent = PythonPeer.start("train_torch.py", {}, { python: "no-such-python" });
    await expect(absent).rejects.toThrow(ConfigError);
    await expect(absent).rejects.toThrow(/PONDERA_PYTHON: must name a Python interpreter.*"no-such-python"/);
  });
});
