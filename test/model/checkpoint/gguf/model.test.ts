import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { FormatError } from "../../../../src/base/errors.ts";
import { parseModelConfig } from "../../../../src/model/arch/models.ts";
import { dequantizeInto } from "../../../../src/model/checkpoint/gguf/dequantize.ts";
import { Metadata } from "../../../../src/model/checkpoint/gguf/metadata.ts";
import { openGgufModel } from "../../../../src/model/checkpoint/gguf/model.ts";
import { openGguf } from "../../../../src/model/checkpoint/gguf/reader.ts";
import { readVocabulary } from "../../../../src/model/checkpoint/gguf/vocabulary.ts";
import { readSafetensors } from "../../../../src/model/checkpoint/safetensors.ts";
import { toF32 } from "../../../../src/model/checkpoint/widen.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { fixturePath } from "../../../fixture.ts";
import { GgufBytes } from "./bytes.ts";

/** Files of models, and of the same weights under Hugging Face's names. */
const MODELS = [
  ["llama", "llama"],
  ["qwen2", "qwen2"],
  ["deepseek-split", "deepseek"],
  ["deepseek-whole", "deepseek"],
] as const;
const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);
const open = (name: string) => openGgufModel(fixturePath(`gguf/${name}.gguf`));

describe("a model that gguf-py wrote", () => {
  it.each(MODELS)("has Hugging Face's names, shapes and values, to the bit: %s", async (name, weights) => {
    await using model = await open(name);
    const { tensors } = await readSafetensors(fixturePath(`gguf/${weights}.safetensors`));
    expect([...model.shapes.keys()].sort()).toEqual([...tensors.keys()].sort());
    for (const [key, tensor] of tensors) {
      const { shape, data } = toF32(tensor, key);
      const read = await model.readF32(key);
      expect(read.shape, key).toEqual(shape);
      expect(model.shapes.get(key), key).toEqual(shape);
      expect(Buffer.compare(new Uint8Array(read.data.buffer), bytesOf(data)), key).toBe(0);
    }
  });

  it.each(MODELS)(
    "gives the blocks of every tensor that is stored as one, in the same order: %s",
    async (name) => {
      await using model = await open(name);
      let quantized = 0;
      for (const key of model.shapes.keys()) {
        const type = model.typeOf(key);
        if (type === undefined) {
          expect(key).toMatch(/kv_b_proj/);
          await expect(model.readBlocks(key)).rejects.toThrow(/must be stored as one tensor.*attn_k_b/);
          continue;
        }
        const { blocks, shape } = await model.readBlocks(key);
        const values = new Float32Array(shape.reduce((a, b) => a * b));
        dequantizeInto(type, blocks, values);
        expect(values, key).toEqual((await model.readF32(key)).data);
        if (type === "Q8_0") quantized++;
      }
      expect(quantized).toBeGreaterThan(0);
    },
  );

  it("refuses a name it has not", async () => {
    await using model = await open("llama");
    await expect(model.readF32("toString")).rejects.toThrow(/llama.gguf: must hold the tensor "toString"/);
  });
});

describe("the config of a GGUF model", () => {
  it("is llama's, with the rotary scaling that its factors follow from", async () => {
    await using model = await open("llama");
    expect(model.config).toEqual({
      architectures: ["LlamaForCausalLM"],
      model_type: "llama",
      vocab_size: 24,
      hidden_size: 32,
      intermediate_size: 64,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 8,
      hidden_act: "silu",
      max_position_embeddings: 128,
      rms_norm_eps: 1e-5,
      rope_theta: 500_000,
      rope_scaling: {
        rope_type: "llama3",
        factor: 32,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 8192,
      },
      tie_word_embeddings: false,
      attention_bias: false,
      mlp_bias: false,
      bos_token_id: 1,
      eos_token_id: 2,
      pad_token_id: 0,
    });
    const { rope_scaling: _, ...unscaled } = model.config;
    expect(parseModelConfig("x", unscaled).config).toMatchObject({ headDim: 8, kvHeads: 2, ropeTheta: 5e5 });
  });

  it("is qwen2's, tied where there is no head", async () => {
    await using model = await open("qwen2");
    expect(model.config).toMatchObject({
      architectures: ["Qwen2ForCausalLM"],
      model_type: "qwen2",
      head_dim: 8,
      rope_theta: 1_000_000,
      tie_word_embeddings: true,
      use_sliding_window: false,
    });
    expect(model.config).not.toHaveProperty("rope_scaling");
    expect(model.config).not.toHaveProperty("eos_token_id");
  });

  it.each(["deepseek-split", "deepseek-whole"])(
    "is Deepseek-V3's, from newer files and older: %s",
    async (name) => {
      await using model = await open(name);
      expect(model.config).toEqual({
        architectures: ["DeepseekV3ForCausalLM"],
        model_type: "deepseek_v3",
        vocab_size: 24,
        hidden_size: 32,
        intermediate_size: 48,
        moe_intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        q_lora_rank: 16,
        kv_lora_rank: 8,
        qk_nope_head_dim: 6,
        qk_rope_head_dim: 4,
        v_head_dim: 10,
        first_k_dense_replace: 1,
        moe_layer_freq: 1,
        n_routed_experts: 3,
        n_shared_experts: 1,
        num_experts_per_tok: 2,
        n_group: 1,
        topk_group: 1,
        topk_method: "noaux_tc",
        scoring_func: "sigmoid",
        norm_topk_prob: true,
        routed_scaling_factor: 2.5,
        num_nextn_predict_layers: 0,
        attention_bias: false,
        hidden_act: "silu",
        max_position_embeddings: 256,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000,
        rope_scaling: {
          rope_type: "yarn",
          factor: 40,
          original_max_position_embeddings: 4096,
          beta_fast: 32,
          beta_slow: 1,
          mscale: 1,
          mscale_all_dim: 1,
        },
        tie_word_embeddings: false,
      });
    },
  );
});

