/** The comparisons, with a stand-in for their Python half: who takes turns when, and what is made of the times. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { generateVersusTransformers } from "../../bench/generate-vs-transformers.ts";
import { grpoVersusTrl } from "../../bench/grpo-vs-trl.ts";
import { trainVersusTorch } from "../../bench/train-vs-torch.ts";
import { groupOf, ratioOf, takeTurns, type VersusReport, versusLines } from "../../bench/versus.ts";
import { measured } from "../../src/app/bench/measure.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "pondera-versus-"));
});
afterAll(() => rm(folder, { recursive: true }));

/** A stand-in that says it is ready and answers every request; `check` may look at its options. */
async function standIn(
  name: string,
  answer: string,
  check = "",
): Promise<{ script: string; python: string }> {
  const file = join(folder, `${name}.mjs`);
  await writeFile(
    file,
    `import { createInterface } from "node:readline";
     import { readFileSync } from "node:fs";
     const say = (value) => console.log(JSON.stringify(value));
     const options = JSON.parse(process.argv[2]);
     const refuse = (error) => { say({ ready: false, error }); process.exit(1); };
     ${check}
     say({ ready: true, versions: { torch: "2" } });
     createInterface({ input: process.stdin }).on("line", (line) => {
       const request = JSON.parse(line);
       if (request.cmd === "quit") process.exit(0);
       say(${answer});
     });`,
  );
  return { script: pathToFileURL(file).href, python: process.execPath };
}

const tiny = { depth: 1, width: 32, heads: 2, kvHeads: 1, hidden: 16, vocab: 24, threads: 1, rounds: 2 };

function sides(report: VersusReport, group = 0) {
  return report.groups[group]!.sides.map(({ name, rounds }) => ({
    name,
    runs: rounds.map((round) => round.length),
  }));
}

describe("taking turns", () => {
  it("lets each side run once a round, in order", async () => {
    const order: string[] = [];
    const side = (name: string, seconds: number[]) => ({
      name,
      turn: async () => {
        order.push(name);
        return seconds;
      },
    });
    const rounds: number[] = [];
    const [a, b] = await takeTurns([side("a", [1, 2]), side("b", [4])], 2, (done) => rounds.push(done));
    expect(order).toEqual(["a", "b", "a", "b"]);
    expect(rounds).toEqual([1, 2]);
    expect(a).toEqual({
      name: "a",
      seconds: measured([1, 2, 1, 2]),
      rounds: [
        [1, 2],
        [1, 2],
      ],
    });
    expect(b?.seconds.all).toEqual([4, 4]);
  });

  it("takes the ratio of medians, overall and of each round", () => {
    const ours = { name: "ours", seconds: measured([1, 1, 2]), rounds: [[1, 1], [2]] };
    const theirs = { name: "theirs", seconds: measured([3, 5, 8]), rounds: [[3, 5], [8]] };
    expect(ratioOf(ours, theirs)).toEqual({ median: 5, rounds: [4, 4] });
  });

  it("prints every side, the ratio and where it was measured", () => {
    const ours = { name: "Pondera", seconds: measured([0.5]), rounds: [[0.5]] };
    const theirs = { name: "PyTorch eager", seconds: measured([1, 2]), rounds: [[1, 2]] };
    const machine = {
      ...{ cpu: "Some CPU", cores: 2, installedCores: 4, memoryGiB: 8, platform: "linux x64" },
      ...{ node: "20.20.0", runtime: "ONNX Runtime 1 (ffi)", threads: 2 },
    };
    const lines = versusLines({
      benchmark: "b",
      what: "training",
      machine,
      versions: { torch: "2.15" },
      groups: [groupOf("a step", 100, [ours, theirs])],
    });
    expect(lines[0]).toBe("training");
    expect(lines[2]).toMatch(/Pondera +0\.500 s \(min 0\.500, max 0\.500, 1 of them\) +200 tokens\/s$/);
    expect(lines[3]).toMatch(
      /PyTorch eager +1\.500 s .* 67 tokens\/s {3}Pondera is 3\.00× as fast \(rounds 3\.00 to 3\.00\)/,
    );
    expect(lines.slice(4)).toEqual([
      "torch 2.15",
      "Some CPU, 2 of 4 cores, 2 threads, 8 GiB · linux x64 · Node 20.20.0 · ONNX Runtime 1 (ffi)",
    ]);
  });
});

