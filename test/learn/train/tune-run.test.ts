/** Runs that begin with a pretrained model: all weights and adapters, stopped and resumed, and what they leave. */

import { appendFile, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, FileError, FormatError } from "../../../src/base/errors.ts";
import { readCheckpoint } from "../../../src/learn/runs/checkpoint.ts";
import { readMetrics, readRun } from "../../../src/learn/runs/read-run.ts";
import { openTask } from "../../../src/learn/tasks/open.ts";
import { defineTask, type Task } from "../../../src/learn/tasks/task.ts";
import { parseRunConfig, type RunConfig, withLora } from "../../../src/learn/train/config.ts";
import { PRESETS } from "../../../src/learn/train/presets.ts";
import { resumeRun, startRun } from "../../../src/learn/train/run.ts";
import type { RunObserver } from "../../../src/learn/train/training.ts";
import { mergeAdapter } from "../../../src/model/arch/adapters.ts";
import type { LlamaConfig } from "../../../src/model/arch/llama.ts";
import { saveModelFolder } from "../../../src/model/checkpoint/folder.ts";
import { loadModel } from "../../../src/model/checkpoint/load.ts";
import { readSafetensors } from "../../../src/model/checkpoint/safetensors.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";
import { opinionatedWeights } from "../../model/models.ts";

const TEMPLATE =
  "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a] {% endif %}";
const tokenizer = characterTokenizer({ alphabet: "0123456789+= []abcdeforstu\n" });
const CONFIG: LlamaConfig = {
  vocabSize: tokenizer.vocabSize,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  headDim: 16,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 1e4,
  maxPositions: 96,
  tieEmbeddings: true,
};

let root: string;
let base: string;
let task: Task<unknown>;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-tune-"));
  base = join(root, "base");
  const tensors = opinionatedWeights(CONFIG, 5);
  const model = { config: CONFIG, tensors, tokenizer, extra: { extra_key: 7 } };
  await saveModelFolder(base, { ...model, chatTemplate: { source: TEMPLATE } });
  const digits = (text: string): number => text.replaceAll(/\D/g, "").length;
  const definition = defineTask({
    name: "digits",
    prompts: (random) => {
      const sum = `${random.integer(50)}+${random.integer(50)}`;
      return { prompt: sum, messages: [{ role: "user", content: `add ${sum}` }] };
    },
    demonstrate: () => ({ prompt: "1+1", completion: "2" }),
    reward: ({ text }) => digits(text) / 10,
    correct: ({ text }) => digits(text) >= 5,
    // Of a tokenizer that is not this model's: to be passed over.
    maxPromptTokens: 1,
  });
  task = (await openTask(definition)) as unknown as Task<unknown>;
});
afterAll(() => rm(root, { recursive: true, force: true }));

const { config } = PRESETS.tune;
const FULL: RunConfig = parseRunConfig({
  ...config,
  threads: 1,
  sft: { ...config.sft, steps: 2, rows: 1, rowLength: 64 },
  rl: {
    ...config.rl,
    steps: 6,
    prompts: 2,
    samples: 3,
    maxNewTokens: 12,
    slots: 4,
    referenceEvery: 4,
    rates: { adamW: 1e-3, muon: 0 },
    batchTokens: 64,
  },
  evaluation: { count: 3, samples: 1, temperature: 1 },
  validation: { every: 3, count: 2, temperature: 1 },
  checkpointEvery: 3,
});
const lora = withLora(FULL, 4);
const LORA: RunConfig = { ...lora, rl: { ...lora.rl, rates: { adamW: 0.02, muon: 0 } } };

const silent: RunObserver = { start() {}, step() {}, sample() {}, note() {} };
const peak = 1e11;
const start = (name: string, config: RunConfig, options: object = {}) =>
  startRun({
    ...{ root, name, task, preset: "tune", config, peak },
    model: { name: "base", path: base },
    ...options,
  });

/** Everything a run leaves that does not depend on a clock. */
async function remains(name: string) {
  const folder = join(root, name);
  const steps = (await readMetrics(folder)).map(({ timing: _, ...rest }) => rest);
  const files = (await readdir(join(folder, "model"))).filter((file) => file.endsWith(".safetensors"));
  return {
    steps,
    samples: await readFile(join(folder, "samples.jsonl"), "utf8"),
    weights: (await readFile(join(folder, "model", files[0]!))).toString("base64"),
  };
}

