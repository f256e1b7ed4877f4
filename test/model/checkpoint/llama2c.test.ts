import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FormatError, PonderaError } from "../../../src/base/errors.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { parseLlamaConfig } from "../../../src/model/arch/llama-json.ts";
import { readWeights } from "../../../src/model/checkpoint/folder.ts";
import { openGgufModel } from "../../../src/model/checkpoint/gguf/model.ts";
import { saveGguf } from "../../../src/model/checkpoint/gguf/save.ts";
import { openLlama2c, readLlama2cTokenizer } from "../../../src/model/checkpoint/llama2c.ts";
import { type LlamaWeights, padHeads } from "../../../src/model/checkpoint/pad-heads.ts";
import { openSafetensors, writeSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { safetensorsFloats } from "../../../src/model/checkpoint/safetensors-floats.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import type { Strings } from "../../../src/model/text/strings.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";

const stories = (file: string): string =>
  fileURLToPath(new URL(`../../../../shared/data/weights/stories260K/${file}`, import.meta.url));
const MODEL = stories("stories260K.bin");
const TOKENIZER = stories("tok512.bin");

/** What a SentencePiece vocabulary of text without byte tokens says. */
function textOf(tokens: Strings, ids: readonly number[]): string {
  const pieces = ids.map((id) =>
    tokens.at(id)!.replace(/^<0x(..)>$/, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16))),
  );
  return pieces.join("").replaceAll("▁", " ").replace(/^ /, "");
}

describe.skipIf(!existsSync(MODEL))("stories260K", () => {
  interface Expected {
    readonly greedy_ids: number[];
    readonly text_200_steps: string;
    readonly text_256_steps: string;
  }
  const expected = existsSync(MODEL)
    ? (JSON.parse(readFileSync(stories("expected.json"), "utf8")) as Expected)
    : undefined!;
  let runtime: Runtime;
  beforeAll(async () => {
    runtime = await Runtime.create({ threads: 1 });
  });
  afterAll(() => runtime.dispose());

  async function load(): Promise<LlamaWeights> {
    await using model = await openLlama2c(MODEL);
    const { config } = parseLlamaConfig(MODEL, model.config);
    return { config, tensors: await readWeights(model, config) };
  }

  /** Begin token and 256 more, each the likeliest. */
  async function greedy(model: LlamaWeights): Promise<number[]> {
    const { config, tensors } = padHeads(model, 16);
    const engine = new Engine(runtime, config, { slots: 1, maxPositions: 300 });
    engine.adopt(deviceWeights(runtime, tensors));
    const request = { prompt: [1], samples: 1, seed: 1 };
    const completions = await engine.generate([request], {
      maxNewTokens: 256,
      stopIds: [1, 2],
      temperature: 0,
    });
    await engine.dispose();
    return [1, ...completions[0]![0]!.ids];
  }

  it("writes both published stories, token for token", async () => {
    const { tokens } = await readLlama2cTokenizer(TOKENIZER, 512);
    const ids = await greedy(await load());
    expect(ids).toEqual(expected.greedy_ids);
    expect(textOf(tokens, ids.slice(1, 201))).toBe(expected.text_200_steps);
    expect(textOf(tokens, ids.slice(1))).toBe(expected.text_256_steps);
  });

  it("writes them after a detour through safetensors", async () => {
    const { config, tensors } = await load();
    const file = join(await temporaryFolder(), "model.safetensors");
    await writeSafetensors(file, tensors);
    await using source = safetensorsFloats(file, await openSafetensors(file));
    expect(await greedy({ config, tensors: await readWeights(source, config) })).toEqual(expected.greedy_ids);
  });

  it("writes them after a detour through GGUF, its weights halved in size", async () => {
    const file = join(await temporaryFolder(), "stories.gguf");
    await using source = await openLlama2c(MODEL);
    const vocabulary = await readLlama2cTokenizer(TOKENIZER, 512);
    const { tensors } = await load();
    await saveGguf(
      file,
      { config: source.config, tensors, vocabulary },
      { type: "F16", name: "stories260K" },
    );
    await using model = await openGgufModel(file);
    expect({ ...model.vocabulary, tokens: [...model.vocabulary!.tokens] }).toEqual(vocabulary);
    expect(model.typeOf("model.layers.0.self_attn.q_proj.weight")).toBe("F16");
    const { config } = parseLlamaConfig(file, model.config);
    expect(await greedy({ config, tensors: await readWeights(model, config) })).toEqual(expected.greedy_ids);
  });

  it("has a SentencePiece vocabulary", async () => {
    const { tokens, scores, tokenTypes, ...rest } = await readLlama2cTokenizer(TOKENIZER, 512);
    expect([...tokens].slice(0, 4)).toEqual(["<unk>", "<s>", "</s>", "<0x00>"]);
    expect([...tokens].slice(258, 262)).toEqual(["<0xFF>", "▁t", "he", "▁a"]);
    expect([...scores!.slice(259, 262)]).toEqual([-0, -1, -2]);
    expect([0, 1, 2, 3, 258, 259].map((id) => tokenTypes![id])).toEqual([2, 3, 3, 6, 6, 1]);
    expect(rest).toEqual({
      model: "llama",
      bosId: 1,
      eosId: 2,
      unknownId: 0,
      addBos: true,
      addSpacePrefix: true,
    });
  });
});

