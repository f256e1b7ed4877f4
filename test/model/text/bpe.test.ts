import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FormatError } from "../../../src/base/errors.ts";
import { AddedTokenMatcher } from "../../../src/model/text/added-tokens.ts";
import {
  BYTE_CHARACTERS,
  fromByteCharacters,
  toByteCharacters,
  utf8,
} from "../../../src/model/text/byte-level.ts";
import { MergeHeap } from "../../../src/model/text/merge-heap.ts";
import { type Merge, mergeSymbols } from "../../../src/model/text/merging.ts";
import { fromOniguruma } from "../../../src/model/text/oniguruma.ts";
import { byteLevelPreTokenizer } from "../../../src/model/text/pre-tokenizer.ts";
import { withinTime } from "../../../src/model/text/time-limit.ts";
import { parseTokenizer, type Tokenizer } from "../../../src/model/text/tokenizer.ts";

describe("mergeSymbols", () => {
  type Find = (left: number, right: number) => Merge | undefined;

  /** Byte-pair encoding as it is told: look at all neighbours, merge the best, begin again. */
  function slowly(symbols: readonly number[], find: Find): number[] {
    const ids = [...symbols];
    for (;;) {
      let best: { at: number; merge: Merge } | undefined;
      for (let at = 0; at + 1 < ids.length; at++) {
        const merge = find(ids[at]!, ids[at + 1]!);
        if (merge !== undefined && (best === undefined || merge.rank < best.merge.rank)) best = { at, merge };
      }
      if (best === undefined) return ids;
      ids.splice(best.at, 2, best.merge.id);
    }
  }

  /** Three letters, and merges of any earlier ids. */
  const rules = fc.array(fc.tuple(fc.nat(30), fc.nat(30)), { maxLength: 20 }).map((pairs) => {
    const merges = new Map<string, Merge>();
    for (const [i, [a, b]] of pairs.entries()) {
      const key = `${a % (3 + i)},${b % (3 + i)}`;
      if (!merges.has(key)) merges.set(key, { rank: i, id: 3 + i });
    }
    return merges;
  });

  it("merges as the slow loop does, whatever the rules", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(2), { maxLength: 40 }), rules, (symbols, merges) => {
        const find: Find = (left, right) => merges.get(`${left},${right}`);
        expect(mergeSymbols(symbols, find)).toEqual(slowly(symbols, find));
      }),
      { numRuns: 2000 },
    );
  });

  it("takes a million equal letters in their stride", () => {
    // a+a=1, 1+1=2, …: merged level by level, 2^20 letters become one symbol.
    const find: Find = (left, right) => (left === right ? { rank: left, id: left + 1 } : undefined);
    expect(mergeSymbols(new Array(2 ** 20).fill(0), find)).toEqual([20]);
  });
});

describe("MergeHeap", () => {
  it("gives its keys in order", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(50)), (keys) => {
        const heap = new MergeHeap();
        for (const key of keys) heap.push(key);
        const out = keys.map(() => heap.pop());
        expect(out).toEqual([...keys].sort((a, b) => a - b));
        expect(heap.pop()).toBeUndefined();
      }),
    );
  });
});

describe("byte characters", () => {
  it("are GPT-2's: 256 that print, the space as Ġ, the line break as Ċ", () => {
    expect(new Set(BYTE_CHARACTERS).size).toBe(256);
    expect(BYTE_CHARACTERS[0x20]).toBe("Ġ");
    expect(BYTE_CHARACTERS[0x0a]).toBe("Ċ");
    expect(BYTE_CHARACTERS[0xad]).toBe("Ń");
    expect(toByteCharacters(utf8("é a"))).toBe("Ã©Ġa");
    expect(BYTE_CHARACTERS.join("")).not.toMatch(/[\s\p{C}]/u);
  });

  it("go back to their bytes, and what is none of them is its own UTF-8", () => {
    const all = Uint8Array.from({ length: 256 }, (_, i) => i);
    expect(fromByteCharacters(toByteCharacters(all))).toEqual(all);
    expect(fromByteCharacters("a✓")).toEqual(utf8("a✓"));
  });
});

