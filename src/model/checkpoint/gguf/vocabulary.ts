/**
 * The tokenizer of a GGUF file as plain data: what the metadata under `tokenizer.` says, checked for consistency and nothing
 * more. What tokenizes with it is another matter.
 *
 * @source github.com/ggml-org/ggml, docs/gguf.md, "Tokenizer"; github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py
 */

import type { GgufVocabulary } from "../../text/gguf.ts";
import type { Metadata } from "./metadata.ts";
import type { WritableValue } from "./writer.ts";

const at = (name: string) => `tokenizer.ggml.${name}`;

const IDS = [
  ["bosId", at("bos_token_id")],
  ["eosId", at("eos_token_id")],
  ["eotId", at("eot_token_id")],
  ["unknownId", at("unknown_token_id")],
  ["paddingId", at("padding_token_id")],
] as const;

const FLAGS = [
  ["addBos", at("add_bos_token")],
  ["addEos", at("add_eos_token")],
  ["addSpacePrefix", at("add_space_prefix")],
] as const;

const CHAT_TEMPLATE = "tokenizer.chat_template";

/** @returns undefined when the file has no tokenizer; @throws FormatError naming the key that is missing or does not fit */
export function readVocabulary(metadata: Metadata): GgufVocabulary | undefined {
  if (!metadata.has(at("model"))) return undefined;
  const tokens = metadata.strings(at("tokens"));
  const oneEach = <T extends { readonly length: number }>(key: string, array: T): T => {
    if (array.length === tokens.length) return array;
    return metadata.fail(
      key,
      `must have an entry for each of the ${tokens.length} tokens`,
      `${array.length}`,
    );
  };
  const id = (key: string): number => {
    const value = metadata.count(key);
    return value < tokens.length ? value : metadata.fail(key, `must be below the ${tokens.length} tokens`);
  };
  const given = <T>(key: string, read: (key: string) => T): T | undefined =>
    metadata.has(key) ? read(key) : undefined;
  const all = {
    model: metadata.string(at("model")),
    pre: given(at("pre"), (key) => metadata.string(key)),
    tokens,
    scores: given(at("scores"), (key) => oneEach(key, metadata.floats(key))),
    tokenTypes: given(at("token_type"), (key) => oneEach(key, metadata.ints(key))),
    merges: given(at("merges"), (key) => metadata.strings(key)),
    ...Object.fromEntries(IDS.map(([field, key]) => [field, given(key, id)])),
    ...Object.fromEntries(FLAGS.map(([field, key]) => [field, given(key, () => metadata.boolean(key))])),
    chatTemplate: given(CHAT_TEMPLATE, (key) => metadata.string(key)),
  };
  return Object.fromEntries(
    Object.entries(all).filter(([, value]) => value !== undefined),
  ) as unknown as GgufVocabulary;
}

/** The metadata that {@link readVocabulary} reads back. */
export function vocabularyMetadata(vocabulary: GgufVocabulary): [string, WritableValue][] {
  const { model, pre, tokens, scores, tokenTypes, merges, chatTemplate } = vocabulary;
  const pairs: [string, WritableValue][] = [[at("model"), ["string", model]]];
  if (pre !== undefined) pairs.push([at("pre"), ["string", pre]]);
  pairs.push([at("tokens"), ["strings", [...tokens]]]);
  if (scores !== undefined) pairs.push([at("scores"), ["float32s", scores]]);
  if (tokenTypes !== undefined) pairs.push([at("token_type"), ["int32s", tokenTypes]]);
  if (merges !== undefined) pairs.push([at("merges"), ["strings", [...merges]]]);
  for (const [field, key] of IDS) {
    const id = vocabulary[field];
    if (id !== undefined) pairs.push([key, ["uint32", id]]);
  }
  for (const [field, key] of FLAGS) {
    const flag = vocabulary[field];
    if (flag !== undefined) pairs.push([key, ["bool", flag]]);
  }
  if (chatTemplate !== undefined) pairs.push([CHAT_TEMPLATE, ["string", chatTemplate]]);
  return pairs;
}
