import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { FileError, FormatError, TaskError } from "../../src/base/errors.ts";
import {
  fileError,
  makeFolders,
  readJson,
  readText,
  recoverFolder,
  writeFileAtomic,
  writeFolderAtomic,
} from "../../src/base/files.ts";
import { temporaryFolder } from "./temporary-folder.ts";
import { unprivileged } from "./unprivileged.ts";

/** Node's arguments that run a program which has the module under test as `files`. */
function program(body: string): string[] {
  const source = `
    import { createJiti } from ${JSON.stringify(import.meta.resolve("jiti"))};
    const files = await createJiti(${JSON.stringify(import.meta.url)}).import("../../src/base/files.ts");
    ${body}`;
  return ["--input-type=module", "--eval", source];
}

describe("writeFileAtomic", () => {
  it("writes text, bytes and parts, and leaves nothing else in the folder", async () => {
    const folder = await temporaryFolder();
    await writeFileAtomic(join(folder, "text"), "zwölf ÷ 3\n");
    await writeFileAtomic(join(folder, "bytes"), Uint8Array.of(1, 0, 255));
    await writeFileAtomic(join(folder, "parts"), [Uint8Array.of(1, 2), new Uint8Array(0), Uint8Array.of(3)]);
    expect(await readFile(join(folder, "text"), "utf8")).toBe("zwölf ÷ 3\n");
    expect([...(await readFile(join(folder, "bytes")))]).toEqual([1, 0, 255]);
    expect([...(await readFile(join(folder, "parts")))]).toEqual([1, 2, 3]);
    expect((await readdir(folder)).sort()).toEqual(["bytes", "parts", "text"]);
  });

  it("replaces a file, and lets writers of one file in one process go at once", async () => {
    const folder = await temporaryFolder();
    const path = join(folder, "result.json");
    await writeFileAtomic(path, "old");
    const texts = Array.from({ length: 20 }, (_, i) => `${i}`.repeat(1000));
    await Promise.all(texts.map((text) => writeFileAtomic(path, text)));
    expect(texts).toContain(await readFile(path, "utf8"));
    expect(await readdir(folder)).toEqual(["result.json"]);
  });

  it("keeps the previous file whole when the data fails half way", async () => {
    const folder = await temporaryFolder();
    const path = join(folder, "model");
    await writeFileAtomic(path, "old");
    function* parts() {
      yield Uint8Array.of(1, 2, 3);
      throw new TaskError({ where: "parts", rule: "must not fail" });
    }
    await expect(writeFileAtomic(path, parts())).rejects.toThrow(TaskError);
    expect(await readFile(path, "utf8")).toBe("old");
    expect(await readdir(folder)).toEqual(["model"]);
  });

  it("names the file, the system's reason and the remedy when the folder is missing or no folder", async () => {
    const folder = await temporaryFolder();
    const missing = writeFileAtomic(join(folder, "absent", "file"), "");
    await expect(missing).rejects.toThrow(FileError);
    await expect(missing).rejects.toThrow(
      /absent.file: must be writable; got ENOENT.*Check the path; its folder must exist\./,
    );
    await writeFileAtomic(join(folder, "plain"), "");
    await expect(writeFileAtomic(join(folder, "plain", "file"), "")).rejects.toThrow(/ENOTDIR.*is a file/);
  });

  // Windows has no such bits.
  it.skipIf(process.platform === "win32")(
    "refuses a folder it has no right to write to, and keeps the previous file",
    async () => {
      const folder = await temporaryFolder();
      await writeFileAtomic(join(folder, "file"), "old");
      await unprivileged([folder], async () => {
        const write = writeFileAtomic(join(folder, "file"), "new");
        await expect(write).rejects.toThrow(/EACCES.*Give this user the right/);
      });
      expect(await readFile(join(folder, "file"), "utf8")).toBe("old");
    },
  );

  it.skipIf(process.platform === "win32")(
    "keeps the previous file whole when the disk takes no more",
    async () => {
      const folder = await temporaryFolder();
      const path = join(folder, "file");
      await writeFile(path, "old");
      // A limit on file size stands in for a full disk: the write stops part way with a system error just the same.
      const child = program(`
        await files.writeFileAtomic(${JSON.stringify(path)}, new Uint8Array(4 << 20)).then(
          () => console.log("written"),
          (error) => console.log(error.name, error.message),
        );`);
      const command = ["-c", 'ulimit -f 64 && exec "$@"', "sh", process.execPath, ...child];
      const { stdout } = await promisify(execFile)("sh", command);
      expect(stdout).toMatch(
        /^FileError .*file: must be writable; got EFBIG.*The file would be larger than this system/,
      );
      expect(await readFile(path, "utf8")).toBe("old");
      expect(await readdir(folder)).toEqual(["file"]);
    },
  );

  it.skipIf(!existsSync("/dev/full"))("says of a full disk what to do", async () => {
    const failed = await writeFile("/dev/full", "x").catch((error: unknown) => error);
    const error = fileError("run/metrics.jsonl", "writable", failed);
    expect(error).toBeInstanceOf(FileError);
    expect((error as FileError).message).toMatch(
      /^run\/metrics\.jsonl: must be writable; got ENOSPC.*\. The disk is full: free some space and try again\.$/,
    );
  });

  it("leaves the old file or the new when killed, and the next write clears what was left", async () => {
    const folder = await temporaryFolder();
    const path = join(folder, "file");
    const size = 1 << 20;
    await writeFileAtomic(path, new Uint8Array(size).fill(1));
    for (let round = 0; round < 5; round++) {
      const child = spawn(
        process.execPath,
        program(`
          for (let value = 0; ; value++) {
            await files.writeFileAtomic(${JSON.stringify(path)}, new Uint8Array(${size}).fill(value));
            if (value === 0) console.log("started");
          }`),
        { stdio: ["ignore", "pipe", "inherit"] },
      );
      await once(child.stdout, "data");
      await new Promise((done) => setTimeout(done, 1 + 7 * round));
      child.kill("SIGKILL");
      await once(child, "exit");
      const bytes = await readFile(path);
      expect(bytes.length).toBe(size);
      expect(bytes.every((byte) => byte === bytes[0])).toBe(true);
    }
    await writeFileAtomic(path, "new");
    expect(await readdir(folder)).toEqual(["file"]);
  });

  it("clears a dead writer's leftovers, and no other file", async () => {
    const folder = await temporaryFolder();
    // The parent process lives; the largest process id of any system is far below the other.
    const others = [`.file.${process.ppid}-0.partial`, ".file.note", ".file2.999999999-0.partial"];
    for (const name of [...others, ".file.999999999-0.partial", `.file.${process.pid}-999.partial`]) {
      await writeFile(join(folder, name), "");
    }
    await writeFileAtomic(join(folder, "file"), "");
    expect((await readdir(folder)).sort()).toEqual([...others, "file"].sort());
  });
});

