import { cp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { ConfigError, FileError, FormatError } from "../../../src/base/errors.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { interpret } from "../../../src/compute/runtime/interpreter.ts";
import { type HostArray, hostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { architectureOf, initializeModel, modelParameters } from "../../../src/model/arch/models.ts";
import {
  loadModelFolder,
  loadModelWeights,
  type ModelWeights,
  saveModelFolder,
} from "../../../src/model/checkpoint/folder.ts";
import { readSafetensors, writeSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { toF32 } from "../../../src/model/checkpoint/widen.ts";
import { encodePrompt } from "../../../src/model/engine/text.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { saveTinyModel } from "../../reference/saved-model.ts";
import { DEEPSEEK_V3_ARGS } from "../models.ts";

const FIXTURES = fileURLToPath(new URL("../../fixtures/", import.meta.url));
const SAVED = join(FIXTURES, "saved-model");
const TIED = join(FIXTURES, "arch-llama-tied");
const EMBEDDING = "model.embed_tokens.weight";

/** A copy of a fixture that a test may damage. */
async function copyOf(source: string): Promise<string> {
  const folder = join(await temporaryFolder(), "model");
  await cp(source, folder, { recursive: true });
  return folder;
}

async function changeJson(path: string, change: Record<string, unknown>): Promise<void> {
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, "utf8")), ...change }));
}

/** Writes a folder's weights again, with some tensors changed, added or (undefined) removed. */
async function changeTensors(folder: string, change: Record<string, HostArray | undefined>): Promise<void> {
  const file = join(folder, "model.safetensors");
  const { tensors } = await readSafetensors(file);
  const kept = Object.entries({ ...Object.fromEntries(tensors), ...change }).filter(
    ([, t]) => t !== undefined,
  );
  await writeSafetensors(file, Object.fromEntries(kept) as Record<string, HostArray>);
}

