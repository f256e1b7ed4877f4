import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { writeReport } from "../../../../src/app/report/report.ts";
import { shellPath } from "../../../../src/base/shell.ts";
import { RunFolder } from "../../../../src/learn/runs/run-folder.ts";
import { pretrainStep, result, sample, step } from "../../../learn/runs/synthetic.ts";
import { pondera } from "../harness.ts";

let root: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-runs-"));
});
afterEach(() => rm(root, { recursive: true }));

async function make(name: string, finished: boolean, day: number, sick = false): Promise<string> {
  const asked = { root, name, task: "countdown", preset: "quick", seed: 3, config: {}, versions: {} };
  const run = await RunFolder.create({ ...asked, created: new Date(Date.UTC(2026, 10, day)) });
  await run.appendMetrics(pretrainStep(0, 1));
  for (let i = 0; i < 20; i++) await run.appendMetrics(step(i, 20, {}, sick ? { truncatedFraction: 1 } : {}));
  if (finished) await run.writeResult(result({ name }));
  await run.close();
  return run.path;
}

describe("pondera runs", () => {
  it("lists runs as a table and as JSON, oldest first", async () => {
    await make("second", false, 2);
    await make("first", true, 1);
    const { code, out } = await pondera(["runs", "list", "--runs", root]);
    expect(code).toBe(0);
    const lines = out.trimEnd().split("\n");
    expect(lines[0]).toMatch(/^run +status +step +base +final/);
    expect(lines[1]).toMatch(/^first +finished +rl 20\/20 +23\.1 % +78\.4 % +9\.4 +\$0\.015 +2026-11-01/);
    expect(lines[2]).toMatch(/^second +stopped +rl 20\/20/);
    const json = JSON.parse((await pondera(["runs", "list", "--runs", root, "--json"])).out);
    expect(json).toMatchObject([
      { name: "first", final: 0.784 },
      { name: "second", status: "stopped", step: 20 },
    ]);
  });

  it("says how to make a run when there is none", async () => {
    expect((await pondera(["runs", "list", "--runs", root])).out).toContain("pondera train countdown");
    expect((await pondera(["runs", "list", "--runs", root, "--json"])).out).toBe("[]\n");
    const shown = await pondera(["runs", "show", "--runs", root]);
    expect(shown.code).toBe(1);
    expect(shown.err).toContain("must hold a run; got none.");
  });

  it("lists the others when one cannot be read", async () => {
    await make("whole", true, 1);
    const broken = await make("broken", true, 2);
    await writeFile(join(broken, "run.json"), "{");
    const torn = await make("torn", true, 3);
    await writeFile(
      join(torn, "metrics.jsonl"),
      `\u0000\u0000\n${await readFile(join(torn, "metrics.jsonl"), "utf8")}`,
    );
    const { code, out, err } = await pondera(["runs", "list", "--runs", root]);
    expect(code).toBe(0);
    expect(out).toContain("whole");
    expect(err).toMatch(/left out: .*broken.run\.json: must be JSON/);
    expect(err).toMatch(/left out: .*torn.metrics\.jsonl/);
  });

  it("shows the newest run, or a named one, with its curves and result", async () => {
    await make("old", true, 1);
    await make("new", false, 2);
    expect((await pondera(["runs", "show", "--runs", root])).out).toMatch(
      /^new {2}countdown · quick · seed 3 · stopped/,
    );
    const { out } = await pondera(["runs", "show", "old", "--runs", root]);
    expect(out).toMatch(/right +▁.*█ {2}20\.0 % → 67\.5 %/);
    expect(out).toContain("after RL");
    const json = JSON.parse((await pondera(["runs", "show", "old", "--runs", root, "--json"])).out);
    expect(json).toMatchObject({
      status: "finished",
      steps: 21,
      last: { step: 20 },
      result: { name: "old" },
    });
  });

  it("says what to type next as it is typed here", async () => {
    await make("old", true, 1);
    await make("stopped", false, 2);
    const env = { npm_lifecycle_event: "npx" };
    const { out } = await pondera(["runs", "show", "old", "--runs", root], { env });
    expect(out).toContain(`    npx pondera chat old --runs ${root}`);
    await pondera(["runs", "show", "stopped", "--runs", root, "--report"], { env });
    const page = await readFile(join(root, "stopped", "report.html"), "utf8");
    expect(page).toMatch(/<code>npx pondera train --resume \S+stopped<\/code>/);
    const empty = await pondera(["runs", "list", "--runs", join(root, "none")], { env });
    expect(empty.out).toContain("Make one with: npx pondera train countdown");
    const unfinished = await pondera(["chat", "stopped", "--runs", root], { env });
    expect(unfinished.err).toMatch(/Go on with it: npx pondera train --resume \S+stopped\.\n/);
  });

  it("suggests the nearest name", async () => {
    await make("countdown-one", true, 1);
    const { code, err } = await pondera(["runs", "show", "countdwn-one", "--runs", root]);
    expect(code).toBe(2);
    expect(err).toContain('Did you mean "countdown-one"?');
  });

  it("writes the report on demand", async () => {
    const path = await make("one", false, 1);
    const { out } = await pondera(["runs", "show", "one", "--runs", root, "--report"]);
    expect(out).toContain(`Report: ${join(path, "report.html")}`);
    expect(await readFile(join(path, "report.html"), "utf8")).toContain("Unfinished");
    expect((await pondera(["runs", "show", "one", "--runs", root])).out).toContain("Report: ");
  });

  it("examines a run, and exits with 3 on a problem", async () => {
    await make("well", false, 1);
    await make("ill", false, 2, true);
    const well = await pondera(["runs", "doctor", "well", "--runs", root]);
    expect(well.code).toBe(0);
    expect(well.out).toContain("The run looks healthy.");
    const ill = await pondera(["runs", "doctor", "ill", "--runs", root]);
    expect(ill.code).toBe(3);
    expect(ill.out).toMatch(/problem +Nearly every completion is cut off/);
    expect(ill.out).toContain("Allow more new tokens");
    const json = await pondera(["runs", "doctor", "ill", "--runs", root, "--json"]);
    expect(json.code).toBe(3);
    expect(JSON.parse(json.out)).toMatchObject({
      run: "ill",
      findings: [{ rule: "truncated", level: "problem" }],
    });
  });

  it("says of a run that failed what stopped it and what to type", async () => {
    const run = await RunFolder.open(await make("failed", false, 1));
    const error = "update 22: the loss must be finite; got NaN";
    await run.recordFailure({ step: 21, error, from: 20, set: ["rl.rates.adamW=0.001"] });
    await run.close();
    const type = `pondera train --resume ${shellPath(join(root, "failed"))} --set rl.rates.adamW=0.001 goes on after step 20`;
    const words = (text: string) => text.replace(/\s+/g, " ");
    const shown = await pondera(["runs", "show", "--runs", root]);
    expect(words(shown.out)).toContain(`Failed after step 21: ${error}. For example, ${type}`);
    const json = await pondera(["runs", "show", "--runs", root, "--json"]);
    expect(JSON.parse(json.out)).toMatchObject({ status: "stopped", failure: { step: 21, error, from: 20 } });
    const { code, out } = await pondera(["runs", "doctor", "--runs", root]);
    expect(code).toBe(3);
    expect(words(out)).toContain(
      "problem A number was not finite, and training stopped. after step 21: update 22",
    );
    expect(words(out)).toContain(type);
    expect(words(out)).toContain("are fields of the configuration: --set field=value");
  });

  it("examines what was written, and prints it without its control characters", async () => {
    const asked = { root, name: "mute", task: "own", preset: "quick", seed: 1, config: {}, versions: {} };
    const run = await RunFolder.create(asked);
    const nothing = { pass1: 0, rewards: { accuracy: { mean: 0, std: 0 } } };
    for (let i = 0; i < 20; i++) {
      await run.appendMetrics(step(i, 20, {}, nothing));
      await run.appendSamples([sample(i + 1, { completion: "<answer>\u202e\u009b31m7" })]);
    }
    await run.close();
    const { code, out } = await pondera(["runs", "doctor", "mute", "--runs", root]);
    expect(code).toBe(3);
    const words = out.replace(/\s+/g, " ");
    expect(words).toContain("problem Answers practically never parse");
    expect(words).toContain("0 of 20 samples have an answer between <answer> and </answer>");
    expect(words).toContain('the newest sample is "<answer>7".');
    expect(await readFile(await writeReport(run.path), "utf8")).toContain("Answers practically never parse");
  });
});
