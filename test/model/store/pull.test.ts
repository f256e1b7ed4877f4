import { chmod, mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { Http } from "../../../src/model/store/http.ts";
import { type PullEvent, type PullOptions, pullModel } from "../../../src/model/store/pull.ts";
import { ModelStore } from "../../../src/model/store/store.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { FakeHub, noise, sha256 } from "./fake-hub.ts";
import { contents, expected, HASTE, pullFrom } from "./pulling.ts";

const WEIGHTS = noise(300_000);
const FILES = {
  "config.json": '{"model_type":"qwen2"}',
  "tokenizer.json": noise(5000, 2),
  "model.safetensors": WEIGHTS,
  "empty.txt": "",
};
const MODEL = "application/vnd.ollama.image.";

let root: string;
let hub: FakeHub;
let store: ModelStore;
let events: PullEvent[];
beforeEach(async () => {
  root = await temporaryFolder();
  hub = await FakeHub.start();
  hub.publish("Qwen/Tiny", FILES);
  store = new ModelStore(join(root, "store"));
  events = [];
});

const pull = (name: string, options: Partial<PullOptions> = {}) =>
  pullFrom(hub, name, { store, onEvent: (event) => events.push(event), ...options });

describe("pulling from a Hugging Face hub", () => {
  it("brings every file of the commit, with its bytes, and leaves nothing else behind", async () => {
    const { model, fetched, upToDate } = await pull("Qwen/Tiny");
    expect(await contents(model.folder)).toEqual(expected(FILES));
    expect({ fetched, upToDate }).toEqual({ fetched: 305_022, upToDate: false });
    const commit = hub.repositories.get("Qwen/Tiny")!.commit;
    expect(model.manifest).toMatchObject({
      name: "Qwen/Tiny",
      source: { hub: "hf", endpoint: hub.url, repo: "Qwen/Tiny", revision: "main", commit },
    });
    expect(hub.requests("/tree/")[0]!.url).toBe(
      `/api/models/Qwen/Tiny/tree/${commit}?recursive=true&expand=false`,
    );
    for (const { url } of hub.requests("/resolve/")) expect(url).toContain(`/resolve/${commit}/`);
    expect(await readdir(join(store.root, "partial"))).toEqual([]);
    expect((await readdir(store.root)).sort()).toEqual(["blobs", "models", "partial"]);
    expect(await store.verify(model)).toEqual([]);
  });

  it("fetches large files in ranges", async () => {
    await pull("Qwen/Tiny");
    const ranges = hub.requests("/blobs/").flatMap(({ headers }) => headers.range ?? []);
    expect(new Set(ranges)).toEqual(
      new Set([0, 1, 2, 3, 4, 5].map((i) => `bytes=${i * 50_000}-${(i + 1) * 50_000 - 1}`)),
    );
  });

  it("tells what it does", async () => {
    await pull("Qwen/Tiny");
    expect(events[0]).toEqual({
      kind: "plan",
      name: "Qwen/Tiny",
      files: 4,
      bytes: 305_022,
      present: 0,
      omitted: [],
    });
    const progress = events.flatMap((event) => (event.kind === "progress" ? [event.done] : []));
    expect(progress.at(-1)).toBe(305_022);
    expect(progress).toEqual([...progress].sort((a, b) => a - b));
    const files = events.flatMap((event) => (event.kind === "file" ? [event.path] : []));
    expect(files.sort()).toEqual(Object.keys(FILES).sort());
  });

  it("fetches nothing the second time, and only what has changed the third", async () => {
    const first = await pull("Qwen/Tiny");
    hub.seen.length = 0;
    const second = await pull("qwen/tiny", { from: "hf" }).catch((error: unknown) => error);
    expect(second).toBeInstanceOf(Error); // The hub takes names to the letter.
    expect(await pull("Qwen/Tiny")).toEqual({ model: first.model, fetched: 0, upToDate: true });
    expect(hub.requests("/resolve/")).toEqual([]);
    hub.publish("Qwen/Tiny", { ...FILES, "config.json": '{"model_type":"qwen3"}' });
    const third = await pull("Qwen/Tiny");
    expect(third.fetched).toBe(22);
    expect(hub.requests("/resolve/").map(({ url }) => url.split("/").at(-1))).toEqual(["config.json"]);
    expect((await contents(third.model.folder))["config.json"]?.toString()).toBe('{"model_type":"qwen3"}');
  });

  it("keeps revisions apart, under names of their own", async () => {
    const { model } = await pull("Qwen/Tiny", { revision: "refs/pr/1" });
    expect(model.name).toBe("Qwen/Tiny:refs/pr/1");
    expect(hub.requests("revision")[0]!.url).toBe("/api/models/Qwen/Tiny/revision/refs%2Fpr%2F1");
    expect((await pull("Qwen/Tiny:v2")).fetched).toBe(22); // The store knows small files by names, not by git's hashes.
    expect((await store.list()).map(({ name }) => name)).toEqual(["Qwen/Tiny:refs/pr/1", "Qwen/Tiny:v2"]);
    await expect(pull("Qwen/Tiny:v2", { revision: "main" })).rejects.toThrow(
      /--revision: must be that of the name/,
    );
    await expect(pull("Qwen/Tiny:v3")).rejects.toThrow(
      /must have the revision that is asked for; got "v3"\. Leave it out.*\/Qwen\/Tiny\./,
    );
  });

  it("goes through all pages of a long list, on the mirror and not where it points", async () => {
    const files = Object.fromEntries(Array.from({ length: 23 }, (_, i) => [`part/${i}.json`, `{"i":${i}}`]));
    hub.publish("Qwen/Many", files);
    hub.pageSize = 5;
    expect(await contents((await pull("Qwen/Many")).model.folder)).toEqual(expected(files));
  });

  it("takes what is included, leaves what is excluded, and weights in second formats unless they are asked for", async () => {
    const files = {
      "config.json": "{}",
      "model.safetensors": "s",
      "pytorch_model.bin": "b",
      "onnx/model.onnx": "o",
      "a b/ü.txt": "u",
    };
    hub.publish("Qwen/Forms", files);
    const names = async (options: Partial<PullOptions>) =>
      Object.keys(await contents((await pull("Qwen/Forms", options)).model.folder)).sort();
    expect(await names({})).toEqual(["a b/ü.txt", "config.json", "model.safetensors"]);
    expect(events[0]).toMatchObject({ omitted: ["pytorch_model.bin", "onnx/model.onnx"] });
    expect(await names({ include: ["*.bin", "config.json"] })).toEqual(["config.json", "pytorch_model.bin"]);
    expect(await names({ include: ["onnx/"] })).toEqual(["onnx/model.onnx"]);
    expect(await names({ exclude: ["*.txt", "*.json"] })).toEqual(["model.safetensors"]);
    await expect(pull("Qwen/Forms", { include: ["*.md"] })).rejects.toThrow(
      /must leave files to fetch; got none of 5/,
    );
    expect(Object.keys(await contents((await store.get("Qwen/Forms")).folder))).toEqual([
      "model.safetensors",
    ]);
  });

  it("wants a quantization to be chosen where there are several", async () => {
    hub.publish("a/quants", {
      "m-Q4_K_M.gguf": "4",
      "m-Q8_0-00001-of-00002.gguf": "8",
      "m-Q8_0-00002-of-00002.gguf": "9",
    });
    await expect(pull("a/quants")).rejects.toThrow(
      /got m-Q4_K_M\.gguf, m-Q8_0-\*\.gguf\. For instance --include "m-Q4_K_M\.gguf"/,
    );
    const { model } = await pull("a/quants", { include: ["m-Q8_0-*.gguf"] });
    expect(model.path).toBe(join(model.folder, "m-Q8_0-00001-of-00002.gguf"));
  });

  it("keeps equal files once, and fetches them once", async () => {
    hub.publish("Qwen/Twins", {
      "a.safetensors": WEIGHTS,
      "b.safetensors": WEIGHTS,
      "c.json": "{}",
      "d.json": "{}",
    });
    const { model, fetched } = await pull("Qwen/Twins");
    expect(fetched).toBe(300_002);
    expect(model.bytes).toBe(300_002);
    expect((await contents(model.folder))["b.safetensors"]).toEqual(WEIGHTS);
  });

  it("shows the token to the hub alone, and never to the storage it redirects to", async () => {
    hub.token = "hf_secret";
    await pull("Qwen/Tiny", { env: { HF_TOKEN: " hf_secret\n" } });
    for (const { server, headers } of hub.seen) {
      expect(headers.authorization).toBe(server === "hub" ? "Bearer hf_secret" : undefined);
    }
    expect(hub.seen.some(({ server }) => server === "storage")).toBe(true);
  });

  it("does not show the token to a server that redirects back to the hub", async () => {
    hub.token = "hf_secret";
    hub.misbehave = (seen, response) => {
      if (seen.server === "hub") return false;
      response.writeHead(302, { location: `${hub.url}/Qwen/Tiny/resolve/main/config.json` }).end();
      return true;
    };
    await expect(pull("Qwen/Tiny", { env: { HF_TOKEN: "hf_secret" } })).rejects.toThrow(/401/);
    const returned = hub.seen.filter(({ url }) => url.includes("/resolve/main/"));
    expect(returned.length).toBeGreaterThan(0);
    for (const { headers } of returned) expect(headers.authorization).toBeUndefined();
  });

  it("explains a model that is not there, one behind a gate, and a token that is none", async () => {
    await expect(pull("Qwen/Tinny")).rejects.toThrow(
      /Qwen\/Tinny at 127\.0\.0\.1:\d+: must be a model that the hub has.*HF_TOKEN/,
    );
    hub.misbehave = (_, response) => {
      response.writeHead(403, { "x-error-code": "GatedRepo" }).end();
      return true;
    };
    await expect(pull("Qwen/Tiny")).rejects.toThrow(
      /Accept its terms at http.*\/Qwen\/Tiny, then set HF_TOKEN\./,
    );
    const error = await pull("Qwen/Tiny", { env: { HF_TOKEN: "a b\r\nX: y" } }).catch(
      (caught: Error) => caught,
    );
    expect(String(error)).toMatch(/HF_TOKEN: must be a token/);
    expect(String(error)).not.toContain("X: y");
  });

  it("takes the hub's address from HF_ENDPOINT, with a path in it", async () => {
    hub.misbehave = (seen, response) => {
      if (!seen.url.startsWith("/mirror/")) return false;
      response.writeHead(307, { location: seen.url.replace("/mirror", "") }).end();
      return true;
    };
    const env = { HF_ENDPOINT: `${hub.url}/mirror/` };
    const http = new Http({ env, patience: HASTE });
    const { model } = await pullModel("Qwen/Tiny", { store, http, env });
    http.close();
    expect(model.manifest.source.endpoint).toBe(`${hub.url}/mirror`);
    expect(hub.seen[0]!.url).toMatch(/^\/mirror\/api\/models\//);
    await expect(pull("Qwen/Tiny", { endpoint: "ftp://x" })).rejects.toThrow(
      /--endpoint: must be an http or https address/,
    );
  });

  it("gives another name when asked, and does not take one from a model of elsewhere", async () => {
    await pull("Qwen/Tiny", { as: "mine" });
    expect((await store.get("mine")).manifest.source.repo).toBe("Qwen/Tiny");
    hub.publish("Qwen/Other", { "config.json": "{}" });
    await expect(pull("Qwen/Other", { as: "Mine" })).rejects.toThrow(
      /Mine: is the name of a model from elsewhere.*--as/,
    );
    await pull("Qwen/Tiny", { as: "mine", revision: "v2" });
  });

  it("knows the distilled models of R1 by short names, also in the store", async () => {
    hub.publish("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", { "config.json": "{}" });
    expect((await pull("r1-1.5b")).model.name).toBe("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B");
    expect((await pull("deepseek-r1-distill-qwen-1.5B")).upToDate).toBe(true);
    expect((await store.get("R1-1.5B")).name).toBe("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B");
    await store.remove(["r1-1.5b"]);
    expect(await store.list()).toEqual([]);
  });

  it("mends what has changed on the disk, when told to check", async () => {
    const { model } = await pull("Qwen/Tiny");
    const file = join(model.folder, "model.safetensors");
    await chmod(file, 0o644);
    const bytes = await readFile(file);
    bytes[77]! ^= 1;
    await writeFile(file, bytes);
    expect((await pull("Qwen/Tiny")).upToDate).toBe(true);
    expect((await pull("Qwen/Tiny", { check: true })).fetched).toBe(300_000);
    expect(await readFile(join(model.folder, "model.safetensors"))).toEqual(WEIGHTS);
    expect((await pull("Qwen/Tiny", { check: true })).upToDate).toBe(true);
  });
});

describe("pulling from an Ollama registry", () => {
  const gguf = noise(120_000, 3);
  const layers = [
    { mediaType: `${MODEL}model`, content: gguf },
    { mediaType: `${MODEL}template`, content: Buffer.from("{{ .Prompt }}") },
    { mediaType: `${MODEL}params`, content: Buffer.from('{"temperature":0.6}') },
    { mediaType: `${MODEL}license`, content: Buffer.from("MIT") },
    { mediaType: `${MODEL}license`, content: Buffer.from("and more") },
  ];
  const config = Buffer.from('{"model_format":"gguf"}');

  it("brings the GGUF file with its template and parameters", async () => {
    hub.publishOllama("library/deepseek-r1:1.5b", { layers, config });
    const { model } = await pull("deepseek-r1:1.5b");
    expect(model.path).toBe(join(model.folder, "model.gguf"));
    expect(await contents(model.folder)).toEqual(
      expected({
        "model.gguf": gguf,
        template: "{{ .Prompt }}",
        "params.json": '{"temperature":0.6}',
        LICENSE: "MIT",
        "LICENSE-2": "and more",
        "ollama.json": config,
      }),
    );
    expect(model.manifest.source).toMatchObject({ hub: "ollama", repo: "library/deepseek-r1", tag: "1.5b" });
    expect(hub.seen[0]!.headers.accept).toBe("application/vnd.docker.distribution.manifest.v2+json");
    expect(hub.seen.every(({ headers }) => headers.authorization === undefined)).toBe(true);
    expect((await pull("deepseek-r1:1.5b")).upToDate).toBe(true);
  });

  it("takes latest for a tag, and models of other people", async () => {
    hub.publishOllama("library/tiny:latest", { layers, config });
    hub.publishOllama("someone/tiny:v1", { layers, config });
    expect((await pull("tiny")).model.name).toBe("tiny:latest");
    expect((await store.get("tiny")).name).toBe("tiny:latest");
    expect((await pull("someone/tiny:v1", { from: "ollama" })).fetched).toBe(0);
    expect((await store.list()).length).toBe(2);
  });

  it("says what it leaves out, and refuses what is no GGUF model", async () => {
    const other = { mediaType: `${MODEL}hologram`, content: Buffer.from("?") };
    const strange = { mediaType: `${MODEL}__proto__`, content: Buffer.from("!") };
    hub.publishOllama("library/x:1", { layers: [...layers, other, strange], config });
    await pull("x:1");
    expect(events).toContainEqual({ kind: "note", text: `left out a layer of the kind "${MODEL}hologram"` });
    hub.publishOllama("library/x:2", { layers: [other], config });
    await expect(pull("x:2")).rejects.toThrow(
      /must have a layer with a GGUF model; got application.*hologram/,
    );
    await expect(pull("x:3")).rejects.toThrow(
      /library\/x:3 at .*: must be a model that the registry has.*; got 404 Not Found: manifest unknown\. .*r1-1\.5b/,
    );
    await expect(pull("x:1", { revision: "main" })).rejects.toThrow(/Models of Ollama have tags: x:TAG/);
  });
});

describe("a pull that fails half-way", () => {
  /** Small files arrive one after the other, and then the weights do not. */
  async function half(): Promise<void> {
    hub.misbehave = (seen, response) => {
      if (seen.server === "hub" || hub.contentFor(seen).length !== WEIGHTS.length) return false;
      response.writeHead(404).end();
      return true;
    };
    await expect(pull("Qwen/Tiny", { connections: 1 })).rejects.toThrow(/404/);
    hub.misbehave = () => false;
    hub.seen.length = 0;
    events.length = 0;
  }
  const arrived = async () => {
    const folder = join(store.root, "partial");
    return (await readdir(folder)).filter((key) => /^git-.*-22$/.test(key)).map((key) => join(folder, key));
  };

  it("keeps files that arrived, also those that the store knows no hash of beforehand", async () => {
    await half();
    expect(await arrived()).toHaveLength(1);
    expect((await pull("Qwen/Tiny")).fetched).toBe(300_000);
    expect(events[0]).toMatchObject({ kind: "plan", bytes: 305_022, present: 5022 });
    for (const { url } of hub.requests("/resolve/")) expect(url).toMatch(/model\.safetensors$/);
    expect(await readdir(join(store.root, "partial"))).toEqual([]);
  });

  it.each([
    ["of other content", () => sha256(WEIGHTS)],
    ["that is none", () => "../../".repeat(11).slice(0, 64)],
    ["cut short", () => ""],
  ])("does not believe a note %s", async (_, note) => {
    await half();
    await writeFile(join((await arrived())[0]!, "arrived"), note());
    const { model } = await pull("Qwen/Tiny");
    expect(await contents(model.folder)).toEqual(expected(FILES));
    expect(hub.requests("config.json")).toHaveLength(1);
    expect(await readdir(join(store.root, "partial"))).toEqual([]);
  });

  it("leaves nothing that rm --unused would not remove", async () => {
    await half();
    expect(await store.prune()).toBeGreaterThanOrEqual(5022);
    expect(await readdir(join(store.root, "partial"))).toEqual([]);
    expect((await pull("Qwen/Tiny")).fetched).toBe(305_022);
  });
});

describe("a store that was there before", () => {
  it("keeps its models when a pull fails, whatever the reason", async () => {
    const { model } = await pull("Qwen/Tiny");
    hub.publish("Qwen/Tiny", { ...FILES, "model.safetensors": noise(300_000, 9) });
    hub.misbehave = (seen, response) => {
      if (seen.server === "hub") return false;
      response.writeHead(404).end();
      return true;
    };
    await expect(pull("Qwen/Tiny")).rejects.toThrow(/404/);
    expect(await store.get("Qwen/Tiny")).toEqual(model);
    expect(await contents(model.folder)).toEqual(expected(FILES));
  });

  it("is not touched where a file stands in its place", async () => {
    await mkdir(root, { recursive: true });
    await writeFile(store.root, "a file");
    await expect(pull("Qwen/Tiny")).rejects.toThrow(/store: must be .*; got/);
    expect((await stat(store.root)).isFile()).toBe(true);
  });
});