describe("writeFolderAtomic", () => {
  it("makes a folder with all that was written, and replaces it whole", async () => {
    const root = await temporaryFolder();
    const path = join(root, "step-1");
    await writeFolderAtomic(path, async (folder) => {
      await writeFile(join(folder, "a"), "1");
      await mkdir(join(folder, "deep"));
      await writeFile(join(folder, "deep", "b"), "2");
    });
    expect(await readFile(join(path, "deep", "b"), "utf8")).toBe("2");
    await writeFolderAtomic(`${path}/`, (folder) => writeFile(join(folder, "c"), "3"));
    expect(await readdir(path)).toEqual(["c"]);
    expect(await readdir(root)).toEqual(["step-1"]);
  });

  it("keeps the previous folder when writing fails, and passes on why", async () => {
    const root = await temporaryFolder();
    const path = join(root, "step-1");
    await writeFolderAtomic(path, (folder) => writeFile(join(folder, "a"), "1"));
    const mine = writeFolderAtomic(path, async (folder) => {
      await writeFile(join(folder, "half"), "");
      throw new FormatError({ where: "here", rule: "must not fail" });
    });
    await expect(mine).rejects.toThrow(FormatError);
    const system = writeFolderAtomic(path, (folder) => writeFile(join(folder, "no", "such"), ""));
    await expect(system).rejects.toThrow(FileError);
    expect(await readdir(path)).toEqual(["a"]);
    expect(await readdir(root)).toEqual(["step-1"]);
  });

  it("does not replace a file", async () => {
    const root = await temporaryFolder();
    await writeFileAtomic(join(root, "x"), "kept");
    await expect(writeFolderAtomic(join(root, "x"), async () => {})).rejects.toThrow(
      "must be a folder or absent",
    );
    expect(await readFile(join(root, "x"), "utf8")).toBe("kept");
  });

  it("can undo a death between the two renames of a replacement", async () => {
    const root = await temporaryFolder();
    const path = join(root, "model");
    await writeFolderAtomic(path, (folder) => writeFile(join(folder, "a"), "1"));
    await rename(path, join(root, ".model.previous"));
    await recoverFolder(path);
    expect(await readdir(path)).toEqual(["a"]);
    await recoverFolder(path);
    expect(await readdir(root)).toEqual(["model"]);
  });
});

