import { chmod, lstat, mkdir, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { ModelStore } from "../../../src/model/store/store.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { unprivileged } from "../../base/unprivileged.ts";
import { adoptAll, manifestOf, put, sha256 } from "./contents.ts";

const FILES = { "config.json": "{}", "weights/a.safetensors": "aaaa", "b.safetensors": "bb" };

let outside: string;
let store: ModelStore;
beforeEach(async () => {
  outside = await temporaryFolder();
  store = new ModelStore(join(outside, "store"));
});

const blobs = async () => (await readdir(join(store.root, "blobs"))).sort();
const listed = async () => (await store.list()).map((model) => model.name);

describe("a store", () => {
  it("is empty before anything is in it, and is not made by looking", async () => {
    expect(await store.list()).toEqual([]);
    expect(await store.find({ model: "x" })).toBeUndefined();
    await expect(store.get("x")).rejects.toThrow(
      /must hold the model; got "x", and no models yet\. Fetch it: pondera pull x/,
    );
    expect(await readdir(outside)).toEqual([]);
  });

  it("keeps content once, and shows each model's files under their own names", async () => {
    await put(store, "Qwen/Tiny", FILES);
    await put(store, "tiny:copy", { "config.json": "{}", "other.txt": "aaaa" });
    expect(await blobs()).toEqual(["{}", "aaaa", "bb"].map((content) => `sha256-${sha256(content)}`).sort());
    const model = await store.get("Qwen/Tiny");
    for (const [path, content] of Object.entries(FILES)) {
      const file = join(model.folder, path);
      expect(await readFile(file, "utf8")).toBe(content);
      expect((await stat(file)).ino).toBe((await stat(store.blobPath(sha256(content)))).ino);
      expect((await stat(file)).mode & 0o222).toBe(0);
    }
    expect(model).toMatchObject({ name: "Qwen/Tiny", path: model.folder, bytes: 8 });
    expect(await listed()).toEqual(["Qwen/Tiny", "tiny:copy"]);
  });

  it("finds names whatever their case, and latest without a tag", async () => {
    await put(store, "Qwen/Tiny", FILES);
    await put(store, "r1:latest", { "model.gguf": "GGUF" });
    expect((await store.get("qwen/TINY")).name).toBe("Qwen/Tiny");
    expect((await store.get("R1")).name).toBe("r1:latest");
    await expect(store.get("Qwen/Tiny:latest")).rejects.toThrow(/Did you mean Qwen\/Tiny\?/);
  });

  it("points at the one GGUF file where that is the whole model", async () => {
    const path = async (files: Record<string, string>) => {
      await put(store, "x", files);
      const { path, folder } = await store.get("x");
      return path.slice(folder.length);
    };
    expect(await path({ "model.gguf": "1", template: "2" })).toBe(join("/", "model.gguf"));
    expect(await path({ "q/a-00001-of-00002.gguf": "1", "q/a-00002-of-00002.gguf": "2" })).toBe(
      join("/", "q", "a-00001-of-00002.gguf"),
    );
    expect(await path({ "model.gguf": "1", "mmproj-f16.gguf": "2" })).toBe(join("/", "model.gguf"));
    expect(await path({ "a.gguf": "1", "b.gguf": "2" })).toBe("");
    expect(await path({ "model.gguf": "1", "config.json": "2" })).toBe("");
  });

  it("replaces what a name meant, and removes the content that nothing needs any more", async () => {
    await put(store, "x", { "config.json": "{}", "w.safetensors": "old" });
    const before = await store.get("x");
    await put(store, "x", { "config.json": "{}", "w.safetensors": "new" });
    const after = await store.get("x");
    expect(after.folder).not.toBe(before.folder);
    expect(await readFile(join(after.folder, "w.safetensors"), "utf8")).toBe("new");
    expect(await blobs()).toEqual(["{}", "new"].map((content) => `sha256-${sha256(content)}`).sort());
    expect((await readdir(join(after.folder, ".."))).length).toBe(2);
  });

  it("commits nothing when content is missing, and says which", async () => {
    await put(store, "x", FILES);
    await adoptAll(store, { a: "there" });
    const manifest = manifestOf("x", { a: "there", b: "not there" });
    expect((await store.commit(manifest)).map((file) => file.path)).toEqual(["b"]);
    expect((await store.get("x")).manifest.files.length).toBe(3);
  });

  it("builds the folder of files again when some of it is gone", async () => {
    const manifest = await put(store, "x", FILES);
    const { folder } = await store.get("x");
    await rm(join(folder, "weights"), { recursive: true });
    expect(await store.verify(await store.get("x"))).toHaveLength(1);
    await store.commit(manifest);
    expect(await readFile(join(folder, "weights", "a.safetensors"), "utf8")).toBe("aaaa");
    expect(await store.verify(await store.get("x"))).toEqual([]);
  });

  it("tells content that has changed", async () => {
    await put(store, "x", FILES);
    const model = await store.get("x");
    const blob = store.blobPath(sha256("aaaa"));
    await chmod(blob, 0o644);
    await writeFile(blob, "aaab");
    expect((await store.verify(model)).map((file) => file.path)).toEqual(["weights/a.safetensors"]);
  });
});

describe("copies", () => {
  it("cost no content, and stay when the other name goes", async () => {
    await put(store, "x", FILES);
    const copied = await store.copy("X", "mine/Copy");
    expect(copied.name).toBe("mine/Copy");
    expect((await blobs()).length).toBe(3);
    expect(await store.remove(["x"])).toEqual({ names: ["x"], bytes: 0 });
    expect(await readFile(join(copied.folder, "config.json"), "utf8")).toBe("{}");
    expect(await store.remove(["mine/copy"])).toEqual({ names: ["mine/Copy"], bytes: 8 });
    expect(await blobs()).toEqual([]);
  });

  it("do not take a name that is in use, unless told to", async () => {
    await put(store, "x", { a: "1" });
    await put(store, "y", { a: "2" });
    await expect(store.copy("x", "Y")).rejects.toThrow(/must be a name that is not in use.*--force/);
    await store.copy("x", "Y", { replace: true });
    expect(await listed()).toEqual(["x", "Y"]);
    expect(await blobs()).toEqual([`sha256-${sha256("1")}`]);
  });

  it("onto themselves lose nothing", async () => {
    await put(store, "x", { a: "1" });
    await store.copy("x", "X", { replace: true });
    expect(await readFile(join((await store.get("x")).folder, "a"), "utf8")).toBe("1");
  });
});

describe("removal", () => {
  it("removes nothing when one of the names does not exist", async () => {
    await put(store, "x", FILES);
    await expect(store.remove(["x", "nothing"])).rejects.toThrow(/Did you mean x\?/);
    expect(await listed()).toEqual(["x"]);
  });

  it("leaves no empty folders, and other tags of the model alone", async () => {
    await put(store, "a/b:1", { x: "1" });
    await put(store, "a/b:2", { x: "2" });
    await store.remove(["a/b:1", "a/b:1"]);
    expect(await listed()).toEqual(["a/b:2"]);
    await store.remove(["a/b:2"]);
    expect(await readdir(join(store.root, "models"))).toEqual([]);
  });

  it("keeps all content while some manifest cannot be read, and removes that manifest when asked", async () => {
    await put(store, "x", { a: "1" });
    await put(store, "y", { a: "2" });
    const broken = join((await store.get("y")).folder, "..", "manifest.json");
    await writeFile(broken, "{");
    const told: string[] = [];
    expect(await store.list((error) => told.push(error.message))).toHaveLength(1);
    expect(told).toEqual([expect.stringMatching(/manifest\.json: must be JSON/)]);
    expect(await store.remove(["x"])).toEqual({ names: ["x"], bytes: 0 });
    expect((await blobs()).length).toBe(2);
    await expect(store.prune()).rejects.toThrow(/every manifest must be readable/);
    expect(await store.remove(["y"])).toEqual({ names: ["y"], bytes: 0 });
    expect(await store.prune()).toBe(2);
    expect(await blobs()).toEqual([]);
  });

  it("of what is unused spares downloads under way", async () => {
    await put(store, "x", { a: "1" });
    await adoptAll(store, { b: "unused" });
    await writeFile(join(await store.partialFolder("sha256-1"), "data"), "half");
    await writeFile(join(await store.partialFolder("sha256-2"), "data"), "half");
    const holder = { pid: process.pid, host: hostname(), started: null };
    await writeFile(await store.partialLock("sha256-2"), JSON.stringify(holder));
    expect(await store.prune()).toBeGreaterThanOrEqual(6);
    expect((await readdir(join(store.root, "partial"))).sort()).toEqual(["sha256-2", "sha256-2.lock"]);
    expect(await blobs()).toEqual([`sha256-${sha256("1")}`]);
  });
});

describe.skipIf(process.platform === "win32")("links and rights", () => {
  it.each([["blobs"], ["models"], ["models/x"], ["models/x/+main"], ["partial"]])(
    "nothing is written or removed through a link at %s",
    async (place) => {
      const target = join(outside, "target");
      await mkdir(join(target, "+main"), { recursive: true });
      await writeFile(join(target, "precious"), "p");
      await writeFile(join(target, "+main", "manifest.json"), JSON.stringify(manifestOf("x", { a: "1" })));
      await mkdir(join(store.root, place, ".."), { recursive: true });
      // Names have three folders: owner, model, tag.
      const at = join(store.root, place.replace("models/x", "models/+library/x"));
      await mkdir(join(at, ".."), { recursive: true });
      await symlink(target, at);
      const refused = /must be a folder of the model store itself; got a symbolic link/;
      await expect(put(store, "x", { a: "1" })).rejects.toThrow(refused);
      if (place.startsWith("models")) await expect(store.remove(["x"])).rejects.toThrow(refused);
      else if (place !== "partial") expect(await store.list()).toEqual([]);
      await expect(store.prune()).rejects.toThrow();
      expect((await readdir(target)).sort()).toEqual(["+main", "precious"]);
      expect(await readdir(join(target, "+main"))).toEqual(["manifest.json"]);
    },
  );

  it("a link in place of content is no content, and is replaced", async () => {
    const precious = join(outside, "precious");
    await writeFile(precious, "1");
    await mkdir(join(store.root, "blobs"), { recursive: true });
    await symlink(precious, store.blobPath(sha256("1")));
    expect(await store.hasBlob({ sha256: sha256("1"), size: 1 })).toBe(false);
    await put(store, "x", { a: "1" });
    expect((await lstat(store.blobPath(sha256("1")))).isFile()).toBe(true);
    await store.remove(["x"]);
    expect(await readFile(precious, "utf8")).toBe("1");
  });

  it("links inside a model's folder are removed, not followed", async () => {
    await put(store, "x", { a: "1" });
    const { folder } = await store.get("x");
    await mkdir(join(outside, "target"));
    await writeFile(join(outside, "target", "precious"), "p");
    await symlink(join(outside, "target"), join(folder, "link"));
    await store.remove(["x"]);
    expect(await readdir(join(outside, "target"))).toEqual(["precious"]);
  });

  it("a manifest that names files outside is refused wherever it is used", async () => {
    await put(store, "x", { a: "1" });
    const at = join((await store.get("x")).folder, "..", "manifest.json");
    const manifest = JSON.parse(await readFile(at, "utf8"));
    for (const path of ["../../../../../escaped", "/tmp/escaped", "a\\..\\b"]) {
      manifest.files[0].path = path;
      await writeFile(at, JSON.stringify(manifest));
      await expect(store.get("x")).rejects.toThrow(/file names must be relative/);
      await expect(store.copy("x", "y")).rejects.toThrow(/file names must be relative/);
    }
    manifest.files[0].path = "a";
    manifest.files[0].sha256 = "../../../precious";
    await writeFile(at, JSON.stringify(manifest));
    await expect(store.get("x")).rejects.toThrow(
      /manifest\.json: files\.0\.sha256: must be that of a manifest of the model store/,
    );
    await store.remove(["x"]);
    expect(await readdir(outside)).toEqual(["store"]);
  });

  it.skipIf(process.platform === "win32")("a folder that may not be written to is named", async () => {
    await mkdir(store.root);
    await unprivileged([outside, store.root], async () => {
      await expect(put(store, "x", { a: "1" })).rejects.toThrow(
        /must be writable; got EACCES.*Give this user the right/,
      );
    });
  });
});
