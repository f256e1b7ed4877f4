/**
 * Loads the weights of a folder, generates four tokens, and prints how much higher the process's memory peaked than it stood
 * before, in bytes. Run as `node --import jiti/register load-and-generate.ts FOLDER`.
 */

import { Runtime } from "../../../../src/compute/runtime/runtime.ts";
import { loadModelWeights } from "../../../../src/model/checkpoint/folder.ts";
import { Engine } from "../../../../src/model/engine/engine.ts";
import { weightsInPlace } from "../../../../src/model/engine/weights.ts";

const runtime = await Runtime.create({ threads: 1 });
const before = process.memoryUsage.rss();
const { config, tensors } = await loadModelWeights(process.argv[2]!);
const engine = new Engine(runtime, config, { slots: 1 });
engine.adopt(weightsInPlace(runtime, tensors));
const completions = await engine.generate([{ prompt: [1, 2, 3], samples: 1, seed: 1 }], {
  maxNewTokens: 4,
  stopIds: [],
});
if (completions.length !== 1) throw new Error("nothing was generated");
console.log(process.resourceUsage().maxRSS * 1024 - before);