describe("fromOniguruma", () => {
  const rows: [source: string, text: string, matches: string[]][] = [
    ["\\s+", "a \u0085b\ufeff\u2028c", [" \u0085", "\u2028"]],
    ["[^\\S\\r]+", " \r\t", [" ", "\t"]],
    ["\\d", "1٣½", ["1", "٣"]],
    ["\\w+", "aé_1-٣", ["aé_1", "٣"]],
    ["(?i:'s|'LL)x?", "'S'ſ'll'lLx'k", ["'S", "'ſ", "'ll", "'lLx"]],
    ["^a|b$", "a\nab\na b", ["a", "a", "b", "a", "b"]],
    [".+", "a\r\u2028b\nc", ["a\r\u2028b", "c"]],
    ["\\p{Han}+", "漢字kana", ["漢字"]],
    ["\\p{^L}", "a1", ["1"]],
    ["[\\-/a]{2,}?", "a-/", ["a-"]],
    ["\\x41|\\u0042|\\x{1F600}", "AB😀", ["A", "B", "😀"]],
    ["\\Aa|a\\z", "aaa", ["a", "a"]],
    ["a/]", "a/]", ["a/]"]],
  ];
  it.each(rows)("%s in %j", (source, text, matches) => {
    expect([...text.matchAll(fromOniguruma(source)!)].map(([match]) => match)).toEqual(matches);
  });

  it.each([
    "a++",
    "a?+",
    "(?>a)",
    "(?<n>a)",
    "(?i)a",
    "[a[b]]",
    "[a&&b]",
    "[[:alpha:]]",
    "\\h",
    "\\1",
    "\\bx",
    "a{,3}",
    "(a",
    "a)",
    "[a",
    "\\",
    "*",
    "(?i:[a])",
    "(?i:ß)",
    "\\p{Alpha}",
    "[b-a]",
    "[\\W]",
  ])("gives up on %s", (source) => {
    expect(fromOniguruma(source)).toBeUndefined();
  });
});

describe("pre-tokenizers", () => {
  const BYTES = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
  const cut = (steps: object[], text: string) =>
    byteLevelPreTokenizer({ type: "Sequence", pretokenizers: [...steps, BYTES] })!.split(text);

  // The reference's own examples, of "the-final--countdown" split at "-".
  const rows: [behavior: string, pieces: string[]][] = [
    ["Removed", ["the", "final", "countdown"]],
    ["Isolated", ["the", "-", "final", "-", "-", "countdown"]],
    ["MergedWithPrevious", ["the-", "final-", "-", "countdown"]],
    ["MergedWithNext", ["the", "-final", "-", "-countdown"]],
    ["Contiguous", ["the", "-", "final", "--", "countdown"]],
  ];
  it.each(rows)("Split: %s", (behavior, pieces) => {
    for (const pattern of [{ String: "-" }, { Regex: "-" }]) {
      const split = { type: "Split", pattern, behavior, invert: false };
      expect(cut([split], "the-final--countdown")).toEqual(pieces);
    }
  });

  it("Split: inverted, the pattern is what lies between", () => {
    const split = { type: "Split", pattern: { Regex: "\\p{L}+" }, behavior: "Removed", invert: true };
    expect(cut([split], "a, bc")).toEqual(["a", "bc"]);
    expect(cut([{ ...split, pattern: { Regex: "x*" }, behavior: "Isolated", invert: false }], "axb")).toEqual(
      ["a", "x", "b"],
    );
  });

  it("Digits knows every script's digits, one by one or together", () => {
    const digits = (individual_digits: boolean) => ({ type: "Digits", individual_digits });
    expect(cut([digits(true)], "a12½٣b")).toEqual(["a", "1", "2", "½", "٣", "b"]);
    expect(cut([digits(false)], "a12½٣b")).toEqual(["a", "12½٣", "b"]);
  });

  it("ByteLevel splits as GPT-2 does, or not at all, and may begin with a space", () => {
    const text = "I'll  go\n\n to 12 pubs!";
    const words = ["I", "'ll", " ", " go", "\n\n", " to", " 12", " pubs", "!"];
    expect(byteLevelPreTokenizer({ ...BYTES, use_regex: true })!.split(text)).toEqual(words);
    expect(byteLevelPreTokenizer(BYTES)!.split(text)).toEqual([text]);
    expect(byteLevelPreTokenizer({ ...BYTES, add_prefix_space: true })!.split("a")).toEqual([" a"]);
    expect(byteLevelPreTokenizer(BYTES)!.split("")).toEqual([]);
  });

  it("leaves what it does not know to others", () => {
    expect(byteLevelPreTokenizer({ type: "Whitespace" })).toBeUndefined();
    expect(byteLevelPreTokenizer(null)).toBeUndefined();
    expect(
      byteLevelPreTokenizer({ type: "Sequence", pretokenizers: [{ type: "Odd" }, BYTES] }),
    ).toBeUndefined();
  });
});

