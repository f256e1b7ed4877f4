/**
 * A whole training run, small enough to be killed twenty times in a test: starts the run NAME in ROOT, or goes on with it.
 * Run as `node --import jiti/register train-tiny.ts ROOT NAME`.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { resumeRun, startRun } from "../../../../src/learn/train/run.ts";
import { tinyConfig, tinyTask } from "../tiny.ts";

const [root, name] = process.argv.slice(2) as [string, string];
const task = tinyTask();
const options = { peak: 1e11 };
const path = join(root, name);
if (existsSync(join(path, "run.json"))) await resumeRun(path, async () => task, options);
else await startRun({ root, name, task, preset: "tiny", config: tinyConfig, ...options });
