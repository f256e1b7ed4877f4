/**
 * A stand-in for training, to be killed: STEPS steps that each append a record and samples, with a checkpoint every
 * third, going on from where the run in FOLDER stands. Run as `node --import jiti/register run-steps.ts ROOT NAME STEPS`.
 */
import { join } from "node:path";
import { f32 } from "../../../../src/compute/tensor/host.ts";
import { listRuns } from "../../../../src/learn/runs/read-run.ts";
import { RunFolder } from "../../../../src/learn/runs/run-folder.ts";
import { sample, step } from "../synthetic.ts";

const [root, name, steps] = process.argv.slice(2) as [string, string, string];
const path = join(root, name);
const isNew = !(await listRuns(root)).includes(path);
const run = isNew
  ? await RunFolder.create({ root, name, task: "t", preset: "p", seed: 1, config: {}, versions: {} })
  : await RunFolder.open(path);
const checkpoint = await run.latestCheckpoint();
await run.truncateAfter(checkpoint);
process.stdout.write("ready\n");
for (let i = checkpoint?.step ?? 0; i < Number(steps); i++) {
  await run.appendMetrics(step(i, Number(steps)));
  await run.appendSamples([sample(i), sample(i + 1000)]);
  if (i % 3 === 2) {
    const tensors = {
      weight: f32(
        [64],
        Array.from({ length: 64 }, (_, j) => i + j),
      ),
    };
    await run.saveCheckpoint(i + 1, { tensors, state: { i } });
  }
}
await run.close();
