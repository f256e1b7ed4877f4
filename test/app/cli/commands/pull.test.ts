/** `pondera pull` as typed: what it says where, its exit codes, and Ctrl-C. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { stripVTControlCharacters } from "node:util";
import { beforeEach, describe, expect, it } from "vitest";
import { ModelStore } from "../../../../src/model/store/store.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { FakeHub, noise, sha256 } from "../../../model/store/fake-hub.ts";
import { contents, expected } from "../../../model/store/pulling.ts";
import { pondera } from "../harness.ts";

const WEIGHTS = noise(300_000);
const FILES = { "config.json": '{"a":1}', "model.safetensors": WEIGHTS };
const LAYER = "application/vnd.ollama.image.";
const R1 = {
  layers: [
    { mediaType: `${LAYER}model`, content: noise(120_000, 3) },
    { mediaType: `${LAYER}template`, content: Buffer.from("{{ .Prompt }}") },
  ],
  config: Buffer.from("{}"),
};

let hub: FakeHub;
let store: ModelStore;
let env: Record<string, string>;
beforeEach(async () => {
  hub = await FakeHub.start();
  hub.publish("Qwen/Tiny", FILES);
  store = new ModelStore(await temporaryFolder());
  env = { PONDERA_HOME: store.root, HF_ENDPOINT: hub.url };
});

const typed = (...argv: readonly string[]) => pondera(argv, { env });
const sorted = (lines: string) => lines.trimEnd().split("\n").sort();

describe("pondera pull", () => {
  it("tells on standard error what it does, and on standard output what is here and where", async () => {
    const { code, out, err } = await typed("pull", "Qwen/Tiny");
    const { folder } = await store.get("Qwen/Tiny");
    expect({ code, out: out.replace(/\d:\d\d\./, "TIME") }).toEqual({
      code: 0,
      out: `Qwen/Tiny is here: 300 kB, fetched in TIME\n${folder}\n`,
    });
    expect(err.startsWith("Qwen/Tiny: 2 files, 300 kB\n")).toBe(true);
    expect(sorted(err).slice(1)).toEqual(["done: config.json, 7 B", "done: model.safetensors, 300 kB"]);
    expect(await contents(folder)).toEqual(expected(FILES));
    const again = await typed("pull", "Qwen/Tiny");
    expect(again.out).toBe(`Qwen/Tiny is up to date.\n${folder}\n`);
    expect(again.err).toBe("Qwen/Tiny: 2 files, 300 kB, 300 kB of it here already\n");
    const weights = ["pull", "Qwen/Tiny", "--include", "*.safetensors", "--as", "mine"];
    expect((await typed(...weights)).out).toMatch(
      /^mine is here: 300 kB, all of which was there already\.\n/,
    );
    hub.publish("Qwen/Tiny", { ...FILES, "config.json": '{"a":23}' });
    expect((await typed("pull", "Qwen/Tiny")).out).toMatch(/: 300 kB, 8 B of it fetched in \d:\d\d\.\n/);
  });

  it("gives one object as JSON, and nothing else on standard output", async () => {
    const { code, out, err } = await typed("pull", "Qwen/Tiny", "--json");
    expect(code).toBe(0);
    const { name, path, folder, bytes, manifest } = await store.get("Qwen/Tiny");
    const { source, files } = manifest;
    const object = { name, path, folder, bytes, fetched: 300_007, upToDate: false, source, files };
    expect(JSON.parse(out)).toEqual(object);
    expect(err).toContain("done: config.json");
    const again = JSON.parse((await typed("pull", "Qwen/Tiny", "--json")).out);
    expect(again).toEqual({ ...object, fetched: 0, upToDate: true });
  });

  it("draws a bar in a terminal, and takes it away at the end", async () => {
    const { code, err } = await pondera(["pull", "Qwen/Tiny"], {
      env: { ...env, TERM: "xterm", NO_COLOR: "1" },
      columns: 80,
    });
    expect(code).toBe(0);
    const lines = stripVTControlCharacters(err).split("\n");
    expect(lines[0]).toBe("Qwen/Tiny: 2 files, 300 kB");
    expect(lines.some((line) => /^█{24} 100\.0 % {2}300 kB of 300 kB, checking$/.test(line))).toBe(true);
    expect(err).not.toContain("done:");
    const end = err.slice(err.lastIndexOf("checking"));
    expect(end).toContain("\u001b[2K");
    expect(stripVTControlCharacters(end).trim()).toBe("checking");
  });

  it("hands its options on", async () => {
    hub.token = "hf_secret";
    hub.publish("Qwen/Tiny", { ...FILES, "a.md": "a", "b.txt": "b", "c.txt": "c" });
    env["HF_TOKEN"] = "hf_secret";
    delete env["HF_ENDPOINT"];
    const store = await temporaryFolder();
    const options = [
      ...["--revision", "v2", "--include", "*.json", "--include", "*.txt", "--exclude", "b.*"],
      ...["--as", "mine", "--endpoint", hub.url, "--connections", "1", "--store", store],
    ];
    const { code, out } = await typed("pull", "Qwen/Tiny", "--from", "hf", ...options, "--json");
    expect(code).toBe(0);
    const { name, path, source, files } = JSON.parse(out);
    expect(name).toBe("mine");
    expect(source).toMatchObject({ repo: "Qwen/Tiny", revision: "v2", endpoint: hub.url });
    expect(files.map((file: { path: string }) => file.path)).toEqual(["c.txt", "config.json"]);
    expect(path.startsWith(store)).toBe(true);
  });

  it("checks what is here, when told to", async () => {
    await typed("pull", "Qwen/Tiny");
    const { path } = await store.get("Qwen/Tiny");
    const file = join(path, "model.safetensors");
    await chmod(file, 0o644);
    await writeFile(file, noise(300_000, 9));
    expect((await typed("pull", "Qwen/Tiny")).out).toContain("up to date");
    expect((await typed("pull", "Qwen/Tiny", "--check")).out).toContain(
      "is here: 300 kB, 300 kB of it fetched",
    );
    expect(await contents(path)).toEqual(expected(FILES));
  });

  it("ends with 2 where it was asked for what is not there, with 1 where it failed, and says what to do", async () => {
    const said = async (...argv: readonly string[]) => {
      const { code, out, err } = await typed("pull", ...argv);
      expect(out).toBe("");
      return `${code} ${err}`;
    };
    expect(await said("Qwen/Tinny")).toMatch(
      /^2 error: Qwen\/Tinny at .*\. Check the spelling; .*HF_TOKEN\.\n$/,
    );
    expect(await said("Qwen/Tiny", "--revision", "old")).toMatch(/^2 error: .*got "old"\. Leave it out/);
    expect(await said("https://huggingface.co/Qwen/Tiny/tree/main")).toMatch(
      /^2 error: .* Give the name without the address: Qwen\/Tiny\.\n$/,
    );
    expect(await said("r1-1.5", "--endpoint", hub.url)).toMatch(
      /^2 error: .*got 404 Not Found: manifest unknown\. Check the name and the tag\..*r1-1\.5b/,
    );
    expect(await said("Qwen/Tiny", "--connections", "0")).toMatch(/^2 error: .*whole number from 1 up to 64/);
    expect(await said()).toMatch(/^2 error: missing required argument 'name'/);
    hub.misbehave = (_, response) => {
      response.writeHead(418).end("\u001b[31mshort and stout");
      return true;
    };
    expect(await said("Qwen/Tiny")).toMatch(/^1 error: http.*; got 418 I'm a Teapot: short and stout\.\n$/);
    expect(await store.list()).toEqual([]);
  });

  it("tells of what it tries again, the reason first", async () => {
    let left = 1;
    hub.misbehave = (_, response) => {
      if (left-- <= 0) return false;
      response.writeHead(429, { "retry-after": "0" }).end('{"error":"Slow down"}');
      return true;
    };
    const { code, err } = await typed("pull", "Qwen/Tiny");
    expect(code).toBe(0);
    expect(err.split("\n")[0]).toMatch(
      /^Qwen\/Tiny: trying again in 0 s; got 429 Too Many Requests: Slow down, but http\S* must answer with success$/,
    );
  });
});

describe("the models that people come for", () => {
  it("come by their short names, are listed, shown, copied and removed", async () => {
    hub.publish("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", FILES);
    hub.publishOllama("library/deepseek-r1:1.5b", R1);
    const pulled = await typed("pull", "deepseek-r1:1.5b", "--endpoint", hub.url);
    expect(pulled.err.startsWith("deepseek-r1:1.5b: 3 files, 120 kB\n")).toBe(true);
    expect(pulled.out).toMatch(/^deepseek-r1:1\.5b is here: 120 kB, fetched in .*\n\/.*\/model\.gguf\n$/);
    expect((await typed("pull", "r1-1.5b")).out).toMatch(
      /^deepseek-ai\/DeepSeek-R1-Distill-Qwen-1\.5B is here/,
    );
    const list = (await typed("list")).out;
    expect(list).toMatch(
      /^deepseek-r1:1\.5b +120 kB +gguf +ollama +\d{4}-\d\d-\d\d \d\d:\d\d +library\/deep/m,
    );
    expect(list).toMatch(/^deepseek-ai\/DeepSeek-R1-Distill-Qwen-1\.5B +300 kB +hf +hf +\d{4}-\d\d-\d\d /m);
    const shown = (await typed("show", "deepseek-r1:1.5b", "--check")).out;
    expect(shown).toContain(`from     library/deepseek-r1:1.5b at ${hub.url}\ndigest   sha256:`);
    expect(shown).toContain("checked  every file is as it was pulled\n");
    expect((await typed("cp", "deepseek-r1:1.5b", "thinker")).out).toBe(
      "deepseek-r1:1.5b is also thinker.\n",
    );
    expect((await typed("rm", "deepseek-r1:1.5b", "r1-1.5b")).out).toBe(
      "Removed deepseek-r1:1.5b and deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B: 300 kB free again.\n",
    );
    const path = (await typed("show", "thinker", "--path")).out.trimEnd();
    expect((await stat(path)).size).toBe(120_000);
    expect((await typed("rm", "thinker")).out).toBe("Removed thinker: 120 kB free again.\n");
    expect(await readdir(join(store.root, "blobs"))).toEqual([]);
  });
});

describe("Ctrl-C", () => {
  /** A process that starts while other tests run may take its time. */
  const WAIT = { timeout: 50_000, interval: 20 };

  it("keeps all that has arrived, says so, and the next pull fetches only the rest", async () => {
    const main = fileURLToPath(new URL("../../../../src/app/cli/main.ts", import.meta.url));
    const argv = ["--import", "jiti/register", main, "pull", "Qwen/Tiny", "--connections", "2"];
    const life = spawn(process.execPath, argv, {
      env: { PATH: process.env["PATH"], ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let told = "";
    life.stderr.setEncoding("utf8").on("data", (words: string) => {
      told += words;
    });
    const printed = text(life.stdout);
    const ended = once(life, "close");
    const ARRIVING = 200_000;
    hub.misbehave = (seen, response) => {
      if (seen.server === "hub") return false;
      response.writeHead(200, { "content-length": WEIGHTS.length });
      response.write(WEIGHTS.subarray(0, ARRIVING)); // The rest never comes.
      return true;
    };
    const data = join(store.root, "partial", `sha256-${sha256(WEIGHTS)}`, "data");
    const arrived = async () => {
      const bytes = await readFile(data).catch(() => Buffer.alloc(0));
      return bytes.subarray(0, ARRIVING).equals(WEIGHTS.subarray(0, ARRIVING));
    };
    await expect.poll(async () => told.includes("done: config.json") && (await arrived()), WAIT).toBe(true);
    life.kill("SIGINT");
    const [code] = (await ended) as [number | null];
    expect(code).toBe(130);
    expect(await printed).toBe("");
    expect(told).toMatch(/Stopped\. What has arrived is kept: the same command goes on from there\.\n$/);
    expect(await store.list()).toEqual([]);

    hub.misbehave = () => false;
    hub.seen.length = 0;
    const resumed = await typed("pull", "Qwen/Tiny");
    expect(resumed.code).toBe(0);
    expect(resumed.err).toContain("Qwen/Tiny: 2 files, 300 kB, 200 kB of it here already\n");
    expect(resumed.out).toContain("is here: 300 kB, 100 kB of it fetched in");
    expect(hub.requests("config.json")).toEqual([]);
    expect(hub.requests("/blobs/").map(({ headers }) => headers.range)).toEqual([
      `bytes=${ARRIVING}-${WEIGHTS.length - 1}`,
    ]);
    expect(await contents((await store.get("Qwen/Tiny")).folder)).toEqual(expected(FILES));
    expect(await readdir(join(store.root, "partial"))).toEqual([]);
  });
});
