/** Reads what a TypeScript source imports and exports, without a parser: enough for the rules of the house. */

import { readdirSync, readFileSync } from "node:fs";
import { join, posix } from "node:path";
import { fileURLToPath } from "node:url";

export interface Import {
  /** As written. */
  readonly specifier: string;
  /** Counted from 1. */
  readonly line: number;
}

/** Characters after which a slash begins a regular expression and no division. */
const BEFORE_REGEX = new Set("(,=:[!&|?{};+-*%<>~^");
const KEYWORD_BEFORE_REGEX = /\b(?:return|typeof|case|in|of|do|else|void|delete|throw|new|await|yield)$/;

/**
 * The code alone: comments, template literals and regular expressions become spaces, and each string literal becomes
 * `"n"`, n its index in `strings`. Line breaks stay where they are.
 */
export function maskSource(source: string): { code: string; strings: string[] } {
  const strings: string[] = [];
  let code = "";
  let at = 0;
  /** Moves to `end` and leaves only line breaks of what is passed. */
  const blank = (end: number): void => {
    code += source.slice(at, end).replace(/[^\n]/g, " ");
    at = end;
  };
  /** Where the literal that opens at `start` ends, behind its closing character. */
  const closing = (start: number, close: string): number => {
    let inClass = false;
    for (let i = start + 1; i < source.length; i++) {
      const c = source[i]!;
      if (c === "\\") i++;
      else if (close === "/" && c === "[") inClass = true;
      else if (close === "/" && c === "]") inClass = false;
      else if (c === close && !inClass) return i + 1;
      else if (close === "`" && c === "$" && source[i + 1] === "{") i = closingBrace(i + 1) - 1;
    }
    return source.length;
  };
  /** Behind the brace that closes the one at `start`, which opens an expression in a template. */
  const closingBrace = (start: number): number => {
    let depth = 0;
    for (let i = start; i < source.length; i++) {
      const c = source[i]!;
      if (c === "{") depth++;
      else if (c === "}" && --depth === 0) return i + 1;
      else if (c === '"' || c === "'" || c === "`") i = closing(i, c) - 1;
    }
    return source.length;
  };
  while (at < source.length) {
    const c = source[at]!;
    const two = source.slice(at, at + 2);
    if (two === "//") {
      const end = source.indexOf("\n", at);
      blank(end === -1 ? source.length : end);
    } else if (two === "/*") {
      const end = source.indexOf("*/", at + 2);
      blank(end === -1 ? source.length : end + 2);
    } else if (c === '"' || c === "'") {
      const end = closing(at, c);
      code += `"${strings.push(source.slice(at + 1, end - 1)) - 1}"`;
      at = end;
    } else if (c === "`") {
      blank(closing(at, c));
    } else if (c === "/") {
      const before = code.trimEnd();
      const isRegex =
        before === "" || BEFORE_REGEX.has(before.at(-1)!) || KEYWORD_BEFORE_REGEX.test(before.slice(-12));
      if (isRegex) blank(closing(at, c));
      else {
        code += c;
        at++;
      }
    } else {
      code += c;
      at++;
    }
  }
  return { code, strings };
}

const lineOf = (code: string, offset: number): number => code.slice(0, offset).split("\n").length;

/** Every module a source names: `import … from`, `export … from`, `import "…"`, `import("…")`; types included. */
export function importsOf(source: string): Import[] {
  const { code, strings } = maskSource(source);
  return [...code.matchAll(/\b(?:from|import)\s*\(?\s*"(\d+)"/g)]
    .filter(([text]) => !/^from\s*\(/.test(text))
    .map((match) => ({ specifier: strings[Number(match[1])]!, line: lineOf(code, match.index) }));
}

/** Lines with a default export. */
export function defaultExportsOf(source: string): number[] {
  const { code } = maskSource(source);
  return [...code.matchAll(/\bexport\s+default\b|\bas\s+default\s*[,}]/g)].map((match) =>
    lineOf(code, match.index),
  );
}

/** The file a relative specifier names, seen from `file`; undefined for a package. */
export function resolveImport(file: string, specifier: string): string | undefined {
  return specifier.startsWith(".") ? posix.join(posix.dirname(file), specifier) : undefined;
}

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** Sources below folders of the repository, by path from its root, with forward slashes. */
export function readSources(...folders: readonly string[]): Map<string, string> {
  const sources = new Map<string, string>();
  for (const folder of folders) {
    for (const entry of readdirSync(join(ROOT, folder), { withFileTypes: true, recursive: true })) {
      if (!entry.isFile() || !/\.tsx?$/.test(entry.name)) continue;
      const path = join(entry.parentPath, entry.name);
      sources.set(path.slice(ROOT.length).replaceAll("\\", "/"), readFileSync(path, "utf8"));
    }
  }
  return sources;
}

/** The text of a file of the repository. */
export const readRootFile = (name: string): string => readFileSync(join(ROOT, name), "utf8");
