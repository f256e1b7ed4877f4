import { posix, win32 } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checkFilePaths } from "../../../src/model/store/file-path.ts";

const check = (...paths: string[]) => checkFilePaths("hub", paths);

describe("file names of a hub", () => {
  it("may be what models are made of", () => {
    check(
      "config.json",
      "model-00001-of-00002.safetensors",
      "onnx/model.onnx",
      "figures/图 1.png",
      ".gitattributes",
    );
    check("a/b/c/d", "a/b/c/e", "a/f", "x (1).json", "console.txt", "null", "com10", "...a");
  });

  it.each([
    ["../x", 'the part ".."'],
    ["a/../../x", 'the part ".."'],
    ["./x", 'the part "."'],
    ["/etc/passwd", "an absolute path"],
    ["a//b", "an absolute path or an empty part"],
    ["a/", "an absolute path or an empty part"],
    ["", "an empty name"],
    ["..\\x", "the character"],
    ["C:\\x", "the character"],
    ["C:x", "the character"],
    ["a:stream", "the character"],
    ["\\\\server\\share", "the character"],
    ["a\0.json", "the character"],
    ["a\n", "the character"],
    ["a\u202egpj.exe", "the character"],
    ["a*", "the character"],
    ["\ud800", "the character"],
    ["CON", "Windows device"],
    ["nul.json", "Windows device"],
    ["a/aux", "Windows device"],
    ["com1.safetensors", "Windows device"],
    ["LPT³", "Windows device"],
    ["a.", "a dot or a blank"],
    ["a /b", "a dot or a blank"],
    ["x".repeat(256), "a part of 256 bytes"],
    ["é".repeat(128), "a part of 256 bytes"],
    ["x/".repeat(1e5), "a name of 200000 bytes"],
    ["x/".repeat(20).concat("x"), "21 folders"],
  ])("may not be %j", (path, fault) => {
    expect(() => check("config.json", path)).toThrow(fault);
    expect(() => check(path)).toThrow(
      /^hub: file names must be relative.*Leave the file out with --exclude\.$/s,
    );
  });

  it.each([
    [["README.md", "readme.md"]],
    [["é", "e\u0301"]],
    [["a", "A/b"]],
    [["A/b", "a"]],
    [["a/b/c", "a/B"]],
    [["same", "same"]],
    [["ſ".toUpperCase(), "s"]],
  ])("may not be one file on a disk that ignores case: %j", (paths) => {
    expect(() => check(...paths)).toThrow(/must stay apart where case does not count/);
  });

  it("that pass lie below any folder on any system", () => {
    const hostile = fc.array(
      fc.oneof(
        fc.constantFrom("..", ".", "", "/", "\\", "C:", "con", "a", " ", "\0", "nul.", "~"),
        fc.string({ unit: "binary" }),
      ),
      { maxLength: 6 },
    );
    fc.assert(
      fc.property(hostile, fc.constantFrom("/", "", "\\"), (parts, glue) => {
        const path = parts.join(glue);
        try {
          check(path);
        } catch {
          return;
        }
        for (const [system, root] of [
          [posix, "/store/x"],
          [win32, "C:\\store\\x"],
        ] as const) {
          const full = system.resolve(root, path);
          expect(full.startsWith(root + system.sep)).toBe(true);
          expect(full.slice(root.length + 1).split(system.sep)).toEqual(path.split("/"));
        }
      }),
      { numRuns: 2000 },
    );
  });
});
