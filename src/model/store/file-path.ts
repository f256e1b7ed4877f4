/**
 * File names that come from a hub, held to what every file system takes and to the folder they belong in. One rule for all
 * platforms, so that a model pulled on one can be carried to another.
 */

import { FormatError } from "../../base/errors.ts";
import { isDevice } from "./name.ts";

const MOST_SEGMENTS = 16;
/** Bytes of UTF-8, as file systems count. */
const LONGEST_SEGMENT = 255;
/** Bytes; leaves room for the store's own folders within the 4096 of Linux and, mostly, the 1024 of macOS. */
const LONGEST_PATH = 700;

/** Control characters, and what Windows does not allow in a name. */
const FORBIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\\:<>"|?*]/u;

/** What is wrong with a relative path with forward slashes; undefined when nothing is. */
function faultOf(path: string): string | undefined {
  const bytes = Buffer.byteLength(path);
  if (path === "") return "an empty name";
  if (bytes > LONGEST_PATH) return `a name of ${bytes} bytes`;
  const segments = path.split("/");
  if (segments.length > MOST_SEGMENTS) return `${segments.length} folders inside each other`;
  for (const segment of segments) {
    if (segment === "") return "an absolute path or an empty part";
    if (segment === "." || segment === "..") return `the part ${JSON.stringify(segment)}`;
    if (Buffer.byteLength(segment) > LONGEST_SEGMENT) return `a part of ${Buffer.byteLength(segment)} bytes`;
    const forbidden = FORBIDDEN.exec(segment);
    if (forbidden !== null) return `the character ${JSON.stringify(forbidden[0])}`;
    if (/[ .]$/.test(segment)) return "a part that ends in a dot or a blank, which Windows cuts off";
    if (isDevice(segment)) return "the name of a Windows device";
  }
  return undefined;
}

/** A name for a message: escaped, and cut where it is enormous. */
const shown = (path: string): string => JSON.stringify(path.length > 80 ? `${path.slice(0, 80)}…` : path);

/** Paths that are one on a disk that ignores case or how accents are written. */
const folded = (path: string): string => path.normalize("NFC").toLowerCase().normalize("NFC");

/**
 * Fails unless the paths can all be files below one folder, on every platform.
 * @param where  who named them, for the message
 * @throws FormatError on a path that leaves the folder or that some system refuses; on two that would be one file, or one that
 *   would be both a file and a folder
 */
export function checkFilePaths(where: string, paths: readonly string[]): void {
  const files = new Map<string, string>();
  const folders = new Map<string, string>();
  const clash = (a: string, b: string) =>
    new FormatError({
      where,
      rule: "file names must stay apart where case does not count",
      got: `${shown(a)} and ${shown(b)}`,
      remedy: "Leave one out with --exclude",
    });
  for (const path of paths) {
    const fault = faultOf(path);
    if (fault !== undefined) {
      throw new FormatError({
        where,
        rule: "file names must be relative, and such that every system can store them",
        got: `${shown(path)}, with ${fault}`,
        remedy: "Leave the file out with --exclude",
      });
    }
    const key = folded(path);
    const other = files.get(key) ?? folders.get(key);
    if (other !== undefined) throw clash(other, path);
    files.set(key, path);
    for (let slash = key.indexOf("/"); slash >= 0; slash = key.indexOf("/", slash + 1)) {
      const folder = key.slice(0, slash);
      const file = files.get(folder);
      if (file !== undefined) throw clash(file, path);
      // Two spellings of one folder are one folder, which is what the hub's files below them share everywhere.
      folders.set(folder, path);
    }
  }
}
