/** A pretrained model, trained, asked and exported by the command line. */

import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { readRun } from "../../../../src/learn/runs/read-run.ts";
import type { RunResult } from "../../../../src/learn/runs/records.ts";
import type { LlamaConfig } from "../../../../src/model/arch/llama.ts";
import { saveModelFolder } from "../../../../src/model/checkpoint/folder.ts";
import { loadModel } from "../../../../src/model/checkpoint/load.ts";
import { characterTokenizer } from "../../../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { opinionatedWeights } from "../../../model/models.ts";
import { pondera } from "../harness.ts";

const ALPHABET = `${String.fromCharCode(...Array.from({ length: 95 }, (_, i) => 32 + i))}\n`;
const tokenizer = characterTokenizer({ alphabet: ALPHABET });
const CONFIG: LlamaConfig = {
  vocabSize: tokenizer.vocabSize,
  hiddenSize: 32,
  intermediateSize: 32,
  layers: 1,
  heads: 2,
  kvHeads: 1,
  headDim: 16,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 1e4,
  maxPositions: 512,
  tieEmbeddings: true,
};

/** A task that any model earns something in. */
const TASK = `
import { defineTask } from "pondera";
export default defineTask({
  name: "letters",
  prompts: (random) => ({ prompt: "Write " + random.integer(100), messages: [{ role: "user", content: "Write." }] }),
  reward: ({ text }) => text.replaceAll(/[^a-z]/g, "").length / 8,
  correct: ({ text }) => /[a-z]{3}/.test(text),
});
`;

let root: string;
let base: string;
let task: string;
beforeEach(async () => {
  root = await temporaryFolder();
  base = join(root, "base");
  task = join(root, "letters.ts");
  await writeFile(task, TASK);
  const tensors = opinionatedWeights(CONFIG, 5);
  const chatTemplate = { source: "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}bot: " };
  await saveModelFolder(base, { config: CONFIG, tensors, tokenizer, chatTemplate });
});

const SMALL = [
  ...["rl.prompts=2", "rl.samples=2", "rl.maxNewTokens=8", "rl.slots=4", "evaluation.count=3"],
  "checkpointEvery=1",
].flatMap((assignment) => ["--set", assignment]);
const train = (...argv: readonly string[]) =>
  pondera(["train", "--out", root, "--threads", "1", ...argv, ...SMALL]);

describe("pondera train --model", () => {
  it("trains adapters to a model; the run is asked, measured and exported like any other", {
    timeout: 60_000,
  }, async () => {
    const argv = [task, "--model", base, "--lora-rank", "2", "--steps", "2", "--name", "tuned"];
    const { code, out, err } = await train(...argv);
    expect(err).toBe("");
    expect(code).toBe(0);
    expect(out).toMatch(/Reading base…[\s\S]*tuned: letters, tune, seed 1/);
    expect(out.match(/^rl \d\/2 {2}reward /gm)).toHaveLength(2);
    const { manifest, status } = await readRun(join(root, "tuned"));
    expect(status).toBe("finished");
    expect(manifest).toMatchObject({ preset: "tune", model: { name: "base", path: base } });
    expect(manifest.config).toMatchObject({ lora: { rank: 2, alpha: 4 }, rl: { rates: { adamW: 2e-4 } } });
    expect(manifest.config).not.toHaveProperty("model");

    // The task's held-out prompts, asked as in training.
    const measured = await pondera([
      "eval",
      "tuned",
      "--runs",
      root,
      "--limit",
      "3",
      "--threads",
      "1",
      "--json",
    ]);
    expect(measured.err).toBe("");
    expect(JSON.parse(measured.out)).toMatchObject({ task: "letters", count: 3 });

    const hf = join(root, "merged");
    expect((await pondera(["export", "tuned", "--runs", root, "--out", hf])).code).toBe(0);
    expect((await readdir(hf)).sort()).toEqual([
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
    const [merged, adapted, before] = await Promise.all(
      [hf, join(root, "tuned", "model"), base].map((path) => loadModel(path)),
    );
    expect(merged!.tensors).toEqual(adapted!.tensors);
    const query = "model.layers.0.self_attn.q_proj.weight";
    expect(merged!.tensors[query]!.data).not.toEqual(before!.tensors[query]!.data);

    const argvs = [
      "generate",
      "--model",
      hf,
      "--prompt",
      "a",
      "--max-new-tokens",
      "4",
      "--threads",
      "1",
      "--json",
    ];
    expect((await pondera(argvs)).code).toBe(0);
  });

  it("trains all weights, and takes a finished run for a model", { timeout: 60_000 }, async () => {
    expect((await train("countdown", "--model", base, "--steps", "1", "--name", "all")).code).toBe(0);
    const argv = ["countdown", "--model", "all", "--steps", "1", "--name", "more", "--json"];
    const { code, out } = await train(...argv, "--set", "rl.rates.adamW=1e-6");
    expect(code).toBe(0);
    expect(JSON.parse(out) as RunResult).toMatchObject({ preset: "tune", name: "more" });
    const { manifest } = await readRun(join(root, "more"));
    expect(manifest.model).toMatchObject({ name: "all", path: join(root, "all", "model") });
    expect((await loadModel(join(root, "more", "model"))).chatTemplate!.source).toContain("bot: ");
  });

  it.each([
    [["countdown", "--preset", "tune"], /--preset tune: needs the model to train.*--model \.\/my-model/],
    [["countdown", "--lora-rank", "4"], /--lora-rank: needs the model that the adapters belong to/],
    [
      ["countdown", "--model", "BASE", "--preset", "quick"],
      /--preset: must be tune for a model that is loaded/,
    ],
    [["countdown", "--model", "BASE", "--depth", "4"], /--depth: is for a model made from nothing/],
    [
      ["countdown", "--model", "BASE", "--set", "model.width=32"],
      /config\.model\.layers: must be a whole number/,
    ],
    [["countdown", "--model", "BASE", "--lora-rank", "0"], /--lora-rank/],
    [["--resume", "x", "--lora-rank", "4"], /--lora-rank: is for new runs/],
    [["countdown", "--model", "./nothing-there"], /no such|must hold a run|run: must be/i],
    [
      ["countdown", "--model", "BASE", "--set", "rl.maxNewTokens=500"],
      /must leave room for prompts of \d+ tokens in the 512 positions of base/,
    ],
  ])("says what is wrong with %j, and leaves nothing", async (argv, message) => {
    const words = argv.map((word) => (word === "BASE" ? base : word));
    const { code, err } = await pondera(["train", "--out", root, "--threads", "1", ...words]);
    expect(code).not.toBe(0);
    expect(err).toMatch(message);
    expect((await readdir(root)).sort()).toEqual(["base", "letters.ts"]);
  });

  it("takes a folder with a model of its own for that model, whatever adapters lie beside it", async () => {
    const folder = join(root, "adapters");
    const config = { peft_type: "LORA", base_model_name_or_path: "nowhere", r: 1, lora_alpha: 1 };
    await saveModelFolder(folder, { ...(await loadModel(base)) });
    await writeFile(join(folder, "adapter_config.json"), JSON.stringify(config));
    expect((await loadModel(folder)).config).toEqual(CONFIG);
  });
});
