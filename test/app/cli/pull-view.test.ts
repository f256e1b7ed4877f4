import { PassThrough } from "node:stream";
import { stripVTControlCharacters } from "node:util";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createPullView, progressText, Speed } from "../../../src/app/cli/pull-view.ts";
import { columnsOf } from "../../../src/app/cli/text.ts";
import type { PullEvent } from "../../../src/model/store/pull.ts";

const MB = 1e6;
const plan: PullEvent = {
  ...{ kind: "plan", name: "Qwen/Tiny", files: 3, bytes: 100 * MB, present: 0, omitted: [] },
};
const progress = (done: number): PullEvent => ({ kind: "progress", done: done * MB, bytes: 100 * MB });
const note = (text: string): PullEvent => ({ kind: "note", text });

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** @param columns  of a terminal; undefined where it is none */
function view(columns?: number) {
  const stream = Object.assign(new PassThrough(), columns === undefined ? {} : { isTTY: true, columns });
  let written = "";
  stream.write = (text: string) => {
    written += text;
    return true;
  };
  const env = { TERM: "xterm", NO_COLOR: "1" };
  const shown = createPullView({ stdin: new PassThrough(), stdout: new PassThrough(), stderr: stream, env });
  return {
    ...shown,
    /** What was written since the last look, without what moves the cursor, and with ordinary spaces. */
    fresh: (): string => {
      const text = stripVTControlCharacters(written).replaceAll("\u00a0", " ");
      written = "";
      return text;
    },
  };
}

describe("where there is no terminal", () => {
  it("a line tells the plan, what is here already, and what is left out", () => {
    const { show, fresh } = view();
    show(plan);
    expect(fresh()).toBe("Qwen/Tiny: 3 files, 100 MB\n");
    const omitted = ["a.bin", "b.bin", "c.bin", "d.bin", "e.bin", "f.bin", "g.bin"];
    show({ ...plan, files: 1, present: 40 * MB, omitted } as PullEvent);
    expect(fresh()).toBe(
      "Qwen/Tiny: 1 file, 100 MB, 40.0 MB of it here already\n" +
        "left out, the same in other formats: a.bin, b.bin, c.bin, d.bin, e.bin, and 2 more\n",
    );
  });

  it("a line every ten seconds tells how far it is, however often bytes arrive", () => {
    const { show, fresh } = view();
    for (let tenth = 1; tenth <= 250; tenth++) {
      vi.advanceTimersByTime(100);
      show(progress(tenth / 10));
    }
    expect(fresh()).toBe(
      "10.0 MB of 100 MB, 1.00 MB/s, 1:30 left\n20.0 MB of 100 MB, 1.00 MB/s, 1:20 left\n",
    );
  });

  it("files and notes have lines of their own, and nothing moves a cursor", () => {
    const { show, stop, fresh } = view();
    show({ kind: "file", path: "a\u001b[2J.json", bytes: 1234 });
    show(note("slow\u001b]0;title\u0007\u202e down"));
    stop();
    expect(fresh()).toBe("done: a.json, 1.23 kB\nslow down\n");
  });
});

describe("in a terminal", () => {
  it("a bar with share, speed and time left is drawn over itself", () => {
    const { show, stop, fresh } = view(80);
    show(plan);
    expect(fresh()).toBe("Qwen/Tiny: 3 files, 100 MB\n");
    show(progress(0));
    vi.advanceTimersByTime(1000);
    fresh();
    show(progress(25));
    expect(fresh()).toMatch(/^█{6}\S{18} 25\.0 % {2}25\.0 MB of 100 MB, 25\.0 MB\/s, 0:03 left\n$/);
    show(progress(100));
    expect(fresh()).toMatch(/^█{24} 100\.0 % {2}100 MB of 100 MB, checking\n$/);
    stop();
    expect(fresh()).toBe("");
  });

  it("it is drawn ten times a second at most, and at the end", () => {
    const { show, fresh } = view(80);
    let drawn = 0;
    for (let ms = 1; ms <= 1000; ms++) {
      vi.advanceTimersByTime(1);
      show(progress(ms / 20));
      if (fresh() !== "") drawn++;
    }
    expect(drawn).toBeGreaterThanOrEqual(9);
    expect(drawn).toBeLessThanOrEqual(11);
    show(progress(100));
    expect(fresh()).toContain("100.0 %");
  });

  it("notes stay above it, cut to one line; files have none", () => {
    const { show, fresh } = view(40);
    show(note(`model.safetensors: trying again in 2 s; ${"x".repeat(99)}`));
    expect(fresh()).toBe("model.safetensors: trying again in 2 s…\n");
    show({ kind: "file", path: "a.json", bytes: 5 });
    expect(fresh()).toBe("");
  });

  it.each([[10], [30], [60], [80]])("of %d columns nothing is wider than it is", (columns) => {
    const { show, fresh } = view(columns);
    vi.advanceTimersByTime(1000);
    show(progress(1));
    vi.advanceTimersByTime(1000);
    show(progress(50));
    show(note("x".repeat(200)));
    for (const line of fresh().split("\n")) expect(columnsOf(line)).toBeLessThan(columns);
  });
});

describe("the speed", () => {
  it("is that of the last ten seconds, unknown at first, and never negative", () => {
    const speed = new Speed();
    expect(speed.bytesPerSecond).toBeUndefined();
    speed.add(0, 0);
    speed.add(100, 400);
    expect(speed.bytesPerSecond).toBeUndefined();
    speed.add(1000, 1000);
    expect(speed.bytesPerSecond).toBe(1000);
    for (let second = 2; second <= 30; second++) speed.add(1000 + 50 * (second - 1), 1000 * second);
    expect(speed.bytesPerSecond).toBeCloseTo(50);
    speed.add(0, 31_000); // Thrown away, to be fetched again.
    expect(speed.bytesPerSecond).toBe(0);
  });

  it("leaves out what it does not know", () => {
    const text = (speed: number | undefined) => progressText(1e6, 2e6, speed).replaceAll("\u00a0", " ");
    expect(text(undefined)).toBe("1.00 MB of 2.00 MB");
    expect(text(0)).toBe("1.00 MB of 2.00 MB, 0 B/s");
    expect(text(1e5)).toBe("1.00 MB of 2.00 MB, 100 kB/s, 0:10 left");
  });
});
