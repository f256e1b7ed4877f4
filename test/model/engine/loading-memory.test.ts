/** What loading costs: the weights once, as the programs read them, and no second copy beside it. */

import { execFile } from "node:child_process";
import { mkdir, open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import type { LlamaConfig } from "../../../src/model/arch/llama.ts";
import { modelParameters } from "../../../src/model/arch/models.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";

const MIB = 2 ** 20;
const CHILD = fileURLToPath(new URL("./children/load-and-generate.ts", import.meta.url));

/** 134 MiB of weights in float32. */
const CONFIG: LlamaConfig = {
  modelType: "llama",
  vocabSize: 64,
  hiddenSize: 1024,
  intermediateSize: 4096,
  layers: 2,
  heads: 16,
  kvHeads: 16,
  headDim: 64,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 1e4,
  maxPositions: 32,
  tieEmbeddings: true,
};
const JSON_CONFIG = {
  model_type: "llama",
  vocab_size: CONFIG.vocabSize,
  hidden_size: CONFIG.hiddenSize,
  intermediate_size: CONFIG.intermediateSize,
  num_hidden_layers: CONFIG.layers,
  num_attention_heads: CONFIG.heads,
  num_key_value_heads: CONFIG.kvHeads,
  rms_norm_eps: CONFIG.rmsNormEpsilon,
  max_position_embeddings: CONFIG.maxPositions,
  tie_word_embeddings: true,
};

/** A folder of zeros; the file has a hole where they are, so that it takes no room on disk. Bytes of its weights. */
async function zeros(folder: string, dtype: "F32" | "BF16"): Promise<number> {
  let end = 0;
  const header = Object.fromEntries(
    modelParameters(CONFIG).map(({ name, shape }) => {
      const start = end;
      end += shape.reduce((product, size) => product * size, dtype === "F32" ? 4 : 2);
      return [name, { dtype, shape, data_offsets: [start, end] }];
    }),
  );
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  await mkdir(folder);
  await writeFile(join(folder, "config.json"), JSON.stringify(JSON_CONFIG));
  const file = await open(join(folder, "model.safetensors"), "w");
  await file.write(Buffer.concat([length, json]));
  await file.truncate(8 + json.length + end);
  await file.close();
  return end;
}

it.each(["F32", "BF16"] as const)("weights stored as %s are in memory once, in float32", async (dtype) => {
  const folder = join(await temporaryFolder(), dtype);
  const bytes = (await zeros(folder, dtype)) * (dtype === "F32" ? 1 : 2);
  const { stdout } = await promisify(execFile)(process.execPath, [
    "--import",
    "jiti/register",
    CHILD,
    folder,
  ]);
  const grown = Number(stdout);
  expect(grown).toBeGreaterThan(bytes); // Or it measures nothing.
  expect(grown).toBeLessThan(bytes + 64 * MIB);
});
