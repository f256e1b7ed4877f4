import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  formatModelName,
  nameFolders,
  parseModelName,
  sameName,
  tryModelName,
} from "../../../src/model/store/name.ts";

const part = fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,8}[A-Za-z0-9]$/);

describe("a model's name", () => {
  it.each([
    ["deepseek-r1:1.5b", { model: "deepseek-r1", tag: "1.5b" }],
    ["Qwen/Qwen2.5-0.5B", { owner: "Qwen", model: "Qwen2.5-0.5B" }],
    ["a/b:refs/pr/1", { owner: "a", model: "b", tag: "refs/pr/1" }],
    ["gpt2", { model: "gpt2" }],
  ])("%s has its parts, and is written as it was read", (text, name) => {
    expect(parseModelName(text)).toEqual(name);
    expect(formatModelName(parseModelName(text))).toBe(text);
  });

  it.each([
    ...["", "/", "a/", "/a", "a//b", "a/b/c", "..", "../a", "a/..", "a:", ":a", "a:b:c", "a:../b", "a:b/"],
    ...[
      "a b",
      "a\\b",
      "C:\\models",
      "a\0",
      "é",
      "a%2fb",
      ".git",
      "-x",
      "x.",
      "con",
      "NUL",
      "a/aux.txt",
      "com1:x",
    ],
    ...["lpt9", "a:prn", "x".repeat(97), "+main", "a+b", "~/models", "$HOME", "https://a.b/c"],
  ])("is not %j", (text) => {
    expect(tryModelName(text)).toBeUndefined();
    expect(() => parseModelName(text)).toThrow(/model's name: must be \[owner\/\]model\[:tag\]/);
  });

  it.each([
    ["https://huggingface.co/Qwen/Qwen2.5-0.5B/tree/main?x=1#top", "Qwen/Qwen2.5-0.5B"],
    ["hf.co/Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"],
    ["http://localhost.test:8080/a/b", "a/b"],
    ["https://ollama.com/library/deepseek-r1:1.5b", "deepseek-r1:1.5b"],
  ])("is found in the address %s", (address, name) => {
    expect(() => parseModelName(address)).toThrow(`Give the name without the address: ${name}.`);
  });

  it("is shown cut in the message when it is enormous", () => {
    expect(() => parseModelName("x".repeat(1e6))).toThrow(
      expect.objectContaining({ message: expect.stringMatching(/^.{0,400}$/) }),
    );
  });

  it("has three folders of its own, that nothing of another name shares, whatever the case", () => {
    fc.assert(
      fc.property(
        fc.tuple(fc.option(part, { nil: undefined }), part, fc.option(part, { nil: undefined })),
        fc.tuple(fc.option(part, { nil: undefined }), part, fc.option(part, { nil: undefined })),
        (one, other) => {
          const texts = [one, other].map(
            ([owner, model, tag]) => `${owner ? `${owner}/` : ""}${model}${tag ? `:${tag}` : ""}`,
          );
          fc.pre(texts.every((text) => tryModelName(text) !== undefined));
          const [a, b] = texts.map(parseModelName) as [
            ReturnType<typeof parseModelName>,
            ReturnType<typeof parseModelName>,
          ];
          for (const folder of nameFolders(a)) expect(folder).toMatch(/^[a-z0-9_+][a-z0-9._+-]*$/);
          expect(sameName(a, b)).toBe(texts[0]!.toLowerCase() === texts[1]!.toLowerCase());
          expect(sameName(a, parseModelName(texts[0]!.toUpperCase()))).toBe(true);
        },
      ),
    );
  });

  it("never leaves its folder, whatever the text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        const name = tryModelName(text);
        if (name === undefined) return;
        for (const folder of nameFolders(name)) {
          expect(folder).not.toMatch(/[/\\:\0]|^\.{1,2}$/);
          expect(folder.length).toBeLessThan(256);
        }
      }),
    );
  });
});