describe("the vocabulary of a GGUF model", () => {
  it("is plain data", async () => {
    await using model = await open("llama");
    const { tokens, scores, tokenTypes, ...rest } = model.vocabulary!;
    expect([...tokens].slice(0, 4)).toEqual(["<unk>", "<s>", "</s>", "<0x00>"]);
    expect([...tokens].slice(-2)).toEqual(["▁a", "ab"]);
    expect([...scores!]).toEqual([...tokens].map((_, i) => -i));
    expect([...tokenTypes!.slice(0, 5)]).toEqual([2, 3, 3, 6, 6]);
    expect(rest).toEqual({
      model: "llama",
      bosId: 1,
      eosId: 2,
      unknownId: 0,
      paddingId: 0,
      addBos: true,
      addEos: false,
      addSpacePrefix: false,
      chatTemplate: "{{ messages[0]['content'] }}",
    });
  });

  it("may be absent", async () => {
    await using model = await open("qwen2");
    expect(model.vocabulary).toBeUndefined();
  });
});

/** A llama model of one layer and width 4, with what a test wants changed. */
function tinyLlama(change: {
  readonly keys?: [string, "u32" | "f32" | "string" | "strings", number | string][];
  readonly tensors?: [string, readonly number[]][];
  readonly without?: string;
}): Uint8Array {
  const keys = [
    ["general.architecture", "string", "llama"],
    ["llama.context_length", "u32", 16],
    ["llama.embedding_length", "u32", 4],
    ["llama.block_count", "u32", 1],
    ["llama.feed_forward_length", "u32", 4],
    ["llama.attention.head_count", "u32", 2],
    ["llama.attention.layer_norm_rms_epsilon", "f32", 1e-5],
  ] as [string, string, number | string][];
  const merged = new Map(keys.map((key) => [key[0], key]));
  for (const key of change.keys ?? []) merged.set(key[0], key);
  if (change.without) merged.delete(change.without);
  const tensors = new Map<string, readonly number[]>([
    ["token_embd.weight", [4, 3]],
    ...(change.tensors ?? []),
  ]);
  if (change.without) tensors.delete(change.without);
  const bytes = new GgufBytes().start({ tensors: tensors.size, keys: merged.size });
  for (const [name, type, value] of merged.values()) {
    if (type === "u32") bytes.key(name, 4).u32(Number(value));
    else if (type === "f32") bytes.key(name, 6).f32(Number(value));
    else if (type === "string") bytes.key(name, 8).string(String(value));
    else bytes.key(name, 9).u32(8).u64(1n).string(String(value));
  }
  let offset = 0;
  for (const [name, dimensions] of tensors) {
    bytes.tensor(name, dimensions, 0, offset);
    offset += Math.ceil((4 * dimensions.reduce((a, b) => a * b)) / 32) * 32;
  }
  return bytes
    .align(32)
    .f32(...Array(offset / 4).fill(1))
    .done();
}

