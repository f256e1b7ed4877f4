import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { pondera } from "../harness.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "pondera-grade-"));
});
afterEach(() => rm(folder, { recursive: true }));

const row = (completion: string) => JSON.stringify({ numbers: [83, 18, 75], target: 10, completion });
const good = row("<think>83-18=65</think><answer>75-(83-18)</answer>");
const rows = [good, row("<think>hm</think><answer>75-18</answer>"), row("no idea"), "{", good];

async function file(lines: readonly string[]): Promise<string> {
  const path = join(folder, "rows.jsonl");
  await writeFile(path, lines.map((line) => `${line}\n`).join(""));
  return path;
}

describe("pondera grade", () => {
  it("gives a verdict per row as JSON lines, broken rows included", async () => {
    const { code, out, err } = await pondera(["grade", "countdown", await file(rows), "--json"]);
    expect(code).toBe(0);
    expect(err).toBe("");
    const verdicts = out
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(verdicts.map((v) => v.accuracy)).toEqual([1, 0, 0, 0, 1]);
    expect(verdicts.map((v) => v.format)).toEqual([1, 1, 0, 0, 1]);
    expect(Object.keys(verdicts[0])).toEqual(["reward", "accuracy", "format", "reason"]);
    expect(verdicts[3].reason).toMatch(/^line 4: not JSON/);
  });

  it("sums up for a person, reasons alike but for their numbers together", async () => {
    const more = [...rows, row("<think>hm</think><answer>83-75</answer>")];
    const { out } = await pondera(["grade", "countdown", await file(more)]);
    expect(out).toMatch(
      /^6 rows: 33\.3 % right, 66\.7 % well formed, mean reward 1\.000\ntook \d+\.\d\d s, [\d.]+[kMG]? rows\/s\n\n/,
    );
    expect(out).toMatch(/2 {2}33\.3 % {2}makes N, not N/);
    expect(out).toMatch(/2 {2}33\.3 % {2}correct/);
  });

  it("reads standard input, and says so when there is nothing", async () => {
    const { out } = await pondera(["grade", "countdown", "-", "--json"], { input: `${good}\n` });
    expect(JSON.parse(out).accuracy).toBe(1);
    expect((await pondera(["grade", "countdown", "-"])).out).toBe("No rows.\n");
  });

  it("asks for every number when told to", async () => {
    const partial = JSON.stringify({
      numbers: [7, 3, 5],
      target: 10,
      completion: "<think>a</think><answer>7+3</answer>",
    });
    const path = await file([partial]);
    expect(JSON.parse((await pondera(["grade", "countdown", path, "--json"])).out).accuracy).toBe(1);
    const strict = JSON.parse((await pondera(["grade", "countdown", path, "--json", "--exactly-once"])).out);
    expect(strict).toMatchObject({ accuracy: 0, reason: "5 is not used" });
  });
});
