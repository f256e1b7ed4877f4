import { join, resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { shellPath, shellWord } from "../../src/base/shell.ts";

describe("shellWord", () => {
  it.each([
    ["runs/my-run_1", "runs/my-run_1"],
    ["my runs", "'my runs'"],
    ["it's", "'it'\\''s'"],
    ["$(rm)", "'$(rm)'"],
    ["", "''"],
  ])("of %j is %s", (word, quoted) => expect(shellWord(word)).toBe(quoted));
});

describe("shellPath", () => {
  it("goes from where this process works, and is never empty", () => {
    expect(shellPath(resolve("runs", "one"))).toBe(join("runs", "one"));
    expect(shellPath(resolve("my runs", "one"))).toBe(`'${join("my runs", "one")}'`);
    expect(shellPath(process.cwd())).toBe(".");
  });
});
