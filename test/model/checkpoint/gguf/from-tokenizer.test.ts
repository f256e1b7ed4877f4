import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { ConfigError, FormatError } from "../../../../src/base/errors.ts";
import { vocabularyFromTokenizer } from "../../../../src/model/checkpoint/gguf/from-tokenizer.ts";
import {
  DEEPSEEK_CODER_PATTERNS,
  DEEPSEEK3_PATTERNS,
  GPT4O_PATTERN,
  TEKKEN_PATTERN,
} from "../../../../src/model/text/pre-tokenizer.ts";
import {
  readTokenizerFiles,
  type TokenizerFiles,
  tokenizerPaths,
} from "../../../../src/model/text/tokenizer-files.ts";
import { fixturePath } from "../../../fixture.ts";

const PATHS: TokenizerFiles = { tokenizer: "tokenizer.json", config: "tokenizer_config.json" };
async function fromFolder(folder: string, pre?: string) {
  return vocabularyFromTokenizer(await readTokenizerFiles(folder), tokenizerPaths(folder), pre);
}

describe("vocabularyFromTokenizer", () => {
  it("takes Pondera's characters as bytes without merges", async () => {
    const { tokens, tokenTypes, ...rest } = await fromFolder(fixturePath("saved-model"));
    expect(tokens).toHaveLength(71);
    expect([...tokens].slice(0, 7)).toEqual([
      "<pad>",
      "<bos>",
      "<eos>",
      "<think>",
      "</think>",
      "<answer>",
      "</answer>",
    ]);
    expect([...tokenTypes!.slice(0, 8)]).toEqual([3, 3, 3, 4, 4, 4, 4, 1]);
    expect(tokens).toContain("Ġ");
    expect(tokens).not.toContain(" ");
    expect(rest).toEqual({
      model: "gpt2",
      pre: "gpt-2",
      merges: [],
      bosId: 1,
      eosId: 2,
      paddingId: 0,
      addBos: true,
      addEos: false,
    });
  });

  it("takes characters of several bytes as added tokens", () => {
    const json = {
      added_tokens: [{ id: 0, content: "<s>", special: true }],
      model: { type: "BPE", vocab: { a: 1, "÷": 2, "\n": 3, "<0x41>": 4 }, merges: [] },
    };
    const files = { tokenizer: JSON.stringify(json), config: JSON.stringify({ eos_token: "<s>" }) };
    const { tokens, tokenTypes } = vocabularyFromTokenizer(files, PATHS);
    expect([...tokens]).toEqual(["<s>", "a", "÷", "Ċ", "<0x41>"]);
    expect([...tokenTypes!]).toEqual([3, 1, 4, 1, 4]);
  });

  it("takes tokens of bytes with their merges, and the name of their rules", async () => {
    const vocabulary = await fromFolder(fixturePath("byte-level"), "gpt-2");
    const { tokenizer } = await readTokenizerFiles(fixturePath("byte-level"));
    const json = JSON.parse(tokenizer);
    expect(vocabulary).toMatchObject({ model: "gpt2", pre: "gpt-2" });
    for (const [token, id] of Object.entries(json.model.vocab))
      expect(vocabulary.tokens.at(id as number)).toBe(token);
    for (const { id, content } of json.added_tokens) expect(vocabulary.tokens.at(id)).toBe(content);
    expect(vocabulary.merges).toHaveLength(json.model.merges.length);
    expect(vocabulary.merges!.at(0)!.split(" ")).toHaveLength(2);
    expect(vocabulary.scores).toBeUndefined();
  });

  const bpe = (change: object, model: object = {}): TokenizerFiles => ({
    tokenizer: JSON.stringify({
      ...{
        added_tokens: [
          { id: 0, content: "<s>", special: true },
          { id: 9, content: "<x>", special: false },
        ],
      },
      model: {
        type: "BPE",
        byte_fallback: true,
        unk_token: "<unk>",
        vocab: { "<s>": 0, "<unk>": 1, "<0x00>": 2, "▁": 3, a: 4, "▁a": 5, aa: 6 },
        merges: [["a", "a"], "▁ a"],
        ...model,
      },
      ...change,
    }),
    config: JSON.stringify({
      bos_token: { content: "<s>" },
      eos_token: "<s>",
      chat_template: [
        { name: "tool_use", template: "t" },
        { name: "default", template: "d" },
      ],
    }),
  });
  const single = [{ SpecialToken: { id: "<s>" } }, { Sequence: { id: "A" } }];

  it("ranks SentencePiece's tokens by their merges, and fills gaps", () => {
    const files = bpe({
      normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }] },
      post_processor: { type: "TemplateProcessing", single },
    });
    const { tokens, scores, tokenTypes, ...rest } = vocabularyFromTokenizer(files, PATHS);
    expect(tokens).toEqual(["<s>", "<unk>", "<0x00>", "▁", "a", "▁a", "aa", "[PAD7]", "[PAD8]", "<x>"]);
    expect([...tokenTypes!]).toEqual([3, 2, 6, 1, 1, 1, 1, 5, 5, 4]);
    expect([...scores!]).toEqual([-2, -2, -2, -2, -2, -1, -0, -2, -2, -2]);
    expect(rest).toEqual({
      model: "llama",
      bosId: 0,
      eosId: 0,
      unknownId: 1,
      addBos: true,
      addEos: false,
      addSpacePrefix: true,
      chatTemplate: "d",
    });
  });

  const split = (...patterns: readonly string[]) => ({
    decoder: { type: "ByteLevel" },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        ...patterns.map((Regex) => ({ type: "Split", pattern: { Regex } })),
        { type: "ByteLevel" },
      ],
    },
  });
  const digits = (individual_digits: boolean) => ({
    decoder: { type: "ByteLevel" },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [{ type: "Digits", individual_digits }, { type: "ByteLevel" }],
    },
  });
  const qwen2 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

  it.each([
    ["qwen2", split(qwen2)],
    ["llama-bpe", split(qwen2.replace("|\\p{N}|", "|\\p{N}{1,3}|"))],
    ["gpt-2", { decoder: { type: "ByteLevel" }, pre_tokenizer: { type: "ByteLevel" } }],
    ["smollm", digits(true)],
    ["tekken", split(TEKKEN_PATTERN)],
    ["gpt-4o", split(GPT4O_PATTERN)],
    ["deepseek-v3", split(...DEEPSEEK3_PATTERNS)],
    ["deepseek-coder", split(...DEEPSEEK_CODER_PATTERNS)],
  ])("knows the rules of %s", (pre, parts) => {
    expect(vocabularyFromTokenizer(bpe(parts), PATHS).pre).toBe(pre);
  });

  it("refuses what has no counterpart", () => {
    const from = (files: TokenizerFiles) => () => vocabularyFromTokenizer(files, PATHS);
    expect(from(bpe(split("x+")))).toThrow(ConfigError);
    expect(from(bpe(split("x+")))).toThrow(
      /pre_tokenizer: must split text by rules that llama.cpp has a name for; got \["x\+"\]/,
    );
    // Some of the patterns of a name are not that name, nor are runs of digits single ones.
    expect(from(bpe(split(...DEEPSEEK3_PATTERNS.slice(0, 2))))).toThrow(/pre_tokenizer: must split text/);
    expect(from(bpe(digits(false)))).toThrow(/pre_tokenizer: must split text.*Digits/);
    expect(from(bpe({}, { byte_fallback: false }))).toThrow(
      /must encode bytes, fall back to bytes, or have no merges/,
    );
    expect(from(bpe({}, { type: "Unigram" }))).toThrow(/tokenizer.json: model.type/);
    expect(from({ ...bpe({}), tokenizer: "{" })).toThrow(FormatError);
    expect(from({ ...bpe({}), config: '{"eos_token":"<none>"}' })).toThrow(
      /eos_token: must be in the vocabulary/,
    );
    expect(from(bpe({ added_tokens: [{ id: 2 ** 30, content: "x", special: true }] }))).toThrow(
      /ids must be below/,
    );
  });
});

const deepseek = fileURLToPath(new URL("../../../../../shared/data/tokenizer-deepseek-v3/", import.meta.url));
describe.skipIf(!existsSync(join(deepseek, "tokenizer.json")))("a published tokenizer", () => {
  it("of Deepseek-V3 is taken whole", async () => {
    const files = { ...(await readTokenizerFiles(deepseek)) };
    const vocabulary = vocabularyFromTokenizer(files, tokenizerPaths(deepseek));
    expect(vocabulary.pre).toBe("deepseek-v3");
    expect(vocabulary.tokens.at(vocabulary.bosId!)).toBe("<｜begin▁of▁sentence｜>");
    expect(vocabulary.merges!.length).toBeGreaterThan(100_000);
  });
});
