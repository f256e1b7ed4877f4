/** Trains each example task from its file as it is shipped, for a few steps of a small model: the whole way, end to end. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readRun } from "../../../../src/learn/runs/read-run.ts";
import type { RunResult } from "../../../../src/learn/runs/records.ts";
import { pondera } from "../harness.ts";

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-examples-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

const SMALL = ["--preset", "smoke", "--threads", "1", "--steps", "2", "--json"];
const FEW = ["validation.every=0", "evaluation.count=8", "checkpointEvery=100"];

describe("pondera train on the examples", () => {
  // So many steps of pre-training that a base has the form now and then, which is rewarded before a right answer is.
  it.each([
    ["arithmetic", "format", 40],
    ["json-extraction", "schema", 75],
    ["sql", "runs", 50],
  ])("trains %s, whose reward %s is earned at once", { timeout: 60_000 }, async (name, form, steps) => {
    const file = fileURLToPath(new URL(`../../../../examples/${name}.ts`, import.meta.url));
    const few = [...FEW, `pretrain.steps=${steps}`].flatMap((change) => ["--set", change]);
    const where = ["--out", root, "--name", name];
    const { code, out, err } = await pondera(["train", file, ...SMALL, ...few, ...where]);
    expect(code, err).toBe(0);
    expect(JSON.parse(out) as RunResult).toMatchObject({ task: name, preset: "smoke", final: { count: 8 } });

    const { status, manifest, metrics, samples } = await readRun(join(root, name), { samples: true });
    expect(status).toBe("finished");
    expect(manifest.taskFile).toBe(file);
    const learned = metrics.filter(({ stage }) => stage === "rl");
    expect(learned).toHaveLength(2);
    for (const { rl } of learned) expect(Object.keys(rl!.rewards)).toEqual(["accuracy", form]);
    // Some completions can be read and some cannot, so that samples of one prompt differ and there is something to learn.
    expect(Math.max(...learned.map(({ rl }) => rl!.rewards[form]!.mean))).toBeGreaterThan(0.1);
    expect(Math.min(...learned.map(({ rl }) => rl!.equalGroups))).toBeLessThan(1);
    expect(Math.max(...learned.map(({ gradientNorm }) => gradientNorm))).toBeGreaterThan(0);
    expect(samples).toHaveLength(8);
    expect(samples!.every(({ prompt, rewards }) => prompt !== "" && rewards[form] !== null)).toBe(true);
  });
});
