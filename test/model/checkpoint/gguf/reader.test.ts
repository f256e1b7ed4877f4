import { readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { FileError, FormatError } from "../../../../src/base/errors.ts";
import { dequantizeInto } from "../../../../src/model/checkpoint/gguf/dequantize.ts";
import { openGguf } from "../../../../src/model/checkpoint/gguf/reader.ts";
import { ggmlTypeNames } from "../../../../src/model/checkpoint/gguf/types.ts";
import { StringTable } from "../../../../src/model/text/strings.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { fixturePath, readFixture } from "../../../fixture.ts";
import { GgufBytes } from "./bytes.ts";

const BLOCKS = fixturePath("gguf/blocks.gguf");

async function open(bytes: Uint8Array) {
  const file = join(await temporaryFolder(), "x.gguf");
  await writeFile(file, bytes);
  return await openGguf(file);
}

/** The whole of a tensor as float32. */
async function valuesOf(file: Awaited<ReturnType<typeof openGguf>>, name: string): Promise<Float32Array> {
  const { type, shape, bytes } = file.tensors.get(name)!;
  const blocks = new Uint8Array(bytes);
  await file.readInto(name, blocks, 0);
  const values = new Float32Array(shape.reduce((a, b) => a * b));
  dequantizeInto(type, blocks, values);
  return values;
}

describe("a file that gguf-py wrote", () => {
  it("gives metadata of every type", async () => {
    await using file = await openGguf(BLOCKS);
    expect(file.version).toBe(3);
    const plain = [...file.metadata].map(([key, value]) => [
      key,
      value instanceof StringTable ? [...value] : value,
    ]);
    expect(Object.fromEntries(plain)).toEqual({
      "general.architecture": "llama",
      "value.uint8": 200,
      "value.int8": -100,
      "value.uint16": 60000,
      "value.int16": -30000,
      "value.uint32": 4000000000,
      "value.int32": -2000000000,
      "value.uint64": 2n ** 63n + 1n,
      "value.int64": -(2n ** 62n),
      "value.float32": Math.fround(0.1),
      "value.float64": 0.1,
      "value.bool": true,
      "value.string": "Grüße, 世界 🙂",
      "value.strings": ["", "a", "▁the", "\ufeff"],
      "value.ints": Int32Array.of(1, -2, 3),
      "value.floats": Float32Array.of(0.5, -0.25),
      "value.bools": Uint8Array.of(1, 0),
    });
  });

  const expected = readFixture<{ shape: number[]; values: Record<string, string> }>("gguf/blocks.json");

  it("holds a tensor of every type we know", () => {
    expect(Object.keys(expected.values).sort()).toEqual([...ggmlTypeNames].sort());
  });

  it.each(Object.entries(expected.values))(
    "has the values gguf-py reads, to the bit: %s",
    async (type, hex) => {
      await using file = await openGguf(BLOCKS);
      expect(file.tensors.get(`${type}.weight`)).toMatchObject({ type, shape: expected.shape });
      const ours = await valuesOf(file, `${type}.weight`);
      const theirs = new Float32Array(new Uint8Array(Buffer.from(hex, "hex")).buffer);
      const wrong = ours.findIndex((value, i) => !Object.is(value, theirs[i]));
      expect(wrong, `element ${wrong}: ${ours[wrong]} for ${theirs[wrong]}`).toBe(-1);
      expect(ours.length).toBe(theirs.length);
      expect(ours.some((value) => value !== 0)).toBe(true);
    },
  );

  it("gives any part of a tensor, and nothing beyond it", async () => {
    await using file = await openGguf(BLOCKS);
    const whole = new Uint8Array(144 * 2);
    const second = new Uint8Array(144);
    await file.readInto("Q4_K.weight", whole, 0);
    await file.readInto("Q4_K.weight", second, 144);
    expect(second).toEqual(whole.subarray(144));
    for (const [name, start] of [
      ["Q4_K.weight", 145] as const,
      ["Q4_K.weight", -1] as const,
      ["q", 0] as const,
    ]) {
      await expect(file.readInto(name, second, start)).rejects.toThrow(FormatError);
    }
  });
});

describe("a file made by hand", () => {
  const tiny = () => new GgufBytes().start({ tensors: 1, keys: 1 }).key("a", 7).u8(1);

  it("is read, its dimensions reversed, its data aligned as it says", async () => {
    const bytes = new GgufBytes().start({ version: 2, tensors: 2, keys: 1 });
    bytes.key("general.alignment", 4).u32(64);
    bytes.tensor("x", [3, 2], 0, 0).tensor("y", [1], 0, 64).align(64);
    bytes.f32(1, 2, 3, 4, 5, 6).align(64).f32(7);
    await using file = await open(bytes.done());
    expect(file.version).toBe(2);
    expect(file.tensors.get("x")).toMatchObject({ type: "F32", shape: [2, 3], bytes: 24 });
    expect([...(await valuesOf(file, "x"))]).toEqual([1, 2, 3, 4, 5, 6]);
    expect([...(await valuesOf(file, "y"))]).toEqual([7]);
  });

  it("may have no tensors, and a last tensor that is not padded", async () => {
    await using none = await open(new GgufBytes().start({}).done());
    expect(none.tensors.size).toBe(0);
    await using one = await open(tiny().tensor("x", [1], 0, 0).align(32).f32(1).done());
    expect(one.tensors.size).toBe(1);
  });

  const start = (counts: { version?: number; tensors?: number | bigint; keys?: number | bigint }) =>
    new GgufBytes().start(counts);
  const rows: [string, () => GgufBytes, RegExp][] = [
    [
      "another format",
      () => new GgufBytes().text("PK\u0003\u0004 not a model"),
      /magic: must be the four bytes "GGUF"; got 0x04034b50/,
    ],
    ["nothing", () => new GgufBytes(), /magic: must lie before the end of the file, 0 bytes on; got 4 bytes/],
    ["version 1", () => start({ version: 1 }), /version: must be 2 or 3, little-endian; got version 1/],
    ["big-endian numbers", () => start({ version: 0x03000000 }), /version: .*got a big-endian file/],
    [
      "countless tensors",
      () => start({ tensors: 2n ** 63n }),
      /number of tensors: must be at most 65536; got 9223372036854775808/,
    ],
    [
      "more tensors than bytes",
      () => start({ tensors: 2 }),
      /number of tensors: must lie before the end of the file/,
    ],
    ["countless keys", () => start({ keys: 2n ** 64n - 1n }), /number of metadata keys: must be at most/],
    [
      "a huge string",
      () =>
        start({ keys: 1 })
          .key("a", 8)
          .u64(2n ** 60n)
          .text("x"),
      /metadata "a", length: .*got 1152921504606846976/,
    ],
    [
      "a huge array",
      () =>
        start({ keys: 1 })
          .key("a", 9)
          .u32(4)
          .u64(2n ** 62n)
          .u32(0),
      /metadata "a", length: must lie before the end/,
    ],
    [
      "a huge array of strings",
      () =>
        start({ keys: 1 })
          .key("a", 9)
          .u32(8)
          .u64(2n ** 62n)
          .u32(0),
      /metadata "a", length: must be at most/,
    ],
    [
      "arrays of arrays",
      () => start({ keys: 1 }).key("a", 9).u32(9).u64(1n).u32(9).u64(1n),
      /"a": must be an array of numbers.*got of arrays/,
    ],
    [
      "an unknown value type",
      () => start({ keys: 1 }).key("a", 13).u32(0),
      /"a", type: must be the number of a value type, below 13; got 13/,
    ],
    ["a boolean of neither", () => start({ keys: 1 }).key("a", 7).u8(2), /"a": must be 0 or 1.*got 2/],
    [
      "an array of such",
      () => start({ keys: 1 }).key("a", 9).u32(7).u64(2n).u8(1).u8(9),
      /"a": must hold 0 or 1/,
    ],
    [
      "text that is not UTF-8",
      () => start({ keys: 1 }).key("a", 8).u64(1n).u8(0xff),
      /"a": must be UTF-8 text/,
    ],
    [
      "a key twice",
      () => start({ keys: 2 }).key("a", 0).u8(1).key("a", 0).u8(1),
      /metadata key 1: must occur once; got "a" twice/,
    ],
    [
      "a tensor twice",
      () => start({ tensors: 2 }).tensor("x", [1], 0, 0).tensor("x", [1], 0, 32).align(32).f32(1),
      /name of tensor 1: must occur once/,
    ],
    [
      "no dimensions",
      () => tiny().tensor("x", [], 0, 0).u64(0n),
      /"x", number of dimensions: must be from 1 to 4; got 0/,
    ],
    [
      "too many dimensions",
      () => tiny().tensor("x", [1, 1, 1, 1, 1], 0, 0),
      /number of dimensions: must be from 1 to 4; got 5/,
    ],
    [
      "an empty dimension",
      () => tiny().tensor("x", [0], 0, 0),
      /"x", dimensions: must be positive, .*got \[0\]/,
    ],
    [
      "a product beyond numbers",
      () => tiny().tensor("x", [2n ** 40n, 2n ** 40n], 0, 0),
      /"x", dimensions: .*below 2\^53/,
    ],
    [
      "an unknown element type",
      () => tiny().tensor("x", [32], 16, 0),
      /"x", type: must be one of F32, .*got type 16/,
    ],
    [
      "a row that is no blocks",
      () => tiny().tensor("x", [33], 2, 0),
      /"x", dimension 0: must be a multiple of Q4_0's blocks of 32; got 33/,
    ],
    [
      "an offset that is not aligned",
      () => tiny().tensor("x", [1], 0, 4).align(32).f32(1, 1),
      /"x", offset: must be a multiple of the alignment 32; got 4/,
    ],
    [
      "an offset beyond the file",
      () => tiny().tensor("x", [1], 0, 32).align(32).f32(1),
      /"x", offset: its 4 bytes must lie inside the file's 4 bytes of data; got offset 32/,
    ],
    [
      "an offset beyond numbers",
      () =>
        tiny()
          .tensor("x", [1], 0, 2n ** 60n)
          .align(32)
          .f32(1),
      /"x", offset: must be below 2\^53/,
    ],
    [
      "a tensor larger than the file",
      () => tiny().tensor("x", [1_000_000], 0, 0).align(32).f32(1),
      /its 4000000 bytes must lie inside/,
    ],
    [
      "tensors that overlap",
      () =>
        start({ tensors: 2 })
          .tensor("x", [9], 0, 0)
          .tensor("y", [1], 0, 32)
          .align(32)
          .f32(...Array(32).fill(1)),
      /"y", offset: must not be below 36, where tensor "x" ends; got 32/,
    ],
    [
      "an alignment of 3",
      () => start({ keys: 1 }).key("general.alignment", 4).u32(3),
      /general.alignment: must be a power of two/,
    ],
    [
      "an alignment that is text",
      () => start({ keys: 1 }).key("general.alignment", 8).u64(1n).text("x"),
      /general.alignment: must be a power of two/,
    ],
  ];
  it.each(rows)("is refused for %s", async (_, bytes, message) => {
    const error = await open(bytes().done()).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(FormatError);
    expect(String(error)).toMatch(message);
    expect(String(error)).toMatch(/x\.gguf: /);
  });
});

describe("an array of strings longer than what is read at once", () => {
  // Of all lengths, so that windows of 2^18 bytes end in lengths, in texts and between them; one longer than a window; and the
  // character that stands for bytes that are no text, where it is text.
  const strings = Array.from({ length: 40_000 }, (_, i) => "é\ufeffab"[i % 4]!.repeat(i % 23));
  strings[7] = "\ufffd";
  strings[20_000] = "long ".repeat(60_000);
  strings[30_000] = "\ufffd at the side of others \ufffd";
  const start = (count = strings.length) =>
    new GgufBytes().start({ keys: 2 }).key("texts", 9).u32(8).u64(BigInt(count));
  const whole = () => strings.reduce((bytes, text) => bytes.string(text), start());

  it("gives every one of them, and what follows", async () => {
    await using file = await open(whole().key("after", 4).u32(11).done());
    const read = [...(file.metadata.get("texts") as StringTable)];
    expect(read.length).toBe(strings.length);
    const wrong = read.findIndex((text, i) => text !== strings[i]);
    expect(wrong, JSON.stringify(read[wrong])).toBe(-1);
    expect(file.metadata.get("after")).toBe(11);
  });

  it.each([0, 1, 19_999, 20_000, 35_000])("says which of them is no text: %i", async (bad) => {
    const bytes = start();
    for (const [i, text] of strings.entries()) {
      if (i === bad) bytes.u64(2n).u8(0xc3).u8(0x28);
      else bytes.string(text);
    }
    await expect(open(bytes.key("after", 4).u32(11).done())).rejects.toThrow(
      `metadata "texts"[${bad}]: must be UTF-8 text; got 2 other bytes`,
    );
  });

  it.each([
    [2n ** 20n, "must lie before the end of the file, 1 bytes on; got 1048576 bytes"],
    [2n ** 32n + 1n, "must be at most 67108864; got 4294967297"],
    [2n ** 63n, "must be at most 67108864; got 9223372036854775808"],
  ])("says which of them is too long: %i", async (length, rule) => {
    const bytes = start();
    for (const text of strings.slice(0, 30_001)) bytes.string(text);
    await expect(open(bytes.u64(length).text("x").done())).rejects.toThrow(
      `metadata "texts"[30001], length: ${rule}`,
    );
  });

  it("says where the file ends within them, wherever it is cut", async () => {
    const bytes = whole().done();
    for (let cut = 2 ** 18 - 12; cut < 2 ** 18 + 12; cut++) {
      await expect(open(bytes.subarray(0, cut))).rejects.toThrow(FormatError);
    }
  });
});

describe("the file itself", () => {
  it("must exist and be a file", async () => {
    const folder = await temporaryFolder();
    await expect(openGguf(join(folder, "none.gguf"))).rejects.toThrow(FileError);
    await expect(openGguf(folder)).rejects.toThrow(/must be a file; got something else/);
  });

  it("must stay as long as it was", async () => {
    const path = join(await temporaryFolder(), "x.gguf");
    await writeFile(path, await readFile(BLOCKS));
    await using file = await openGguf(path);
    await truncate(path, 4096);
    await expect(valuesOf(file, "Q6_K.weight")).rejects.toThrow(/must stay as it is while it is read/);
    const bytes = new Uint8Array(16);
    expect(() => file.readIntoSync("Q6_K.weight", bytes, 0)).toThrow(/must stay as it is while it is read/);
    expect(() => file.readIntoSync("Q6_K.weight", bytes, 2 ** 30)).toThrow(/must hold the bytes/);
  });
});
