import { rename, writeFile } from "node:fs/promises";
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
    const path = await makeRun({ root, name: "one", task: "echo", taskFile: file, config });
    manifest = { ...(await readManifest(path)), data };
  });

  it("is read from its file as long as that is the same", async () => {
    expect((await reopenTask(manifest, {})).name).toBe("echo");
    await writeFile(file, source("other"));
    await expect(reopenTask(manifest, {})).rejects.toThrow(FileError);
    await expect(reopenTask(manifest, {})).rejects.toThrow(
      /echo\.ts: must be the file the run began with; got another content\. Put the old file back/,
    );
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
