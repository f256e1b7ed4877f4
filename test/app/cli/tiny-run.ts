/** Runs and models on disk for commands to work on. */

import { join } from "node:path";
import { RunFolder } from "../../../src/learn/runs/run-folder.ts";
import { saveModelFolder } from "../../../src/model/checkpoint/folder.ts";
import { result, sample } from "../../learn/runs/synthetic.ts";
import type { TinyModel } from "../../model/tiny-model.ts";

export interface TinyRun {
  readonly root: string;
  readonly name: string;
  /** @default "countdown" */
  readonly task?: string;
  /** Absent: the run has not finished. */
  readonly model?: TinyModel;
  readonly taskFile?: string;
  /** Prompt of the one sample it has kept. */
  readonly prompt?: string;
  readonly config?: Readonly<Record<string, unknown>>;
  readonly data?: Readonly<Record<string, string>>;
}

/** Makes a run as training leaves it. @returns its folder */
export async function makeRun({
  root,
  name,
  task = "countdown",
  model,
  config = {},
  prompt,
  ...rest
}: TinyRun): Promise<string> {
  const run = await RunFolder.create({
    root,
    name,
    task,
    preset: "quick",
    seed: 1,
    config,
    versions: {},
    ...rest,
  });
  if (prompt !== undefined) await run.appendSamples([sample(1, { prompt })]);
  if (model !== undefined) {
    await saveModelFolder(join(run.path, "model"), model);
    const solved = result({ name, task }).solved;
    await run.writeResult(result({ name, task, solved: task === "countdown" ? solved : [] }));
  }
  await run.close();
  return run.path;
}
