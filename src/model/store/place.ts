/** Where the model store is, unless somebody says otherwise. */

import { homedir } from "node:os";
import { join, resolve } from "node:path";

/**
 * The store's folder, absolute: as asked, else `PONDERA_HOME`, else where the platform keeps the data of programs
 * (`XDG_DATA_HOME` or `~/.local/share`, `~/Library/Application Support`, `%LOCALAPPDATA%`).
 */
export function storePlace(
  asked: string | undefined,
  env: Readonly<Record<string, string | undefined>>,
  platform: NodeJS.Platform = process.platform,
): string {
  const chosen = asked || env["PONDERA_HOME"];
  if (chosen) return resolve(chosen);
  const home = env["HOME"] || env["USERPROFILE"] || homedir();
  if (platform === "win32") return join(env["LOCALAPPDATA"] || join(home, "AppData", "Local"), "pondera");
  if (platform === "darwin") return join(home, "Library", "Application Support", "pondera");
  return resolve(env["XDG_DATA_HOME"] || join(home, ".local", "share"), "pondera");
}
