/** Files that are cut, changed or made to hurt: always a typed error that names the file, or a model; never anything else. */

import { cp, readFile, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { PonderaError } from "../../../src/base/errors.ts";
import { loadModelFolder, loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { openGgufModel } from "../../../src/model/checkpoint/gguf/model.ts";
import { ggufText } from "../../../src/model/checkpoint/model-text.ts";
import { openSharded, readSafetensors, writeSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { safetensorsFloats } from "../../../src/model/checkpoint/safetensors-floats.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { fixturePath } from "../../fixture.ts";
import { ALLOWED_BYTES, cuts, flips, growth, refusal, wrongValues } from "../damage.ts";
import { GgufBytes } from "./gguf/bytes.ts";

/** Reads every tensor of a model, and its text side where it has one; @returns the error, if it is one of ours */
async function readAll(file: string): Promise<PonderaError | undefined> {
  try {
    await using model = await openGgufModel(file);
    for (const name of model.shapes.keys()) await model.readF32(name);
    if (model.vocabulary !== undefined) ggufText(file, model.vocabulary);
    return undefined;
  } catch (error) {
    if (!(error instanceof PonderaError)) throw error;
    expect(error.where.startsWith(file), error.message).toBe(true);
    expect(error.rule).not.toBe("");
    return error;
  }
}

describe.each(["llama", "qwen2", "deepseek-split", "deepseek-whole"])("a damaged GGUF file: %s", (name) => {
  const read = () => readFile(fixturePath(`gguf/${name}.gguf`));

  it("cut at 200 places is refused at each", async () => {
    const whole = await read();
    const file = join(await temporaryFolder(), "x.gguf");
    // gguf-py pads the last tensor, so that a cut in its padding loses nothing.
    const padding = 32;
    for (let i = 0; i < 200; i++) {
      await writeFile(file, whole.subarray(0, Math.floor((i * (whole.length - padding)) / 200)));
      expect(await readAll(file), `cut ${i}`).toBeDefined();
    }
    await writeFile(file, whole);
    expect(await readAll(file)).toBeUndefined();
  });

  it("with bytes of its header changed is refused, or read", async () => {
    const whole = await read();
    const file = join(await temporaryFolder(), "x.gguf");
    let errors = 0;
    const header = name.startsWith("deepseek") ? 3000 : 1500;
    const change = fc.tuple(fc.nat({ max: header }), fc.nat({ max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (changes) => {
        const bytes = Buffer.from(whole);
        for (const [at, value] of changes) bytes[at] = value;
        await writeFile(file, bytes);
        if ((await readAll(file)) !== undefined) errors++;
      }),
      { numRuns: 200 },
    );
    expect(errors).toBeGreaterThan(50);
  });

  it("with any eight bytes made a huge length is refused, or read", async () => {
    const whole = await read();
    const file = join(await temporaryFolder(), "x.gguf");
    const lengths = [2n ** 64n - 1n, 2n ** 63n, 2n ** 53n, 2n ** 40n, 2n ** 32n, 2n ** 31n - 1n];
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: 3000 }), fc.constantFrom(...lengths), async (at, length) => {
        const bytes = Buffer.from(whole);
        bytes.writeBigUInt64LE(length, at);
        await writeFile(file, bytes);
        await readAll(file);
      }),
      { numRuns: 200 },
    );
  });
});

describe("a GGUF file of noise", () => {
  it("after a whole start is refused, or read", async () => {
    const file = join(await temporaryFolder(), "x.gguf");
    const noise = fc.tuple(fc.nat({ max: 5 }), fc.nat({ max: 5 }), fc.uint8Array({ maxLength: 300 }));
    await fc.assert(
      fc.asyncProperty(noise, async ([tensors, keys, bytes]) => {
        const start = new GgufBytes().start({ tensors, keys }).done();
        await writeFile(file, Buffer.concat([start, bytes]));
        await readAll(file);
      }),
      { numRuns: 300 },
    );
  });
});