/** A model of one layer, width 4, two heads and five tokens, all zeros, with sizes as given. */
function tinyModel(
  change: Partial<Record<"dim" | "hidden" | "layers" | "heads" | "kvHeads" | "vocab" | "seq", number>>,
  bytes?: number,
): Buffer {
  const it = { dim: 4, hidden: 3, layers: 1, heads: 2, kvHeads: 1, vocab: 5, seq: 6, ...change };
  // Embedding, two norms, q, k, v, o, three of the feed-forward, norm, rotary tables.
  const floats = 5 * 4 + 2 * 4 + 16 + 8 + 8 + 16 + 3 * 12 + 4 + 6 * 2;
  const file = Buffer.alloc(bytes ?? 28 + 4 * floats + (it.vocab < 0 ? 4 * 5 * 4 : 0));
  Object.values(it).forEach((value, i) => void (4 * i + 4 <= file.length && file.writeInt32LE(value, 4 * i)));
  return file;
}

describe("a file of llama2.c", () => {
  async function open(bytes: Uint8Array): Promise<readonly string[]> {
    const file = join(await temporaryFolder(), "x.bin");
    await writeFile(file, bytes);
    await using model = await openLlama2c(file);
    const { config } = parseLlamaConfig(file, model.config);
    return Object.keys(await readWeights(model, config));
  }

  it("may have a head of its own", async () => {
    expect(await open(tinyModel({}))).not.toContain("lm_head.weight");
    expect(await open(tinyModel({ vocab: -5 }))).toContain("lm_head.weight");
  });

  const rows: [string, Buffer, RegExp][] = [
    ["too short for its sizes", tinyModel({}, 27), /must begin with 28 bytes of sizes; got 27 bytes/],
    ["no layers", tinyModel({ layers: 0 }), /n_layers: must be from 1 to .*Only the first format/],
    ["a negative width", tinyModel({ dim: -4 }), /dim: must be from 1/],
    ["countless layers", tinyModel({ layers: 2 ** 24 }), /must have the more than 536870912 bytes/],
    ["a huge vocabulary", tinyModel({ vocab: 2 ** 24 }), /must have the \d+ bytes that its sizes ask for/],
    ["heads that do not divide", tinyModel({ heads: 3 }), /n_heads: must divide dim/],
    ["key heads that do not divide", tinyModel({ kvHeads: 3 }), /n_heads: .*multiple of n_kv_heads/],
    ["a byte too few", tinyModel({}, 28 + 4 * 140 - 1), /must have the \d+ bytes/],
    ["a byte too many", Buffer.concat([tinyModel({}), Buffer.alloc(1)]), /must have the \d+ bytes/],
  ];
  it.each(rows)("is refused with %s", async (_, bytes, message) => {
    await expect(open(bytes)).rejects.toThrow(FormatError);
    await expect(open(bytes)).rejects.toThrow(message);
  });
});

describe("a tokenizer of llama2.c", () => {
  function tokenizer(tokens: readonly (readonly [number, Uint8Array])[]): Buffer {
    const entries = tokens.map(([score, bytes]) => {
      const head = Buffer.alloc(8);
      head.writeFloatLE(score);
      head.writeInt32LE(bytes.length, 4);
      return Buffer.concat([head, bytes]);
    });
    return Buffer.concat([Buffer.alloc(4), ...entries]);
  }
  const text = (value: string) => Buffer.from(value, "utf8");
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`);
  const base = ["<unk>", "\n<s>\n", "\n</s>\n", ...bytes].map((token) => [0, text(token)] as const);
  async function read(file: Uint8Array, size: number) {
    const path = join(await temporaryFolder(), "tok.bin");
    await writeFile(path, file);
    return await readLlama2cTokenizer(path, size);
  }

  it("is read whole", async () => {
    const { tokens } = await read(tokenizer([...base, [-1, text(" é")]]), 260);
    expect([...tokens].slice(-2)).toEqual(["<0xFF>", "▁é"]);
  });

  const rows: [string, Buffer, number, RegExp][] = [
    ["too few tokens", tokenizer(base), 260, /token 259: must be there: the model has 260 tokens/],
    ["too many", tokenizer([...base, [0, text("a")]]), 259, /must end after 259 tokens; got 9 bytes more/],
    ["no bytes", tokenizer(base.slice(0, 5)), 5, /must come after all bytes/],
    [
      "bytes elsewhere",
      tokenizer([...base.slice(0, 3), ...base.slice(4), [0, text("a")]]),
      259,
      /token 3: must be <0x00>; got "<0x01>"/,
    ],
    ["an empty token", tokenizer([...base, [0, text("")]]), 260, /token 259: must have from 1 to 1024 bytes/],
    [
      "a token that is no text",
      tokenizer([...base, [0, Uint8Array.of(0xff)]]),
      260,
      /token 259: must be UTF-8/,
    ],
    [
      "a score that is no number",
      tokenizer([...base, [Number.NaN, text("a")]]),
      260,
      /token 259: must have a finite score/,
    ],
    ["nothing", Buffer.alloc(0), 1, /must have 4 to/],
  ];
  it.each(rows)("is refused with %s", async (_, file, size, message) => {
    await expect(read(file, size)).rejects.toThrow(FormatError);
    await expect(read(file, size)).rejects.toThrow(message);
  });

  it("with bytes changed anywhere is read or refused", async () => {
    const whole = tokenizer([...base, [-1, text(" é")]]);
    const change = fc.tuple(fc.nat({ max: whole.length - 1 }), fc.nat({ max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), fc.nat(), async (changes, cut) => {
        const damaged = Buffer.from(whole);
        for (const [at, value] of changes) damaged[at] = value;
        try {
          await read(cut % 2 ? damaged.subarray(0, cut % whole.length) : damaged, 260);
        } catch (error) {
          if (!(error instanceof PonderaError)) throw error;
        }
      }),
      { numRuns: 200 },
    );
  });
});
