/** Known answers for tokenizers of other people's models, which lie outside the repository. */

import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { Metadata } from "../../../src/model/checkpoint/gguf/metadata.ts";
import { openGguf } from "../../../src/model/checkpoint/gguf/reader.ts";
import { readVocabulary } from "../../../src/model/checkpoint/gguf/vocabulary.ts";
import { readLlama2cTokenizer } from "../../../src/model/checkpoint/llama2c.ts";
import { type GgufVocabulary, tokenizerFromGguf } from "../../../src/model/text/gguf.ts";
import { loadTokenizer, type Tokenizer } from "../../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";

const shared = (name: string): string =>
  fileURLToPath(new URL(`../../../../shared/data/${name}`, import.meta.url));

/** What makes careless encoders slow: a long run of one character that ends otherwise. Twenty times as long takes hours there. */
const expectTedious = (tokenizer: Tokenizer): void => {
  for (const character of ["a", " ", "\n", "0", "<", "好"]) {
    const text = `${character.repeat(2 ** 17)}x`;
    expect(tokenizer.decode(tokenizer.encode(text)) === text).toBe(true);
  }
};

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

  it("takes long runs of one character", () => expectTedious(tokenizer));

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

const STORIES = shared("weights/stories260K");

describe.skipIf(!existsSync(STORIES))("the tokenizer of stories260K", () => {
  it("reads and writes the story that the model tells", async () => {
    const tokenizer = tokenizerFromGguf(await readLlama2cTokenizer(join(STORIES, "tok512.bin"), 512));
    const story = JSON.parse(readFileSync(join(STORIES, "expected.json"), "utf8")) as {
      greedy_ids: number[];
      text_256_steps: string;
    };
    const [bos, ...ids] = story.greedy_ids;
    expect(bos).toBe(tokenizer.bosId);
    expect(tokenizer.addsBos).toBe(true);
    expect(tokenizer.decode(ids).trimEnd()).toBe(story.text_256_steps.trimEnd());
    expect(tokenizer.encode(story.text_256_steps)).toEqual(ids);
  });
});

async function vocabularyIn(file: string): Promise<GgufVocabulary> {
  await using opened = await openGguf(file);
  return readVocabulary(new Metadata(opened))!;
}

const LLAMACPP = shared("tokenizer-llamacpp");
const vocabularies = existsSync(LLAMACPP)
  ? readdirSync(LLAMACPP).filter(
      (name) => name.endsWith(".gguf") && existsSync(join(LLAMACPP, `${name}.out`)),
    )
  : [];

describe.each(vocabularies)("%s, as llama.cpp tests it", async (name) => {
  const file = join(LLAMACPP, name);
  const vocabulary = await vocabularyIn(file);
  const tokenizer = tokenizerFromGguf(vocabulary);
  const texts = readFileSync(`${file}.inp`, "utf8").split("\n__ggml_vocab_test__\n").slice(0, -1);
  const answers = readFileSync(`${file}.out`, "utf8")
    .split("\n")
    .map((line) => (line.match(/\d+/g) ?? []).map(Number));

  const expectAnswers = (tokenizer: Tokenizer): void => {
    for (const [i, text] of texts.entries()) {
      expect(tokenizer.encode(text), JSON.stringify(text)).toEqual(answers[i]);
      expect(tokenizer.decode(answers[i]!), JSON.stringify(text)).toBe(text);
    }
  };

  it("gives the ids, and the texts back", () => {
    expect(texts.length).toBe(46);
    expectAnswers(tokenizer);
  });

  it("takes long runs of one character", () => expectTedious(tokenizer));

  it("does so too when saved and loaded again", async () => {
    const folder = await temporaryFolder();
    await tokenizer.save(folder);
    const again = await loadTokenizer(folder);
    expectAnswers(again);
    const { vocabSize, bosId, eosId, padId, addsBos } = tokenizer;
    expect(again).toMatchObject({ vocabSize, bosId, eosId, padId, addsBos });
  });
});
