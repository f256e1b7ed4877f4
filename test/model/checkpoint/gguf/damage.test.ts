/** GGUF files that are cut, changed or made to hurt: a typed error that names the file and the field, or tensors. */

import { writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { sizeOf } from "../../../../src/compute/tensor/shape.ts";
import { dequantizeInto } from "../../../../src/model/checkpoint/gguf/dequantize.ts";
import { openGgufModel } from "../../../../src/model/checkpoint/gguf/model.ts";
import { openGguf } from "../../../../src/model/checkpoint/gguf/reader.ts";
import { ggufText } from "../../../../src/model/checkpoint/model-text.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import {
  ALLOWED_BYTES,
  countRefusals,
  cuts,
  Damage,
  fieldOf,
  flipped,
  growth,
  HUGE,
  Patient,
  refusal,
} from "../../damage.ts";
import { copyOfFixtures, fixturesOf } from "../../fixture-files.ts";
import { GgufBytes } from "./bytes.ts";
import { type GgufFieldKind, ggufFields } from "./fields.ts";

const copyOf = copyOfFixtures();

/** Reads all tensors of a GGUF file as they are. */
async function readBlocks(file: string): Promise<void> {
  await using gguf = await openGguf(file);
  for (const [name, { type, shape, bytes }] of gguf.tensors) {
    const blocks = new Uint8Array(bytes);
    await gguf.readInto(name, blocks, 0);
    dequantizeInto(type, blocks, new Float32Array(sizeOf(shape)));
  }
}

/** Reads every tensor of a model, and its text side where it has one. */
async function readModel(file: string): Promise<void> {
  await using model = await openGgufModel(file);
  for (const name of model.shapes.keys()) await model.readF32(name);
  if (model.vocabulary !== undefined) ggufText(file, model.vocabulary);
}

/** As a model, where it is one. */
async function readerOfGguf(file: string): Promise<() => Promise<void>> {
  await using gguf = await openGguf(file);
  const isModel = [...gguf.metadata.keys()].some((key) => key.endsWith(".block_count"));
  return () => (isModel ? readModel(file) : readBlocks(file));
}

describe.each(fixturesOf("gguf"))("a damaged GGUF file: %s", (name) => {
  it("cut anywhere is refused, with the field or tensor that it cuts", async () => {
    using patient = new Patient(copyOf(name));
    const { file, whole } = patient;
    const read = await readerOfGguf(file);
    // gguf-py pads the last tensor, so that a cut in its padding loses nothing.
    const end = whole.length - 31;
    const { boundaries } = ggufFields(whole);
    for (const damage of cuts(whole, end, { boundaries })) {
      patient.write(damage.bytes);
      const error = await refusal(damage, file, read);
      expect(fieldOf(error, file), damage.what).not.toBe("");
    }
    patient.write(whole);
    expect(await refusal({ what: "whole", bytes: whole }, file, read)).toBeUndefined();
  });

  it("with bytes changed is refused, or read", async () => {
    using patient = new Patient(copyOf(name));
    const { file, whole } = patient;
    const read = await readerOfGguf(file);
    const header = ggufFields(whole).boundaries.at(-1)!;
    const refused = await countRefusals(flipped(whole, header), 120, async (damage) => {
      patient.write(damage.bytes);
      const error = await refusal(damage, file, read);
      if (error !== undefined) expect(fieldOf(error, file), error.message).not.toBe("");
      return error;
    });
    expect(refused).toBeGreaterThan(30);
  });

  it("with a count, length, type, size or offset made huge is refused by its name", async () => {
    using patient = new Patient(copyOf(name));
    const { file, whole } = patient;
    const read = await readerOfGguf(file);
    const { fields } = ggufFields(whole);
    const kinds = [...new Set(fields.map(({ kind }) => kind))];
    expect(kinds.sort()).toEqual(["count", "dimension", "length", "offset", "rank", "type"]);
    const one = (kind: GgufFieldKind) => fc.constantFrom(...fields.filter((field) => field.kind === kind));
    const made = fc.tuple(fc.oneof(...kinds.map(one)), fc.constantFrom(...HUGE));
    const damage = made.map(([{ kind, at, bytes }, huge]) => {
      const damaged = Buffer.from(whole);
      if (bytes === 8) damaged.writeBigUInt64LE(huge, at);
      else damaged.writeUInt32LE(Number((huge - 1n) % 2n ** 32n), at);
      return new Damage(`${kind} at ${at} = ${huge}`, damaged);
    });
    await countRefusals(damage, 120, async (damage) => {
      patient.write(damage.bytes);
      const error = await refusal(damage, file, read);
      expect(fieldOf(error, file), damage.what).toMatch(/number of|length|type|dimension|offset|metadata/);
      return error;
    });
  });

  it("with two tensors in one place is refused by the offset of one", async () => {
    using patient = new Patient(copyOf(name));
    const { file, whole } = patient;
    const read = await readerOfGguf(file);
    const offsets = ggufFields(whole).fields.filter(({ kind }) => kind === "offset");
    const pair = fc.tuple(fc.constantFrom(...offsets), fc.constantFrom(...offsets));
    const damage = pair
      .filter(([one, other]) => one !== other)
      .map(([one, other]) => {
        const damaged = Buffer.from(whole);
        whole.copy(damaged, one.at, other.at, other.at + 8);
        return new Damage(`offset at ${one.at} as at ${other.at}`, damaged);
      });
    await countRefusals(damage, 30, async (damage) => {
      patient.write(damage.bytes);
      const error = await refusal(damage, file, read);
      expect(fieldOf(error, file), damage.what).toMatch(/^tensor .*, offset$/);
      return error;
    });
  });
});

describe("a GGUF file of noise", () => {
  it("after a whole start is refused, or read", async () => {
    const file = join(await temporaryFolder(), "x.gguf");
    await writeFile(file, "");
    using patient = new Patient(file);
    const noise = fc.tuple(fc.nat({ max: 5 }), fc.nat({ max: 5 }), fc.uint8Array({ maxLength: 300 }));
    const damage = noise.map(([tensors, keys, bytes]) => {
      const start = new GgufBytes().start({ tensors, keys }).done();
      return new Damage(`${tensors} tensors, ${keys} keys, ${bytes}`, Buffer.concat([start, bytes]));
    });
    const refused = await countRefusals(damage, 300, (damage) => {
      patient.write(damage.bytes);
      return refusal(damage, file, () => readModel(file));
    });
    expect(refused).toBeGreaterThan(200);
  });
});

describe("memory", () => {
  it("a header of countless tiny keys, strings or tensors takes little more than the file", async () => {
    const folder = await temporaryFolder();
    const keys = new GgufBytes().start({ keys: 2 ** 14 });
    for (let i = 0; i < 2 ** 14; i++) keys.key(i.toString(36), 0).u8(1);
    const strings = new GgufBytes().start({ keys: 1 }).key("a", 9).u32(8).u64(400_000n);
    for (let i = 0; i < 400_000; i++) strings.string(i.toString(36));
    const tensors = new GgufBytes().start({ tensors: 2 ** 14 });
    for (let i = 0; i < 2 ** 14; i++) tensors.tensor(i.toString(36), [1], 0, 32 * i);
    for (const [name, bytes] of Object.entries({ keys, strings, tensors })) {
      const file = join(folder, `${name}.gguf`);
      const content = bytes.done();
      await writeFile(file, content);
      expect(await growth(() => openGgufModel(file)), basename(file)).toBeLessThan(
        content.length + ALLOWED_BYTES,
      );
    }
  });
});
