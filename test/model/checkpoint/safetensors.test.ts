import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FileError, FormatError } from "../../../src/base/errors.ts";
import { f32, hostArray } from "../../../src/compute/tensor/host.ts";
import {
  openSafetensors,
  openSharded,
  readSafetensors,
  type StoredDType,
  type StoredTensor,
  writeSafetensors,
} from "../../../src/model/checkpoint/safetensors.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";

const FIXTURE = fileURLToPath(new URL("../../fixtures/tensors/", import.meta.url));

interface Expected {
  metadata: Record<string, string>;
  tensors: Record<string, { dtype: StoredDType; shape: number[]; hex: string }>;
}
const expected: Expected = JSON.parse(await readFile(join(FIXTURE, "expected.json"), "utf8"));
const reference = await readFile(join(FIXTURE, "all.safetensors"));

const inHex = (tensor: StoredTensor) => ({
  dtype: tensor.dtype,
  shape: tensor.shape,
  hex: Buffer.from(tensor.data).toString("hex"),
});

/** A file of the given header (text, or a value for JSON) and data, whatever they say. */
function fileBytes(header: unknown, dataBytes = 0, length?: bigint): Uint8Array {
  const text = typeof header === "string" ? header : JSON.stringify(header);
  const json = Buffer.from(text, "utf8");
  const bytes = Buffer.alloc(8 + json.length + dataBytes);
  bytes.writeBigUInt64LE(length ?? BigInt(json.length));
  json.copy(bytes, 8);
  return bytes;
}

async function readBytes(bytes: Uint8Array) {
  const file = join(await temporaryFolder(), "x.safetensors");
  await writeFile(file, bytes);
  return await readSafetensors(file);
}

const tensor = (dtype: string, shape: unknown, begin: number, end: number) => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

describe("safetensors, against the reference implementation", () => {
  it("reads every dtype, an empty tensor, a scalar and a name that needs escapes", async () => {
    const { tensors, metadata } = await readSafetensors(join(FIXTURE, "all.safetensors"));
    expect(metadata).toEqual(expected.metadata);
    expect(Object.fromEntries([...tensors].map(([name, t]) => [name, inHex(t)]))).toEqual(expected.tensors);
  });

  it("writes the same bytes, in whatever order the tensors come", async () => {
    const { tensors, metadata } = await readSafetensors(join(FIXTURE, "all.safetensors"));
    const file = join(await temporaryFolder(), "x.safetensors");
    for (const entries of [[...tensors], [...tensors].reverse()]) {
      await writeSafetensors(file, Object.fromEntries(entries), metadata);
      expect((await readFile(file)).equals(reference)).toBe(true);
    }
  });

  it("reads shards through their index as it reads one file", async () => {
    const source = await openSharded(join(FIXTURE, "model.safetensors.index.json"));
    const read: Record<string, unknown> = {};
    for (const name of source.tensors.keys()) read[name] = inHex(await source.read(name));
    expect(read).toEqual(expected.tensors);
    expect(source.metadata).toEqual(expected.metadata);
    await expect(source.read("absent")).rejects.toThrow(/must hold the tensor "absent"/);
    await source.close();
  });
});

