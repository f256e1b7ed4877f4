import { resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { storePlace } from "../../../src/model/store/place.ts";

describe("the store's place", () => {
  it("is as asked, else PONDERA_HOME, else the platform's", () => {
    const env = { PONDERA_HOME: "/b", XDG_DATA_HOME: "/c", HOME: "/d" };
    expect(storePlace("/a", env)).toBe(resolve("/a"));
    expect(storePlace("here", env)).toBe(resolve("here"));
    expect(storePlace(undefined, env)).toBe(resolve("/b"));
    expect(storePlace(undefined, { ...env, PONDERA_HOME: "" }, "linux")).toBe(resolve("/c/pondera"));
    expect(storePlace(undefined, { HOME: "/d" }, "linux")).toBe(resolve("/d/.local/share/pondera"));
    expect(storePlace(undefined, { HOME: "/d" }, "darwin")).toMatch(/d.Library.Application Support.pondera$/);
    expect(storePlace(undefined, { LOCALAPPDATA: "/e" }, "win32")).toMatch(/e.pondera$/);
    expect(storePlace(undefined, {}, "linux")).toMatch(/pondera$/);
  });
});
