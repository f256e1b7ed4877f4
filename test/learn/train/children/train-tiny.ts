/**
 * A training run to be killed: starts the run NAME in ROOT, or goes on with it, and writes a line when a step is done.
 * Run as `node --import jiti/register train-tiny.ts ROOT NAME [THREADS]`.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { resumeRun, startRun } from "../../../../src/learn/train/run.ts";
import { TINY, tinyTask } from "../tiny.ts";

const [root, name, threads = "1"] = process.argv.slice(2) as [string, string, string?];
const task = tinyTask();
const observer = { start() {}, sample() {}, note() {}, step: () => process.stdout.write("step\n") };
const options = { peak: 1e11, observer };
const path = join(root, name);
if (existsSync(join(path, "run.json"))) await resumeRun(path, async () => ({ task }), options);
else {
  const config = { ...TINY, threads: Number(threads) };
  await startRun({ root, name, task, preset: "tiny", config, ...options });
}