describe("AddedTokenMatcher", () => {
  const shown = (tokens: [content: string, flags?: object][], text: string) =>
    new AddedTokenMatcher(
      tokens.map(([content, flags], id) => ({ id, content, special: true, ...flags })),
      "tokenizer.json",
    )
      .split(text)
      .map((segment) => ("id" in segment ? segment.id : segment.text));

  it("takes the leftmost, and of those the longest", () => {
    expect(shown([["<a>"], ["<a><b>"], ["b>c"]], "x<a><b>c<a>")).toEqual(["x", 1, "c", 0]);
    expect(shown([["ab"], ["abcd"]], "abcabcd")).toEqual([0, "c", 1]);
  });

  it("takes white space along, and only whole words, where the token says so", () => {
    expect(shown([["<m>", { lstrip: true }]], "a  <m> b")).toEqual(["a", 0, " b"]);
    expect(shown([["<m>", { rstrip: true }]], "a <m> \nb")).toEqual(["a ", 0, "b"]);
    expect(shown([["cat", { singleWord: true }]], "cats cat.")).toEqual(["cats ", 0, "."]);
  });
});

describe("withinTime", () => {
  it("gives what the function gives, and its errors", () => {
    expect(withinTime(1000, "x", () => withinTime(1000, "y", () => 7) + 1)).toBe(8);
    expect(() => withinTime(1000, "x", () => JSON.parse("{"))).toThrow(SyntaxError);
  });

  it("stops a loop and a pattern that has no end", () => {
    const endless = () => {
      for (;;);
    };
    expect(() => withinTime(20, "the loop", endless)).toThrow(FormatError);
    expect(() => withinTime(20, "the loop", endless)).toThrow("the loop: must be done within 0.02 seconds");
    expect(() => withinTime(20, "pattern", () => /^(a+)+$/.test(`${"a".repeat(64)}b`))).toThrow(FormatError);
    expect(withinTime(1000, "x", () => 1)).toBe(1);
  });
});

/** A tokenizer of all bytes, the merges given, and tokens of every kind. */
function byteTokenizer(change: { tokenizer?: object; model?: object; config?: object } = {}): Tokenizer {
  const merges = ["a a", "aa aa", "Ã ©"];
  const tokens = [...BYTE_CHARACTERS, ...merges.map((merge) => merge.replace(" ", "")), "<s>", "__proto__"];
  const added = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const tokenizer = {
    added_tokens: [
      { ...added, id: 259, content: "<s>", special: true },
      { ...added, id: 300, content: "<|tool|>", special: false },
      { ...added, id: 301, content: "ü", special: false, normalized: true },
    ],
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    model: {
      type: "BPE",
      // As JSON.parse makes it: a token may be called `__proto__`.
      vocab: JSON.parse(`{${tokens.map((token, id) => `${JSON.stringify(token)}:${id}`).join(",")}}`),
      merges,
      ...change.model,
    },
    ...change.tokenizer,
  };
  const config = { bos_token: "<s>", eos_token: "<s>", ...change.config };
  const paths = { tokenizer: "tokenizer.json", config: "tokenizer_config.json" };
  return parseTokenizer({ tokenizer: JSON.stringify(tokenizer), config: JSON.stringify(config) }, paths);
}

