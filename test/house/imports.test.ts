/** Who may import whom, by the arrows of arrows.ts; a failure names the file and the line. */

import { existsSync } from "node:fs";
import { builtinModules } from "node:module";
import { describe, expect, it } from "vitest";
import { ARROWS } from "./arrows.ts";
import {
  defaultExportsOf,
  importsOf,
  maskSource,
  readRootFile,
  readSources,
  resolveImport,
} from "./source.ts";

/** Packages that one room alone may import. */
const RESERVED: Readonly<Record<string, string>> = {
  koffi: "compute/runtime",
  "onnxruntime-node": "compute/runtime",
};

const within = (room: string, area: string): boolean => room === area || room.startsWith(`${area}/`);

/** The room of a file under src/: the longest one that holds it; undefined for a folder nobody has declared. */
function roomOf(file: string): string | undefined {
  const folder = file.split("/").slice(1, -1).join("/");
  const rooms = Object.keys(ARROWS).filter((room) => (room === "" ? folder === "" : within(folder, room)));
  return rooms.sort((a, b) => b.length - a.length)[0];
}

const packageOf = (specifier: string): string =>
  specifier
    .split("/")
    .slice(0, specifier.startsWith("@") ? 2 : 1)
    .join("/");

/** Imports against the arrows, one line each: `file:line: what is wrong`. */
function brokenArrows(sources: ReadonlyMap<string, string>, dependencies: readonly string[]): string[] {
  return [...sources].flatMap(([file, source]) => {
    const room = roomOf(file);
    if (room === undefined) return [`${file}: lies in no room of the map`];
    return importsOf(source).flatMap(({ specifier, line }) => {
      const at = `${file}:${line}`;
      const target = resolveImport(file, specifier);
      if (target === undefined) {
        const name = packageOf(specifier);
        if (name.startsWith("node:")) return [];
        if (builtinModules.includes(name)) return [`${at}: write node:${specifier}`];
        if (!dependencies.includes(name)) return [`${at}: ${name} is no dependency of the package`];
        const owner = RESERVED[name];
        return owner === undefined || room === owner ? [] : [`${at}: only ${owner} may import ${name}`];
      }
      const other = roomOf(target);
      if (!target.startsWith("src/") || other === undefined) return [`${at}: ${specifier} leaves the map`];
      const allowed = [room, "base", ...ARROWS[room]!].some((area) => within(other, area));
      return allowed ? [] : [`${at}: ${room || "src"} may not import ${other || "src"} (${specifier})`];
    });
  });
}

/** Files that import each other in a circle, one circle each. */
function cycles(sources: ReadonlyMap<string, string>): string[] {
  const found: string[] = [];
  const state = new Map<string, "open" | "done">();
  const path: string[] = [];
  const visit = (file: string): void => {
    state.set(file, "open");
    path.push(file);
    for (const { specifier } of importsOf(sources.get(file)!)) {
      const target = resolveImport(file, specifier);
      if (target === undefined || !sources.has(target)) continue;
      if (state.get(target) === "open") found.push([...path.slice(path.indexOf(target)), target].join(" → "));
      else if (!state.has(target)) visit(target);
    }
    path.pop();
    state.set(file, "done");
  };
  for (const file of sources.keys()) if (!state.has(file)) visit(file);
  return found;
}

/** Default exports where a name would do. Tools and task files are read by their default export. */
function unnamedExports(sources: ReadonlyMap<string, string>): string[] {
  return [...sources]
    .filter(([file]) => !file.startsWith("examples/") && !file.endsWith(".config.ts"))
    .flatMap(([file, source]) =>
      defaultExportsOf(source).map((line) => `${file}:${line}: export it under a name`),
    );
}

const dependencies = Object.keys(
  (JSON.parse(readRootFile("package.json")) as { dependencies: Record<string, string> }).dependencies,
);

describe("the sources of the project", () => {
  const src = readSources("src");

  it("are read, and their imports found", () => {
    expect(src.size).toBeGreaterThan(50);
    expect(importsOf(src.get("src/compute/runtime/interpreter.ts")!).map((x) => x.specifier)).toContain(
      "../graph/ir.ts",
    );
  });

  it("import only along the arrows of the map", () => {
    expect(brokenArrows(src, dependencies)).toEqual([]);
  });

  it("have no cycles", () => {
    expect(cycles(src)).toEqual([]);
  });

  it("export everything by name", () => {
    const folders = ["src", "test", "bench", "examples"].filter((folder) =>
      existsSync(new URL(`../../${folder}`, import.meta.url)),
    );
    expect(unnamedExports(readSources(...folders))).toEqual([]);
  });
});

