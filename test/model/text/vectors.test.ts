/** Known answers for tokenizers of other people's models, which lie outside the repository. */

import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { loadTokenizer } from "../../../src/model/text/tokenizer.ts";

const shared = (name: string): string =>
  fileURLToPath(new URL(`../../../../shared/data/${name}`, import.meta.url));

interface Vector {
  readonly text: string;
  readonly ids: number[];
}

const DEEPSEEK = shared("tokenizer-deepseek-v3");

describe.skipIf(!existsSync(DEEPSEEK))("DeepSeek-V3's tokenizer", async () => {
  const tokenizer = existsSync(DEEPSEEK) ? await loadTokenizer(DEEPSEEK) : undefined!;
  const read = (file: string): string => readFileSync(`${DEEPSEEK}/${file}`, "utf8");

  it("gives the ids whose hash its converter publishes, and begins texts as its files say", () => {
    const verified = JSON.parse(read("verified-ids.json")) as Vector & { sha256_of_python_list_repr: string };
    const ids = [tokenizer.bosId!, ...tokenizer.encode(verified.text)];
    expect(ids).toEqual(verified.ids);
    const written = `[${ids.join(", ")}]`;
    expect(createHash("sha256").update(written).digest("hex")).toBe(verified.sha256_of_python_list_repr);
    expect(tokenizer).toMatchObject({ addsBos: true, bosId: 0, eosId: 1, padId: 1, vocabSize: 128815 });
  });

  const vectors = existsSync(DEEPSEEK)
    ? read("derived-vectors.jsonl")
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line) as Vector)
    : [];
  it.each(vectors)("$text", ({ text, ids }) => {
    expect(tokenizer.encode(text)).toEqual(ids);
    expect(tokenizer.decode(ids)).toBe(text);
  });
});
