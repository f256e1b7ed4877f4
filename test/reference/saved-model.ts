/**
 * A tiny model with its tokenizer, saved by Pondera, for `saved_model.py` to load in transformers.
 * Run: node --import jiti/register test/reference/saved-model.ts && python test/reference/saved_model.py
 */

import { fileURLToPath } from "node:url";
import { initializeLlama, type LlamaConfig } from "../../src/model/arch/llama.ts";
import { saveModelFolder } from "../../src/model/checkpoint/folder.ts";
import { characterTokenizer } from "../../src/model/text/tokenizer.ts";

/** The characters of the fixture: every kind that a tokenizer might treat specially, and one beyond 16 bits. */
export const ALPHABET = ` \n\t0123456789+-*/()=<>.,?!'"\\abcdefghijklmnopqrstuvwxyzAZ÷éÀ\u0301▁Ġ𝟙`;

/** Writes the model; two calls write the same bytes. */
export async function saveTinyModel(folder: string): Promise<void> {
  const tokenizer = characterTokenizer({ alphabet: ALPHABET, modelMaxLength: 64 });
  const config: LlamaConfig = {
    vocabSize: tokenizer.vocabSize,
    hiddenSize: 12,
    intermediateSize: 20,
    layers: 2,
    heads: 2,
    kvHeads: 1,
    headDim: 8,
    rmsNormEpsilon: 1e-5,
    ropeTheta: 5_000,
    maxPositions: 64,
    tieEmbeddings: false,
  };
  const tensors = initializeLlama(config, 7);
  await saveModelFolder(folder, { config, tensors, tokenizer, extra: { pondera: { step: 3 } } });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await saveTinyModel(fileURLToPath(new URL("../fixtures/saved-model", import.meta.url)));
}
