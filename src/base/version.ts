/** The package's own version. */

import { readFileSync } from "node:fs";

/** What package.json says, which lies two folders up both from the sources and from the build. */
export function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}