describe("a model whose metadata does not fit", () => {
  const rows: [string, Parameters<typeof tinyLlama>[0], RegExp][] = [
    [
      "another architecture",
      { keys: [["general.architecture", "string", "gptj"]] },
      /general.architecture: must be one of llama, qwen2, deepseek2; got "gptj"/,
    ],
    ["none", { without: "general.architecture" }, /general.architecture: must be text; got nothing/],
    [
      "a part of a model",
      { keys: [["split.count", "u32", 3]] },
      /one of 3 files must be called NAME-0000N-of-00003/,
    ],
    [
      "a size missing",
      { without: "llama.block_count" },
      /llama.block_count: must be a whole number below 2\^31; got nothing/,
    ],
    ["a size as text", { keys: [["llama.block_count", "string", "1"]] }, /llama.block_count: .*got "1"/],
    [
      "a list of sizes",
      { keys: [["llama.attention.head_count", "strings", "1"]] },
      /head_count: .*got an array of 1/,
    ],
    [
      "a size beyond numbers",
      { keys: [["llama.embedding_length", "u32", 2 ** 32 - 1]] },
      /embedding_length: must be a whole number below 2\^31/,
    ],
    [
      "an epsilon that is no number",
      { keys: [["llama.attention.layer_norm_rms_epsilon", "f32", Number.NaN]] },
      /layer_norm_rms_epsilon: must be a finite number; got NaN/,
    ],
    ["no heads", { keys: [["llama.attention.head_count", "u32", 0]] }, /head_count: must be positive/],
    [
      "half rotated",
      { keys: [["llama.rope.dimension_count", "u32", 1]] },
      /rope.dimension_count: must be the head width 2; got 1/,
    ],
    ["experts", { keys: [["llama.expert_count", "u32", 8]] }, /expert_count: must be 0 or absent/],
    [
      "no embedding",
      { without: "token_embd.weight", tensors: [["output_norm.weight", [4]]] },
      /token_embd.weight: must be a matrix; got no such tensor/,
    ],
    ["a vector for it", { tensors: [["token_embd.weight", [4]]] }, /token_embd.weight: must be a matrix/],
    [
      "a tensor nobody knows",
      { tensors: [["blk.0.attn_sinks.weight", [4]]] },
      /tensor "blk.0.attn_sinks.weight": must be a tensor of a llama model/,
    ],
    [
      "one named like a method",
      { tensors: [["blk.0.constructor.weight", [4]]] },
      /constructor.weight": must be a tensor of a llama/,
    ],
    [
      "a bias llama has not",
      { tensors: [["blk.0.attn_q.bias", [4]]] },
      /attn_q.bias": must be a tensor of a llama model/,
    ],
    [
      "a layer beyond the last",
      { tensors: [["blk.1.attn_norm.weight", [4]]] },
      /blk.1.attn_norm.weight": must be a tensor of a llama model of 1 layers/,
    ],
    [
      "rows that are no heads",
      { tensors: [["blk.0.attn_q.weight", [4, 6]]] },
      /attn_q.weight": must have rows for 2 heads of rotary pairs; got 6/,
    ],
    [
      "a query that is no matrix",
      { tensors: [["blk.0.attn_q.weight", [4]]] },
      /attn_q.weight": must have 2 dimensions/,
    ],
    [
      "other rotary factors",
      { tensors: [["rope_freqs.weight", [2]]] },
      /rope_freqs.weight: must be the factors of Llama 3/,
    ],
    [
      "a vocabulary without tokens",
      { keys: [["tokenizer.ggml.model", "string", "llama"]] },
      /tokenizer.ggml.tokens: must be an array of texts; got nothing/,
    ],
    [
      "a token id beyond it",
      {
        keys: [
          ["tokenizer.ggml.model", "string", "llama"],
          ["tokenizer.ggml.tokens", "strings", "a"],
          ["tokenizer.ggml.eos_token_id", "u32", 1],
        ],
      },
      /eos_token_id: must be below the 1 tokens; got 1/,
    ],
    [
      "a template that is a number",
      {
        keys: [
          ["tokenizer.ggml.model", "string", "llama"],
          ["tokenizer.ggml.tokens", "strings", "a"],
          ["tokenizer.chat_template", "u32", 1],
        ],
      },
      /chat_template: must be text; got 1/,
    ],
  ];
  it.each(rows)("is refused for %s", async (_, change, message) => {
    const file = join(await temporaryFolder(), "x.gguf");
    await writeFile(file, tinyLlama(change));
    const error = await openGgufModel(file).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(FormatError);
    expect(String(error)).toMatch(message);
    expect(String(error)).toMatch(/x\.gguf: /);
  });

  it("is read when nothing is changed", async () => {
    const file = join(await temporaryFolder(), "x.gguf");
    await writeFile(file, tinyLlama({}));
    await using model = await openGgufModel(file);
    expect(model.config).toMatchObject({ head_dim: 2, num_key_value_heads: 2, rope_theta: 10_000 });
  });
});

const published = (name: string) =>
  fileURLToPath(new URL(`../../../../../shared/data/tokenizer-llamacpp/${name}.gguf`, import.meta.url));

describe.skipIf(!existsSync(published("ggml-vocab-deepseek-llm")))("vocabularies of published models", () => {
  it.each([
    ["ggml-vocab-deepseek-llm", "deepseek-llm", 102_400, 99_757],
    ["ggml-vocab-deepseek-coder", "deepseek-coder", 32_256, 31_757],
  ])("are read whole: %s", async (name, pre, tokens, merges) => {
    await using file = await openGguf(published(name));
    const vocabulary = readVocabulary(new Metadata(file))!;
    expect(vocabulary).toMatchObject({ model: "gpt2", pre });
    expect(vocabulary.tokens).toHaveLength(tokens);
    expect(vocabulary.merges).toHaveLength(merges);
    expect(vocabulary.tokens.at(vocabulary.bosId!)).toBe("<｜begin▁of▁sentence｜>");
  });
});
