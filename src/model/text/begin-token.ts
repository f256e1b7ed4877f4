/**
 * Tokenizers of others (transformers, vLLM) begin a text with the begin token where the post-processor of `tokenizer.json` does;
 * transformers.js asks it to where `add_bos_token` says so. Models of Pondera's own and those out of GGUF files say it in other
 * ways, which this makes up for.
 */

import { writeFileAtomic } from "../../base/files.ts";
import { jsonText } from "../../base/json.ts";
import { beginsWith, prepends } from "./post-processor.ts";
import { parseTokenizerJson, readTokenizerFiles, type Tokenizer, tokenizerPaths } from "./tokenizer-files.ts";

type Json = Record<string, unknown>;

/**
 * Makes the tokenizer's files in a folder say that texts begin with the begin token, where they do and the files do not.
 * @throws FileError when they cannot be written
 */
export async function writeBeginToken(folder: string, tokenizer: Tokenizer): Promise<void> {
  const { addsBos, bosId } = tokenizer;
  if (!addsBos || bosId === undefined) return;
  const token = tokenizer.decode([bosId]);
  const files = await readTokenizerFiles(folder);
  const paths = tokenizerPaths(folder);
  const config = parseTokenizerJson(paths.config, files.config) as Json;
  const json = parseTokenizerJson(paths.tokenizer, files.tokenizer) as Json;
  const own = json["post_processor"];
  if (!prepends(token, own)) {
    const begin = beginsWith(token, bosId);
    const post_processor = own ? { type: "Sequence", processors: [own, begin] } : begin;
    await writeFileAtomic(paths.tokenizer, `${JSON.stringify({ ...json, post_processor })}\n`);
  }
  if (config["add_bos_token"] !== true) {
    const said = { ...config, add_bos_token: true };
    await writeFileAtomic(paths.config, jsonText(said));
  }
}
