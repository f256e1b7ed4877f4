import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ConfigError, FileError, FormatError } from "../../../src/base/errors.ts";
import { characterTokenizer, loadTokenizer, type Tokenizer } from "../../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { ALPHABET } from "../../reference/saved-model.ts";

const FIXTURES = fileURLToPath(new URL("../../fixtures/", import.meta.url));
const SAVED = join(FIXTURES, "saved-model");
const RESAVED = join(FIXTURES, "tokenizer-resaved");
const BYTE_LEVEL = join(FIXTURES, "byte-level");

interface Expected {
  roles: Record<string, number>;
  texts: { text: string; ids: number[]; decoded: string; withoutSpecial: string }[];
}
const readExpected = async (file: string): Promise<Expected> =>
  JSON.parse(await readFile(join(FIXTURES, file), "utf8"));
const readJson = async (path: string) => JSON.parse(await readFile(path, "utf8"));

/** The library itself, on a folder's files: the oracle of the character encoder. */
async function openLibrary(folder: string): Promise<Library> {
  const tokenizer = await readJson(join(folder, "tokenizer.json"));
  return new Library(tokenizer, await readJson(join(folder, "tokenizer_config.json")));
}

function expectAsTransformers(tokenizer: Tokenizer, { roles, texts }: Expected) {
  expect(tokenizer).toMatchObject({
    bosId: roles["bosId"],
    eosId: roles["eosId"],
    vocabSize: roles["vocabSize"],
  });
  for (const { text, ids, decoded, withoutSpecial } of texts) {
    expect(tokenizer.encode(text), text).toEqual(ids);
    expect(tokenizer.decode(ids), text).toBe(decoded);
    expect(tokenizer.decode(ids, { skipSpecial: true }), text).toBe(withoutSpecial);
  }
}

