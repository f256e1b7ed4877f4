/** Words of commands that a person is told to type. */

import { relative } from "node:path";

/** A word as a shell reads it back: quoted where it has anything that a shell takes for its own. */
export function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** A path as it is typed where this process works. */
export function shellPath(path: string): string {
  return shellWord(relative(process.cwd(), path) || ".");
}