describe("safetensors", () => {
  it("writes host arrays, views into larger buffers among them, and reads them back", async () => {
    const file = join(await temporaryFolder(), "x.safetensors");
    const pool = Float32Array.of(9, 1, 2, 3, 4, 9);
    await writeSafetensors(file, {
      view: hostArray("f32", [2, 2], pool.subarray(1, 5)),
      mask: hostArray("bool", [3], Uint8Array.of(1, 0, 1)),
    });
    const { tensors, metadata } = await readSafetensors(file);
    expect(metadata).toEqual({});
    const view = tensors.get("view")!;
    expect(view.shape).toEqual([2, 2]);
    expect([...new Float32Array(view.data.buffer)]).toEqual([1, 2, 3, 4]);
    expect([...tensors.get("mask")!.data]).toEqual([1, 0, 1]);
  });

  it("starts the data, and every tensor, at a multiple of its width", async () => {
    const file = join(await temporaryFolder(), "x.safetensors");
    for (let n = 1; n < 10; n++) {
      await writeSafetensors(file, { ["n".repeat(n)]: hostArray("u8", [1]), f: f32([1], [1]) });
      const bytes = await readFile(file);
      expect(Number(bytes.readBigUInt64LE()) % 8).toBe(0);
      expect(bytes.subarray(-5, -1)).toEqual(Buffer.from(Float32Array.of(1).buffer));
    }
  });

  it("round-trips any tensors and metadata, bit for bit", async () => {
    const file = join(await temporaryFolder(), "x.safetensors");
    const width = { f32: 4, f16: 2, bf16: 2, f8_e4m3: 1, i64: 8, i32: 4, i8: 1, u8: 1, bool: 1 };
    const anyTensor = fc
      .tuple(
        fc.constantFrom(...(Object.keys(width) as StoredDType[])),
        fc.array(fc.nat({ max: 4 }), { maxLength: 3 }),
      )
      .chain(([dtype, shape]) => {
        const bytes = shape.reduce((a, b) => a * b, 1) * width[dtype];
        return fc
          .uint8Array({ minLength: bytes, maxLength: bytes })
          .map((data) => ({ dtype, shape, data: new Uint8Array(data) }));
      });
    const text = fc.string({ unit: "binary" });
    // A name is any well-formed text but the one the format keeps.
    const name = text.filter((s) => s !== "__metadata__");
    await fc.assert(
      fc.asyncProperty(
        fc.dictionary(name, anyTensor),
        fc.dictionary(text, text),
        async (tensors, metadata) => {
          await writeSafetensors(file, tensors, metadata);
          const read = await readSafetensors(file);
          expect(new Map(Object.entries(metadata))).toEqual(new Map(Object.entries(read.metadata)));
          expect(new Map([...read.tensors].map(([key, t]) => [key, inHex(t)]))).toEqual(
            new Map(Object.entries(tensors).map(([key, t]) => [key, inHex(t)])),
          );
        },
      ),
      { numRuns: 50 },
    );
  });

  it("reads a tensor only when asked", async () => {
    const file = join(await temporaryFolder(), "x.safetensors");
    await writeFile(file, fileBytes({ a: tensor("F32", [1], 0, 4) }, 4));
    const source = await openSafetensors(file);
    await writeFile(file, fileBytes({ a: tensor("F32", [1], 0, 4) }, 0));
    expect(source.tensors.get("a")).toMatchObject({ dtype: "f32", shape: [1], bytes: 4 });
    await expect(source.read("b")).rejects.toThrow(FormatError);
    await expect(source.read("a")).rejects.toThrow(/must stay as it is while it is read/);
    await source.close();
  });

  it("refuses to write a tensor whose bytes do not fit its shape, or the name kept for metadata", async () => {
    const file = join(await temporaryFolder(), "x.safetensors");
    const wrong = { dtype: "f32", shape: [3], data: new Float32Array(2) } as const;
    await expect(writeSafetensors(file, { wrong })).rejects.toThrow(/wrong: F32\[3\] takes 12 bytes; got 8/);
    await expect(writeSafetensors(file, { __metadata__: f32([], [1]) })).rejects.toThrow(FormatError);
  });
});

