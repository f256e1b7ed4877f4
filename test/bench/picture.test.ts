import { describe, expect, it } from "vitest";
import { type Curve, picture, pictureOf, smoothed } from "../../bench/picture.ts";
import { ConfigError } from "../../src/base/errors.ts";
import { makeRun } from "../app/cli/tiny-run.ts";
import { temporaryFolder } from "../base/temporary-folder.ts";

describe("a picture", () => {
  const curve = (values: readonly number[]): Curve => ({
    ...{ title: "a < b", values, range: [0, 2] as const, show: (value) => `${value}!`, color: "red" },
  });

  it("has a dot for each step, from the foot of the axis to its top, and a curve through their means", () => {
    const svg = picture("heading & more", [curve([0, 1, 2]), curve([1])]);
    const dots = [...svg.matchAll(/<circle cx="([\d.]+)" cy="([\d.]+)"/g)].map(([, x, y]) => [x, y]);
    expect(dots).toEqual([
      ["60.0", "202.0"],
      ["205.0", "127.0"],
      ["350.0", "52.0"],
      ["430.0", "127.0"],
    ]);
    expect(svg).toContain('points="60.0,127.0 205.0,127.0 350.0,127.0"');
    expect(svg).toContain("heading &amp; more");
    expect(svg).toContain("a &lt; b");
    expect(svg.match(/>[012]!</g)).toHaveLength(6);
  });

  it("has means of the three steps on either side", () => {
    expect(smoothed([0, 8, 0, 0, 0, 0, 0, 0])).toEqual([2, 8 / 5, 8 / 6, 8 / 7, 8 / 7, 0, 0, 0]);
  });

  it("cannot be made of a run that has no steps of reinforcement learning", async () => {
    const path = await makeRun({ root: await temporaryFolder(), name: "young" });
    await expect(pictureOf(path)).rejects.toThrow(ConfigError);
  });
});
