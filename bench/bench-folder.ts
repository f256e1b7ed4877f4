/** A folder with the benchmarked model for Python to load: the same weights on both sides. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BenchModel } from "../src/app/bench/model.ts";
import { ConfigError } from "../src/base/errors.ts";
import { saveModelFolder } from "../src/model/checkpoint/folder.ts";
import { THINK_TAGS } from "../src/model/text/think.ts";
import { characterTokenizer, type Tokenizer } from "../src/model/text/tokenizer.ts";

/** Printable ASCII but for the bracket that begins a tag. */
const CHARACTERS = Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i)).filter((c) => c !== "<");

export interface BenchFolder {
  readonly path: string;
  readonly tokenizer: Tokenizer;
  /** Characters of the tokenizer, for prompts of text. */
  readonly alphabet: readonly string[];
  remove(): Promise<void>;
}

/** Writes the model to a temporary folder, its vocabulary filled with characters. */
export async function benchFolder({ config, tensors }: BenchModel): Promise<BenchFolder> {
  const roles = 3 + THINK_TAGS.length;
  const alphabet = CHARACTERS.slice(0, config.vocabSize - roles);
  if (alphabet.length === 0) {
    throw new ConfigError({ where: "--vocab", rule: `must be above ${roles}`, got: `${config.vocabSize}` });
  }
  const tokenizer = characterTokenizer({ alphabet: alphabet.join("") });
  const parent = await mkdtemp(join(tmpdir(), "pondera-bench-"));
  const path = join(parent, "model");
  await saveModelFolder(path, { config, tensors, tokenizer });
  return { path, tokenizer, alphabet, remove: () => rm(parent, { recursive: true }) };
}