describe("characterTokenizer", () => {
  const tokenizer = characterTokenizer({ alphabet: ALPHABET, modelMaxLength: 64 });

  it("encodes and decodes as transformers does from the files it saved", async () => {
    const expected = await readExpected("saved-model-expected.json");
    expectAsTransformers(tokenizer, expected);
    expect(tokenizer.padId).toBe(expected.roles["padId"]);
    expect(expected.roles["modelMaxLength"]).toBe(64);
  });

  it("writes the files that transformers was given", async () => {
    const folder = join(await temporaryFolder(), "new", "folder");
    await tokenizer.save(folder);
    for (const file of ["tokenizer.json", "tokenizer_config.json"]) {
      expect(await readFile(join(folder, file), "utf8")).toBe(await readFile(join(SAVED, file), "utf8"));
    }
  });

  it("gives ids by the characters alone, padding first", () => {
    const small = characterTokenizer({ alphabet: "ba" });
    expect(small.encode("<pad><bos><eos><think></think><answer></answer>ab")).toEqual([
      0, 1, 2, 3, 4, 5, 6, 7, 8,
    ]);
    expect(small).toMatchObject({ vocabSize: 9, padId: 0, bosId: 1, eosId: 2 });
    expect(characterTokenizer({ alphabet: "abab" }).encode("ba")).toEqual(small.encode("ba"));
  });

  it("takes other tags in place of think and answer, the longest first", () => {
    const tags = characterTokenizer({ alphabet: "<>=ab", special: ["<=", "<==>", "<a>"] });
    expect(tags.encode("<==><=><a><b>")).toEqual([4, 3, 8, 5, 6, 10, 8]);
    expect(tags.decode([4, 3, 0], { skipSpecial: true })).toBe("<==><=");
  });

  /** Any text of the alphabet and the tokens, whole and in pieces. */
  const anyText = fc
    .array(
      fc.oneof(
        fc.constantFrom(...ALPHABET),
        fc.constantFrom(
          "<pad>",
          "<bos>",
          "<eos>",
          "<think>",
          "</think>",
          "<answer>",
          "</answer>",
          "<thi",
          "</an",
          "nk>",
        ),
      ),
      { maxLength: 60 },
    )
    .map((parts) => parts.join(""));

  it("encodes and decodes as the library does", async () => {
    const library = await openLibrary(SAVED);
    fc.assert(
      fc.property(anyText, (text) => {
        const ids = tokenizer.encode(text);
        expect(ids).toEqual(library.encode(text, { add_special_tokens: false }).ids);
        if (ids.length === 0) return;
        const options = { clean_up_tokenization_spaces: false };
        expect(tokenizer.decode(ids)).toBe(library.decode(ids, options));
        expect(tokenizer.decode(ids, { skipSpecial: true })).toBe(
          library.decode(ids, { ...options, skip_special_tokens: true }),
        );
      }),
      { numRuns: 500 },
    );
  });

  it("gives back every text exactly, spaces, line breaks and digits too", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }),
      { numRuns: 500 },
    );
  });

  it("names a character outside its alphabet, and where it is", () => {
    expect(() => tokenizer.encode("1+1=ß")).toThrow(FormatError);
    expect(() => tokenizer.encode("1+1=ß")).toThrow(
      'text to encode, position 4: every character must be in the tokenizer\'s alphabet; got "ß" (U+00DF). Add it',
    );
    expect(() => tokenizer.encode("\r\n")).toThrow('got "\\r" (U+000D)');
    expect(() => tokenizer.encode("🤔")).toThrow("(U+1F914)");
    expect(() => tokenizer.encode("\ud835")).toThrow("(U+D835)");
  });

  it("refuses ids outside its vocabulary", () => {
    expect(() => tokenizer.decode([0, 71])).toThrow(FormatError);
    expect(() => tokenizer.decode([-1])).toThrow("token ids to decode: must be from 0 to 70; got -1.");
    expect(() => tokenizer.decode([1.5])).toThrow(FormatError);
  });

  it("refuses alphabets and special tokens that no file could hold or no text could tell apart", () => {
    const rows: [Parameters<typeof characterTokenizer>[0], string][] = [
      [{ alphabet: "" }, "alphabet: must hold a character"],
      [{ alphabet: "a\ud835" }, "(U+D835)"],
      [{ alphabet: "a", special: ["b"] }, "special: tokens must be longer than a character and differ"],
      [{ alphabet: "a", special: ["𝟙"] }, 'got "𝟙"'],
      [{ alphabet: "a", special: [""] }, 'got ""'],
      [{ alphabet: "a", special: ["<x>", "<x>"] }, 'got "<x>"'],
      [{ alphabet: "a", special: ["<pad>"] }, 'got "<pad>"'],
    ];
    for (const [options, message] of rows) {
      expect(() => characterTokenizer(options)).toThrow(ConfigError);
      expect(() => characterTokenizer(options)).toThrow(message);
    }
  });
});