describe("the rules themselves", () => {
  const sources = (files: Record<string, string>): Map<string, string> => new Map(Object.entries(files));

  it.each([
    ["src/compute/tensor/a.ts", "../graph/ir.ts", "compute/tensor may not import compute/graph"],
    ["src/compute/graph/a.ts", "../ops/stable.ts", "compute/graph may not import compute/ops"],
    ["src/compute/grad/a.ts", "../onnx/lower.ts", "compute/grad may not import compute/onnx"],
    ["src/compute/runtime/a.ts", "../../model/nn/layers.ts", "compute/runtime may not import model/nn"],
    ["src/model/nn/a.ts", "../arch/llama.ts", "model/nn may not import model/arch"],
    ["src/model/text/a.ts", "../../compute/graph/ir.ts", "model/text may not import compute/graph"],
    ["src/model/engine/a.ts", "../../learn/optim/pack.ts", "model/engine may not import learn/optim"],
    ["src/learn/train/a.ts", "../../app/format.ts", "learn/train may not import app"],
    ["src/learn/optim/a.ts", "../train/run.ts", "learn/optim may not import learn/train"],
    ["src/base/a.ts", "../compute/tensor/dtype.ts", "base may not import compute/tensor"],
    ["src/index.ts", "./app/cli/main.ts", "src may not import app"],
    ["src/base/a.ts", "../index.ts", "base may not import src"],
  ])("stop %s at %s", (file, specifier, message) => {
    const source = `\nimport type { x } from "${specifier}";`;
    expect(brokenArrows(sources({ [file]: source }), [])).toEqual([`${file}:2: ${message} (${specifier})`]);
  });

  it("let through what the map allows", () => {
    const files = {
      "src/compute/tensor/a.ts": 'import { b } from "./b.ts"; import { c } from "../../base/errors.ts";',
      "src/compute/runtime/a.ts": 'import koffi from "koffi"; import { join } from "node:path";',
      "src/learn/tasks/countdown/a.ts": 'import { task } from "../task.ts";',
      "src/app/cli/a.ts": 'import { b } from "../../learn/train/b.ts"; import { c } from "../format.ts";',
    };
    expect(brokenArrows(sources(files), ["koffi"])).toEqual([]);
  });

  it("reserve packages to a room, and want every package declared", () => {
    const source =
      'import "koffi";\nimport { z } from "zod/v4";\nimport fs from "fs";\nimport "onnxruntime-node/dist/x.js";';
    const file = "src/model/engine/a.ts";
    expect(brokenArrows(sources({ [file]: source }), ["koffi", "onnxruntime-node"])).toEqual([
      `${file}:1: only compute/runtime may import koffi`,
      `${file}:2: zod is no dependency of the package`,
      `${file}:3: write node:fs`,
      `${file}:4: only compute/runtime may import onnxruntime-node`,
    ]);
  });

  it("know every folder, and stay inside src", () => {
    const files = {
      "src/compute/attic/a.ts": "",
      "src/base/a.ts": 'import { b } from "../../test/b.ts";',
    };
    expect(brokenArrows(sources(files), [])).toEqual([
      "src/compute/attic/a.ts: lies in no room of the map",
      "src/base/a.ts:1: ../../test/b.ts leaves the map",
    ]);
  });

  it("find a cycle through several files, and of a file with itself", () => {
    const files = {
      "src/a.ts": 'import "./b.ts";',
      "src/b.ts": 'export * from "./c/d.ts";',
      "src/c/d.ts": 'type A = import("../a.ts").A;',
      "src/e.ts": 'import type { E } from "./e.ts"; import "./a.ts";',
    };
    expect(cycles(sources(files))).toEqual([
      "src/a.ts → src/b.ts → src/c/d.ts → src/a.ts",
      "src/e.ts → src/e.ts",
    ]);
  });

  it("want names for exports, except where a tool reads the default", () => {
    const source = "const a = 1;\nexport default a;";
    const files = { "src/a.ts": source, "examples/a.ts": source, "vitest.config.ts": source };
    expect(unnamedExports(sources({ ...files, "src/b.ts": "export { a as default };" }))).toEqual([
      "src/a.ts:2: export it under a name",
      "src/b.ts:1: export it under a name",
    ]);
  });
});

describe("reading a source", () => {
  it("finds every form of import, on its line", () => {
    const source = [
      "import { a,", //
      '  b } from "./1.ts";',
      "import type C from './2.ts';",
      'import "./3.ts";',
      'export * from "./4.ts"; export { d } from "./5.ts";',
      'const e = await import("./6.ts");',
      'let f: import( "./7.ts" ).F;',
    ].join("\n");
    expect(importsOf(source)).toEqual([
      { specifier: "./1.ts", line: 2 },
      { specifier: "./2.ts", line: 3 },
      { specifier: "./3.ts", line: 4 },
      { specifier: "./4.ts", line: 5 },
      { specifier: "./5.ts", line: 5 },
      { specifier: "./6.ts", line: 6 },
      { specifier: "./7.ts", line: 7 },
    ]);
  });

  it("is not misled by comments, strings, templates and regular expressions", () => {
    const source = [
      '// import "./comment.ts"',
      '/* import "./block.ts";',
      ' * from "./block.ts" */ import "./1.ts"; // "',
      "const a = 'import \"./string.ts\"';",
      'const b = `import "./template.ts" ${c({ d: `}${\'}\'}` })} from "./template.ts"`;',
      'const e = /["\'`/*]/.test(f) || g / 2 / h; import "./2.ts";',
      'return /import "[/"]/g; import "./3.ts";',
      'const i = Array.from("./array.ts"); const j = "\\""; export { j } from "./4.ts";',
    ].join("\n");
    expect(importsOf(source).map(({ specifier, line }) => `${specifier}:${line}`)).toEqual([
      "./1.ts:3",
      "./2.ts:6",
      "./3.ts:7",
      "./4.ts:8",
    ]);
  });

  it("keeps line breaks and code where they are", () => {
    expect(maskSource('a /* b\nc */ "d";\n/e/.f').code).toBe('a     \n     "0";\n   .f');
  });
});
