/** The JSON files of a model that are cut, changed or made to hurt: a typed error that names the file and the key, or a model. */

import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { PonderaError } from "../../../src/base/errors.ts";
import { loadModelFolder, loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { openSharded } from "../../../src/model/checkpoint/safetensors.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { fixturePath } from "../../fixture.ts";
import { ALLOWED_BYTES, growth, Patient, refusal, refusalsOfJson } from "../damage.ts";
import { copyOfFixtures, fixturesOf } from "../fixture-files.ts";
import { readAdapters, readShards } from "./readers.ts";

const copyOf = copyOfFixtures();

describe("damaged, it is refused, or read", () => {
  it.each(fixturesOf("config"))("%s", async (name) => {
    using patient = new Patient(copyOf(name));
    const folder = dirname(patient.file);
    const read = () => loadModelWeights(folder);
    expect(await refusalsOfJson(patient, read, { folder, numRuns: 120 })).toBeGreaterThan(60);
  });

  it.each(fixturesOf("index"))("%s", async (name) => {
    using patient = new Patient(copyOf(name));
    const { file } = patient;
    const read = () => readShards(file);
    expect(await refusalsOfJson(patient, read, { folder: dirname(file), numRuns: 120 })).toBeGreaterThan(30);
  });

  it.each(fixturesOf("adapter"))("%s", async (name) => {
    using patient = new Patient(copyOf(name));
    const folder = dirname(patient.file);
    // The base lies beside them.
    const options = { folder: dirname(folder), numRuns: 200 };
    expect(await refusalsOfJson(patient, () => readAdapters(folder), options)).toBeGreaterThan(60);
  });

  it.each(fixturesOf("generation"))("%s", async (name) => {
    // Beside a model that has a tokenizer, and is small.
    using patient = new Patient(
      copyOf("saved-model/generation_config.json"),
      await readFile(fixturePath(name)),
    );
    const folder = dirname(patient.file);
    const read = () => loadModelFolder(folder);
    expect(await refusalsOfJson(patient, read, { folder, numRuns: 80 })).toBeGreaterThan(20);
  });
});

describe("the generation config beside adapters", () => {
  it.each(fixturesOf("adapter"))("must be an object: %s", async (name) => {
    const folder = dirname(copyOf(name));
    const file = join(folder, "generation_config.json");
    for (const text of ["[]", "1", "null", '"top_p"']) {
      await writeFile(file, text);
      const error = await refusal({ what: text, bytes: Buffer.from(text) }, file, () => readAdapters(folder));
      expect(error?.message).toContain(`must be an object; got ${text}`);
    }
    await rm(file);
  });
});

describe("a config made to hurt", () => {
  it("by millions of tensors is refused before they are listed", async () => {
    const folder = join(await temporaryFolder(), "model");
    await cp(fixturePath("arch-deepseek-plain"), folder, { recursive: true });
    const file = join(folder, "config.json");
    const config = JSON.parse(await readFile(file, "utf8")) as object;
    const huge = { num_hidden_layers: 1024, n_routed_experts: 4096, n_group: 1, topk_group: 1 };
    const text = JSON.stringify({ ...config, ...huge });
    await writeFile(file, text);
    const read = () => loadModelWeights(folder);
    expect((await refusal({ what: "huge", bytes: Buffer.from(text) }, file, read))?.message).toMatch(
      /n_routed_experts: must be at most 49152 in all layers together; got 4096/,
    );
    // As many as are taken still fit.
    await writeFile(file, JSON.stringify({ ...config, ...huge, n_routed_experts: 48 }));
    expect(await growth(read)).toBeLessThan(ALLOWED_BYTES);
  });

  const deep = (depth: number) => "[".repeat(depth) + "]".repeat(depth);
  it.each([100, 1_000_000])("by JSON nested %i deep is refused", async (depth) => {
    const folder = join(await temporaryFolder(), "model");
    await cp(fixturePath("saved-model"), folder, { recursive: true });
    const file = join(folder, "config.json");
    const config = (await readFile(file, "utf8")).trimEnd();
    for (const text of [
      deep(depth),
      `${config.slice(0, -1)},"rope_scaling":${deep(depth)}}`,
      `${config.slice(0, -1)},"other":${deep(depth)}}`,
      `${'{"a":'.repeat(depth)}1${"}".repeat(depth)}`,
      "[".repeat(depth),
    ]) {
      const bytes = Buffer.from(text);
      await writeFile(file, bytes);
      const error = await refusal({ what: text.slice(0, 20), bytes }, file, () => loadModelWeights(folder));
      expect(error?.rule).toBe("must not nest deeper than 64");
    }
    const index = join(await temporaryFolder(), "model.safetensors.index.json");
    await writeFile(index, `{"weight_map":${deep(depth)}}`);
    await expect(openSharded(index)).rejects.toThrow(PonderaError);
  });
});
