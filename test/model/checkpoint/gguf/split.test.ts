import { rm } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { FileError, FormatError } from "../../../../src/base/errors.ts";
import { openGgufModel } from "../../../../src/model/checkpoint/gguf/model.ts";
import { openGguf } from "../../../../src/model/checkpoint/gguf/reader.ts";
import { openSplitGguf } from "../../../../src/model/checkpoint/gguf/split.ts";
import { type WritableValue, writeGguf } from "../../../../src/model/checkpoint/gguf/writer.ts";
import { StringTable } from "../../../../src/model/text/strings.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { fixturePath } from "../../../fixture.ts";

const name = (index: number, count: number) =>
  `model-${`${index + 1}`.padStart(5, "0")}-of-${`${count}`.padStart(5, "0")}.gguf`;

interface Part {
  readonly no?: number;
  readonly count?: number;
  readonly total?: number;
  readonly tensors: readonly string[];
}

/** Writes parts of tensors of one number each. @returns the path of the first */
async function written(parts: readonly Part[]): Promise<string> {
  const folder = await temporaryFolder();
  for (const [index, part] of parts.entries()) {
    const metadata = new Map<string, WritableValue>([
      ["general.name", ["string", `part ${index}`]],
      ["split.no", ["uint32", part.no ?? index]],
      ["split.count", ["uint32", part.count ?? parts.length]],
      ["split.tensors.count", ["uint32", part.total ?? parts.flatMap(({ tensors }) => tensors).length]],
    ]);
    const tensors = new Map(
      part.tensors.map((tensor) => {
        const blocks = () => [new Uint8Array(Float32Array.of(tensor.charCodeAt(0)).buffer)];
        return [tensor, { type: "F32", shape: [1], blocks } as const];
      }),
    );
    await writeGguf(join(folder, name(index, parts.length)), metadata, tensors);
  }
  return join(folder, name(0, parts.length));
}

const THREE: readonly Part[] = [{ tensors: ["a"] }, { tensors: ["b", "c"] }, { tensors: ["d"] }];

describe("openSplitGguf", () => {
  it("reads every tensor from the file that holds it, and metadata from the first", async () => {
    await using gguf = await openSplitGguf(await written(THREE));
    expect(gguf.metadata.get("general.name")).toBe("part 0");
    expect([...gguf.tensors.keys()]).toEqual(["a", "b", "c", "d"]);
    for (const tensor of gguf.tensors.keys()) {
      const bytes = new Uint8Array(4);
      await gguf.readInto(tensor, bytes, 0);
      expect(new Float32Array(bytes.buffer)[0], tensor).toBe(tensor.charCodeAt(0));
    }
    await expect(gguf.readInto("e", new Uint8Array(4), 0)).rejects.toThrow(/00001-of-00003.*no such tensor/);
  });

  it("reads a file that is whole by itself", async () => {
    await using gguf = await openSplitGguf(fixturePath("gguf/llama.gguf"));
    expect(gguf.tensors.size).toBeGreaterThan(10);
    await using one = await openSplitGguf(await written([{ tensors: ["a"] }]));
    expect([...one.tensors.keys()]).toEqual(["a"]);
  });

  it("gives a model the same weights, however many files it is in", async () => {
    const whole = fixturePath("gguf/llama.gguf");
    const folder = await temporaryFolder();
    await using source = await openGguf(whole);
    const all = [...source.tensors];
    const half = Math.floor(all.length / 2);
    for (const [index, part] of [all.slice(0, half), all.slice(half)].entries()) {
      // The values of this file's metadata that a model cannot do without.
      const kept = [...source.metadata].flatMap(([key, value]): [string, WritableValue][] => {
        if (index > 0 || key.startsWith("general.alignment")) return [];
        if (typeof value === "string") return [[key, ["string", value]]];
        if (typeof value === "boolean") return [[key, ["bool", value]]];
        if (typeof value === "number")
          return [[key, [Number.isInteger(value) ? "uint32" : "float32", value]]];
        if (value instanceof Float32Array) return [[key, ["float32s", value]]];
        if (value instanceof Int32Array) return [[key, ["int32s", value]]];
        return value instanceof StringTable ? [[key, ["strings", [...value]]]] : [];
      });
      const metadata = new Map<string, WritableValue>([
        ...kept,
        ["split.no", ["uint32", index]],
        ["split.count", ["uint32", 2]],
        ["split.tensors.count", ["uint32", all.length]],
      ]);
      const tensors = new Map();
      for (const [tensor, { type, shape, bytes }] of part) {
        const data = new Uint8Array(bytes);
        await source.readInto(tensor, data, 0);
        tensors.set(tensor, { type, shape, blocks: () => [data] });
      }
      await writeGguf(join(folder, name(index, 2)), metadata, tensors);
    }
    await using expected = await openGgufModel(whole);
    await using model = await openGgufModel(join(folder, name(0, 2)));
    expect(model.config).toEqual(expected.config);
    expect(model.shapes).toEqual(expected.shapes);
    for (const tensor of expected.shapes.keys()) {
      expect(await model.readF32(tensor), tensor).toEqual(await expected.readF32(tensor));
    }
  });

  it.each([
    [
      "another's number",
      [THREE[0]!, { ...THREE[1]!, no: 2 }, THREE[2]!],
      /00002-of-00003\.gguf: split\.no: must be 1/,
    ],
    [
      "of another count",
      [THREE[0]!, { ...THREE[1]!, count: 4 }, THREE[2]!],
      /00002.*split\.count: must be 3/,
    ],
    ["a tensor twice", [THREE[0]!, { tensors: ["a"] }, THREE[2]!], /00002.*tensor "a": must be in one file/],
    [
      "too few tensors",
      [{ ...THREE[0]!, total: 9 }, THREE[1]!, THREE[2]!],
      /split\.tensors\.count: must be the 4 tensors/,
    ],
    [
      "far too many parts",
      [{ ...THREE[0]!, count: 100_000 }],
      /split\.count: must be at most 512; got 100000/,
    ],
    [
      "a name that says another count",
      [{ ...THREE[0]!, count: 3 }],
      /must be called NAME-0000N-of-00003\.gguf/,
    ],
  ] as const)("refuses %s", async (_, parts, message) => {
    const opened = openSplitGguf(await written(parts));
    await expect(opened).rejects.toThrow(FormatError);
    await expect(opened).rejects.toThrow(message);
  });

  it("says which part is missing, and where the first is when given another", async () => {
    const first = await written(THREE);
    const third = first.replace("00001-of", "00003-of");
    await expect(openSplitGguf(third)).rejects.toThrow(
      /split\.no: must be 0.*got 2\. Give .*model-00001-of-00003\.gguf/,
    );
    await rm(third);
    await expect(openSplitGguf(first)).rejects.toThrow(FileError);
    await expect(openSplitGguf(first)).rejects.toThrow(/model-00003-of-00003\.gguf: must be readable/);
  });
});
