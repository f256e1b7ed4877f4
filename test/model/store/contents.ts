/** Models put into a store without a hub. */

import { createHash, randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Manifest } from "../../../src/model/store/manifest.ts";
import type { ModelStore } from "../../../src/model/store/store.ts";

export const sha256 = (content: string | Uint8Array): string =>
  createHash("sha256").update(content).digest("hex");

/** A manifest of files with these contents. */
export function manifestOf(name: string, files: Readonly<Record<string, string | Uint8Array>>): Manifest {
  return {
    format: 1,
    name,
    source: {
      hub: "hf",
      endpoint: "https://huggingface.co",
      repo: name,
      revision: "main",
      commit: "c".repeat(40),
    },
    pulled: "2026-11-25T12:00:00.000Z",
    files: Object.entries(files).map(([path, content]) => ({
      path,
      size: Buffer.byteLength(content),
      sha256: sha256(content),
    })),
  };
}

/** Takes contents into the store, without a name. */
export async function adoptAll(
  store: ModelStore,
  files: Readonly<Record<string, string | Uint8Array>>,
): Promise<void> {
  for (const content of Object.values(files)) {
    const file = join(await store.partialFolder("test"), randomUUID());
    await writeFile(file, content);
    await store.adopt(file, { sha256: sha256(content), size: Buffer.byteLength(content) });
  }
}

/** Puts a model into the store. */
export async function put(
  store: ModelStore,
  name: string,
  files: Readonly<Record<string, string | Uint8Array>>,
): Promise<Manifest> {
  await adoptAll(store, files);
  const manifest = manifestOf(name, files);
  const missing = await store.commit(manifest);
  if (missing.length > 0) throw new Error(`not adopted: ${missing.map((file) => file.path).join(", ")}`);
  return manifest;
}