describe("saveModelFolder", () => {
  it("writes the folder that transformers loaded, byte for byte", async () => {
    const folder = join(await temporaryFolder(), "model");
    await saveTinyModel(folder);
    expect((await readdir(folder)).sort()).toEqual([
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
    for (const file of await readdir(folder)) {
      const [ours, theirs] = await Promise.all([readFile(join(folder, file)), readFile(join(SAVED, file))]);
      expect(ours.equals(theirs), file).toBe(true);
    }
  });

  it("replaces a folder whole, also one that is then loaded", async () => {
    const folder = await copyOf(SAVED);
    const model = await loadModelFolder(folder);
    await writeFile(join(folder, "stale"), "");
    await saveModelFolder(folder, model);
    expect(await readdir(folder)).not.toContain("stale");
    expect(await loadModelFolder(folder)).toMatchObject({
      config: model.config,
      extra: model.extra,
      tensors: model.tensors,
      generationConfig: model.generationConfig,
    });
  });

  it("writes shards where one file would be too large, which load as the same model", async () => {
    const folder = join(await temporaryFolder(), "model");
    const model = await loadModelFolder(SAVED);
    await saveModelFolder(folder, { ...model, maxShardBytes: 4000 });
    const files = (await readdir(folder)).filter((file) => file.includes("safetensors")).sort();
    expect(files.length).toBeGreaterThan(3);
    expect(files[0]).toBe(`model-00001-of-0000${files.length - 1}.safetensors`);
    expect(files.at(-1)).toBe("model.safetensors.index.json");
    const index = JSON.parse(await readFile(join(folder, files.at(-1)!), "utf8"));
    const bytes = Object.values(model.tensors).reduce((sum, { data }) => sum + data.byteLength, 0);
    expect(index.metadata.total_size).toBe(bytes);
    expect(Object.keys(index.weight_map)).toEqual(Object.keys(model.tensors).sort());
    expect((await loadModelFolder(folder)).tensors).toEqual(model.tensors);
  });

  it("refuses tensors that are not the config's, and a config that transformers refuses", async () => {
    const folder = join(await temporaryFolder(), "model");
    const model = await loadModelFolder(SAVED);
    const { [EMBEDDING]: _, ...less } = model.tensors;
    const save = (change: object) => saveModelFolder(folder, { ...model, ...change });
    await expect(save({ tensors: less })).rejects.toThrow(
      /model.embed_tokens.weight: must have the shape \[71,12\] that the config asks for; got no such tensor/,
    );
    const more = { ...model.tensors, extra: hostArray("f32", [1]) };
    await expect(save({ tensors: more })).rejects.toThrow("must be a tensor of the model");
    // Not left out in silence: on loading it is only because the embedding stands in for it.
    await expect(save({ config: { ...model.config, tieEmbeddings: true } })).rejects.toThrow(
      "lm_head.weight",
    );
    await expect(save({ config: { ...model.config, hiddenSize: 13 } })).rejects.toThrow(
      /hidden_size: must be a multiple/,
    );
    const config = { ...model.config, vocabSize: 3 };
    const small = { config, tensors: initializeModel(config, 0) };
    await expect(save(small)).rejects.toThrow(ConfigError);
    await expect(save(small)).rejects.toThrow(
      "config.json: vocab_size: must be at least the tokenizer's 71 tokens; got 3",
    );
  });
});

/** Logits of a model on one sequence, by the reference interpreter. */
function logitsOf({ config, tensors }: ModelWeights, ids: readonly number[]): HostArray {
  const T = ids.length;
  const inputs: Record<string, HostArray> = {
    ...tensors,
    ids: i32([1, T], ids),
    positions: i32([1, T], ids.keys()),
    segments: i32([1, T], new Array(T).fill(1)),
  };
  const graph = trace(inputs, (values) => {
    const batch = { ids: values["ids"]!, positions: values["positions"]!, segments: values["segments"]! };
    return { logits: architectureOf(config).train(values, batch, config).logits };
  });
  return interpret(graph, inputs)["logits"]!;
}

describe("loadModelFolder", () => {
  it("gives the model that transformers loads: the same logits from the same folder", async () => {
    const expected = JSON.parse(await readFile(join(FIXTURES, "saved-model-expected.json"), "utf8")) as {
      prompt: { data: number[] };
      logits: { data: number[] };
    };
    const model = await loadModelFolder(SAVED);
    expect(encodePrompt(model.tokenizer, "1+2=")).toEqual(expected.prompt.data);
    const logits = logitsOf(model, expected.prompt.data);
    // Logits are of size 0.1 to 1, so this allows some tens of roundings of float32.
    const worst = Math.max(...expected.logits.data.map((x, i) => Math.abs(x - Number(logits.data[i]))));
    expect(worst).toBeLessThan(1e-6);
  });

  it("gives config, weights in the model's order, tokenizer and stop tokens", async () => {
    const model = await loadModelFolder(SAVED);
    expect(model.config).toMatchObject({ vocabSize: 71, hiddenSize: 12, ropeTheta: 5000, headDim: 8 });
    expect(model.extra).toMatchObject({ pondera: { step: 3 }, bos_token_id: 1 });
    expect(model.tensors).toEqual(initializeModel(model.config, 7));
    expect(Object.keys(model.tensors)).toEqual(modelParameters(model.config).map(({ name }) => name));
    expect(model.tokenizer.encode("<bos>")).toEqual([1]);
    expect(model.stopIds).toEqual([2]);
    expect(model.generationConfig).toEqual({ bos_token_id: 1, eos_token_id: 2, pad_token_id: 0 });
  });

  it("takes stop tokens from the generation config, then the config, then the tokenizer", async () => {
    const folder = await copyOf(SAVED);
    const stopIds = async () => (await loadModelFolder(folder)).stopIds;
    await changeJson(join(folder, "generation_config.json"), { eos_token_id: [5, 6] });
    await changeJson(join(folder, "config.json"), { eos_token_id: [4] });
    expect(await stopIds()).toEqual([5, 6]);
    await rm(join(folder, "generation_config.json"));
    expect(await stopIds()).toEqual([4]);
    await changeJson(join(folder, "config.json"), { eos_token_id: null });
    expect(await stopIds()).toEqual([2]);
    await changeJson(join(folder, "config.json"), { eos_token_id: "<eos>" });
    await expect(stopIds()).rejects.toThrow(/config.json: eos_token_id: must be a token id/);
  });

  it("names what is missing or not JSON", async () => {
    const rows: [string, RegExp][] = [
      ["config.json", /config\.json: must be readable; got ENOENT/],
      ["model.safetensors", /must hold model\.safetensors or model\.safetensors\.index\.json; got neither/],
      ["tokenizer.json", /tokenizer\.json: must be readable/],
      ["tokenizer_config.json", /tokenizer_config\.json: must be readable/],
    ];
    for (const [file, message] of rows) {
      const folder = await copyOf(SAVED);
      await rm(join(folder, file));
      await expect(loadModelFolder(folder)).rejects.toThrow(FileError);
      await expect(loadModelFolder(folder)).rejects.toThrow(message);
    }
    for (const file of ["config.json", "generation_config.json"]) {
      const folder = await copyOf(SAVED);
      await writeFile(join(folder, file), "{");
      await expect(loadModelFolder(folder)).rejects.toThrow(FormatError);
    }
    const folder = await copyOf(SAVED);
    await writeFile(join(folder, "generation_config.json"), "[]");
    await expect(loadModelFolder(folder)).rejects.toThrow("must be a JSON object");
  });

  it("refuses a tokenizer with more tokens than the model", async () => {
    const folder = await copyOf(SAVED);
    await characterTokenizer({
      alphabet: Array.from({ length: 99 }, (_, i) => String.fromCodePoint(256 + i)).join(""),
    }).save(folder);
    await expect(loadModelFolder(folder)).rejects.toThrow(
      /vocab_size: must be at least the tokenizer's 106 tokens/,
    );
  });

  it("finds a folder whose replacement was cut off", async () => {
    const folder = await copyOf(SAVED);
    await rename(folder, join(folder, "..", ".model.previous"));
    expect((await loadModelFolder(folder)).config.vocabSize).toBe(71);
  });
});

describe("loadModelWeights", () => {
  it("loads what transformers saved, tied and untied", async () => {
    for (const name of ["llama-gqa", "arch-llama-tied"]) {
      const { config, tensors } = await loadModelWeights(join(FIXTURES, name));
      const { tensors: stored } = await readSafetensors(join(FIXTURES, name, "model.safetensors"));
      expect(Object.keys(tensors).sort()).toEqual([...stored.keys()].sort());
      expect("lm_head.weight" in tensors).toBe(!config.tieEmbeddings);
      for (const [key, tensor] of stored) expect(tensors[key], key).toEqual(toF32(tensor, key));
    }
  });

  it("widens f16 and bf16 weights, and reads shards", async () => {
    const folder = await copyOf(SAVED);
    const { tensors } = await readSafetensors(join(folder, "model.safetensors"));
    await rm(join(folder, "model.safetensors"));
    const names = [...tensors.keys()];
    const weight_map: Record<string, string> = {};
    // Ones in either format: 0x3c00 and 0x3f80.
    for (const [dtype, one, file] of [
      ["f16", 0x3c00, "a.safetensors"],
      ["bf16", 0x3f80, "b.safetensors"],
    ] as const) {
      const mine = names.filter((_, i) => i % 2 === (dtype === "f16" ? 0 : 1));
      const shard = mine.map((name) => {
        const { shape, data } = tensors.get(name)!;
        weight_map[name] = file;
        return [name, { dtype, shape, data: new Uint16Array(data.length / 4).fill(one) }] as const;
      });
      await writeSafetensors(join(folder, file), Object.fromEntries(shard));
    }
    await writeFile(join(folder, "model.safetensors.index.json"), JSON.stringify({ weight_map }));
    const model = await loadModelWeights(folder);
    for (const tensor of Object.values(model.tensors)) {
      expect(tensor.dtype).toBe("f32");
      expect(tensor.data.every((x) => x === 1)).toBe(true);
    }
  });

  it("passes over the note of 8-bit blocks in a config, and over no other quantisation", async () => {
    const folder = await copyOf(SAVED);
    const note = {
      quant_method: "fp8",
      fmt: "e4m3",
      activation_scheme: "dynamic",
      weight_block_size: [128, 128],
    };
    await changeJson(join(folder, "config.json"), { quantization_config: note });
    const { extra, tensors } = await loadModelWeights(folder);
    expect(extra).not.toHaveProperty("quantization_config");
    expect(tensors).toEqual((await loadModelWeights(SAVED)).tensors);
    for (const change of [{ weight_block_size: [64, 128] }, { quant_method: "gptq" }]) {
      await changeJson(join(folder, "config.json"), { quantization_config: { ...note, ...change } });
      await expect(loadModelWeights(folder)).rejects.toThrow(/quantization_config: must be absent/);
    }
  });

  it("says so where the config is of DeepSeek's own form, whose weights are not read", async () => {
    const folder = await copyOf(SAVED);
    await writeFile(join(folder, "config.json"), JSON.stringify(DEEPSEEK_V3_ARGS));
    const load = loadModelWeights(folder);
    await expect(load).rejects.toThrow(ConfigError);
    await expect(load).rejects.toThrow(
      /config\.json: must be a config\.json in Hugging Face's form.*whose weights/,
    );
  });

  it("names a tensor that is missing, of another shape, of another kind or not the model's", async () => {
    const rows: [Record<string, HostArray | undefined>, RegExp][] = [
      [{ [EMBEDDING]: undefined }, /model\.safetensors: model\.embed_tokens\.weight: .*got no such tensor/],
      [{ [EMBEDDING]: hostArray("f32", [12, 71]) }, /must have the shape \[71,12\].*got \[12,71\]/],
      [{ "model.layers.2.input_layernorm.weight": hostArray("f32", [12]) }, /layers\.2.*got another/],
    ];
    for (const [change, message] of rows) {
      const folder = await copyOf(SAVED);
      await changeTensors(folder, change);
      await expect(loadModelWeights(folder)).rejects.toThrow(FormatError);
      await expect(loadModelWeights(folder)).rejects.toThrow(message);
    }
    const folder = await copyOf(SAVED);
    await changeTensors(folder, { [EMBEDDING]: hostArray("i32", [71, 12]) });
    await expect(loadModelWeights(folder)).rejects.toThrow(
      /embed_tokens\.weight: must be F32, F16, BF16 or F8_E4M3; got I32/,
    );
  });

  it("passes over rotary frequencies and a tied head that equals the embedding, and refuses one that does not", async () => {
    const folder = await copyOf(TIED);
    const { tensors } = await loadModelWeights(TIED);
    await changeTensors(folder, {
      "model.layers.0.self_attn.rotary_emb.inv_freq": hostArray("f32", [8]),
      "lm_head.weight": tensors[EMBEDDING],
    });
    expect(Object.keys((await loadModelWeights(folder)).tensors)).toEqual(Object.keys(tensors));
    await changeTensors(folder, { "lm_head.weight": hostArray("f32", [23, 20]) });
    await expect(loadModelWeights(folder)).rejects.toThrow(
      /lm_head.weight: must equal model.embed_tokens.weight/,
    );
  });

  it("passes over DeepSeek-V3's copies of what the drafting module shares, but for their shape", async () => {
    const folder = await copyOf(join(FIXTURES, "arch-deepseek-mtp"));
    const plain = await loadModelWeights(folder);
    const { vocabSize, hiddenSize, layers } = plain.config;
    const copies = (shape: readonly number[]) => ({
      // Other values than the model's, to tell whether they are read.
      [`model.layers.${layers}.embed_tokens.weight`]: hostArray("f32", [vocabSize, hiddenSize]),
      [`model.layers.${layers}.shared_head.head.weight`]: hostArray("f32", shape),
    });
    await changeTensors(folder, copies([vocabSize, hiddenSize]));
    expect(await loadModelWeights(folder)).toEqual(plain);
    await changeTensors(folder, copies([vocabSize, hiddenSize + 1]));
    await expect(loadModelWeights(folder)).rejects.toThrow(
      `model.layers.${layers}.shared_head.head.weight: must have the shape [${vocabSize},${hiddenSize}]`,
    );
    // A model without the module has no such copies.
    await changeJson(join(folder, "config.json"), { num_nextn_predict_layers: 0 });
    await expect(loadModelWeights(folder)).rejects.toThrow(/must be a tensor of the model/);
  });

  it("closes its files", async () => {
    const count = async () => (await readdir("/proc/self/fd")).length;
    if (process.platform !== "linux") return;
    const folder = await copyOf(SAVED);
    await changeTensors(folder, { [EMBEDDING]: undefined });
    const before = await count();
    for (let i = 0; i < 5; i++) {
      await loadModelWeights(SAVED);
      await expect(loadModelWeights(folder)).rejects.toThrow(FormatError);
    }
    expect(await count()).toBe(before);
  });
});
