import { appendFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { openNamedTask, reopenTask } from "../../../src/app/cli/task.ts";
import { FileError } from "../../../src/base/errors.ts";
import { type RunManifest, readManifest } from "../../../src/learn/runs/manifest.ts";
import { PRESETS } from "../../../src/learn/train/presets.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { pondera } from "./harness.ts";
import { makeRun } from "./tiny-run.ts";

const source = (name: string): string => `
import { defineTask } from "pondera";
export default defineTask({ name: "${name}", prompts: ["a", "b", "c"].map((prompt) => ({ prompt })), reward: () => 1 });
`;

describe("the task of a run that is to go on", () => {
  let root: string;
  let file: string;
  let manifest: RunManifest;
  beforeEach(async () => {
    root = await temporaryFolder();
    file = join(root, "echo.ts");
    await writeFile(file, source("echo"));
    const { data } = await openNamedTask(file, {});
    const { config } = PRESETS.smoke;
    const path = await makeRun({ root, name: "one", task: "echo", taskFile: file, config, data });
    manifest = await readManifest(path);
  });

  it("is read from its file as long as that is the same", async () => {
    const again = await reopenTask(manifest, {});
    expect([again.task.name, again.data]).toEqual(["echo", manifest.data]);
    await writeFile(file, source("other"));
    const { code, err } = await pondera(["train", "--resume", "one", "--out", root]);
    expect(code).toBe(1);
    expect(err).toMatch(
      /echo\.ts: must be the file the run began with; got another content \(SHA-256 was [0-9a-f]{12}…\)\. Put the old file back, start a new run, or go on with the new one by --accept-changes\.\n$/,
    );
  });

  it("is known by the files of prompts that it names, too", async () => {
    const rows = join(root, "rows.jsonl");
    await writeFile(rows, '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n');
    const named = `import { defineTask } from "pondera";
export default defineTask({ name: "rows", prompts: ${JSON.stringify(rows)}, reward: () => 1 });\n`;
    const own = join(root, "rows.ts");
    await writeFile(own, named);
    const { data } = await openNamedTask(own, {});
    expect(Object.keys(data)).toEqual(["rows.ts", "rows.jsonl"]);
    await appendFile(rows, '{"prompt": "d"}\n');
    const changed = await openNamedTask(own, {});
    expect(changed.data["rows.ts"]).toBe(data["rows.ts"]);
    expect(changed.data["rows.jsonl"]).not.toBe(data["rows.jsonl"]);
  });

  it("is asked for at its old place where its file has moved", async () => {
    await rename(file, join(root, "moved.ts"));
    await expect(reopenTask(manifest, {})).rejects.toThrow(FileError);
    const { code, err } = await pondera(["train", "--resume", "one", "--out", root]);
    expect(code).toBe(1);
    expect(err).toBe(
      `error: task echo: must be in the file the run began with; got no such file. Put it back at ${file}.\n`,
    );
  });
});
