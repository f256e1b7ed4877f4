import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { hostArray } from "../../../../src/compute/tensor/host.ts";
import { parameterCount } from "../../../../src/model/arch/models.ts";
import { saveModelGguf } from "../../../../src/model/checkpoint/gguf/save.ts";
import { writeSafetensors } from "../../../../src/model/checkpoint/safetensors.ts";
import { ModelStore } from "../../../../src/model/store/store.ts";
import { fixturePath } from "../../../fixture.ts";
import { GgufBytes } from "../../../model/checkpoint/gguf/bytes.ts";
import { DEEPSEEK_V3_ARGS, DEEPSEEK_V3_JSON } from "../../../model/models.ts";
import { put } from "../../../model/store/contents.ts";
import { babbler } from "../../../model/tiny-model.ts";
import { pondera } from "../harness.ts";
import { makeRun } from "../tiny-run.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "pondera-inspect-"));
});
afterEach(() => rm(folder, { recursive: true }));

describe("pondera inspect", () => {
  it("tells a program what a config says of 671 billion weights", async () => {
    const file = join(folder, "r1.json");
    await writeFile(file, JSON.stringify(DEEPSEEK_V3_JSON));
    const { code, out } = await pondera(["inspect", file, "--json"]);
    expect(code).toBe(0);
    const said = JSON.parse(out);
    expect(said.architecture).toBe("deepseek_v3");
    expect(said.parameters.total).toBe(671_026_419_200);
    expect(said.cache.bytesPerToken).toBe(70_272);
    expect(Object.keys(said.memory)).toEqual(["float32", "bfloat16", "fp8", "int8", "int4"]);
    expect(said.machine.memoryBytes).toBeGreaterThan(0);
    expect(said.machine.fits).toHaveLength(5);
  });

  it("reads DeepSeek's own form of a config, and names what of V2's it does not know", async () => {
    const file = join(folder, "config_671B.json");
    await writeFile(file, JSON.stringify(DEEPSEEK_V3_ARGS));
    const { code, out } = await pondera(["inspect", file]);
    expect(code).toBe(0);
    expect(out).toMatch(/^deepseek_v3: 671,026,419,200 weights\n/);
    expect(out).toContain("\n70,272 bytes of cache a token in bfloat16, up to 16,384 tokens\n");
    const { score_func: _, ...v2 } = { ...DEEPSEEK_V3_ARGS, dim: 5120 };
    await writeFile(file, JSON.stringify(v2));
    const refused = await pondera(["inspect", file]);
    expect(refused.code).toBe(2);
    expect(refused.err).toContain('config_671B.json: score_func: must be "sigmoid"');
  });

  it("shows a person a model's folder", async () => {
    const { code, out } = await pondera(["inspect", fixturePath("arch-deepseek-mtp")]);
    expect(code).toBe(0);
    expect(out).toMatch(/^deepseek_v3: [\d,]+ weights, and [\d.]+k that predict the token after next\n/);
    expect(out).toContain("experts");
    expect(out).toContain("0-7 (8)");
    expect(out).toMatch(/float32 .*yes, with 128 tokens/);
  });

  it("counts a GGUF file's weights in its own block formats, and reads none of them", async () => {
    const file = join(folder, "tiny.gguf");
    const model = babbler();
    await saveModelGguf(file, { ...model, extra: {} }, { type: "Q8_0", name: "tiny" });
    const whole = await readFile(file);
    const said = JSON.parse((await pondera(["inspect", file, "--json"])).out);
    expect(said).toMatchObject({ path: file, architecture: "llama", gguf: { name: "tiny", version: 3 } });
    expect(said.parameters.total).toBe(parameterCount(model.config));
    expect(said.gguf.vocabulary).toEqual({
      model: "gpt2",
      pre: "gpt-2",
      tokens: model.tokenizer.vocabSize,
      chatTemplate: false,
    });
    const stored = said.gguf.stored as { type: string; weights: number; bytes: number; runs: unknown }[];
    const q8 = stored.find(({ type }) => type === "Q8_0")!;
    expect(q8.bytes).toBe((q8.weights / 32) * 34);
    // Vectors are F32, and matrices whose rows are no whole blocks of 32 F16: the feed-forward is 8 wide.
    expect(stored.map(({ type }) => type).sort()).toEqual(["F16", "F32", "Q8_0"]);
    expect(stored.reduce((total, { weights }) => total + weights, 0)).toBe(said.parameters.total);
    expect(Object.fromEntries(stored.map(({ type, runs }) => [type, runs]))).toEqual({
      Q8_0: { as: "blocks", rounding: 0 },
      F16: { as: "float32", rounding: 0 },
      F32: { as: "float32", rounding: 0 },
    });
    expect(said.gguf).not.toHaveProperty("widened");
    expect(said.machine.fits[0]).toMatchObject({ precision: "stored", bytes: said.gguf.bytes, fits: true });
    // All of the weights spoilt: nothing notices.
    const start = whole.length - said.gguf.bytes;
    await writeFile(file, Buffer.concat([whole.subarray(0, start), Buffer.alloc(said.gguf.bytes, 0xff)]));
    expect(JSON.parse((await pondera(["inspect", file, "--json"])).out).parameters).toEqual(said.parameters);
  });

  it("shows a person a GGUF file, and a pulled model by its name", async () => {
    const store = new ModelStore(join(folder, "store"));
    await put(store, "a/b:v2", { "model.gguf": await readFile(fixturePath("gguf/deepseek-whole.gguf")) });
    const { code, out, err } = await pondera(["inspect", "a/b:v2"], { env: { PONDERA_HOME: store.root } });
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(/^deepseek_v3: [\d,]+ weights\n/);
    expect(out).toMatch(/\nGGUF version 3.*\n\nstored as +tensors +weights +take +bits each +run as\n/);
    expect(out).toMatch(/\nQ8_0 .* float32\n/);
    expect(out).toContain(
      "\n  all is widened, to four bytes a weight: experts and latent attention of deepseek_v3",
    );
    expect(out).toMatch(/\nall +\d+ +[\d.]+k? +[\d.]+ kB +\d+\.\d\d\n/);
    expect(out).toMatch(/\nstored +[\d.]+ kB +yes, with /);
  });

  it("tells of a GGUF file of another architecture what its header says, and what is not supported", async () => {
    const file = join(folder, "other.gguf");
    const header = new GgufBytes().start({ keys: 1, tensors: 2 }).key("general.architecture", 8);
    header.string("mamba").tensor("a", [32, 4], 8, 0).tensor("b", [8], 0, 160).align(32);
    await writeFile(file, Buffer.concat([header.done(), new Uint8Array(192)]));
    const { code, out, err } = await pondera(["inspect", file]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(
      /^mamba: 136 numbers in 2 tensors\nNot supported: .*general\.architecture: must be one of/,
    );
    expect(out).toMatch(/\nQ8_0 +1 +128 +136 B +8\.50\nF32 +1 +8 +32 B +32\.00\nall +2 +136 +168 B +9\.88\n/);
    const said = JSON.parse((await pondera(["inspect", file, "--json"])).out);
    expect(said).toMatchObject({ path: file, architecture: "mamba", gguf: { bytes: 168 } });
    expect(said.unsupported).toContain('got "mamba".');
    expect(said.gguf.stored[0]).toEqual({ type: "Q8_0", tensors: 1, weights: 128, bytes: 136 });
    // A damaged header is no model of another kind.
    await writeFile(file, header.done().subarray(0, 60));
    expect((await pondera(["inspect", file])).code).toBe(1);
  });

  it("tells of a folder of another architecture what its safetensors hold", async () => {
    await writeFile(join(folder, "config.json"), JSON.stringify({ model_type: "mamba" }));
    expect((await pondera(["inspect", folder])).err).toContain(
      "model_type: must be one of llama, qwen2, deepseek_v3",
    );
    await writeSafetensors(join(folder, "model.safetensors"), {
      a: hostArray("f32", [4, 4]),
      b: hostArray("i8", [8]),
    });
    const { code, out } = await pondera(["inspect", folder]);
    expect(code).toBe(0);
    expect(out).toMatch(
      /^mamba: 24 numbers in 2 tensors\nNot supported: .*config\.json: model_type: must be/,
    );
    expect(out).toMatch(/\nf32 +1 +16 +64 B +32\.00\ni8 +1 +8 +8 B +8\.00\n/);
    const said = JSON.parse((await pondera(["inspect", folder, "--json"])).out);
    expect(said).toMatchObject({ architecture: "mamba", safetensors: { bytes: 72 } });
  });

  it("inspects a run's model", async () => {
    await makeRun({ root: folder, name: "one", model: babbler() });
    const { out } = await pondera(["inspect", "one", "--runs", folder, "--json"]);
    expect(JSON.parse(out)).toMatchObject({
      architecture: "llama",
      path: join(folder, "one/model/config.json"),
    });
  });

  it("says what is missing", async () => {
    const absent = await pondera(["inspect", join(folder, "none"), "--runs", folder]);
    expect(absent.code).toBe(1);
    const empty = await pondera(["inspect", folder]);
    expect(empty.code).toBe(1);
    expect(empty.err).toContain("config.json");
  });
});
