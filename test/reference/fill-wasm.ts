/**
 * Assembles src/model/checkpoint/gguf/fill.wat into fill-wasm.ts beside it: `npm run assemble`.
 */

import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import wabt from "wabt";

const place = (name: string): string =>
  fileURLToPath(new URL(`../../src/model/checkpoint/gguf/${name}`, import.meta.url));

export const FILL_WASM_FILE = place("fill-wasm.ts");

/** What that file should hold. */
export async function assembledFile(): Promise<string> {
  const { parseWat } = await wabt();
  const source = await readFile(place("fill.wat"), "utf8");
  const module = parseWat("fill.wat", source, { simd: true });
  try {
    module.validate();
    const base64 = Buffer.from(module.toBinary({}).buffer).toString("base64");
    const lines = base64.match(/.{1,100}/g)!.map((line) => `  "${line}",\n`);
    return `/** The module that fill.wat is the source of, in base64; made by \`npm run assemble\`. */\nexport const FILL_WASM = [\n${lines.join("")}].join("");\n`;
  } finally {
    module.destroy();
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  await writeFile(FILL_WASM_FILE, await assembledFile());
