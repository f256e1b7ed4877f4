import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { bar, columnsOf, ellipsize, printable, sparkline, wrap } from "../../../src/app/cli/text.ts";

describe("printable", () => {
  it("removes escape sequences, control and direction characters", () => {
    expect(printable("\u001b[31mred\u001b[0m\u0007 \u001b]0;title\u0007end")).toBe("red end");
    expect(printable("a\u202eb\u200bc\u0000")).toBe("abc");
    expect(printable("one\r\ntwo\tthree\u2028four")).toBe("one two three four");
    expect(printable("one\ntwo", { keepLines: true })).toBe("one\ntwo");
  });

  it("leaves nothing a terminal obeys, whatever comes in", () => {
    const obeyed = /[\p{Cc}\p{Cf}\p{Cs}]/u;
    fc.assert(fc.property(fc.string({ unit: "binary" }), (text) => !obeyed.test(printable(text))));
  });
});

describe("columns", () => {
  it("counts wide characters twice and combining marks not at all", () => {
    expect(columnsOf("abc")).toBe(3);
    expect(columnsOf("数字")).toBe(4);
    expect(columnsOf("e\u0301")).toBe(1);
    expect(columnsOf("🎲")).toBe(2);
    expect(columnsOf("█▏…·")).toBe(4);
  });

  it("cuts to the width and says so", () => {
    expect(ellipsize("abcdef", 6)).toBe("abcdef");
    expect(ellipsize("abcdef", 4)).toBe("abc…");
    expect(ellipsize("数字数字", 4)).toBe("数…");
    expect(ellipsize("abc", 0)).toBe("");
  });
});

describe("wrap", () => {
  it("breaks at blanks, and inside a word only when it must", () => {
    expect(wrap("one two three", 7)).toEqual(["one two", "three"]);
    expect(wrap("abcdefgh", 3)).toEqual(["abc", "def", "gh"]);
    expect(wrap("ab\n\ncd", 9)).toEqual(["ab", "", "cd"]);
    expect(wrap("a bcdefg h", 4)).toEqual(["a", "bcde", "fg h"]);
  });

  it("never exceeds the width and loses nothing but blanks", () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[ab 数\n]{0,60}$/), fc.integer({ min: 2, max: 12 }), (text, width) => {
        const lines = wrap(text, width);
        for (const line of lines) expect(columnsOf(line)).toBeLessThanOrEqual(width);
        expect(lines.join("").replace(/ /g, "")).toBe(text.replace(/[ \n]/g, ""));
      }),
    );
  });
});

describe("pictures", () => {
  it("draws a curve from lowest to highest", () => {
    expect(sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8)).toBe("▁▂▃▄▅▆▇█");
    expect(sparkline([0, 0, 8, 8], 2)).toBe("▁█");
    expect(sparkline([3, 3], 8)).toBe("▁▁");
    expect(sparkline([Number.NaN, 1], 4)).toBe("▁");
    expect(sparkline([], 4)).toBe("");
  });

  it("fills a bar to an eighth, always as wide as asked", () => {
    expect(bar(0.5, 4)).toEqual({ filled: "██", rest: "░░" });
    expect(bar(0.53, 4)).toEqual({ filled: "██▏", rest: "░" });
    for (const fraction of [-1, 0, 1 / 3, 0.999, 1, 2]) {
      const { filled, rest } = bar(fraction, 10);
      expect(filled.length + rest.length).toBe(10);
    }
  });
});
