/** Safetensors files that are cut, changed or made to hurt: a typed error that names the file and the field, or tensors. */

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { readSafetensors, writeSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import {
  ALLOWED_BYTES,
  countRefusals,
  cuts,
  Damage,
  fieldOf,
  flipped,
  growth,
  HUGE,
  nestedValue,
  Patient,
  refusal,
  wrongValue,
} from "../damage.ts";
import { copyOfFixtures, fixturesOf } from "../fixture-files.ts";
import { readAdapters, readShards } from "./readers.ts";

const copyOf = copyOfFixtures();

/** All tensors of a file by itself; they fill it. */
async function readTensors(file: string): Promise<void> {
  const { tensors } = await readSafetensors(file);
  const whole = await readFile(file);
  const total = [...tensors.values()].reduce((sum, { data }) => sum + data.length, 0);
  expect(total).toBe(whole.length - 8 - Number(whole.readBigUInt64LE()));
}

/** As part of what lies beside it. */
function readerOfSafetensors(file: string): () => Promise<unknown> {
  const folder = dirname(file);
  if (existsSync(join(folder, "config.json"))) return () => loadModelWeights(folder);
  if (existsSync(join(folder, "adapter_config.json"))) return () => readAdapters(folder);
  const index = join(folder, "model.safetensors.index.json");
  const isShard = /-of-\d+\.safetensors$/.test(file) && existsSync(index);
  return isShard ? () => readShards(index) : () => readTensors(file);
}

interface Placed {
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** A safetensors file taken apart. */
function headerOf(whole: Buffer) {
  const dataStart = 8 + Number(whole.readBigUInt64LE());
  const text = whole.toString("utf8", 8, dataStart);
  const withHeader = (text: string): Buffer => {
    const bytes = Buffer.concat([Buffer.alloc(8), Buffer.from(text), whole.subarray(dataStart)]);
    bytes.writeBigUInt64LE(BigInt(Buffer.byteLength(text)));
    return bytes;
  };
  const { __metadata__: _, ...tensors } = JSON.parse(text) as Record<string, Placed>;
  return { dataStart, text, withHeader, tensors };
}

/** Shapes and places that no file of its size has. */
function wrongPlaces([begin, end]: Placed["data_offsets"], others: readonly Placed[]): Partial<Placed>[] {
  const places = [
    ...[31, 40, 52].map((power) => [begin + 2 ** power, end + 2 ** power]),
    [begin, 2 ** 53 - 1],
    [end, begin],
    [begin + 1, end + 1],
    [begin, end - 1],
    ...others.map(({ data_offsets }) => data_offsets),
  ] as Placed["data_offsets"][];
  return [
    ...places.map((data_offsets) => ({ data_offsets })),
    ...[[2 ** 31], [2 ** 53 - 1], [2 ** 40, 2 ** 40], [2 ** 32, 0.5], Array(100).fill(2 ** 30)].map(
      (shape) => ({ shape }),
    ),
  ];
}

describe.each(fixturesOf("safetensors"))("a damaged safetensors file: %s", (name) => {
  it("cut anywhere is refused, with the field or tensor that it cuts", async () => {
    using patient = new Patient(copyOf(name));
    const { file, whole } = patient;
    const { dataStart } = headerOf(whole);
    for (const damage of cuts(whole, whole.length, { boundaries: [8, dataStart] })) {
      patient.write(damage.bytes);
      const error = await refusal(damage, file, () => readTensors(file));
      expect(fieldOf(error, file), damage.what).toMatch(/^header length$|\.data_offsets$/);
    }
    patient.write(whole);
    for (const reader of [() => readTensors(file), readerOfSafetensors(file)]) {
      expect(await refusal({ what: "whole", bytes: whole }, file, reader)).toBeUndefined();
    }
  });

  it("with bytes changed, or other values in its header, is refused, or read", async () => {
    using patient = new Patient(copyOf(name));
    const { file, whole } = patient;
    const read = readerOfSafetensors(file);
    const { dataStart, text, withHeader } = headerOf(whole);
    const damage = fc.oneof(flipped(whole, dataStart), wrongValue(text, withHeader));
    const refused = await countRefusals(damage, 100, async (damage) => {
      patient.write(damage.bytes);
      // Tensors that one shard lost may be missed by the index beside it.
      const error = await refusal(damage, dirname(file), read);
      if (error !== undefined) expect(error.where, damage.what).toMatch(/: |\.index\.json$/);
      return error;
    });
    expect(refused).toBeGreaterThan(30);
  });

  it("with huge, overlapping or reversed places or shapes is refused by the tensor", async () => {
    using patient = new Patient(copyOf(name));
    const { file, whole } = patient;
    const { text, tensors, withHeader } = headerOf(whole);
    const sized = Object.entries(tensors).filter(
      ([
        ,
        {
          data_offsets: [begin, end],
        },
      ]) => begin < end,
    );
    const damage = fc.constantFrom(...sized).chain(([name, tensor]) => {
      const others = sized.filter(([other]) => other !== name).map(([, other]) => other);
      return fc.constantFrom(...wrongPlaces(tensor.data_offsets, others)).map((change) => {
        const header = { ...JSON.parse(text), [name]: { ...tensor, ...change } };
        return new Damage(`${name}: ${JSON.stringify(change)}`, withHeader(JSON.stringify(header)));
      });
    });
    await countRefusals(damage, 50, async (damage) => {
      patient.write(damage.bytes);
      const error = await refusal(damage, file, () => readTensors(file));
      expect(fieldOf(error, file), damage.what).toMatch(/.\.(shape|data_offsets)$/);
      return error;
    });
    for (const huge of HUGE) {
      const bytes = Buffer.from(whole);
      bytes.writeBigUInt64LE(huge);
      patient.write(bytes);
      const error = await refusal({ what: `length ${huge}`, bytes }, file, () => readTensors(file));
      expect(fieldOf(error, file)).toBe("header length");
    }
  });

  it("with a header nested 10,000 deep anywhere is refused for its depth", async () => {
    using patient = new Patient(copyOf(name));
    const { file, whole } = patient;
    const { text, withHeader } = headerOf(whole);
    await countRefusals(nestedValue(text, withHeader), 9, async (damage) => {
      patient.write(damage.bytes);
      const error = await refusal(damage, file, () => readTensors(file));
      expect(error?.message, damage.what).toMatch(/header: must (not nest deeper than 3|begin with "{")/);
      return error;
    });
  });
});

describe("memory", () => {
  it("a safetensors header of countless tiny tensors takes little more than the file", async () => {
    const file = join(await temporaryFolder(), "x.safetensors");
    const none = { dtype: "u8", shape: [0], data: new Uint8Array(0) } as const;
    const tensors = Object.fromEntries(Array.from({ length: 30_000 }, (_, i) => [i.toString(36), none]));
    await writeSafetensors(file, tensors);
    const { length } = await readFile(file);
    expect(await growth(() => readSafetensors(file))).toBeLessThan(length + ALLOWED_BYTES);
  });
});