describe("a damaged safetensors file is a typed error", () => {
  const one = (changes: object) => fileBytes({ a: { ...tensor("F32", [1], 0, 4), ...changes } }, 4);
  const metadata = (value: unknown) => fileBytes({ __metadata__: value });
  const rows: [string, Uint8Array, string | RegExp][] = [
    ["an empty file", new Uint8Array(0), "header length: must be the first 8 bytes of the file; got 0 bytes"],
    ["seven bytes", new Uint8Array(7), "got 7 bytes"],
    ["no header", new Uint8Array(8), /header: must begin with "\{"/],
    ["a header longer than the file", fileBytes("{}", 0, 3n), "header length: must be at most 2; got 3"],
    ["a header of 2⁶⁴ − 1 bytes", fileBytes("{}", 0, 2n ** 64n - 1n), "got 18446744073709551615"],
    ["a header that is no UTF-8", Buffer.from("02000000000000007bff", "hex"), "must be UTF-8"],
    ["a header that begins with space", fileBytes(" {}"), 'must begin with "{"'],
    ["a header that is a list", fileBytes("[]"), 'must begin with "{"'],
    ["a header cut short", fileBytes('{"a"'), "must be JSON"],
    ["a header with more behind it", fileBytes("{} {}"), "must be JSON"],
    ["a header with an open string", fileBytes(`{"${'\\"'.repeat(100_000)}`), "must be JSON"],
    ["a name with a broken escape", fileBytes('{"\\x":1}'), "must be JSON"],
    [
      "a header nested too deep",
      fileBytes(`{"a":${"[".repeat(100_000)}`),
      "must not nest deeper than 3; got deeper at character 8",
    ],
    [
      "a header of countless values",
      fileBytes(`{"a":[${"0,".repeat(800_000)}`),
      "must hold at most 786432 values",
    ],
    [
      "a header of braces",
      fileBytes("{".repeat(100_000)),
      "must not nest deeper than 3; got deeper at character 4",
    ],
    [
      "a name given twice",
      fileBytes('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":{}}'),
      'a name must occur once; got "a" twice',
    ],
    [
      "a field given twice",
      fileBytes('{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
      'got "dtype" twice',
    ],
    ["a tensor that is no object", fileBytes({ a: 1 }), "a: must be an object; got 1"],
    ["a field nobody knows", one({ strides: [1] }), 'got "strides"'],
    ["an unknown dtype", one({ dtype: "F33" }), /a\.dtype: must be one of I64, F32.*got "F33"/],
    ["no dtype", one({ dtype: undefined }), "got nothing"],
    ["a shape that is no list", one({ shape: 1 }), "a.shape: must be a list of whole numbers; got 1"],
    ["a negative size", one({ shape: [-1] }), "got [-1]"],
    ["a fractional size", one({ shape: [0.5] }), "got [0.5]"],
    ["a size past 2⁵³", one({ shape: [2 ** 60] }), "a.shape: must be a list of whole numbers"],
    [
      "sizes whose product overflows",
      one({ shape: [2 ** 40, 2 ** 40] }),
      "a.shape: must hold at most 4 bytes",
    ],
    ["one offset", one({ data_offsets: [0] }), "a.data_offsets: must be two whole numbers; got [0]"],
    ["a negative offset", one({ data_offsets: [-4, 0] }), "must be two whole numbers"],
    [
      "falling offsets",
      one({ data_offsets: [4, 0] }),
      "must rise and stay within 4 bytes of data; got [4,0]",
    ],
    [
      "offsets past the end",
      one({ shape: [2], data_offsets: [0, 8] }),
      "stay within 4 bytes of data; got [0,8]",
    ],
    [
      "offsets that are too short",
      one({ data_offsets: [0, 3] }),
      "must span the 4 bytes of F32[1]; got 3 bytes",
    ],
    ["bytes before the first tensor", fileBytes({ a: tensor("U8", [1], 1, 2) }, 2), "must begin at 0"],
    [
      "a gap",
      fileBytes({ a: tensor("U8", [1], 0, 1), b: tensor("U8", [1], 2, 3) }, 3),
      "b.data_offsets: must begin at 1, where the tensor before ends: no gap, no overlap; got 2",
    ],
    ["an overlap", fileBytes({ a: tensor("U8", [2], 0, 2), b: tensor("U8", [2], 1, 3) }, 3), "got 1"],
    [
      "bytes behind the last tensor",
      fileBytes({ a: tensor("U8", [1], 0, 1) }, 2),
      /a\.data_offsets: must have the data end where the file ends, at byte 63; got byte 62/,
    ],
    [
      "bytes and no tensor",
      fileBytes({}, 1),
      /header: must have the data end where the file ends, at byte 11; got byte 10/,
    ],
    ["metadata that is no object", metadata("x"), '__metadata__: must be an object of strings; got "x"'],
    ["metadata that is no string", metadata({ a: 1 }), "__metadata__.a: must be a string; got 1"],
  ];
  it.each(rows)("%s", async (_, bytes, message) => {
    const read = readBytes(bytes);
    await expect(read).rejects.toThrow(FormatError);
    await expect(read).rejects.toThrow(message);
    await expect(read).rejects.toThrow(/x\.safetensors/);
  });

  it("a missing file and a folder", async () => {
    const folder = await temporaryFolder();
    await expect(readSafetensors(join(folder, "absent"))).rejects.toThrow(FileError);
    await expect(readSafetensors(folder)).rejects.toThrow(FileError);
  });
});

describe("a damaged index is a typed error", () => {
  async function openIndex(index: unknown) {
    const folder = await temporaryFolder();
    await writeFile(join(folder, "one.safetensors"), fileBytes({ a: tensor("U8", [1], 0, 1) }, 1));
    await writeFile(join(folder, "two.safetensors"), fileBytes({ b: tensor("U8", [1], 0, 1) }, 1));
    const file = join(folder, "model.safetensors.index.json");
    await writeFile(file, typeof index === "string" ? index : JSON.stringify(index));
    const source = await openSharded(file);
    await source.close();
    return [...source.tensors.keys()];
  }
  const map = (weight_map: unknown) => ({ metadata: {}, weight_map });
  const whole = { a: "one.safetensors", b: "two.safetensors" };

  it("and a whole one is none", async () => {
    expect(await openIndex(map(whole))).toEqual(["a", "b"]);
  });

  const rows: [string, unknown, string | RegExp][] = [
    ["no JSON", "{", "must be JSON"],
    ["no map", {}, "weight_map: must be an object of tensor names to file names; got nothing"],
    ["a list", map([]), "got []"],
    ["a number for a file", map({ a: 1 }), "weight_map.a: must be a file name"],
    ["a path out of the folder", map({ a: "../one.safetensors" }), 'got "../one.safetensors"'],
    ["a path on another system", map({ a: "..\\one.safetensors" }), "must be a file name"],
    ["the folder itself", map({ a: ".." }), "must be a file name"],
    ["a tensor its file lacks", map({ ...whole, c: "one.safetensors" }), /one.*must hold the tensor "c"/],
    [
      "a tensor the index lacks",
      map({ a: "one.safetensors", c: "two.safetensors" }),
      "got no such tensor there",
    ],
    [
      "a tensor in another file",
      map({ a: "two.safetensors", b: "two.safetensors" }),
      /must hold the tensor "a"/,
    ],
  ];
  it.each(rows)("%s", async (_, index, message) => {
    const open = openIndex(index);
    await expect(open).rejects.toThrow(FormatError);
    await expect(open).rejects.toThrow(message);
  });

  it("a shard that is missing is a FileError", async () => {
    await expect(openIndex(map({ a: "three.safetensors" }))).rejects.toThrow(FileError);
  });
});
