import { existsSync } from "node:fs";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeEach, describe, expect, it } from "vitest";
import { saveModelFolder } from "../../../../src/model/checkpoint/folder.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { fixturePath } from "../../../fixture.ts";
import { babbler } from "../../../model/tiny-model.ts";
import { pondera } from "../harness.ts";
import { sitAt } from "../terminal.ts";
import { makeRun } from "../tiny-run.ts";

let root: string;
let folder: string;
beforeEach(async () => {
  root = await temporaryFolder();
  folder = join(root, "tiny");
  await saveModelFolder(folder, babbler());
});

const tokenize = (argv: readonly string[], input?: string) =>
  pondera(["tokenize", "--runs", root, ...argv], input === undefined ? {} : { input });
const piecesOf = async (argv: readonly string[], input?: string): Promise<string[]> => {
  const { out } = await tokenize([...argv, "--json"], input);
  return (JSON.parse(out) as { tokens: { piece: string }[] }).tokens.map(({ piece }) => piece);
};

describe("pondera tokenize", () => {
  it("shows ids and pieces, the begin token first where the model's files say so", async () => {
    expect(await tokenize([folder, "1 \n"])).toEqual({
      code: 0,
      err: "",
      out: 'id  piece\n 1  "<bos>"  special\n16  "1"\n 8  " "\n 7  "\\n"\n4 tokens\n'.replace(/^id/, "id"),
    });
    expect(await piecesOf([folder, "1 ", "--no-bos"])).toEqual(["1", " "]);
  });

  it("tells a program the same", async () => {
    const { out } = await tokenize([folder, "1", "--json"]);
    expect(JSON.parse(out)).toEqual({
      model: folder,
      count: 2,
      tokens: [
        { id: 1, piece: "<bos>", special: true },
        { id: 16, piece: "1", special: false },
      ],
    });
    expect(JSON.parse((await tokenize([folder, "11", "--count", "--json"])).out)).toEqual({
      model: folder,
      count: 3,
    });
    expect((await tokenize([folder, "11", "--count"])).out).toBe("3\n");
  });

  it("takes text from a file and from standard input as it is, line breaks too", async () => {
    const file = join(root, "text");
    await writeFile(file, "1\n");
    for (const [argv, input] of [
      [["--file", file], undefined],
      [["--file", "-"], "1\n"],
      [["-"], "1\n"],
      [[], "1\n"],
    ] as const) {
      expect(await piecesOf([folder, ...argv], input)).toEqual(["<bos>", "1", "\n"]);
    }
    expect(await piecesOf([folder, ""])).toEqual(["<bos>"]);
  });

  it("spells a byte-level token with its space, and bytes that are no character as bytes", async () => {
    const bytes = join(root, "bytes");
    await cp(fixturePath("byte-level"), bytes, { recursive: true });
    await writeFile(join(bytes, "config.json"), "{}");
    const pieces = await piecesOf([bytes, "the the 💡"]);
    expect(pieces.join("")).toMatch(/the the (?:<0xF0><0x9F><0x92><0xA1>|💡)$/);
    expect(pieces.some((piece) => piece.startsWith(" "))).toBe(true);
  });

  it("knows special tokens written out, unless told otherwise", async () => {
    expect(await piecesOf([folder, "<think>1"])).toEqual(["<bos>", "<think>", "1"]);
    const { code, err } = await tokenize([folder, "<think>1", "--no-parse-special"]);
    expect(code).toBe(1);
    expect(err).toMatch(/position 0: every character must be in the tokenizer's alphabet; got "<"/);
    expect(await piecesOf([folder, "<bos>1"])).toEqual(["<bos>", "1"]);
  });

  it("finds a run's model by its name", async () => {
    await makeRun({ root, name: "one", model: babbler() });
    expect(await piecesOf(["one", "1"])).toEqual(["<bos>", "1"]);
  });

  it("lets no text reach a terminal as an escape sequence", async () => {
    const sly = join(root, "sly");
    await saveModelFolder(sly, babbler("a\u001b\u202e"));
    const terminal = sitAt(["tokenize", sly, "\u001b\u202ea"]);
    expect(await terminal.ended).toBe(0);
    expect(terminal.raw).toContain('"\\u001b"');
    for (const character of "\u001b\u202e") expect(terminal.raw).not.toContain(character);
  });

  it("says what is wrong", async () => {
    const both = await tokenize([folder, "1", "--file", "x"]);
    expect(both).toMatchObject({ code: 2 });
    expect(both.err).toMatch(/--file: must not come with a text; got both\. Leave one of them out\./);
    expect((await tokenize([folder, "--file", join(root, "none")])).err).toMatch(/none: must be readable/);
    const bytes = join(root, "bytes");
    await writeFile(bytes, Buffer.of(0xff));
    expect((await tokenize([folder, "--file", bytes])).err).toMatch(/must be UTF-8 text/);
    expect((await tokenize([join(root, "absent"), "1"])).code).not.toBe(0);
    const terminal = sitAt(["tokenize", folder]);
    expect(await terminal.ended).toBe(2);
  });
});

const VOCABULARY = fileURLToPath(
  new URL("../../../../../shared/data/tokenizer-llamacpp/ggml-vocab-deepseek-coder.gguf", import.meta.url),
);

describe.skipIf(!existsSync(VOCABULARY))("pondera tokenize, of a GGUF file without weights", () => {
  it("shows characters whose bytes are several tokens", async () => {
    const pieces = await piecesOf([VOCABULARY, "Hello 🫠"]);
    expect(pieces[1]).toBe("Hello");
    expect(pieces.slice(2).join("")).toMatch(/^ (?:<0x[0-9A-F]{2}>)+$|<0x/);
    expect((await tokenize([VOCABULARY, "Hello", "--count"])).out).toMatch(/^\d\n$/);
  });
});
