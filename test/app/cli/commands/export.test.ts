import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { loadModelFolder, saveModelFolder } from "../../../../src/model/checkpoint/folder.ts";
import { saveModelGguf } from "../../../../src/model/checkpoint/gguf/save.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { babbler, parrot } from "../../../model/tiny-model.ts";
import { pondera } from "../harness.ts";
import { makeRun } from "../tiny-run.ts";

const FILES = [
  "config.json",
  "generation_config.json",
  "model.safetensors",
  "tokenizer.json",
  "tokenizer_config.json",
];
const model = babbler();

let root: string;
let out: string;
beforeEach(async () => {
  root = await temporaryFolder();
  out = join(root, "exported");
});

const exported = (...argv: readonly string[]) => pondera(["export", "--runs", root, "--out", out, ...argv]);

describe("pondera export", () => {
  it("writes the newest run's model as a folder that loads, the same to the bit", async () => {
    await makeRun({ root, name: "one", model });
    const { code, out: text } = await exported();
    expect(code).toBe(0);
    expect(text).toMatch(/^one → .*exported\n/);
    expect(text).toContain("  model.safetensors\n");
    expect(text).toContain("from_pretrained(");
    expect(await readdir(out)).toEqual(FILES);
    const loaded = await loadModelFolder(out);
    expect(loaded.config).toEqual(model.config);
    for (const [name, { data }] of Object.entries(model.tensors))
      expect(loaded.tensors[name]?.data).toEqual(data);
    expect(loaded.tokenizer.encode("1+2=3")).toEqual(model.tokenizer.encode("1+2=3"));
  });

  it("keeps what the model's folder says of generation and of itself", async () => {
    const source = join(root, "source");
    await saveModelFolder(source, {
      ...model,
      extra: { pondera: { task: "countdown" } },
      generationConfig: { temperature: 0.6 },
    });
    const { out: text } = await exported(source, "--format", "hf", "--json");
    expect(JSON.parse(text)).toEqual({ model: source, format: "hf", out, files: FILES });
    for (const file of FILES) {
      expect(await readFile(join(out, file)), file).toEqual(await readFile(join(source, file)));
    }
  });

  it("writes a GGUF file that pondera loads and writes the same text with", async () => {
    await makeRun({ root, name: "one", model: parrot("12+3=45") });
    const file = join(root, "one.gguf");
    const argv = ["export", "--runs", root, "--format", "gguf", "--type", "F32", "--out", file];
    const { code, out: text } = await pondera(argv);
    expect(code).toBe(0);
    expect(text).toContain("one.gguf\n");
    const said = async (model: string) => {
      const generate = ["generate", "--model", model, "--runs", root, "--raw", "--temperature", "0"];
      return (await pondera([...generate, "--max-new-tokens", "8", "--prompt", "1"])).out;
    };
    expect(await said(file)).toBe(await said("one"));
    expect(await said(file)).toContain("2+3=45");
    const again = await pondera(argv);
    expect(again.code).not.toBe(0);
    expect(again.err).toMatch(/one\.gguf: must be absent; got a file\. .*--force/);
    expect((await pondera([...argv, "--force"])).code).toBe(0);
    const folder = await pondera([...argv.slice(0, -1), root, "--force"]);
    expect(folder.err).toMatch(/must be absent; got a folder/);
  });

  it("writes a folder with an ONNX graph, and replaces such a folder when told to", async () => {
    await makeRun({ root, name: "one", model: parrot("12+3=45") });
    const { code, out: text } = await exported("--format", "onnx");
    expect(code).toBe(0);
    expect(text).toContain("  onnx/model.onnx\n");
    expect(text).toContain('pipeline("text-generation", ');
    const names = [...FILES.filter((name) => name !== "model.safetensors"), "onnx"].sort();
    expect((await readdir(out)).sort()).toEqual(names);
    const half = await exported("--format", "onnx", "--type", "F16", "--force", "--json");
    expect(JSON.parse(half.out).files).toContain("onnx/model_fp16.onnx");
    expect(await readdir(join(out, "onnx"))).toEqual(["model_fp16.onnx"]);
    await writeFile(join(out, "onnx", "notes.txt"), "mine");
    expect((await exported("--force")).err).toMatch(/got a folder that also holds notes\.txt/);
  });

  it("keeps the chat template of a GGUF file", async () => {
    const file = join(root, "x.gguf");
    const { config, tensors, tokenizer } = model;
    await saveModelGguf(
      file,
      { config, tensors, tokenizer, extra: {}, chatTemplate: { source: "{{ x }}" } },
      { type: "F32" },
    );
    for (const format of ["hf", "onnx"]) {
      expect((await exported(file, "--format", format, "--force")).code).toBe(0);
      const saved = JSON.parse(await readFile(join(out, "tokenizer_config.json"), "utf8"));
      expect(saved.chat_template, format).toBe("{{ x }}");
    }
  });

  it("asks for a type only where there is a choice", async () => {
    await makeRun({ root, name: "one", model });
    const { code, err } = await exported("--type", "Q8_0");
    expect(code).not.toBe(0);
    expect(err).toMatch(/--type: must be F32 for --format hf; got Q8_0/);
    const onnx = await exported("--format", "onnx", "--type", "Q4_0");
    expect(onnx.err).toMatch(/--type: must be F32 or F16 for --format onnx; got Q4_0/);
  });

  it("fills an empty folder, and replaces a model only when told to", async () => {
    await makeRun({ root, name: "one", model });
    await mkdir(out);
    expect((await exported()).code).toBe(0);
    await makeRun({ root, name: "two", model: parrot("123") });
    const refused = await exported("two");
    expect(refused.code).toBe(1);
    expect(refused.err).toMatch(/exported: must be absent or empty; got a folder with 5 entries\..*--force/);
    const head = async () => (await loadModelFolder(out)).tensors["lm_head.weight"]?.data;
    expect(await head()).toEqual(model.tensors["lm_head.weight"]?.data);
    expect((await exported("two", "--force")).code).toBe(0);
    expect(await head()).not.toEqual(model.tensors["lm_head.weight"]?.data);
  });

  it("never replaces a folder that holds anything but a model", async () => {
    await makeRun({ root, name: "one", model });
    await exported();
    await writeFile(join(out, "diary.docx"), "dear");
    const refused = await exported("--force");
    expect(refused.code).toBe(1);
    expect(refused.err).toMatch(
      /only a model's folder may be replaced; got a folder that also holds diary\.docx/,
    );
    expect(await readFile(join(out, "diary.docx"), "utf8")).toBe("dear");
    const elsewhere = join(root, "elsewhere");
    await mkdir(elsewhere);
    await writeFile(join(elsewhere, "package.json"), "{}");
    const { err } = await pondera(["export", "--runs", root, "--out", elsewhere, "--force"]);
    expect(err).toMatch(/got a folder without config\.json/);
  });

  it("refuses the model's own folder, and a file", async () => {
    const path = await makeRun({ root, name: "one", model });
    const own = join(path, "model");
    const { code, err } = await pondera(["export", "--runs", root, "--out", own, "--force"]);
    expect(code).toBe(2);
    expect(err).toContain("must not be the model itself");
    await writeFile(out, "a file");
    expect((await exported("--force")).err).toMatch(/exported: must be readable; got ENOTDIR/);
  });

  it("offers no other format", async () => {
    const { code, err } = await exported("--format", "onyx");
    expect(code).toBe(2);
    expect(err).toContain("Allowed choices are hf, gguf, onnx");
  });
});
