import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { matches } from "../../../src/model/store/select.ts";

describe("patterns of files", () => {
  it.each([
    ["config.json", "config.json", true],
    ["config.json", "*.json", true],
    ["a/b/config.json", "*.json", true],
    ["onnx/model.onnx", "onnx/", true],
    ["onnx/model.onnx", "onnx/*", true],
    ["onnx.md", "onnx/", false],
    ["m-Q4_K_M.gguf", "*q4*", false],
    ["m-Q4_K_M.gguf", "m-Q?_K_M.gguf", true],
    ["config.json", "config", false],
    ["config.json", "", false],
    ["a+b(1)[2].json", "a+b(1)[2].json", true],
    ["x.json", "x*json*", true],
  ])("%s fits %s: %s", (path, pattern, fits) => {
    expect(matches(path, pattern)).toBe(fits);
  });

  it("mean what the regular expression would", () => {
    const text = fc.string({ unit: fc.constantFrom("a", "b", "/"), maxLength: 8 });
    const pattern = fc.string({ unit: fc.constantFrom("a", "b", "/", "*", "?"), maxLength: 8 });
    fc.assert(
      fc.property(text, pattern, (path, wanted) => {
        const full = wanted.endsWith("/") ? `${wanted}*` : wanted;
        const regex = new RegExp(`^${full.replaceAll("*", ".*").replaceAll("?", ".")}$`);
        expect(matches(path, wanted)).toBe(regex.test(path));
      }),
      { numRuns: 2000 },
    );
  });

  it("that would take a regular expression for ever take moments", () => {
    expect(matches("a".repeat(700), `${"*a".repeat(300)}b`)).toBe(false);
  });
});
