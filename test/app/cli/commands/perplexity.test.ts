import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { saveModelFolder } from "../../../../src/model/checkpoint/folder.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { babbler, parrot } from "../../../model/tiny-model.ts";
import { pondera } from "../harness.ts";
import { makeRun } from "../tiny-run.ts";

let root: string;
let folder: string;
let file: string;
beforeEach(async () => {
  root = await temporaryFolder();
  folder = join(root, "even");
  file = join(root, "text.txt");
  // A head of zeros: every token is equally likely.
  const even = babbler();
  even.tensors["lm_head.weight"]!.data.fill(0);
  await saveModelFolder(folder, even);
  await writeFile(file, "12+34=46\n".repeat(5));
});

const perplexity = (argv: readonly string[], input?: string) =>
  pondera(["perplexity", "--runs", root, "--threads", "1", ...argv], input === undefined ? {} : { input });

describe("pondera perplexity", () => {
  it("is the size of the vocabulary where a model knows nothing", async () => {
    const { code, out, err } = await perplexity([folder, file, "--json"]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const said = JSON.parse(out);
    const vocabulary = babbler().tokenizer.vocabSize;
    expect(said).toMatchObject({
      model: folder,
      text: file,
      convention: "sliding",
      context: 48,
      stride: 24,
      tokens: 45,
      scored: 45,
      bytes: 45,
      windows: 1,
      threads: 1,
    });
    expect(said.perplexity).toBeCloseTo(vocabulary, 4);
    expect(said.bitsPerByte).toBeCloseTo(Math.log2(vocabulary), 5);
    expect(said.tokensPerSecond).toBeGreaterThan(0);
  });

  it("is near 1 where a model knows it all", async () => {
    const sure = join(root, "sure");
    await saveModelFolder(sure, parrot("123456789"));
    const { out } = await perplexity([sure, "-", "--json"], "23456789");
    // All but the first token, which the model has no idea of.
    const { bitsPerToken, scored } = JSON.parse(out);
    expect(scored).toBe(8);
    expect(bitsPerToken).toBeCloseTo(Math.log2(babbler().tokenizer.vocabSize) / 8, 3);
  });

  it("shows a person the figures, and the conventions agree on a model that knows nothing", async () => {
    const { out } = await perplexity([folder, file, "--context", "10"]);
    expect(out).toMatch(
      /^even on text\.txt\n {2}perplexity {3}[\d.]+ ± 0\.0000\d\n {2}bits .* a byte, .* a token\n/,
    );
    expect(out).toContain("scored       45 of 45 tokens, in 9 windows of 10\n");
    expect(out).toMatch(/took .* tokens\/s\n$/);
    const llama = await perplexity([folder, file, "--context", "10", "--convention", "llama.cpp"]);
    expect(llama.out).toContain("text.txt as llama.cpp counts\n");
    expect(llama.out).toContain("scored       16 of 45 tokens, in 4 windows of 10\n");
    expect(/perplexity +([\d.]+)/.exec(llama.out)![1]).toBe(/perplexity +([\d.]+)/.exec(out)![1]);
  });

  it("measures a run's model by its name, and reads special tokens when asked", async () => {
    await makeRun({ root, name: "one", model: babbler() });
    const { out } = await perplexity(["one", "-", "--parse-special", "--json"], "<think>1</think>");
    expect(JSON.parse(out)).toMatchObject({ text: "standard input", tokens: 3, bytes: 16 });
  });

  it("says what is wrong", async () => {
    const fails = async (argv: readonly string[], input?: string) => {
      const { code, out, err } = await perplexity(argv, input);
      expect(out).toBe("");
      return `${code} ${err}`;
    };
    expect(await fails([folder, "-"], "")).toMatch(/^2 .*standard input: must hold a text; got nothing/);
    expect(await fails([folder, join(root, "none")])).toMatch(/^1 .*none: must be readable/);
    expect(await fails([folder, "-"], "é")).toMatch(/^1 .*got "é"/);
    expect(await fails([folder, "-"], "<think>")).toMatch(/^1 .*got "<"/);
    expect(await fails([folder, file, "--context", "49"])).toMatch(
      /^2 .*--context: must be at most the model's 48 positions; got 49/,
    );
    expect(await fails([folder, file, "--context", "8", "--stride", "8"])).toMatch(
      /^2 .*stride: .* below the context of 8/,
    );
    expect(await fails([folder, "-", "--convention", "llama.cpp"], "12")).toMatch(
      /^2 .*text: must have at least 48 tokens; got 3/,
    );
  });
});