describe("loadTokenizer", () => {
  it.each([
    ["files that characterTokenizer saved", SAVED],
    ["the same files as transformers saves them again", RESAVED],
  ])("%s: the character tokenizer, errors and all", async (_, folder) => {
    const tokenizer = await loadTokenizer(folder);
    expectAsTransformers(tokenizer, await readExpected("saved-model-expected.json"));
    expect(tokenizer.padId).toBe(0);
    expect(() => tokenizer.encode("ß")).toThrow("every character must be in the tokenizer's alphabet");
  });

  it("a byte-level BPE as Llama and Qwen have it: ids and texts of transformers, nothing added", async () => {
    const tokenizer = await loadTokenizer(BYTE_LEVEL);
    expectAsTransformers(tokenizer, await readExpected("byte-level/expected.json"));
    expect(tokenizer.padId).toBe(tokenizer.eosId); // It has no padding token.
    expect(tokenizer.decode([])).toBe("");
    expect(() => tokenizer.decode([304])).toThrow(/must be in the vocabulary, below 304; got 304/);
  });

  it("a byte-level BPE gives back any text", async () => {
    const tokenizer = await loadTokenizer(BYTE_LEVEL);
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }),
    );
  });

  it("saves the files as they were read", async () => {
    const folder = await temporaryFolder();
    await (await loadTokenizer(BYTE_LEVEL)).save(folder);
    for (const file of ["tokenizer.json", "tokenizer_config.json"]) {
      expect(await readFile(join(folder, file), "utf8")).toBe(await readFile(join(BYTE_LEVEL, file), "utf8"));
    }
  });

  /** A copy of a fixture's tokenizer with one file changed. */
  async function changed(source: string, file: string, change: (json: Record<string, unknown>) => unknown) {
    const folder = await temporaryFolder();
    await cp(source, folder, { recursive: true });
    const path = join(folder, file);
    const text = change(await readJson(path));
    await writeFile(path, typeof text === "string" ? text : JSON.stringify(text));
    return folder;
  }

  it("keeps the library for a vocabulary of characters that is used in another way", async () => {
    const folder = await changed(SAVED, "tokenizer.json", (json) => ({
      ...json,
      normalizer: { type: "Lowercase" },
    }));
    const library = await loadTokenizer(folder);
    const own = await loadTokenizer(SAVED);
    expect(library.encode("Z")).toEqual(own.encode("z"));
    for (const tokenizer of [library, own]) {
      expect(tokenizer.encode("<think>")).toEqual([3]);
      const letters = [..."<think>"].flatMap((letter) => tokenizer.encode(letter));
      expect(tokenizer.encode("<think>", { allowSpecial: false })).toEqual(letters);
    }
  });

  it("reads special tokens in transformers' older form", async () => {
    const folder = await changed(BYTE_LEVEL, "tokenizer_config.json", (json) => ({
      ...json,
      pad_token: { __type: "AddedToken", content: "<bos>", special: true },
    }));
    expect((await loadTokenizer(folder)).padId).toBe(300);
  });

  it("says what is missing or damaged", async () => {
    const missing = await changed(SAVED, "tokenizer.json", (json) => json);
    await rm(join(missing, "tokenizer_config.json"));
    await expect(loadTokenizer(missing)).rejects.toThrow(FileError);
    const rows: [string, (json: Record<string, unknown>) => unknown, string | RegExp][] = [
      ["tokenizer.json", () => "{", /tokenizer\.json: must be JSON/],
      ["tokenizer.json", () => [], /tokenizer\.json: must be an object; got \[\]/],
      [
        "tokenizer.json",
        ({ model, ...rest }) => rest,
        /tokenizer\.json: model: must be an object; got nothing/,
      ],
      [
        "tokenizer.json",
        ({ model, ...rest }) => ({ ...rest, model: { type: "Odd" } }),
        /tokenizer\.json: model: must describe a tokenizer.*Unknown TokenizerModel/,
      ],
      [
        "tokenizer.json",
        (json) => ({ ...json, pre_tokenizer: { type: "Odd" } }),
        /tokenizer\.json: pre_tokenizer: must describe a tokenizer/,
      ],
      [
        "tokenizer.json",
        ({ added_tokens, ...rest }) => rest,
        /added_tokens: must be a list of tokens; got nothing/,
      ],
      [
        "tokenizer_config.json",
        () => "[]",
        /tokenizer_config\.json: content: special tokens must be strings/,
      ],
      [
        "tokenizer_config.json",
        (json) => ({ ...json, eos_token: 2 }),
        /eos_token: special tokens must be strings/,
      ],
      ["tokenizer_config.json", ({ eos_token, ...rest }) => rest, /eos_token: must name the token that ends/],
      [
        "tokenizer_config.json",
        (json) => ({ ...json, pad_token: "<none>" }),
        /pad_token: must be in the vocab.*"<none>"/,
      ],
    ];
    for (const [file, change, message] of rows) {
      const load = loadTokenizer(await changed(SAVED, file, change));
      await expect(load).rejects.toThrow(FormatError);
      await expect(load).rejects.toThrow(message);
    }
  });
});
