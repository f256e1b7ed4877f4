import { PassThrough } from "node:stream";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { progressOn, timeLeft } from "../../../src/app/cli/progress.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function screen(isTTY: boolean) {
  const stream = Object.assign(new PassThrough(), { isTTY, columns: 20 });
  const written: string[] = [];
  stream.write = (text: string) => {
    written.push(text);
    return true;
  };
  return { io: { stderr: stream, env: { TERM: "xterm", NO_COLOR: "1" } }, written };
}

it("says nothing of what is soon done", () => {
  const { io, written } = screen(true);
  const progress = progressOn(io);
  progress.say("one");
  vi.advanceTimersByTime(1900);
  progress.done();
  vi.advanceTimersByTime(10_000);
  expect(written).toEqual([]);
});

it("says how far it is after two seconds, then as often as anybody reads, and takes the line away", () => {
  const { io, written } = screen(true);
  const progress = progressOn(io);
  progress.say("one");
  vi.advanceTimersByTime(2000);
  for (const text of ["two", "three"]) progress.say(text);
  vi.advanceTimersByTime(1000);
  progress.say("a line longer than the screen");
  vi.advanceTimersByTime(250);
  progress.done();
  progress.done();
  vi.advanceTimersByTime(10_000);
  const line = (text: string) => `\r\u001b[K${text}`;
  expect(written).toEqual([line("one"), line("three"), line("a line longer than…"), line("")]);
});

it("is silent where nobody looks", () => {
  const { io, written } = screen(false);
  const progress = progressOn(io);
  progress.say("one");
  vi.advanceTimersByTime(10_000);
  progress.done();
  expect(written).toEqual([]);
});

it("tells the time left from the share that is done", () => {
  vi.setSystemTime(0);
  const began = performance.now();
  vi.advanceTimersByTime(10_000);
  expect(timeLeft(began, 0.25)).toBe(", 0:30 left");
  expect(timeLeft(began, 0)).toBe("");
  expect(timeLeft(began, 1)).toBe("");
});
