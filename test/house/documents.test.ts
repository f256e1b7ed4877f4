/** What the documents name exists: files, commands, flags, the arrows between rooms; and the task they show works. */

import { existsSync, readdirSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import type { Command } from "commander";
import { describe, expect, it } from "vitest";
import { createProgram } from "../../src/app/cli/program.ts";
import { Random } from "../../src/compute/tensor/random.ts";
import { loadTask } from "../../src/learn/tasks/load.ts";
import { openTask } from "../../src/learn/tasks/open.ts";
import { THINK_TAGS } from "../../src/model/text/think.ts";
import { characterTokenizer } from "../../src/model/text/tokenizer.ts";
import { ARROWS } from "./arrows.ts";
import { readRootFile } from "./source.ts";

const root = new URL("../../", import.meta.url);
const markdownIn = (folder: string): string[] =>
  readdirSync(new URL(folder, root)).flatMap((name) => (name.endsWith(".md") ? [`${folder}${name}`] : []));
const DOCUMENTS = [...markdownIn("./"), ...["docs/", "examples/", "bench/"].flatMap(markdownIn)].map((path) =>
  path.replace(/^\.\//, ""),
);

/** Text between backticks, and the lines of fenced blocks. */
function codeOf(markdown: string): string[] {
  const blocks = [...markdown.matchAll(/^```[^\n]*\n([\s\S]*?)^```/gm)].map((match) => match[1]!);
  const prose = markdown.replace(/^```[\s\S]*?^```/gm, "");
  const spans = [...prose.matchAll(/`([^`\n]+)`/g)].map((match) => match[1]!);
  return [...spans, ...blocks.flatMap((block) => block.split("\n"))];
}

/** Paths from the root of the repository. */
function pathsIn(markdown: string): string[] {
  const words = codeOf(markdown).flatMap((code) => code.split(/[\s(),:;"]+/));
  return words.filter((word) => /^(?:\.\/)?(?:src|test|bench|examples|docs|\.ci)\/[\w./-]+$/.test(word));
}

/** Where links to files of the repository lead, relative to the document. */
function linksIn(markdown: string): string[] {
  return [...markdown.matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)].map((match) => match[1]!);
}

/** What is typed after `pondera`, or after `npm start --`, which is a training run. */
function typedIn(markdown: string): string[] {
  return codeOf(markdown).flatMap((code) => {
    const plain = code.replace(/\s+#.*$/, "");
    const typed = /(?:^|[\s|$])(?:npx )?pondera ((?:[a-z]+|--?[a-z]).*)$/.exec(plain)?.[1];
    const started = /npm start -- (.*)$/.exec(plain)?.[1];
    return [typed, started === undefined ? undefined : `train ${started}`].filter(
      (text) => text !== undefined,
    );
  });
}

const nowhere = new PassThrough();
const program = createProgram({
  ...{ stdin: nowhere, stdout: nowhere, stderr: nowhere, env: {} },
  exitWith() {},
});

/** What is wrong with a typed command: a command or a flag that does not exist. */
function mistakesIn(typed: string): string[] {
  const words = typed.split(/\s+/);
  let command: Command = program;
  const mistakes: string[] = [];
  for (const word of words) {
    const name = word.replace(/=.*$/, "");
    if (name.startsWith("-")) {
      const known = ["-h", "--help", ...command.options.flatMap(({ short, long }) => [short, long])];
      if (!known.includes(name)) mistakes.push(`pondera ${typed}: no ${name}`);
      continue;
    }
    const next = command.commands.find((candidate) => candidate.name() === name);
    if (next !== undefined) command = next;
    else if (command.commands.length > 0) mistakes.push(`pondera ${typed}: no command ${name}`);
  }
  return mistakes;
}

describe.each(DOCUMENTS)("%s", (document) => {
  const markdown = readRootFile(document);

  it("names files that exist", () => {
    expect(pathsIn(markdown).filter((path) => !existsSync(new URL(path, root)))).toEqual([]);
  });

  it("links to files that exist", () => {
    const from = new URL(document, root);
    expect(linksIn(markdown).filter((link) => !existsSync(new URL(link, from)))).toEqual([]);
  });

  it("types commands and flags that exist", () => {
    expect(typedIn(markdown).flatMap(mistakesIn)).toEqual([]);
  });
});

describe("docs/ARCHITECTURE.md", () => {
  it("has the arrows that the test of imports enforces", () => {
    const [, section] = readRootFile("docs/ARCHITECTURE.md").split("## Rooms and arrows");
    const rows = [...section!.split("\n## ")[0]!.matchAll(/^\| `([^`]+)` *\|([^|]*)\|$/gm)];
    const room = (name: string): string => (name === "src/index.ts" ? "" : name);
    const arrows = rows.map(([, name, allowed]) => [
      room(name!),
      [...allowed!.matchAll(/`([^`]+)`/g)].map((match) => room(match[1]!)),
    ]);
    expect(Object.fromEntries(arrows)).toEqual(ARROWS);
  });
});

describe("examples/README.md", () => {
  it("shows a task that opens, and whose prompts and traces are in its alphabet", async () => {
    const source = /^```ts\n(import[\s\S]*?)^```/m.exec(readRootFile("examples/README.md"))![1]!;
    const folder = await mkdtemp(join(tmpdir(), "pondera-documents-"));
    try {
      const file = join(folder, "task.ts");
      await writeFile(file, source);
      const task = await openTask(await loadTask(file, { pondera: await import("../../src/index.ts") }));
      const tokenizer = characterTokenizer({ alphabet: task.alphabet, special: THINK_TAGS });
      const random = new Random(1);
      const texts = Array.from({ length: 50 }, () => {
        const { prompt, completion } = task.explore!(random);
        return [task.train.draw(random).prompt, prompt, completion];
      }).flat();
      for (const text of texts) expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe("README.md", () => {
  it("is short", () => {
    expect(readRootFile("README.md").split("\n").length).toBeLessThan(200);
  });

  it("has a picture of a training run", () => {
    const [, file] = /!\[[^\]]+\]\((docs\/[^)]+\.svg)\)/.exec(readRootFile("README.md"))!;
    expect(readRootFile(file!).match(/<polyline/g)).toHaveLength(2);
  });
});

describe("the search", () => {
  it("finds what does not exist", () => {
    const markdown = [
      "`src/nowhere.ts` and [here](docs/none.md), `pondera flyy`, `pondera runs lost`.",
      "```",
      "npx pondera train countdown --presett quick  # a comment with --flags",
      "npm start -- --depht 2",
      "```",
    ].join("\n");
    expect(pathsIn(markdown)).toEqual(["src/nowhere.ts"]);
    expect(linksIn(markdown)).toEqual(["docs/none.md"]);
    expect(typedIn(markdown).flatMap(mistakesIn)).toEqual([
      "pondera flyy: no command flyy",
      "pondera runs lost: no command lost",
      "pondera train countdown --presett quick: no --presett",
      "pondera train --depht 2: no --depht",
    ]);
  });
});
