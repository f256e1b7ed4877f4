import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { mergeRanges, missingRanges, totalOf } from "../../../src/model/store/ranges.ts";

const SIZE = 40;
const ranges = fc.array(
  fc.tuple(fc.nat(SIZE), fc.nat(SIZE)).map(([a, b]) => ({ start: Math.min(a, b), end: Math.max(a, b) })),
);
/** Byte by byte. */
const covered = (list: readonly { start: number; end: number }[]) =>
  Array.from({ length: SIZE }, (_, i) => list.filter(({ start, end }) => start <= i && i < end).length);

describe("ranges of bytes", () => {
  it("and what is missing are the file, each byte once, in pieces of the length asked for", () => {
    fc.assert(
      fc.property(ranges, fc.integer({ min: 1, max: SIZE }), (list, most) => {
        const merged = mergeRanges(list);
        const missing = missingRanges(list, SIZE, most);
        expect(covered(merged)).toEqual(covered(list).map((count) => Math.min(count, 1)));
        expect(covered([...merged, ...missing])).toEqual(Array(SIZE).fill(1));
        for (const { start, end } of missing) expect(end - start).toBeLessThanOrEqual(most);
        for (const { start, end } of missing) expect(end).toBeGreaterThan(start);
        expect(totalOf(list)).toBe(covered(list).filter(Boolean).length);
        merged.slice(1).forEach(({ start }, i) => {
          expect(start).toBeGreaterThan(merged[i]!.end);
        });
      }),
    );
  });

  it("of an empty file are none", () => {
    expect(missingRanges([], 0, 10)).toEqual([]);
    expect(missingRanges([], 25, 10)).toEqual([
      { start: 0, end: 10 },
      { start: 10, end: 20 },
      { start: 20, end: 25 },
    ]);
  });
});