describe("makeFolders", () => {
  it("makes what is not there, and leaves what is", async () => {
    const root = await temporaryFolder();
    await makeFolders(join(root, "a", "b", "c"));
    await writeFileAtomic(join(root, "a", "b", "kept"), "here");
    await makeFolders(join(root, "a", "b"));
    await Promise.all([makeFolders(join(root, "x", "y")), makeFolders(join(root, "x", "y"))]);
    expect(await readdir(join(root, "a", "b"))).toEqual(["c", "kept"]);
    expect(await readdir(join(root, "x"))).toEqual(["y"]);
  });

  it("names a file in its way", async () => {
    const root = await temporaryFolder();
    await writeFileAtomic(join(root, "file"), "");
    for (const path of [join(root, "file"), join(root, "file", "below")]) {
      await expect(makeFolders(path)).rejects.toThrow(FileError);
      await expect(makeFolders(path)).rejects.toThrow(`${path}: must be writable; got E`);
    }
  });

  it.runIf(process.platform === "linux")("ends where a folder takes none, whoever asks", async () => {
    await expect(makeFolders("/proc/pondera/runs")).rejects.toThrow(
      "/proc/pondera/runs: must be writable; got ENOENT",
    );
  });
});

describe("reading", () => {
  it("refuses JSON beyond any configuration's needs, and is not misled by strings", async () => {
    const path = join(await temporaryFolder(), "x.json");
    const read = async (text: string) => {
      await writeFile(path, text);
      return await readJson(path);
    };
    const nested = (depth: number) => `${"[".repeat(depth)}${"]".repeat(depth)}`;
    expect(await read(nested(64))).toHaveLength(1);
    await expect(read(nested(65))).rejects.toThrow(
      /x.json: must not nest deeper than 64; got deeper at character 65/,
    );
    expect(await read(JSON.stringify({ a: `\\"${"[{".repeat(100)}` }))).toEqual({
      a: `\\"${"[{".repeat(100)}`,
    });
    await expect(read(`[${"0,".repeat(2 ** 20)}0]`)).rejects.toThrow(/must hold at most 1048576 values/);
    await expect(read(" ".repeat(2 ** 25 + 1))).rejects.toThrow(
      /must have at most 33554432 bytes; got 33554433/,
    );
  });

  it("says what is wrong with a file", async () => {
    const folder = await temporaryFolder();
    await expect(readText(join(folder, "absent"))).rejects.toThrow(/absent: must be readable; got ENOENT/);
    await expect(readText(folder)).rejects.toThrow(FileError);
    await writeFileAtomic(join(folder, "bytes"), Uint8Array.of(0xff, 0xfe));
    await expect(readText(join(folder, "bytes"))).rejects.toThrow("must be UTF-8 text");
    await writeFileAtomic(join(folder, "half.json"), '{"a": ');
    await expect(readJson(join(folder, "half.json"))).rejects.toThrow(/half.json: must be JSON/);
    await writeFileAtomic(join(folder, "whole.json"), '{"a": [1]}');
    expect(await readJson(join(folder, "whole.json"))).toEqual({ a: [1] });
  });
});