describe("the comparisons", () => {
  it("train: the same sizes on both sides, a peer for each mode", async () => {
    const check = `
      const want = { layers: 1, width: 32, heads: 2, kvHeads: 1, ffn: 16, vocab: 24, batch: 4, tokens: 8, threads: 1 };
      for (const [name, value] of Object.entries(want)) if (options[name] !== value) refuse(name);`;
    const peer = await standIn(
      "train",
      `{ ms: Array(request.n).fill(options.mode === "eager" ? 4000 : 8000), loss: 1 }`,
      check,
    );
    const asked = { ...tiny, batch: 4, tokens: 8, parts: 1, steps: 3, mode: ["eager", "compile"] };
    const report = await trainVersusTorch(asked, peer);
    expect(sides(report)).toEqual([
      { name: "Pondera", runs: [3, 3] },
      { name: "PyTorch eager", runs: [3, 3] },
      { name: "PyTorch compile", runs: [3, 3] },
    ]);
    const [{ tokens, ratios, sides: timed }] = report.groups as [VersusReport["groups"][number]];
    expect(tokens).toBe(32);
    expect(timed[1]?.seconds.median).toBe(4);
    expect(ratios["PyTorch compile"]!.median).toBeCloseTo(2 * ratios["PyTorch eager"]!.median, 10);
    expect(report.versions).toEqual({ torch: "2" });
  });

  it("generate: hands over the weights, a peer for each batch", async () => {
    const check = `
      if (JSON.parse(readFileSync(options.model + "/config.json", "utf8")).num_key_value_heads !== 1) refuse("model");
      if (options.promptTokens !== 4 || options.newTokens !== 3 || options.cache !== "static") refuse("sizes");`;
    const peer = await standIn("generate", `{ seconds: [options.batch], tokensPerSecond: [1] }`, check);
    const report = await generateVersusTransformers(
      { ...tiny, batch: [2, 3], prompt: 4, newTokens: 3, cache: "static" },
      peer,
    );
    expect(report.groups.map(({ name, tokens }) => ({ name, tokens }))).toEqual([
      { name: "batch 2", tokens: 6 },
      { name: "batch 3", tokens: 9 },
    ]);
    expect(sides(report, 1)).toEqual([
      { name: "Pondera", runs: [1, 1] },
      { name: "transformers, static", runs: [1, 1] },
    ]);
    expect(report.groups[1]!.sides[1]!.seconds.median).toBe(3);
  });

  it("grpo: whole steps, every completion to its full length", async () => {
    const check = `
      const texts = JSON.parse(readFileSync(options.promptsFile, "utf8"));
      if (texts.length !== 3 || texts.some((text) => text.length !== 5) || !options.ignoreEos) refuse("prompts");`;
    const answer = `{ seconds: Array(request.n).fill(9), generationSeconds: [4], completionTokens: [3 * 2 * 6] }`;
    const peer = await standIn("grpo", answer, check);
    const asked = {
      ...tiny,
      prompts: 3,
      samples: 2,
      prompt: 5,
      newTokens: 6,
      steps: 1,
      slots: 4,
      microBatch: 6,
    };
    const report = await grpoVersusTrl(asked, peer);
    expect(sides(report)).toEqual([
      { name: "Pondera", runs: [1, 1] },
      { name: "TRL GRPOTrainer", runs: [1, 1] },
    ]);
    expect(report.groups[0]?.tokens).toBe(36);
    expect(report.notes?.[1]).toBe("TRL: 4.0 s of a step sample completions");
  });

  it("grpo: refuses an answer that did less work", async () => {
    const answer = `{ seconds: [9], generationSeconds: [], completionTokens: [35] }`;
    const peer = await standIn("short", answer);
    const asked = {
      ...tiny,
      prompts: 3,
      samples: 2,
      prompt: 5,
      newTokens: 6,
      steps: 1,
      slots: 4,
      microBatch: 6,
    };
    await expect(grpoVersusTrl(asked, peer)).rejects.toThrow("every completion has its full length");
  });
});
