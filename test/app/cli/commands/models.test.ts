import { chmod, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { ModelStore } from "../../../../src/model/store/store.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { adoptAll, put, sha256 } from "../../../model/store/contents.ts";
import { pondera } from "../harness.ts";

const FILES = { "config.json": "{}", "model.safetensors": "weights" };

let store: ModelStore;
beforeEach(async () => {
  store = new ModelStore(await temporaryFolder());
});

const typed = (...argv: readonly string[]) => pondera(argv, { env: { PONDERA_HOME: store.root } });

describe("pondera list", () => {
  it("says how to fetch a model when there is none, and where it looked", async () => {
    const { code, out } = await typed("list");
    expect({ code, out }).toEqual({
      code: 0,
      out: `No models in ${store.root}. Fetch one with: pondera pull r1-1.5b\n`,
    });
    expect((await typed("list", "--json")).out).toBe("[]\n");
    const elsewhere = await pondera(["list", "--store", join(store.root, "other")]);
    expect(elsewhere.out).toContain(join(store.root, "other"));
  });

  it("lists models by name, as a table and as JSON", async () => {
    await put(store, "Qwen/Tiny", FILES);
    await put(store, "a/b:v2", { "model.gguf": "GGUF" });
    const { out } = await typed("list");
    const lines = out.trimEnd().split("\n");
    expect(lines[0]).toMatch(/^model +size +format +hub +pulled +from$/);
    expect(lines[1]).toMatch(/^a\/b:v2 +4 B +gguf +hf +2026-11-25 12:00 +a\/b:v2@main$/);
    expect(lines[2]).toMatch(/^Qwen\/Tiny +9 B +hf /);
    const [, tiny] = JSON.parse((await typed("list", "--json")).out);
    expect(tiny).toMatchObject({
      name: "Qwen/Tiny",
      format: "hf",
      bytes: 9,
      files: 2,
      source: { revision: "main" },
    });
    expect(await readFile(join(tiny.path, "config.json"), "utf8")).toBe("{}");
  });

  it("names the models it cannot read, and lists the others", async () => {
    await put(store, "x", FILES);
    await put(store, "y", FILES);
    await writeFile(join((await store.get("x")).folder, "..", "manifest.json"), "[]");
    const { code, out, err } = await typed("list");
    expect(code).toBe(0);
    expect(out).toContain("y ");
    expect(err).toMatch(/^left out: .*manifest\.json: must be a manifest/);
  });
});

describe("pondera show", () => {
  it("shows where a model came from and its files; or its path alone", async () => {
    await put(store, "Qwen/Tiny", FILES);
    const { out } = await typed("show", "qwen/tiny");
    expect(out).toMatch(/^Qwen\/Tiny\nfrom +Qwen\/Tiny@main at https:\/\/huggingface\.co\ncommit +c{40}\n/);
    expect(out).toMatch(/model\.safetensors +7 B +[0-9a-f]{12}\n/);
    const path = (await typed("show", "Qwen/Tiny", "--path")).out.trimEnd();
    expect(await readFile(join(path, "model.safetensors"), "utf8")).toBe("weights");
    const json = JSON.parse((await typed("show", "Qwen/Tiny", "--json")).out);
    expect(json).toMatchObject({ path, files: [{ path: "config.json", sha256: sha256("{}") }, {}] });
  });

  it("checks every file on demand, and says how to mend the model", async () => {
    await put(store, "x", FILES);
    const sound = await typed("show", "x", "--check");
    expect(sound.out).toContain("every file is as it was pulled");
    const blob = store.blobPath(sha256("weights"));
    await chmod(blob, 0o644);
    await writeFile(blob, "weightz");
    const { code, err } = await typed("show", "x", "--check", "--json");
    expect(code).toBe(1);
    expect(err).toMatch(/1 of 2 that have not: model\.safetensors\. Mend it: pondera pull x --check\.\n$/);
  });

  it("suggests the nearest name, and how to fetch one", async () => {
    await put(store, "Qwen/Tiny", FILES);
    const { code, err } = await typed("show", "Qwen/Tinny");
    expect(code).toBe(2);
    expect(err).toContain("Did you mean Qwen/Tiny? Or fetch it: pondera pull Qwen/Tinny");
    expect((await typed("show", "../x")).err).toContain("must be [owner/]model[:tag]");
  });
});

describe("pondera rm", () => {
  it("removes models, and tells what that freed", async () => {
    await put(store, "x", FILES);
    await put(store, "y", { "config.json": "{}" });
    const { code, out } = await typed("rm", "X");
    expect({ code, out }).toEqual({ code: 0, out: "Removed x: 7 B free again.\n" });
    expect(JSON.parse((await typed("rm", "y", "--json")).out)).toEqual({ removed: ["y"], bytes: 2 });
    expect((await typed("rm", "y")).code).toBe(2);
  });

  it("removes what nothing needs on demand, and wants to be told something", async () => {
    await put(store, "x", FILES);
    await adoptAll(store, { left: "behind" });
    expect((await typed("rm", "--unused")).out).toBe("Removed what no model needs: 6 B free again.\n");
    expect((await typed("rm", "--unused")).out).toBe("There was nothing to remove.\n");
    for (const name of ["y", "z"]) await put(store, name, { "config.json": "[]" });
    expect((await typed("rm", "y", "z", "--unused")).out).toBe(
      "Removed y, z and what no model needs: 2 B free again.\n",
    );
    expect(await store.verify(await store.get("x"))).toEqual([]);
    const { code, err } = await typed("rm");
    expect(code).toBe(2);
    expect(err).toContain("missing required argument 'models'");
  });
});

describe("pondera cp", () => {
  it("gives a second name, and does not take one that is in use", async () => {
    await put(store, "x", FILES);
    expect((await typed("cp", "x", "mine")).out).toBe("x is also mine.\n");
    const { code, err } = await typed("cp", "x", "mine", "--json");
    expect(code).toBe(2);
    expect(err).toContain("replace it with --force");
    expect(JSON.parse((await typed("cp", "x", "Mine", "--force", "--json")).out)).toMatchObject({
      name: "Mine",
    });
    await typed("rm", "x");
    expect(await store.verify(await store.get("mine"))).toEqual([]);
  });
});