describe.each([
  ["all weights", "full", FULL],
  ["adapters", "lora", LORA],
])("a run that trains %s", (_, name, config) => {
  beforeAll(async () => {
    expect((await start(name, config)).kind).toBe("finished");
  }, 60_000);

  it("names the model and the hash of its files, and measures the base before anything", async () => {
    const { manifest, result } = await readRun(join(root, name));
    expect(manifest.model).toMatchObject({ name: "base", path: base });
    expect(manifest.model!.sha256).toMatch(/^[0-9a-f]{64}$/);
    expect(result).toMatchObject({ base: { count: 3 }, sft: { count: 3 }, final: { count: 3 } });
  });

  it("samples as it trains: every ratio is 1, and the KL is that to the base", async () => {
    const steps = (await readMetrics(join(root, name))).flatMap(({ rl }) => (rl === undefined ? [] : [rl]));
    expect(steps).toHaveLength(6);
    for (const { ratio } of steps) expect(Math.abs(ratio.max - 1)).toBeLessThan(1e-4);
    const kl = steps.map(({ kl }) => kl!);
    // At its first step the reference is the policy; then the policy leaves it, until it is taken anew.
    expect(kl[0]!).toBeLessThan(1e-6);
    expect(kl[3]!).toBeGreaterThan(1e-5);
    expect(kl[4]!).toBeLessThan(1e-6);
  });

  it("is resumed to the bit, from whatever stage", async () => {
    let left = 0;
    let aborter = new AbortController();
    const observer: RunObserver = { ...silent, step: () => --left === 0 && aborter.abort() };
    const next = (steps: number) => {
      left = steps;
      aborter = new AbortController();
      return { observer, signal: aborter.signal, peak };
    };
    let outcome = await start(`${name}-again`, config, next(1));
    let sessions = 1;
    for (; outcome.kind === "interrupted"; sessions++) {
      outcome = await resumeRun(join(root, `${name}-again`), async () => ({ task }), next(2));
    }
    expect(sessions).toBeGreaterThan(3);
    expect(await remains(`${name}-again`)).toEqual(await remains(name));
  });

  it("leaves a model that loads, with the base's own tokenizer, template, limits and other keys", async () => {
    const [model, before] = await Promise.all([loadModel(join(root, name, "model")), loadModel(base)]);
    expect(model.config).toEqual(before.config);
    expect(model.extra).toEqual(before.extra);
    expect(model.chatTemplate!.source).toBe(TEMPLATE);
    expect(model.generationConfig).toMatchObject({ temperature: 1, max_new_tokens: 12 });
    expect(model.stopIds).toEqual(before.stopIds);
    expect(model.tokenizer.encode("add 1+2")).toEqual(tokenizer.encode("add 1+2"));
    const query = "model.layers.0.self_attn.q_proj.weight";
    expect(model.tensors[query]!.data).not.toEqual(before.tensors[query]!.data);
  });
});