describe("a damaged folder", () => {
  const SAVED = fixturePath("saved-model");

  async function readFolder(folder: string): Promise<PonderaError | undefined> {
    try {
      await loadModelWeights(folder);
      return undefined;
    } catch (error) {
      if (!(error instanceof PonderaError)) throw error;
      expect(error.where.startsWith(folder), error.message).toBe(true);
      return error;
    }
  }

  it.each(["config.json", "model.safetensors"])(
    "whose %s is cut at 200 places is refused at each",
    async (name) => {
      const folder = join(await temporaryFolder(), "model");
      await cp(SAVED, folder, { recursive: true });
      const whole = await readFile(join(folder, name));
      const end = whole.toString("latin1").trimEnd().length;
      for (let i = 0; i < 200; i++) {
        await writeFile(join(folder, name), whole.subarray(0, Math.floor((i * end) / 200)));
        expect(await readFolder(folder), `cut ${i}`).toBeDefined();
      }
    },
  );

  const MODELS = [
    "llama-gqa",
    "arch-llama-tied",
    "arch-llama3",
    "arch-qwen2",
    "arch-deepseek-yarn",
    "arch-deepseek-mtp",
  ];

  it.each(MODELS)("whose config.json is damaged is refused, or read: %s", async (name) => {
    const folder = join(await temporaryFolder(), "model");
    await cp(fixturePath(name), folder, { recursive: true });
    const file = join(folder, "config.json");
    const whole = await readFile(file);
    const read = () => loadModelWeights(folder);
    for (const [what, bytes] of cuts(whole)) {
      await writeFile(file, bytes);
      expect(await refusal(what, folder, read), what).toBeDefined();
    }
    let refused = 0;
    for (const [what, bytes] of [...flips(whole, 60), ...wrongValues(whole)]) {
      await writeFile(file, bytes);
      if ((await refusal(what, folder, read)) !== undefined) refused++;
    }
    expect(refused).toBeGreaterThan(60);
    await writeFile(file, whole);
    expect(await refusal("whole", folder, read)).toBeUndefined();
  });

  it("whose generation_config.json is damaged is refused, or read", async () => {
    const folder = join(await temporaryFolder(), "model");
    await cp(SAVED, folder, { recursive: true });
    const file = join(folder, "generation_config.json");
    const whole = await readFile(file);
    const read = () => loadModelFolder(folder);
    for (const [what, bytes] of cuts(whole)) {
      await writeFile(file, bytes);
      expect((await refusal(what, file, read))?.where, what).toContain(file);
    }
    for (const [what, bytes] of [...flips(whole), ...wrongValues(whole)]) {
      await writeFile(file, bytes);
      await refusal(what, folder, read);
    }
  });

  it.each(["fp8", "tensors"])("whose index of shards is damaged is refused, or read: %s", async (name) => {
    const folder = join(await temporaryFolder(), "model");
    await cp(fixturePath(name), folder, { recursive: true });
    const file = join(folder, "model.safetensors.index.json");
    const whole = await readFile(file);
    const read = async () => {
      await using _ = await openSharded(file);
    };
    for (const [what, bytes] of cuts(whole)) {
      await writeFile(file, bytes);
      expect(await refusal(what, folder, read), what).toBeDefined();
    }
    let refused = 0;
    for (const [what, bytes] of [...flips(whole), ...wrongValues(whole)]) {
      await writeFile(file, bytes);
      if ((await refusal(what, folder, read)) !== undefined) refused++;
    }
    expect(refused).toBeGreaterThan(50);
    await writeFile(file, whole);
    expect(await refusal("whole", folder, read)).toBeUndefined();
  });

  it("whose config asks for millions of tensors is refused before they are listed", async () => {
    const folder = join(await temporaryFolder(), "model");
    await cp(fixturePath("arch-deepseek-plain"), folder, { recursive: true });
    const file = join(folder, "config.json");
    const config = JSON.parse(await readFile(file, "utf8")) as object;
    const huge = { num_hidden_layers: 1024, n_routed_experts: 4096, n_group: 1, topk_group: 1 };
    await writeFile(file, JSON.stringify({ ...config, ...huge }));
    const read = () => loadModelWeights(folder);
    expect(await growth(read)).toBeLessThan(ALLOWED_BYTES);
    expect((await refusal("huge", file, read))?.message).toMatch(
      /n_routed_experts: must be at most 49152 in all layers together; got 4096/,
    );
    // As many as are taken still fit.
    await writeFile(file, JSON.stringify({ ...config, ...huge, n_routed_experts: 48 }));
    expect(await growth(read)).toBeLessThan(ALLOWED_BYTES);
  });

  it("whose shards or index have bytes changed is refused, or read", async () => {
    const files = [
      "model.safetensors.index.json",
      "model-00001-of-00002.safetensors",
      "model-00002-of-00002.safetensors",
    ];
    const folder = await temporaryFolder();
    const whole = new Map<string, Buffer>();
    for (const file of files) whole.set(file, await readFile(fixturePath(`fp8/${file}`)));
    const index = join(folder, files[0]!);
    const change = fc.tuple(fc.constantFrom(...files), fc.nat({ max: 1200 }), fc.nat({ max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 3 }), async (changes) => {
        for (const [file, bytes] of whole) {
          const damaged = Buffer.from(bytes);
          for (const [target, at, value] of changes)
            if (target === file) damaged[at % damaged.length] = value;
          await writeFile(join(folder, file), damaged);
        }
        try {
          await using source = safetensorsFloats(index, await openSharded(index));
          for (const name of source.shapes.keys()) await source.readF32(name);
        } catch (error) {
          if (!(error instanceof PonderaError)) throw error;
          // Not always one of these: a damaged index may name another.
          expect(error.where.startsWith(folder), error.message).toBe(true);
        }
      }),
      { numRuns: 200 },
    );
  });

  const deep = (depth: number) => "[".repeat(depth) + "]".repeat(depth);
  it.each([100, 10_000, 1_000_000])("with JSON nested %i deep is refused", async (depth) => {
    const folder = join(await temporaryFolder(), "model");
    await cp(SAVED, folder, { recursive: true });
    const config = JSON.parse(await readFile(join(folder, "config.json"), "utf8")) as object;
    for (const text of [
      deep(depth),
      `${JSON.stringify(config).slice(0, -1)},"rope_scaling":${deep(depth)}}`,
      `${JSON.stringify(config).slice(0, -1)},"other":${deep(depth)}}`,
      `${'{"a":'.repeat(depth)}1${"}".repeat(depth)}`,
      "[".repeat(depth),
    ]) {
      await writeFile(join(folder, "config.json"), text);
      const error = await readFolder(folder);
      expect(error?.message.length, text.slice(-200, -180)).toBeLessThan(1000);
    }
    const index = join(await temporaryFolder(), "model.safetensors.index.json");
    await writeFile(index, `{"weight_map":${deep(depth)}}`);
    await expect(openSharded(index)).rejects.toThrow(PonderaError);
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

  it("a safetensors header of countless tiny tensors takes little more than the file", async () => {
    const file = join(await temporaryFolder(), "x.safetensors");
    const none = { dtype: "u8", shape: [0], data: new Uint8Array(0) } as const;
    const tensors = Object.fromEntries(Array.from({ length: 30_000 }, (_, i) => [i.toString(36), none]));
    await writeSafetensors(file, tensors);
    const { length } = await readFile(file);
    expect(await growth(() => readSafetensors(file))).toBeLessThan(length + ALLOWED_BYTES);
  });
});
