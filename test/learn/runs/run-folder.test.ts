import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import {
  appendFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FileError, FormatError } from "../../../src/base/errors.ts";
import { f32, hostArray, i32 } from "../../../src/compute/tensor/host.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { readCheckpoint } from "../../../src/learn/runs/checkpoint.ts";
import { findRun, listRuns, readMetrics, readRun, readSamples } from "../../../src/learn/runs/read-run.ts";
import { type CreateRun, RunFolder } from "../../../src/learn/runs/run-folder.ts";
import { RunLockedError } from "../../../src/learn/runs/run-lock.ts";
import { result, sample, step } from "./synthetic.ts";

let root: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "pondera-run-"));
});
afterEach(() => rm(root, { recursive: true, force: true }));

const asked = (change: Partial<CreateRun> = {}): CreateRun => ({
  root,
  task: "countdown",
  preset: "quick",
  seed: 7,
  config: { depth: 4 },
  versions: { pondera: "0.1.0" },
  created: new Date(2026, 10, 23, 12),
  ...change,
});

const text = (run: { path: string }, file: string) => readFile(join(run.path, file), "utf8");
const tensors = { w: f32([2, 2], [1, 2, 3, 4]) };

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

describe("create", () => {
  it("names runs by task, preset, day and a number, and writes what was asked", async () => {
    const first = await RunFolder.create(asked());
    const second = await RunFolder.create(asked());
    expect(first.manifest.name).toBe("countdown-quick-2026-11-23-1");
    expect(second.manifest.name).toBe("countdown-quick-2026-11-23-2");
    expect(JSON.parse(await text(first, "run.json"))).toMatchObject({
      seed: 7,
      config: { depth: 4 },
      data: {},
    });
    await Promise.all([first.close(), second.close()]);
  });

  it("makes a file name of any task's name", async () => {
    const run = await RunFolder.create(asked({ task: "../My Task: é!", preset: "r1" }));
    expect(run.manifest.name).toBe("my-task-r1-2026-11-23-1");
    expect(run.manifest.task).toBe("../My Task: é!");
    await run.close();
  });

  it("never overwrites", async () => {
    const run = await RunFolder.create(asked({ name: "mine" }));
    await run.appendMetrics(step(0, 1));
    await run.close();
    await expect(RunFolder.create(asked({ name: "mine" }))).rejects.toThrow(
      /mine: a new run needs a new folder; got one that exists\. Choose another name, or go on with it by --resume\./,
    );
    expect(await readMetrics(run.path)).toHaveLength(1);
  });

  describe("of a name whose maker was killed before it was a run", () => {
    const gone = () => spawnSync(process.execPath, ["-e", ""]).pid;
    const lockOf = (pid: number) => JSON.stringify({ pid, host: hostname(), started: null });
    const lay = async (files: Readonly<Record<string, string>>) => {
      await mkdir(join(root, "mine"));
      for (const [file, content] of Object.entries(files)) await writeFile(join(root, "mine", file), content);
    };

    it.each(["nothing", "a lock", "a lock and half of run.json"])("takes over %s", async (left) => {
      const pid = gone();
      await lay({
        ...(left === "nothing" ? {} : { "run.lock": lockOf(pid) }),
        ...(left.endsWith("run.json") ? { [`.run.json.${pid}-0.partial`]: '{"form' } : {}),
      });
      const run = await RunFolder.create(asked({ name: "mine" }));
      await run.appendMetrics(step(0, 1));
      await run.close();
      expect((await readdir(run.path)).sort()).toEqual(["metrics.jsonl", "run.json", "samples.jsonl"]);
      await (await RunFolder.open(run.path)).close();
    });

    it("leaves it to a maker that lives", async () => {
      await lay({ "run.lock": lockOf(process.pid) });
      await expect(RunFolder.create(asked({ name: "mine" }))).rejects.toThrow(RunLockedError);
      expect(await readdir(join(root, "mine"))).toEqual(["run.lock"]);
    });

    it.each(["notes.txt", "metrics.jsonl", ".hidden.partial"])("does not touch one with %s", async (file) => {
      await lay({ "run.lock": lockOf(gone()), [file]: "mine" });
      await expect(RunFolder.create(asked({ name: "mine" }))).rejects.toThrow(/got one that exists/);
      expect((await readdir(join(root, "mine"))).sort()).toEqual([file, "run.lock"].sort());
    });

    it("lets one of many have it", async () => {
      await lay({ "run.lock": lockOf(gone()) });
      const made = await Promise.allSettled(
        Array.from({ length: 8 }, async () => {
          const run = await RunFolder.create(asked({ name: "mine" }));
          await run.close();
        }),
      );
      expect(made.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    });
  });

  it("says that a file of its name is in the way", async () => {
    await writeFile(join(root, "mine"), "");
    await expect(RunFolder.create(asked({ name: "mine" }))).rejects.toThrow(/got one that exists/);
  });

  it("refuses a name that would leave the folder", async () => {
    await expect(RunFolder.create(asked({ name: "../up" }))).rejects.toThrow(
      /must begin with a letter or digit/,
    );
  });

  it("says so when the root cannot be a folder", async () => {
    await writeFile(join(root, "file"), "");
    await expect(RunFolder.create(asked({ root: join(root, "file") }))).rejects.toThrow(FileError);
    await expect(RunFolder.create(asked({ root: join(root, "file", "runs") }))).rejects.toThrow(
      /must be writable/,
    );
  });
});

describe("logs", () => {
  it("read back what was appended, in order", async () => {
    const run = await RunFolder.create(asked());
    await run.appendMetrics(step(0, 2));
    await run.appendMetrics(step(1, 2));
    await run.appendSamples([sample(1), sample(2, { completion: "line\nbreak \u2028 é 🎲" })]);
    expect(await readMetrics(run.path)).toEqual([step(0, 2), step(1, 2)]);
    expect((await collect(readSamples(run.path))).map((s) => s.completion)[1]).toBe(
      "line\nbreak \u2028 é 🎲",
    );
    await run.close();
  });

  it("leave out a torn last line, wherever it is torn", async () => {
    const run = await RunFolder.create(asked());
    await run.appendMetrics(step(0, 2));
    const whole = (await stat(join(run.path, "metrics.jsonl"))).size;
    await run.appendMetrics(step(1, 2));
    const both = (await stat(join(run.path, "metrics.jsonl"))).size;
    await run.close();
    for (const cut of [both - 1, both - 20, whole + 1, whole]) {
      await truncate(join(run.path, "metrics.jsonl"), cut);
      expect(await readMetrics(run.path)).toEqual([step(0, 2)]);
    }
  });

  it("name the file and line of damage in the middle", async () => {
    const run = await RunFolder.create(asked());
    await run.close();
    await writeFile(join(run.path, "metrics.jsonl"), `${JSON.stringify(step(0, 2))}\n{"stage": \n{}\n`);
    await expect(readMetrics(run.path)).rejects.toThrow(
      /metrics\.jsonl: line 2: must be one JSON object; got "{\\"stage\\": "/,
    );
  });
});

describe("checkpoints", () => {
  it("give back tensors of every dtype and the state", async () => {
    const run = await RunFolder.create(asked());
    const many = {
      weight: f32([2, 3], [1, -2, 3.5, 0, Number.MIN_VALUE, 1e30]),
      ids: i32([2], [-1, 2 ** 31 - 1]),
      big: hostArray("i64", [1], BigInt64Array.of(-(2n ** 62n))),
      bytes: hostArray("u8", [3], Uint8Array.of(1, 2, 255)),
      half: hostArray("f16", [1], Uint16Array.of(0x3c00)),
      empty: f32([0, 4], []),
    };
    await run.saveCheckpoint(5, { tensors: many, state: { rng: [1, 2], stage: "rl" } });
    const back = await run.latestCheckpoint();
    expect(back?.step).toBe(5);
    expect(back?.state).toEqual({ rng: [1, 2], stage: "rl" });
    expect(back?.tensors).toEqual(many);
    await run.close();
  });

  it("keep the newest", async () => {
    const run = await RunFolder.create(asked({ keep: 2 }));
    for (const n of [8, 9, 10, 11]) await run.saveCheckpoint(n, { tensors, state: n });
    expect(await run.checkpoints()).toEqual([10, 11]);
    expect(await readdir(join(run.path, "checkpoints"))).toEqual(["step-10", "step-11"]);
    expect((await run.latestCheckpoint())?.step).toBe(11);
    expect((await run.latestCheckpoint(10))?.step).toBe(10);
    expect(await run.latestCheckpoint(9)).toBeUndefined();
    expect((await readCheckpoint(run.path, 10)).state).toBe(10);
    await run.close();
  });

  it("can be taken again at the same step", async () => {
    const run = await RunFolder.create(asked());
    await run.saveCheckpoint(3, { tensors, state: "old" });
    await run.appendMetrics(step(3, 9));
    await run.saveCheckpoint(3, { tensors, state: "new" });
    expect((await run.latestCheckpoint())?.state).toBe("new");
    await run.close();
  });

  it("stay whole when the next cannot be written", async () => {
    const run = await RunFolder.create(asked());
    await run.saveCheckpoint(1, { tensors, state: 1 });
    // A file where the folder of checkpoints should be stands for any folder that cannot be written to.
    await writeFile(join(run.path, "checkpoints", "step-2"), "in the way");
    await expect(run.saveCheckpoint(2, { tensors, state: 2 })).rejects.toThrow(FileError);
    await rm(join(run.path, "checkpoints", "step-2"));
    expect((await run.latestCheckpoint())?.state).toBe(1);
    expect(await readdir(join(run.path, "checkpoints"))).toEqual(["step-1"]);
    await run.close();
  });

  it("that a killed writer left half done are removed on opening, or put back where one was being replaced", async () => {
    const run = await RunFolder.create(asked());
    await run.saveCheckpoint(1, { tensors, state: 1 });
    await run.saveCheckpoint(2, { tensors, state: 2 });
    await run.close();
    const parent = join(run.path, "checkpoints");
    await mkdir(join(parent, ".step-3.999999-0.partial"));
    await writeFile(join(parent, ".step-3.999999-0.partial", "state.safetensors"), "half");
    await rename(join(parent, "step-2"), join(parent, ".step-2.previous"));
    const again = await RunFolder.open(run.path);
    expect(await readdir(parent)).toEqual(["step-1", "step-2"]);
    expect((await again.latestCheckpoint())?.state).toBe(2);
    await again.close();
  });

  it("name a damaged file", async () => {
    const run = await RunFolder.create(asked());
    await run.saveCheckpoint(1, { tensors, state: 1 });
    await writeFile(join(run.path, "checkpoints", "step-1", "state.json"), '{"format":1,"step":1}');
    await expect(run.latestCheckpoint()).rejects.toThrow(/state\.json: metricsBytes/);
    await run.close();
  });
});

describe("truncateAfter", () => {
  it("cuts both logs back to the checkpoint, and to nothing without one", async () => {
    const run = await RunFolder.create(asked());
    await run.appendMetrics(step(0, 9));
    await run.appendSamples([sample(0)]);
    await run.saveCheckpoint(1, { tensors, state: 1 });
    const metrics = await text(run, "metrics.jsonl");
    const samples = await text(run, "samples.jsonl");
    await run.appendMetrics(step(1, 9));
    await run.appendSamples([sample(1)]);
    await run.close();
    await appendFile(join(run.path, "metrics.jsonl"), '{"stage":"rl","st');

    const again = await RunFolder.open(run.path);
    await again.truncateAfter(await again.latestCheckpoint());
    expect(await text(run, "metrics.jsonl")).toBe(metrics);
    expect(await text(run, "samples.jsonl")).toBe(samples);
    await again.appendMetrics(step(1, 9));
    expect(await readMetrics(run.path)).toEqual([step(0, 9), step(1, 9)]);

    await again.truncateAfter(undefined);
    expect(await text(run, "metrics.jsonl")).toBe("");
    expect(await again.checkpoints()).toEqual([]);
    await again.close();
  });

  it("going on from an older checkpoint removes the later ones", async () => {
    const run = await RunFolder.create(asked());
    for (const n of [1, 2]) {
      await run.appendMetrics(step(n, 9));
      await run.saveCheckpoint(n, { tensors, state: n });
    }
    await run.truncateAfter(await readCheckpoint(run.path, 1));
    expect(await run.checkpoints()).toEqual([1]);
    expect(await readMetrics(run.path)).toEqual([step(1, 9)]);
    await run.close();
  });

  it("forgets what had stopped the run", async () => {
    const run = await RunFolder.create(asked());
    expect(await run.failure()).toBeUndefined();
    const failure = { step: 3, error: "update 4: the loss must be finite; got NaN", from: 2, set: ["a=1"] };
    await run.recordFailure(failure);
    await run.close();
    expect((await readRun(run.path)).failure).toEqual(failure);
    const again = await RunFolder.open(run.path);
    expect(await again.failure()).toEqual(failure);
    await again.truncateAfter(undefined);
    expect(await again.failure()).toBeUndefined();
    expect((await readRun(run.path)).failure).toBeUndefined();
    await again.close();
  });

  it("refuses a log shorter than it was", async () => {
    const run = await RunFolder.create(asked());
    await run.appendMetrics(step(0, 9));
    await run.saveCheckpoint(1, { tensors, state: 1 });
    const checkpoint = await run.latestCheckpoint();
    await truncate(join(run.path, "metrics.jsonl"), 3);
    await expect(run.truncateAfter(checkpoint)).rejects.toThrow(
      /must hold the \d+ bytes it had at the checkpoint; got 3\./,
    );
    await run.close();
  });

  it("must come before appending to a run that was opened", async () => {
    const run = await RunFolder.create(asked());
    await run.close();
    const again = await RunFolder.open(run.path);
    await expect(again.appendMetrics(step(0, 1))).rejects.toThrow(
      /logs are open after create or truncateAfter/,
    );
    await again.close();
  });
});

describe("the lock", () => {
  it("lets one writer in, and the next after close", async () => {
    const run = await RunFolder.create(asked());
    await expect(RunFolder.open(run.path)).rejects.toThrow(RunLockedError);
    await expect(RunFolder.open(run.path)).rejects.toThrow(
      `a run has one writer at a time; got a lock held by process ${process.pid} on ${hostname()}.`,
    );
    expect((await readRun(run.path)).status).toBe("running");
    await run.close();
    await (await RunFolder.open(run.path)).close();
  });

  const lock = (run: RunFolder, owner: object | string) =>
    writeFile(join(run.path, "run.lock"), typeof owner === "string" ? owner : JSON.stringify(owner));

  it("of a process that is gone does not count, nor that of an earlier process with the same id", async () => {
    const run = await RunFolder.create(asked());
    await run.close();
    const gone = spawnSync(process.execPath, ["-e", ""]).pid;
    await lock(run, { pid: gone, host: hostname(), started: null });
    expect((await readRun(run.path)).status).toBe("stopped");
    await (await RunFolder.open(run.path)).close();
    if (process.platform !== "linux") return;
    await lock(run, { pid: process.pid, host: hostname(), started: "1" });
    await (await RunFolder.open(run.path)).close();
    expect(existsSync(join(run.path, "run.lock"))).toBe(false);
  });

  it("of another machine counts, with the remedy", async () => {
    const run = await RunFolder.create(asked());
    await run.close();
    await lock(run, { pid: 1, host: "elsewhere.example", started: null });
    await expect(RunFolder.open(run.path)).rejects.toThrow(
      /on elsewhere\.example\. If that machine no longer trains/,
    );
  });

  it("that holds nothing readable counts while it may still be being written", async () => {
    const run = await RunFolder.create(asked());
    await run.close();
    await lock(run, "");
    await expect(RunFolder.open(run.path)).rejects.toThrow(/an unreadable lock/);
    await utimes(join(run.path, "run.lock"), new Date(0), new Date(0));
    await (await RunFolder.open(run.path)).close();
  });

  it("is taken over by exactly one of many", async () => {
    const run = await RunFolder.create(asked());
    await run.close();
    await lock(run, { pid: spawnSync(process.execPath, ["-e", ""]).pid, host: hostname(), started: null });
    const opened = await Promise.allSettled(Array.from({ length: 8 }, () => RunFolder.open(run.path)));
    const winners = opened.filter((o) => o.status === "fulfilled");
    expect(winners).toHaveLength(1);
    await winners[0]?.value.close();
  });
});

describe("reading runs", () => {
  it("tells finished from stopped, and lists the oldest first", async () => {
    const late = await RunFolder.create(asked({ name: "a-late", created: new Date(2026, 10, 24) }));
    const early = await RunFolder.create(asked({ name: "z-early" }));
    await early.writeResult(result());
    await Promise.all([late.close(), early.close()]);
    await mkdir(join(root, "no-run"));
    expect((await listRuns(root)).map((path) => path.slice(root.length + 1))).toEqual(["z-early", "a-late"]);
    expect((await readRun(early.path)).status).toBe("finished");
    expect((await readRun(early.path)).result).toEqual(result());
    expect((await readRun(late.path)).status).toBe("stopped");
    expect(await listRuns(join(root, "absent"))).toEqual([]);
  });

  it("finds a run by path, by name, or the newest; suggests the nearest", async () => {
    await expect(findRun(root)).rejects.toThrow(/must hold a run; got none\. Make one with `pondera train`/);
    const run = await RunFolder.create(asked({ name: "alpha" }));
    await run.close();
    expect(await findRun("elsewhere", run.path)).toBe(run.path);
    expect(await findRun(root, "alpha")).toBe(run.path);
    expect(await findRun(root)).toBe(run.path);
    await expect(findRun(root, "alpa")).rejects.toThrow(/Did you mean "alpha"\?/);
  });

  it("names the field of run.json that is wrong", async () => {
    const run = await RunFolder.create(asked());
    await run.close();
    await writeFile(join(run.path, "run.json"), JSON.stringify({ ...run.manifest, format: 2 }));
    await expect(readRun(run.path)).rejects.toThrow(FormatError);
    await expect(readRun(run.path)).rejects.toThrow(/run\.json: format: /);
    await expect(readRun(root)).rejects.toThrow(/a run's folder holds run\.json; got none\./);
  });
});

const child = fileURLToPath(new URL("./children/run-steps.ts", import.meta.url));
const node = ["--import", "jiti/register", child];

describe("a run whose process dies", () => {
  const STEPS = 300;

  it("killed again and again at random moments, leaves the files of a run that was never killed", async () => {
    expect(spawnSync(process.execPath, [...node, root, "calm", String(STEPS)]).status).toBe(0);
    const random = new Random(3);
    let kills = 0;
    for (let i = 0; i < 30; i++) {
      const process_ = spawn(process.execPath, [...node, root, "killed", String(STEPS)], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const closed = once(process_, "close");
      await Promise.race([once(process_.stdout, "data"), closed]);
      const timer = setTimeout(() => process_.kill("SIGKILL"), kills < 6 ? 60 * random.uniform() : 60_000);
      const [code] = (await closed) as [number | null];
      clearTimeout(timer);
      if (code === 0) break;
      kills++;
    }
    expect(kills).toBeGreaterThanOrEqual(3);
    for (const file of ["metrics.jsonl", "samples.jsonl"]) {
      expect(await readFile(join(root, "killed", file), "utf8")).toBe(
        await readFile(join(root, "calm", file), "utf8"),
      );
    }
    const last = await readCheckpoint(join(root, "calm"), STEPS);
    expect(await readCheckpoint(join(root, "killed"), STEPS)).toEqual(last);
    expect(existsSync(join(root, "killed", "run.lock"))).toBe(false);
  });

  it.skipIf(process.platform === "win32")(
    "out of disk says so, and can be resumed once there is room",
    async () => {
      // A limit on file sizes (in blocks of 512 bytes) stands for a full disk: past it, writing fails with EFBIG.
      const limited = `trap '' XFSZ; ulimit -f 100; exec "$@"`;
      const command = [process.execPath, ...node, root, "full", String(STEPS)];
      const full = spawnSync("sh", ["-c", limited, "sh", ...command], { encoding: "utf8" });
      expect(full.status).not.toBe(0);
      expect(full.stderr).toMatch(/FileError: .*\.jsonl: must be writable; got EFBIG/);
      expect((await readRun(join(root, "full"))).metrics.length).toBeGreaterThan(10);
      expect(spawnSync(process.execPath, [...node, root, "full", String(STEPS)]).status).toBe(0);
      expect((await readMetrics(join(root, "full"))).map((m) => m.step)).toEqual(
        Array.from({ length: STEPS }, (_, i) => i + 1),
      );
    },
  );
});
