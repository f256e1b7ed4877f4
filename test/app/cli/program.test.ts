import { spawnSync } from "node:child_process";
import { EventEmitter } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { INTERRUPTED, interruptible } from "../../../src/app/cli/interrupt.ts";
import { pondera } from "./harness.ts";

describe("habits of the command line", () => {
  it("shows help with examples, on standard output, for every command", async () => {
    for (const argv of [
      [],
      ["--help"],
      ["runs", "list", "--help"],
      ["runs", "show", "-h"],
      ["runs", "doctor", "--help"],
      ["grade", "--help"],
    ]) {
      const { code, out, err } = await pondera(argv);
      expect(code).toBe(0);
      expect(out).toContain("Usage: pondera");
      expect(out).toMatch(/Examples:\n {2}\$ .*pondera/);
      expect(err).toBe("");
    }
  });

  it("prints its version", async () => {
    expect(await pondera(["--version"])).toEqual({ code: 0, out: "0.1.0\n", err: "" });
  });

  it.each([
    [["runs", "lst"], "Did you mean list?"],
    [["grade", "countdown", "f", "--jsn"], "Did you mean --json?"],
    [["grade", "countdwn", "f"], "Allowed choices are countdown"],
    [["grade"], "missing required argument 'task'"],
    [["grade", "countdown", "a", "b"], "too many arguments"],
  ])("exits with 2 and a hint on misuse: %j", async (argv, hint) => {
    const { code, out, err } = await pondera(argv);
    expect(code).toBe(2);
    expect(out).toBe("");
    expect(err).toContain("error: ");
    expect(err).toContain(hint);
    expect(err).toContain("add --help");
  });

  it("prints errors of the user without a stack, and with one on demand", async () => {
    const argv = ["grade", "countdown", "no-such-file.jsonl"];
    const plain = await pondera(argv);
    expect(plain.code).toBe(1);
    expect(plain.err).toMatch(
      /^error: no-such-file\.jsonl: must be readable; got ENOENT.*\. Check the path; its folder must exist\.\n$/,
    );
    for (const debug of [
      await pondera([...argv, "--debug"]),
      await pondera(argv, { env: { PONDERA_DEBUG: "1" } }),
    ]) {
      expect(debug.code).toBe(1);
      expect(debug.err).toMatch(/FileError: .*\n +at /);
    }
  });
});

describe("the program as a process", () => {
  const main = fileURLToPath(new URL("../../../src/app/cli/main.ts", import.meta.url));
  const command = `${JSON.stringify(process.execPath)} --import jiti/register ${JSON.stringify(main)}`;
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "pondera-cli-"));
    const row = `${JSON.stringify({ numbers: [1, 2], target: 3, completion: "<answer>1+2</answer>" })}\n`;
    await writeFile(join(folder, "rows.jsonl"), row.repeat(20_000));
  });
  afterAll(() => rm(folder, { recursive: true }));

  it("is quiet when its reader has seen enough, and sets the exit code", () => {
    const piped = `${command} grade countdown ${join(folder, "rows.jsonl")} --json | head -n 1; exit "\${PIPESTATUS[0]}"`;
    const { stdout, stderr, status } = spawnSync("bash", ["-c", piped], { encoding: "utf8" });
    expect(stdout.trim()).toBe('{"reward":1,"accuracy":1,"format":0,"reason":"correct"}');
    expect(stderr).toBe("");
    expect(status).toBe(141);
    expect(spawnSync("bash", ["-c", `${command} grade`]).status).toBe(2);
  });
});

describe("interruptible", () => {
  it("asks for an orderly end first, exits at the second signal, and takes its handlers away", async () => {
    const source = new EventEmitter();
    const seen: string[] = [];
    const result = await interruptible(
      { source, onFirst: () => seen.push("first"), exit: (code) => seen.push(`exit ${code}`) },
      async (signal) => {
        source.emit("SIGINT");
        expect(signal.aborted).toBe(true);
        source.emit("SIGTERM");
        return "saved";
      },
    );
    expect(result).toBe("saved");
    expect(seen).toEqual(["first", `exit ${INTERRUPTED}`]);
    expect(source.eventNames()).toEqual([]);
  });

  it("takes its handlers away when the work fails", async () => {
    const source = new EventEmitter();
    const work = interruptible({ source, onFirst() {} }, () => Promise.reject(new Error("no")));
    await expect(work).rejects.toThrow("no");
    expect(source.eventNames()).toEqual([]);
  });
});
