import { describe, expect, it } from "vitest";
import { ConfigError, expectKnown } from "../../src/base/errors.ts";

describe("the message of an error", () => {
  it.each([
    ["Shorten it", "x: r; got g. Shorten it."],
    ["Shorten it.", "x: r; got g. Shorten it."],
    ['Did you mean "y"?', 'x: r; got g. Did you mean "y"?'],
    [undefined, "x: r; got g."],
  ])("with the remedy %s ends in one mark", (remedy, message) => {
    const parts = { where: "x", rule: "r", got: "g" };
    expect(new ConfigError(remedy === undefined ? parts : { ...parts, remedy }).message).toBe(message);
  });

  it("shows no more of a place or a value than can be read, and the error keeps the whole", () => {
    const long = "y".repeat(1e6);
    const error = new ConfigError({ where: long, rule: "must be short", got: long });
    expect(error.message.length).toBeLessThan(2100);
    expect(error.message).toMatch(/^y+…: must be short; got y+…\.$/);
    expect([error.where, error.got]).toEqual([long, long]);
  });

  it("suggests the nearest name", () => {
    expect(() => expectKnown("x", "gspp", ["grpo", "gspo"])).toThrow(
      'x: must be one of grpo, gspo; got "gspp". Did you mean "gspo"?',
    );
  });
});
