/** Pulls from a hub on this machine, in haste, and what they brought. */

import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { Http, type Patience } from "../../../src/model/store/http.ts";
import { type Pulled, type PullOptions, pullModel } from "../../../src/model/store/pull.ts";
import type { ModelStore } from "../../../src/model/store/store.ts";
import type { FakeHub } from "./fake-hub.ts";

/** So that a failing server fails in moments. */
export const HASTE: Partial<Patience> = {
  ...{ firstDelayMs: 1, mostDelayMs: 4, attempts: 4 },
  ...{ stallMs: 1500, stallBytes: 1000, responseMs: 5000 },
};

/** @param options.patience  @default HASTE */
export async function pullFrom(
  hub: FakeHub,
  name: string,
  options: Partial<PullOptions> & { readonly store: ModelStore; readonly patience?: Partial<Patience> },
): Promise<Pulled> {
  const { patience = HASTE, ...rest } = options;
  const http = new Http({ env: {}, patience });
  try {
    return await pullModel(name, { http, endpoint: hub.url, env: {}, segmentBytes: 50_000, ...rest });
  } finally {
    http.close();
  }
}

/** Every file below a folder with its bytes. */
export async function contents(folder: string): Promise<Record<string, Buffer>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile());
  const all = files.map(async (entry) => {
    const path = join(entry.parentPath, entry.name);
    return [path.slice(folder.length + 1).replaceAll("\\", "/"), await readFile(path)] as const;
  });
  return Object.fromEntries(await Promise.all(all));
}

export const expected = (files: Record<string, Uint8Array | string>): Record<string, Buffer> =>
  Object.fromEntries(Object.entries(files).map(([path, content]) => [path, Buffer.from(content)]));
