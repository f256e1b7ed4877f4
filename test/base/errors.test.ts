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

  it("suggests the nearest name", () => {
    expect(() => expectKnown("x", "gspp", ["grpo", "gspo"])).toThrow(
      'x: must be one of grpo, gspo; got "gspp". Did you mean "gspo"?',
    );
  });
});
