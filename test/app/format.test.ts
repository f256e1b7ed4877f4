import { describe, expect, it } from "vitest";
import { byteSize, clock, compact, dollars, flops, percent, sampledAt, times } from "../../src/app/format.ts";

it("sampling is said as far as it is known", () => {
  expect(sampledAt({ temperature: 0.6, topP: 0.95 })).toBe(" at temperature 0.6, top-p 0.95");
  expect(sampledAt({ temperature: 1, topP: 1 })).toBe(" at temperature 1");
  expect(sampledAt(undefined)).toBe("");
});

describe("numbers as people read them", () => {
  it.each([
    [0, "0"],
    [7, "7"],
    [950, "950"],
    [999.6, "1.00k"],
    [31_245, "31.2k"],
    [999_499, "999k"],
    [999_500, "1.00M"],
    [7.1e12, "7.10T"],
    [0.5, "0.50"],
    [-1500, "-1.50k"],
  ])("compact(%d) is %s", (value, text) => expect(compact(value)).toBe(text));

  it.each([
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.00 kB"],
    [1_117_320_736, "1.12 GB"],
    [141_107_412_224, "141 GB"],
  ])("byteSize(%d) is %s", (value, text) => expect(byteSize(value)).toBe(text.replace(" ", "\u00a0")));

  it.each([
    [0, "$0.00"],
    [12.4, "$12.40"],
    [0.015, "$0.015"],
    [0.1, "$0.10"],
    [0.00023, "$0.00023"],
  ])("dollars(%d) is %s", (value, text) => expect(dollars(value)).toBe(text));

  it.each([
    [0, "0:00"],
    [41.4, "0:41"],
    [725, "12:05"],
    [3725, "1:02:05"],
    [-3, "0:00"],
  ])("clock(%d) is %s", (value, text) => expect(clock(value)).toBe(text));

  it("keeps number and unit together", () => {
    expect(percent(0.624)).toBe("62.4\u00a0%");
    expect(flops(7.1e13)).toBe("71.0\u00a0TFLOP");
    expect(flops(3.29e24)).toBe("3290000\u00a0EFLOP");
    expect(times(1.94)).toBe("1.9×");
    expect(times(25)).toBe("25×");
  });
});
