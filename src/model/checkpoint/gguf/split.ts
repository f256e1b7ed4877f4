/**
 * A GGUF model in several files, `NAME-00001-of-0000N.gguf` and so on, as one. The first holds the metadata of the model; all say
 * which of how many they are.
 *
 * @source github.com/ggml-org/llama.cpp, tools/gguf-split/gguf-split.cpp
 */

import { basename, dirname, join } from "node:path";
import { FormatError } from "../../../base/errors.ts";
import { Metadata } from "./metadata.ts";
import { type GgufFile, openGguf } from "./reader.ts";

/** Far above what models are split into, and what a process may hold open. */
const MAX_PARTS = 512;

const NUMBERED = /-(\d{5})-of-(\d{5})\.gguf$/i;

const partName = (first: string, index: number, count: number): string => {
  const [number, total] = [index + 1, count].map((n) => `${n}`.padStart(5, "0"));
  return join(dirname(first), basename(first).replace(NUMBERED, `-${number}-of-${total}.gguf`));
};

/** How many files the model is in. @throws FormatError when this is not the first, or is not called as one of so many */
function partCount(first: GgufFile): number {
  const metadata = new Metadata(first);
  const count = metadata.count("split.count", 1);
  if (count <= 1) return 1;
  if (count > MAX_PARTS) metadata.fail("split.count", `must be at most ${MAX_PARTS}`);
  const [, , total] = NUMBERED.exec(basename(first.file)) ?? [];
  if (Number(total) !== count) {
    throw new FormatError({
      where: first.file,
      rule: `one of ${count} files must be called NAME-0000N-of-${`${count}`.padStart(5, "0")}.gguf, for the others to be found`,
      got: basename(first.file),
    });
  }
  const index = metadata.count("split.no");
  if (index === 0) return count;
  throw new FormatError({
    where: `${first.file}: split.no`,
    rule: "must be 0: the first file has the model's metadata",
    got: `${index}`,
    remedy: `Give ${partName(first.file, 0, count)}`,
  });
}

/** @throws FormatError when the file is not that part of that many */
function checkPart(part: GgufFile, index: number, count: number): void {
  const metadata = new Metadata(part);
  if (metadata.count("split.count") !== count)
    metadata.fail("split.count", `must be ${count}, as the first file says`);
  if (metadata.count("split.no") !== index)
    metadata.fail("split.no", `must be ${index}, as the file's name says`);
}

/** Files as one. @throws FormatError when two hold a tensor of one name, or not all are there */
function joined(first: GgufFile, parts: readonly GgufFile[]): GgufFile {
  const holders = new Map<string, GgufFile>();
  for (const part of parts) {
    for (const name of part.tensors.keys()) {
      const other = holders.get(name);
      if (other !== undefined) {
        throw new FormatError({
          where: `${part.file}: tensor ${JSON.stringify(name)}`,
          rule: "must be in one file of the model",
          got: `the same in ${other.file}`,
        });
      }
      holders.set(name, part);
    }
  }
  const metadata = new Metadata(first);
  if (metadata.count("split.tensors.count", holders.size) !== holders.size) {
    metadata.fail(
      "split.tensors.count",
      `must be the ${holders.size} tensors that the ${parts.length} files hold`,
    );
  }
  const close = async (): Promise<void> => {
    await Promise.all(parts.map((part) => part.close()));
  };
  return {
    file: first.file,
    version: first.version,
    metadata: first.metadata,
    tensors: new Map(parts.flatMap((part) => [...part.tensors])),
    // Whoever asks for a tensor that is nowhere is told so by the first.
    readInto: (name, target, start) => (holders.get(name) ?? first).readInto(name, target, start),
    readIntoSync: (name, target, start) => (holders.get(name) ?? first).readIntoSync(name, target, start),
    close,
    [Symbol.asyncDispose]: close,
  };
}

/**
 * As {@link openGguf}; where the file is the first of several, all of them.
 * @throws moreover FormatError on a part that is not the first, or parts that do not belong together; FileError on one that is missing
 */
export async function openSplitGguf(file: string): Promise<GgufFile> {
  const first = await openGguf(file);
  const parts = [first];
  try {
    const count = partCount(first);
    for (let index = 1; index < count; index++) {
      const part = await openGguf(partName(file, index, count));
      parts.push(part);
      checkPart(part, index, count);
    }
    return count === 1 ? first : joined(first, parts);
  } catch (error) {
    for (const part of parts) await part.close();
    throw error;
  }
}
