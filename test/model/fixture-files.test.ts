import { describe, expect, it } from "vitest";
import { listings, lists } from "./fixture-files.ts";

describe("every fixture", () => {
  it.each(listings)("is read by Pondera, and damaged here, or by tests alone: $file", ({ in: lists }) => {
    expect(lists).toHaveLength(1);
  });

  it("has a list, and every list a fixture", () => {
    expect([...new Set(listings.flatMap(({ in: lists }) => lists))].sort()).toEqual([...lists].sort());
  });
});
