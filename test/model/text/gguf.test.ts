import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ConfigError, FormatError } from "../../../src/base/errors.ts";
import { BYTE_CHARACTERS } from "../../../src/model/text/byte-level.ts";
import { type GgufVocabulary, tokenizerFromGguf } from "../../../src/model/text/gguf.ts";
import { TextStream } from "../../../src/model/text/stream.ts";
import { loadTokenizer } from "../../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";

const BYTES = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`);

/** A small SentencePiece vocabulary: pieces and their scores after the bytes. */
function spm(pieces: Readonly<Record<string, number>>, change: Partial<GgufVocabulary> = {}): GgufVocabulary {
  const tokens = ["<unk>", "<s>", "</s>", ...BYTES, ...Object.keys(pieces)];
  return {
    model: "llama",
    tokens,
    scores: Float32Array.from([0, 0, 0, ...BYTES.map(() => 0), ...Object.values(pieces)]),
    tokenTypes: Int32Array.from([2, 3, 3, ...BYTES.map(() => 6), ...Object.keys(pieces).map(() => 1)]),
    unknownId: 0,
    bosId: 1,
    eosId: 2,
    ...change,
  };
}

const PIECES = { "▁": -9, a: -10, b: -11, ab: -1, "▁ab": -3, "▁a": -2, abab: -4, xy: -5 };
const shown = (vocabulary: GgufVocabulary, text: string, options?: { allowSpecial: boolean }) =>
  tokenizerFromGguf(vocabulary)
    .encode(text, options)
    .map((id) => vocabulary.tokens.at(id));

describe("SentencePiece vocabularies", () => {
  it("merge by score, the leftmost of equals first, and spell the rest in bytes", () => {
    const rows: [string, string[]][] = [
      ["", []],
      ["ab", ["▁ab"]],
      ["abab", ["▁ab", "ab"]],
      ["babab", ["▁", "b", "abab"]],
      ["ba", ["▁", "b", "a"]],
      ["aé", ["▁a", "<0xC3>", "<0xA9>"]],
      // x and y are no pieces, but together they are one.
      ["xyx", ["▁", "xy", "<0x78>"]],
      [" a", ["▁", "▁a"]],
      ["\n", ["▁", "<0x0A>"]],
    ];
    for (const [text, tokens] of rows) expect(shown(spm(PIECES), text), text).toEqual(tokens);
    const equal = { "▁": -9, a: -1, aa: -2 };
    expect(shown(spm(equal), "aaa")).toEqual(["▁", "aa", "a"]);
  });

  it("put a space before every text, also after special tokens, or none", () => {
    expect(shown(spm(PIECES), "<s>a<s>ab")).toEqual(["<s>", "▁a", "<s>", "▁ab"]);
    expect(shown(spm(PIECES, { addSpacePrefix: false }), "a<s>ab")).toEqual(["a", "<s>", "ab"]);
  });

  it("take control tokens in text for characters where they are not allowed", () => {
    const tokens = shown(spm(PIECES), "<s>", { allowSpecial: false });
    expect(tokens).toEqual(["▁", "<0x3C>", "<0x73>", "<0x3E>"]);
    // A piece that spells a byte is no byte.
    expect(shown(spm(PIECES), "<0x0A>")).not.toContain("<0x0A>");
  });

  it("use the unknown token where there are no bytes, or say what they lack", () => {
    const tokens = ["<unk>", "<s>", "</s>", "▁", "a"];
    const scores = Float32Array.from([0, 0, 0, -1, -2]);
    const bare = { model: "llama", tokens, scores, tokenTypes: Int32Array.from([2, 3, 3, 1, 1]), eosId: 2 };
    expect(tokenizerFromGguf({ ...bare, unknownId: 0 }).encode("aé")).toEqual([3, 4, 0]);
    expect(() => tokenizerFromGguf(bare).encode("aé")).toThrow('tokenizer\'s vocabulary; got "é"');
  });

  const texts = fc
    .array(fc.oneof(fc.constantFrom("a", "b", " ", "xy", "<s>", "é"), fc.string({ unit: "grapheme" })))
    .map((parts) => parts.join("").replaceAll("▁", "_"));

  it("give back every text, whole and in pieces", () => {
    for (const addSpacePrefix of [true, false]) {
      const tokenizer = tokenizerFromGguf(spm(PIECES, { addSpacePrefix }));
      fc.assert(
        fc.property(texts, fc.boolean(), (text, allowSpecial) => {
          const ids = tokenizer.encode(text, { allowSpecial });
          expect(tokenizer.decode(ids)).toBe(text);
          const stream = new TextStream(tokenizer);
          const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
          expect(pieces.join("")).toBe(tokenizer.decode(ids, { skipSpecial: true }));
        }),
        { numRuns: 300 },
      );
    }
  });

  it("merge as a slow loop over texts does", () => {
    const slowly = (text: string): string[] => {
      const symbols = [..."▁", ...text.replaceAll(" ", "▁")];
      const score = (at: number): number =>
        (PIECES as Record<string, number>)[`${symbols[at]}${symbols[at + 1]}`] ?? Number.NEGATIVE_INFINITY;
      for (;;) {
        const scores = symbols.slice(1).map((_, at) => score(at));
        const best = Math.max(...scores);
        if (best === Number.NEGATIVE_INFINITY) return symbols;
        symbols.splice(scores.indexOf(best), 2, symbols.slice(scores.indexOf(best)).slice(0, 2).join(""));
      }
    };
    const vocabulary = spm(PIECES);
    const tokenizer = tokenizerFromGguf(vocabulary);
    fc.assert(
      fc.property(fc.array(fc.constantFrom("a", "b", " "), { minLength: 1, maxLength: 30 }), (letters) => {
        const text = letters.join("");
        expect(tokenizer.encode(text).map((id) => vocabulary.tokens.at(id))).toEqual(slowly(text));
      }),
      { numRuns: 500 },
    );
  });

  it("encode a megabyte of one letter, in a piece or in none", () => {
    const tokenizer = tokenizerFromGguf(spm(PIECES));
    for (const letter of ["a", "z"]) {
      const text = letter.repeat(2 ** 20);
      expect(tokenizer.decode(tokenizer.encode(text)) === text).toBe(true);
    }
  });

  it("are, saved, a tokenizer.json of the same ids", async () => {
    const folder = await temporaryFolder();
    const tokenizer = tokenizerFromGguf(spm(PIECES));
    await tokenizer.save(folder);
    const again = await loadTokenizer(folder);
    for (const text of ["ab", "abab ba", "aé\n", "<s>"]) {
      expect(again.encode(text), text).toEqual(tokenizer.encode(text));
    }
    expect(again).toMatchObject({ addsBos: true, bosId: 1, eosId: 2, padId: 2 });
  });
});

/** All bytes, one merge and the end token, of a named pre-tokenizer. */
function bpe(pre: string | undefined, change: Partial<GgufVocabulary> = {}): GgufVocabulary {
  return {
    model: "gpt2",
    ...(pre === undefined ? {} : { pre }),
    tokens: [...BYTE_CHARACTERS, "11", "<|end|>", "Ġa", "12"],
    tokenTypes: Int32Array.from([...BYTE_CHARACTERS.map(() => 1), 1, 3, 1, 1]),
    merges: ["1 1", "Ġ a", "1 2"],
    eosId: 257,
    bosId: 257,
    ...change,
  };
}

describe("byte-pair vocabularies of GGUF files", () => {
  const words = (pre: string, text: string) => {
    const vocabulary = bpe(pre);
    return tokenizerFromGguf(vocabulary)
      .encode(text)
      .map((id) => vocabulary.tokens.at(id));
  };

  it("cut text as the pre-tokenizer that they name", () => {
    for (const pre of ["gpt-2", "llama-bpe", "deepseek-v3", "deepseek-llm"]) {
      expect(words(pre, "11 a"), pre).toEqual(["11", "Ġa"]);
    }
    for (const pre of ["smollm", "starcoder", "qwen2", "deepseek-r1-qwen", "deepseek-coder"]) {
      expect(words(pre, "11 a"), pre).toEqual(["1", "1", "Ġa"]);
    }
    for (const pre of ["llama3", "falcon3", "dbrx", "glm4", "gpt-4o", "hunyuan-dense", "phi-2", "exaone4"]) {
      expect(words(pre, "11 a"), pre).toEqual(["11", "Ġa"]);
    }
    for (const pre of ["tekken", "qwen35", "command-r", "exaone", "minerva-7b", "megrez"]) {
      expect(words(pre, "11 a"), pre).toEqual(["1", "1", "Ġa"]);
    }
    // Groups of three digits, from the left.
    expect(words("llama-bpe", "1112")).toEqual(["11", "1", "2"]);
    expect(words("gpt-2", "1112")).toEqual(["11", "12"]);
    // Qwen composes characters; others leave them.
    expect(words("qwen2", "e\u0301")).toEqual(["Ã", "©"]);
    expect(words("smollm", "e\u0301").length).toBe(3);
    expect(words("command-r", "e\u0301")).toEqual(["Ã", "©"]);
  });

  it("begin a word at a capital after small letters, where the pre-tokenizer does", () => {
    const merges = ["a A", "a aA", "A a"];
    const cut = (pre: string, text: string): string[] => {
      const vocabulary = bpe(pre, {
        tokens: [...BYTE_CHARACTERS, "aA", "<|end|>", "aaA", "Aa"],
        merges,
      });
      return tokenizerFromGguf(vocabulary)
        .encode(text)
        .map((id) => vocabulary.tokens.at(id)!);
    };
    // Within one word "a A" is merged first; where a capital begins another, it is with what follows it.
    expect(cut("gpt-2", "aAa")).toEqual(["aA", "a"]);
    for (const pre of ["tekken", "gpt-4o", "llama4"]) expect(cut(pre, "aAa"), pre).toEqual(["a", "Aa"]);
  });

  it("begin texts as the file says, else as models of their kind do", () => {
    expect(tokenizerFromGguf(bpe("gpt-2")).addsBos).toBe(false);
    expect(tokenizerFromGguf(bpe("llama-bpe")).addsBos).toBe(true);
    for (const pre of ["llama3", "pixtral", "tekken"])
      expect(tokenizerFromGguf(bpe(pre)).addsBos, pre).toBe(true);
    for (const pre of ["dbrx", "gpt-4o"]) expect(tokenizerFromGguf(bpe(pre)).addsBos, pre).toBe(false);
    expect(tokenizerFromGguf(bpe("llama-bpe", { addBos: false })).addsBos).toBe(false);
    expect(tokenizerFromGguf(bpe("gpt-2", { addBos: true })).addsBos).toBe(true);
  });

  it("say what is missing, unknown or does not fit", () => {
    const rows: [GgufVocabulary, new (...args: never[]) => Error, string][] = [
      [bpe("gpt2"), ConfigError, "tokenizer.ggml.pre: must be one of gpt-2, mpt, olmo"],
      [bpe(undefined), ConfigError, 'got "nothing"'],
      [
        { ...bpe("gpt-2"), model: "bert" },
        ConfigError,
        'tokenizer.ggml.model: must be gpt2 or llama; got "bert"',
      ],
      [
        bpe("gpt-2", { merges: ["a"] }),
        FormatError,
        'must each be two tokens with one space between; got "a"',
      ],
      [bpe("gpt-2", { merges: ["a b"] }), FormatError, "merge 0: must be of two tokens of the vocabulary"],
      [
        bpe("gpt-2", { eosId: 999 }),
        FormatError,
        "tokenizer.ggml.eos_token_id: must be one of the 260 tokens; got 999",
      ],
      [bpe("gpt-2", { tokens: ["a", "a"] }), FormatError, 'must differ from each other; got "a" for 0 and 1'],
      [
        spm(PIECES, { scores: new Float32Array(300).fill(Number.NaN) }),
        FormatError,
        "scores: must be a number for each",
      ],
    ];
    const { merges: _, ...noMerges } = bpe("gpt-2");
    rows.push([noMerges, FormatError, "tokenizer.ggml.merges: must be there for gpt2; got nothing"]);
    const { scores: __, ...noScores } = spm(PIECES);
    rows.push([noScores, FormatError, "tokenizer.ggml.scores: must be there for llama; got nothing"]);
    const { eosId: ___, ...noEnd } = spm(PIECES);
    rows.push([noEnd, FormatError, "tokenizer.ggml.eos_token_id: must be one of the"]);
    for (const [vocabulary, kind, message] of rows) {
      expect(() => tokenizerFromGguf(vocabulary)).toThrow(kind);
      expect(() => tokenizerFromGguf(vocabulary)).toThrow(message);
    }
  });
});