describe("adapters that were trained", () => {
  it("are PEFT's files, and the model is the base with them taken in", async () => {
    const folder = join(root, "lora", "model");
    expect((await readdir(folder)).sort()).toEqual([
      "adapter_config.json",
      "adapter_model.safetensors",
      "generation_config.json",
    ]);
    const json = JSON.parse(await readFile(join(folder, "adapter_config.json"), "utf8")) as object;
    expect(json).toMatchObject({
      peft_type: "LORA",
      task_type: "CAUSAL_LM",
      base_model_name_or_path: base,
      r: 4,
      lora_alpha: 8,
      bias: "none",
      target_modules: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    });
    const { tensors } = await readSafetensors(join(folder, "adapter_model.safetensors"));
    expect(tensors.size).toBe(2 * 7 * CONFIG.layers);
    const prefix = "base_model.model.model.layers.1.mlp.down_proj";
    const [a, b] = ["lora_A", "lora_B"].map((part) => {
      const { shape, data } = tensors.get(`${prefix}.${part}.weight`)!;
      const bytes = new Uint8Array(data).slice();
      return { dtype: "f32" as const, shape, data: new Float32Array(bytes.buffer) };
    });
    expect(a!.shape).toEqual([4, 48]);
    expect(b!.shape).toEqual([32, 4]);
    expect(b!.data.some((x) => x !== 0)).toBe(true);
    const [model, before] = await Promise.all([loadModel(folder), loadModel(base)]);
    const down = "model.layers.1.mlp.down_proj.weight";
    expect(model.tensors[down]!.data).toEqual(mergeAdapter(before.tensors[down]!, a!, b!, 2).data);
    const embedding = "model.embed_tokens.weight";
    expect(model.tensors[embedding]!.data).toEqual(before.tensors[embedding]!.data);
  });

  it("make small checkpoints: adapters, their moments and the reference's adapters, nothing of the base", async () => {
    const { tensors } = await readCheckpoint(join(root, "lora"), 6);
    const names = Object.keys(tensors);
    expect(names).toHaveLength(4 * 2 * 7 * CONFIG.layers);
    expect(names.every((name) => name.includes(".lora_"))).toBe(true);
  });

  it.each([
    [{ bias: "all" }, /adapter_config\.json: bias: must be none/],
    [{ use_dora: true }, /use_dora: must be false/],
    [{ r: 5 }, /must be a matrix lora_A \[5, in\]/],
    [{ peft_type: "IA3" }, /peft_type: must be LORA/],
    [{ rank_pattern: { q_proj: 2 } }, /rank_pattern: must be empty/],
    [{ base_model_name_or_path: "./gone" }, /must be the folder or file of the model.*write its new place/],
  ])("are refused where they are another function: %j", async (change, message) => {
    const folder = join(root, "lora", "model");
    const copy = await mkdtemp(join(root, "adapter-"));
    for (const file of await readdir(folder))
      await writeFile(join(copy, file), await readFile(join(folder, file)));
    const config = join(copy, "adapter_config.json");
    await writeFile(config, JSON.stringify({ ...JSON.parse(await readFile(config, "utf8")), ...change }));
    await expect(loadModel(copy)).rejects.toThrow(message);
    await expect(loadModel(copy)).rejects.toThrow(
      "base_model_name_or_path" in change ? FileError : FormatError,
    );
  });

  it("can be gone on from in a run of their own", async () => {
    const path = join(root, "lora", "model");
    const outcome = await start(
      "onward",
      { ...LORA, sft: { ...LORA.sft, steps: 0 } },
      {
        model: { name: "lora", path: base },
      },
    );
    expect(outcome.kind).toBe("finished");
    // Adapters to adapters are not understood by others, and not written: the base must be whole.
    await expect(start("on-adapters", LORA, { model: { name: "lora", path } })).rejects.toThrow(
      /must be whole.*pondera export/,
    );
  });
});

describe("a run with a model", () => {
  it("is not resumed with another", async () => {
    const aborter = new AbortController();
    const observer: RunObserver = { ...silent, step: () => aborter.abort() };
    await start("other-model", LORA, { observer, signal: aborter.signal });
    const file = join(base, "generation_config.json");
    const before = await readFile(file);
    await appendFile(file, " ");
    const resumed = resumeRun(join(root, "other-model"), async () => ({ task }), { peak });
    await expect(resumed).rejects.toThrow(/must be the model the run began with.*Put base back as it was/);
    await writeFile(file, before);
    expect((await resumeRun(join(root, "other-model"), async () => ({ task }), { peak })).kind).toBe(
      "finished",
    );
  });

  it("must fit: configuration, positions, architecture", async () => {
    const { quick } = PRESETS;
    await expect(start("x", quick.config)).rejects.toThrow(
      /config\.model: must be given for a model made from/,
    );
    await expect(start("x", { ...FULL, pretrain: { ...FULL.pretrain, steps: 3 } })).rejects.toThrow(
      /config\.pretrain\.steps: must be 0/,
    );
    await expect(start("x", { ...FULL, rl: { ...FULL.rl, maxNewTokens: 90 } })).rejects.toThrow(
      /must leave room for prompts of \d+ tokens in the 96 positions of base; got 90/,
    );
    await expect(start("x", FULL, { model: undefined })).rejects.toThrow(/Name a model with --model/);
    await expect(start("x", withLora({ ...quick.config, threads: 1 }, 2))).rejects.toThrow(
      /config\.lora: is for a model that is loaded/,
    );
    const wrong = { ...LORA, lora: { ...LORA.lora!, targets: ["q_prj"] } };
    await expect(start("x", wrong)).rejects.toThrow(/lora\.targets: .*Did you mean "q_proj"\?/);
    await expect(start("x", wrong)).rejects.toThrow(ConfigError);
  });
});
