/** Models small enough to make in a test: one that babbles, and one whose every token follows from the one before. */

import { hostArray } from "../../src/compute/tensor/host.ts";
import { initializeLlama, type LlamaConfig, llamaParameters } from "../../src/model/arch/llama.ts";
import { initializeModel } from "../../src/model/arch/models.ts";
import type { ModelWeights } from "../../src/model/checkpoint/folder.ts";
import { characterTokenizer, type Tokenizer } from "../../src/model/text/tokenizer.ts";
import { DRAFTING } from "./models.ts";

export type TinyModel = Pick<ModelWeights, "config" | "tensors"> & {
  readonly tokenizer: Tokenizer;
  readonly stopIds: readonly number[];
};

const COUNTDOWN_CHARACTERS = "0123456789+-*/()= \n✓✗";

function configFor(vocabSize: number): LlamaConfig {
  const heads = Math.ceil(vocabSize / 16);
  return {
    vocabSize,
    hiddenSize: 16 * heads,
    intermediateSize: 8,
    layers: 1,
    heads,
    kvHeads: 1,
    headDim: 16,
    rmsNormEpsilon: 1e-6,
    ropeTheta: 10_000,
    maxPositions: 48,
    tieEmbeddings: false,
  };
}

/** Random weights: text without sense, and now and then an end. */
export function babbler(alphabet = COUNTDOWN_CHARACTERS): TinyModel {
  const tokenizer = characterTokenizer({ alphabet });
  const config = configFor(tokenizer.vocabSize);
  return { config, tokenizer, stopIds: [tokenizer.eosId], tensors: initializeLlama(config, 1) };
}

/** As {@link babbler}, a DeepSeek-V3 whose head for the token after next guesses at random. */
export function guesser(alphabet = COUNTDOWN_CHARACTERS): TinyModel {
  const tokenizer = characterTokenizer({ alphabet });
  const config = { ...DRAFTING, vocabSize: tokenizer.vocabSize, maxPositions: 48 };
  return { config, tokenizer, stopIds: [tokenizer.eosId], tensors: initializeModel(config, 1) };
}

/**
 * A model that writes `text` after a prompt whose last token is the text's first, and then ends. Every token of the text
 * must occur once: its layers are silent, the embedding is one-hot and the head maps each token to its successor.
 */
export function parrot(text: string, alphabet = COUNTDOWN_CHARACTERS): TinyModel {
  const tokenizer = characterTokenizer({ alphabet });
  const config = configFor(tokenizer.vocabSize);
  const tensors = Object.fromEntries(
    llamaParameters(config).map(({ name, shape, kind }) => {
      const array = hostArray("f32", shape);
      if (kind === "norm") array.data.fill(1);
      return [name, array] as const;
    }),
  );
  const [embedding, head] = [tensors["model.embed_tokens.weight"]!, tensors["lm_head.weight"]!];
  const C = config.hiddenSize;
  const ids = [...tokenizer.encode(text), tokenizer.eosId];
  if (new Set(ids).size !== ids.length) throw new Error(`a token occurs twice in ${JSON.stringify(text)}`);
  for (let id = 0; id < config.vocabSize; id++) embedding.data[id * C + id] = 1;
  for (let i = 0; i + 1 < ids.length; i++) head.data[ids[i + 1]! * C + ids[i]!] = 20;
  return { config, tokenizer, stopIds: [tokenizer.eosId], tensors };
}
