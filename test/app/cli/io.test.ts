import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { columnsOfOutput, commandName, isInteractive } from "../../../src/app/cli/io.ts";

const screen = (isTTY: boolean, columns?: number) =>
  Object.assign(new PassThrough(), columns === undefined ? { isTTY } : { isTTY, columns });

describe("an output", () => {
  it.each([
    ["a terminal", screen(true, 80), {}, true],
    ["a terminal that says nothing of its size", screen(true), {}, true],
    ["a terminal without a size, as in some containers", screen(true, 0), {}, false],
    ["a terminal that cannot move its cursor", screen(true, 80), { TERM: "dumb" }, false],
    ["a file", screen(false), {}, false],
  ])("that is %s may or may not hold a panel", (_, output, env, expected) => {
    expect(isInteractive(output, env)).toBe(expected);
  });

  it("has its own columns, or room for a line where it says none", () => {
    expect(columnsOfOutput(screen(true, 40))).toBe(40);
    expect(columnsOfOutput(screen(true, 0))).toBe(100);
    expect(columnsOfOutput(screen(false))).toBe(100);
  });
});

describe("the command to type next", () => {
  it("is npx's where npm or npx started this one, and else the plain one", () => {
    expect(commandName({})).toBe("pondera");
    expect(commandName({ npm_lifecycle_event: "start" })).toBe("npx pondera");
    expect(commandName({ npm_lifecycle_event: "npx" })).toBe("npx pondera");
  });
});