describe("byte-level byte-pair tokenizers", () => {
  const BYTE = (character: string) => BYTE_CHARACTERS.indexOf(character);

  it("merge bytes, within words alone", () => {
    const tokenizer = byteTokenizer();
    expect(tokenizer.encode("aaaaaé")).toEqual([257, BYTE("a"), 258]);
    expect(tokenizer.encode("aa aa")).toEqual([256, BYTE("Ġ"), 256]);
    expect(tokenizer.vocabSize).toBe(302);
  });

  it("recognise control tokens in text only where they may", () => {
    const tokenizer = byteTokenizer();
    const text = "<s>a<|tool|>ü";
    expect(tokenizer.encode(text)).toEqual([259, BYTE("a"), 300, 301]);
    const plain = tokenizer.encode(text, { allowSpecial: false });
    expect(plain).not.toContain(259);
    expect(plain).not.toContain(300);
    expect(plain.at(-1)).toBe(301); // A letter, though added later.
    for (const ids of [tokenizer.encode(text), plain]) expect(tokenizer.decode(ids)).toBe(text);
    expect(tokenizer.decode(tokenizer.encode(text), { skipSpecial: true })).toBe("a<|tool|>ü");
  });

  it("begin texts with the begin token as config says, else as the post-processor", () => {
    const template = (id: string) => ({
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    });
    const post_processor = { type: "Sequence", processors: [{ type: "ByteLevel" }, template("<s>")] };
    expect(byteTokenizer().addsBos).toBe(false);
    expect(byteTokenizer({ tokenizer: { post_processor } }).addsBos).toBe(true);
    expect(byteTokenizer({ tokenizer: { post_processor: template("[CLS]") } }).addsBos).toBe(false);
    expect(byteTokenizer({ config: { add_bos_token: true } }).addsBos).toBe(true);
    const config = { add_bos_token: false };
    expect(byteTokenizer({ tokenizer: { post_processor }, config }).addsBos).toBe(false);
  });

  it("normalize where the file says so, between the two kinds of added tokens", () => {
    const composed = byteTokenizer({ tokenizer: { normalizer: { type: "NFC" } } });
    expect(composed.encode("u\u0308e\u0301")).toEqual([301, 258]);
    expect(byteTokenizer().encode("e\u0301")[0]).toBe(BYTE("e"));
  });

  it("take a word that is a token for that token, where merges are to be ignored", () => {
    const tokenizer = { pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: false } };
    expect(byteTokenizer({ tokenizer, model: { ignore_merges: true } }).encode("__proto__")).toEqual([260]);
    expect(byteTokenizer({ tokenizer }).encode("__proto__").length).toBe(9);
  });

  it("may have ids with gaps, and tokens in another order than their merges", () => {
    const bytes = BYTE_CHARACTERS.map((token, id) => [token, 3 * id] as const);
    const vocab = Object.fromEntries([...bytes, ["aaaa", 900], ["Ã©", 2], ["aa", 901], ["<s>", 1]]);
    const tokenizer = byteTokenizer({ model: { vocab } });
    expect(tokenizer.encode("aaaaaé")).toEqual([900, 3 * BYTE("a"), 2]);
    expect(tokenizer.decode([900, 901, 2])).toBe("aaaaaaé");
    expect(tokenizer.vocabSize).toBe(902);
    expect(() => tokenizer.decode([4])).toThrow("must be in the vocabulary, below 902; got 4");
  });

  it("may have several tokens of one id, which count once", () => {
    const vocab = Object.fromEntries(BYTE_CHARACTERS.map((token, id) => [token, id >> 1]));
    const tokenizer = { added_tokens: [] };
    const small = byteTokenizer({ model: { vocab: { ...vocab, "<s>": 5 }, merges: [] }, tokenizer });
    expect(small.vocabSize).toBe(128);
  });

  it("may have spaces in the tokens of a pair", () => {
    const vocab = Object.fromEntries(
      [...BYTE_CHARACTERS, "a b", "a ", "<s>"].map((token, id) => [token, id]),
    );
    const model = {
      vocab: { ...vocab, " ": 300 },
      merges: [
        ["a", " "],
        ["a ", "b"],
      ],
    };
    expect(() => byteTokenizer({ model })).not.toThrow();
  });

  it("say what they cannot write or read", () => {
    const { z: _, ...vocab } = Object.fromEntries(BYTE_CHARACTERS.map((token, id) => [token, id]));
    const small = byteTokenizer({ model: { vocab: { ...vocab, "<s>": 259 }, merges: [] } });
    expect(() => small.encode("fuzzy")).toThrow(FormatError);
    expect(() => small.encode("fuzzy")).toThrow(
      'must be expressible in the tokenizer\'s vocabulary; got "fuzzy"',
    );
    expect(() => small.decode([256])).toThrow("must be in the vocabulary, below 302; got 256");
    expect(() => byteTokenizer({ model: { merges: ["a q"] } })).toThrow(
      'tokenizer.json: merge 0: must be of two tokens of the vocabulary, and make a third; got "a q"',
    );
  });

  it("give back any text, also against the grain of their patterns", () => {
    const own = {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: "[a-z]+x|\\s+" }, behavior: "Isolated", invert: false },
        { type: "ByteLevel", add_prefix_space: false, use_regex: false },
      ],
    };
    for (const pre_tokenizer of [own, own.pretokenizers[1]!]) {
      const tokenizer = byteTokenizer({ tokenizer: { pre_tokenizer } });
      fc.assert(
        fc.property(fc.string({ unit: "grapheme" }), fc.boolean(), (text, allowSpecial) => {
          expect(tokenizer.decode(tokenizer.encode(text, { allowSpecial }))).toBe(text);
        }),
      );
    }
  });

  it("encode a megabyte of one letter, mark or space", () => {
    const tokenizer = byteTokenizer();
    for (const letter of ["a", "<", " "]) {
      const text = letter.repeat(2 ** 20);
      expect(tokenizer.decode(tokenizer.encode(text)) === text).toBe(true);
    }
  });

  it("stop at a pattern of the file's own that never ends", () => {
    const pattern = { Regex: "(\\w+\\s?)+$" };
    const pre_tokenizer = {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern, behavior: "Isolated", invert: false },
        { type: "ByteLevel", add_prefix_space: false, use_regex: false },
      ],
    };
    const tokenizer = byteTokenizer({ tokenizer: { pre_tokenizer } });
    expect(() => tokenizer.encode(`${"a".repeat(60)}!`)).toThrow(
      "pre_tokenizer: must be done within 5 seconds",
    );
  });
});
