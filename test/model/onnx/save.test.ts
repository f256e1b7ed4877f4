import { existsSync } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, FormatError, NumericError } from "../../../src/base/errors.ts";
import type { Value } from "../../../src/compute/graph/ir.ts";
import { trace } from "../../../src/compute/graph/trace.ts";
import { decodeModel } from "../../../src/compute/onnx/proto.ts";
import type { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { i32 } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { parseLlamaConfig } from "../../../src/model/arch/llama-json.ts";
import { architectureOf, initializeModel } from "../../../src/model/arch/models.ts";
import { loadModelWeights, type ModelWeights, readWeights } from "../../../src/model/checkpoint/folder.ts";
import { openLlama2c, readLlama2cTokenizer } from "../../../src/model/checkpoint/llama2c.ts";
import { padHeads } from "../../../src/model/checkpoint/pad-heads.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { saveOnnxFolder } from "../../../src/model/onnx/save.ts";
import { tokenizerFromGguf } from "../../../src/model/text/gguf.ts";
import { characterTokenizer, loadTokenizer, parseTokenizer } from "../../../src/model/text/tokenizer.ts";
import { readTokenizerFiles, tokenizerPaths } from "../../../src/model/text/tokenizer-files.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { createEngine, runOnEngine, specsOf } from "../../compute/harness.ts";
import { fixturePath } from "../../fixture.ts";
import { DEEPSEEK_V3_671B, opinionatedWeights, TINY } from "../models.ts";
import { OnnxDecoder } from "./session.ts";

const tokenizer = characterTokenizer({ alphabet: "01" });
const tiny = { config: TINY, tensors: opinionatedWeights(TINY, 7), tokenizer };

let runtime: Runtime;
beforeAll(async () => {
  runtime = await createEngine();
});
afterAll(() => runtime.dispose());

const decoders: OnnxDecoder[] = [];
afterEach(async () => {
  for (const decoder of decoders.splice(0)) await decoder.dispose();
});

async function opened(folder: string, file?: string): Promise<OnnxDecoder> {
  const decoder = await OnnxDecoder.open(folder, file);
  decoders.push(decoder);
  return decoder;
}

type Saved = Parameters<typeof saveOnnxFolder>[1];

async function exported(model: Saved, options: Parameters<typeof saveOnnxFolder>[2] = {}): Promise<string> {
  const folder = join(await temporaryFolder(), "exported");
  await saveOnnxFolder(folder, model, options);
  return folder;
}

/** Logits of every position of one sequence, by the training forward on our engine, [T, V]. */
async function ourLogits(
  { config, tensors }: Pick<ModelWeights, "config" | "tensors">,
  ids: readonly number[],
) {
  const shape = [1, ids.length];
  const batch = {
    ids: i32(shape, ids),
    positions: i32(shape, [...ids.keys()]),
    segments: i32(
      shape,
      ids.map(() => 1),
    ),
  };
  const arrays = { ...tensors, ...batch };
  const graph = trace(specsOf(arrays), (x: Record<string, Value>) => {
    const { ids, positions, segments } = x as Record<keyof typeof batch, Value>;
    return { logits: architectureOf(config).train(x, { ids, positions, segments }, config).logits };
  });
  return (await runOnEngine(runtime, graph, arrays))["logits"]!.data as Float32Array;
}

/** Largest difference between [T, V] and the part of [B, T, V] that begins at `from`. */
function distance(expected: Float32Array, actual: Float32Array, from = 0): number {
  let largest = 0;
  for (const [i, value] of expected.entries())
    largest = Math.max(largest, Math.abs(value - actual[from + i]!));
  return largest;
}

const NAMES = ["arch-llama-wide", "arch-llama-tied", "arch-llama3", "arch-qwen2", "arch-qwen2-tied"];

describe.each(NAMES)("%s as a graph", (name) => {
  async function load(): Promise<ModelWeights> {
    return loadModelWeights(fixturePath(name));
  }

  const sequence = (length: number, vocab: number, seed: number): number[] => {
    const random = new Random(seed);
    return Array.from({ length }, () => random.integer(vocab));
  };

  it("has our logits: all at once, in steps over the cache, and padded on the left beside longer ones", async () => {
    const model = await load();
    const V = model.config.vocabSize;
    const decoder = await opened(await exported({ ...model, tokenizer }));
    const [long, short] = [sequence(17, V, 1), sequence(11, V, 2)];
    const [ours, oursShort] = [await ourLogits(model, long), await ourLogits(model, short)];

    const whole = await decoder.step([long], [long.map(() => 1)], decoder.empty(1));
    expect(distance(ours, whole.logits)).toBeLessThan(1e-4);
    expect(Math.max(...ours)).toBeGreaterThan(0.1); // Zeros would be alike too.

    // Ten tokens, then four, then one at a time.
    let past = decoder.empty(1);
    for (const [from, to] of [
      [0, 10],
      [10, 14],
      [14, 15],
      [15, 16],
      [16, 17],
    ] as const) {
      const step = await decoder.step([long.slice(from, to)], [long.slice(0, to).map(() => 1)], past);
      expect(distance(ours.subarray(from * V, to * V), step.logits)).toBeLessThan(1e-4);
      past = step.past;
    }

    const padded = [...new Array<number>(6).fill(0), ...short];
    const mask = [long.map(() => 1), padded.map((_, i) => (i < 6 ? 0 : 1))];
    const both = await decoder.step([long, padded], mask, decoder.empty(2));
    expect(distance(ours, both.logits)).toBeLessThan(1e-4);
    expect(distance(oursShort, both.logits, (17 + 6) * V)).toBeLessThan(1e-4);
    expect(both.logits.every(Number.isFinite)).toBe(true);
  });

  it("goes on as our engine does, alone and in a batch, for 64 tokens", async () => {
    const loaded = await load();
    // Some of these have no room for so many.
    const model = { ...loaded, config: { ...loaded.config, maxPositions: 128 } };
    const prompts = [sequence(9, model.config.vocabSize, 3), sequence(3, model.config.vocabSize, 4)];
    const engine = new Engine(runtime, model.config, { slots: 2 });
    engine.adopt(deviceWeights(runtime, model.tensors));
    const requests = prompts.map((prompt) => ({ prompt, samples: 1, seed: 0 }));
    const completions = await engine.generate(requests, { temperature: 0, maxNewTokens: 64, stopIds: [] });
    await engine.dispose();
    const expected = completions.map(([completion]) => completion!.ids);
    const decoder = await opened(await exported({ ...model, tokenizer }));
    expect(await decoder.greedy(prompts, 64)).toEqual(expected);
    expect(await decoder.greedy([prompts[1]!], 64)).toEqual([expected[1]]);
  });
});

describe("the folder", () => {
  const json = async (folder: string, file: string) =>
    JSON.parse(await readFile(join(folder, file), "utf8")) as Record<string, unknown>;

  it("holds what transformers.js looks for", async () => {
    const folder = await exported({
      ...tiny,
      stopIds: [3, 4],
      extra: { note: 1 },
      chatTemplate: { source: "{{ x }}" },
    });
    expect((await readdir(folder)).sort()).toEqual([
      "config.json",
      "generation_config.json",
      "onnx",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
    expect(await readdir(join(folder, "onnx"))).toEqual(["model.onnx"]);
    expect(await json(folder, "config.json")).toMatchObject({
      model_type: "llama",
      num_key_value_heads: 1,
      head_dim: 16,
      note: 1,
      "transformers.js_config": { dtype: "fp32" },
    });
    expect(await json(folder, "generation_config.json")).toMatchObject({ eos_token_id: [3, 4] });
    expect(await json(folder, "tokenizer_config.json")).toMatchObject({ chat_template: "{{ x }}" });
    expect((await loadTokenizer(folder)).encode("0110")).toEqual(tokenizer.encode("0110"));
  });

  it("has a tokenizer that begins texts as ours does, for others too", async () => {
    const folder = await exported(tiny);
    const files = async (from: string) => [
      await json(from, "tokenizer.json"),
      await json(from, "tokenizer_config.json"),
    ];
    const [tokenizerJson, config] = await files(folder);
    expect(config).toMatchObject({ add_bos_token: true });
    const library = new Library(tokenizerJson!, config!);
    expect(library.encode("01").ids).toEqual([tokenizer.bosId, ...tokenizer.encode("01")]);
    expect(await loadTokenizer(folder)).toMatchObject({ addsBos: true, bosId: tokenizer.bosId });
    // Exported again, nothing is begun twice.
    const again = await exported({ ...tiny, tokenizer: await loadTokenizer(folder) });
    expect(await files(again)).toEqual([tokenizerJson, config]);
  });

  it("leaves a tokenizer alone that begins texts with nothing", async () => {
    const files = await readTokenizerFiles(fixturePath("byte-level"));
    const said = { ...JSON.parse(files.config), add_bos_token: false };
    const quiet = { ...files, config: JSON.stringify(said) };
    const plain = parseTokenizer(quiet, tokenizerPaths(""));
    const config = { ...TINY, vocabSize: plain.vocabSize };
    const folder = await exported({ config, tensors: initializeModel(config, 5), tokenizer: plain });
    expect(await readTokenizerFiles(folder)).toEqual(quiet);
  });

  it("has a graph of ONNX's own operators, with the names and open sizes that others expect", async () => {
    const folder = await exported(tiny);
    const model = decodeModel(await readFile(join(folder, "onnx", "model.onnx")));
    expect(model.opsetImport).toEqual([{ domain: "", version: 18 }]);
    expect(new Set(model.graph.node.map(({ domain }) => domain ?? ""))).toEqual(new Set([""]));
    expect(model.graph.node.map(({ opType }) => opType)).not.toContain("SimplifiedLayerNormalization");
    const ports = (side: "input" | "output") =>
      model.graph[side].map(({ name, type: { tensorType } }) => [
        name,
        ...tensorType.shape.dim.map(({ dimParam, dimValue }) => dimParam || dimValue),
      ]);
    const past = ["batch_size", 1, "past_sequence_length", 16];
    expect(ports("input")).toEqual([
      ["input_ids", "batch_size", "sequence_length"],
      ["attention_mask", "batch_size", "total_sequence_length"],
      ["position_ids", "batch_size", "sequence_length"],
      ...[0, 1]
        .flatMap((n) => [`past_key_values.${n}.key`, `past_key_values.${n}.value`])
        .map((x) => [x, ...past]),
    ]);
    const present = ["batch_size", 1, "total_sequence_length", 16];
    expect(ports("output")).toEqual([
      ["logits", "batch_size", "sequence_length", 11],
      ...[0, 1].flatMap((n) => [`present.${n}.key`, `present.${n}.value`]).map((x) => [x, ...present]),
    ]);
  });

  it("keeps large weights beside the graph, in files no larger than asked", async () => {
    const whole = await opened(await exported(tiny));
    const folder = await exported(tiny, { maxInlineBytes: 1000, maxDataBytes: 10_000 });
    const files = (await readdir(join(folder, "onnx"))).sort();
    expect(files.length).toBeGreaterThan(3);
    expect(files.slice(0, 3)).toEqual(["model.onnx", "model.onnx_data", "model.onnx_data_1"]);
    for (const file of files)
      expect((await stat(join(folder, "onnx", file))).size).toBeLessThanOrEqual(10_000);
    expect(await json(folder, "config.json")).toMatchObject({
      "transformers.js_config": { use_external_data_format: { "model.onnx": files.length - 1 } },
    });
    const split = await opened(folder);
    const prompt = [[3, 1, 4]];
    const logits = async (decoder: OnnxDecoder) =>
      (await decoder.step(prompt, [[1, 1, 1]], decoder.empty(1))).logits;
    expect(await logits(split)).toEqual(await logits(whole));
  });

  it("is half as large in F16, and says nearly the same", async () => {
    const config = { ...TINY, hiddenSize: 64, intermediateSize: 256, vocabSize: 64 };
    const model = { config, tensors: initializeModel(config, 5), tokenizer };
    const [full, half] = [await exported(model), await exported(model, { type: "F16" })];
    const size = async (folder: string, file: string) => (await stat(join(folder, "onnx", file))).size;
    const ratio = (await size(half, "model_fp16.onnx")) / (await size(full, "model.onnx"));
    expect(ratio).toBeLessThan(0.55);
    expect(await json(half, "config.json")).toMatchObject({ "transformers.js_config": { dtype: "fp16" } });
    const logits = async (decoder: OnnxDecoder) =>
      (await decoder.step([[3, 1, 4, 1, 5]], [[1, 1, 1, 1, 1]], decoder.empty(1))).logits;
    const [a, b] = [await logits(await opened(full)), await logits(await opened(half, "model_fp16.onnx"))];
    // Halves have 11 bits: each weight is off by up to 1/2048 of itself.
    expect(distance(a, b)).toBeLessThan(3e-3);
    expect(distance(a, b)).toBeGreaterThan(0);
  });

  it("refuses what it cannot write, before anything is written", async () => {
    const refused = async (
      model: Saved,
      options = {},
    ): Promise<{ error: unknown; left: readonly string[] }> => {
      const root = await temporaryFolder();
      const error = await saveOnnxFolder(join(root, "exported"), model, options).catch((it: unknown) => it);
      return { error, left: await readdir(root) };
    };
    const experts = await refused({ ...tiny, config: DEEPSEEK_V3_671B, tensors: {} });
    expect(experts.error).toBeInstanceOf(ConfigError);
    expect(String(experts.error)).toMatch(
      /model_type: must be llama or qwen2.*got deepseek_v3\. Export it as hf/,
    );
    const { "model.norm.weight": _, ...fewer } = tiny.tensors;
    expect((await refused({ ...tiny, tensors: fewer })).error).toBeInstanceOf(FormatError);
    const tensors = structuredClone(tiny.tensors);
    tensors["model.layers.1.mlp.up_proj.weight"]!.data[5] = 1e6;
    const large = await refused({ ...tiny, tensors }, { type: "F16" });
    expect(large.error).toBeInstanceOf(NumericError);
    expect(String(large.error)).toMatch(/up_proj\.weight: element \d+: must be a number up to 65504/);
    for (const { left } of [experts, large]) expect(left).toEqual([]);
  });
});

const stories = (file: string): string =>
  fileURLToPath(new URL(`../../../../shared/data/weights/stories260K/${file}`, import.meta.url));

describe.skipIf(!existsSync(stories("stories260K.bin")))("stories260K as a graph", () => {
  it("tells the published story", async () => {
    const file = stories("stories260K.bin");
    await using source = await openLlama2c(file);
    const { config } = parseLlamaConfig(file, source.config);
    const vocabulary = await readLlama2cTokenizer(stories("tok512.bin"), 512);
    const storyTokenizer = tokenizerFromGguf(vocabulary);
    const tensors = await readWeights(source, config);
    const folder = await exported({ config, tensors, tokenizer: storyTokenizer });
    const expected = JSON.parse(await readFile(stories("expected.json"), "utf8")) as {
      greedy_ids: number[];
      text_256_steps: string;
    };
    const decoder = await opened(folder);
    const [ids] = await decoder.greedy([[1]], expected.greedy_ids.length - 1);
    expect([1, ...ids!]).toEqual(expected.greedy_ids);
    expect((await loadTokenizer(folder)).decode(ids!).trim()).toBe(expected.text_256_steps);
    // Heads of 8: the graph takes any width, the engine pads them.
    expect(padHeads({ config, tensors }, 16).config.headDim).toBeGreaterThan(config.headDim);
  });
});
