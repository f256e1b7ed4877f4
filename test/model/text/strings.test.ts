import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { utf8 } from "../../../src/model/text/byte-level.ts";
import { MergeTable } from "../../../src/model/text/merging.ts";
import { StringIndex, StringTable } from "../../../src/model/text/strings.ts";

const TEXT = fc.string({ unit: "grapheme", maxLength: 6 });

describe("StringTable", () => {
  it("has the strings it was made of", () => {
    fc.assert(
      fc.property(fc.array(TEXT), (strings) => {
        const table = StringTable.from(strings);
        expect([...table]).toEqual(strings);
        expect(table.length).toBe(strings.length);
        expect(strings.map((_, i) => table.at(i))).toEqual(strings);
        expect([table.at(-1), table.at(strings.length)]).toEqual([undefined, undefined]);
        expect(StringTable.from(table)).toBe(table);
      }),
    );
  });

  it("keeps a byte order mark", () => {
    expect(StringTable.from(["\ufeffa", "\ufeff"]).at(0)).toBe("\ufeffa");
  });
});

describe("StringIndex", () => {
  it("finds the first of each, as a map does, and nothing else", () => {
    fc.assert(
      fc.property(fc.array(TEXT, { maxLength: 300 }), fc.array(TEXT), (strings, others) => {
        const index = new StringIndex(StringTable.from(strings));
        for (const text of [...strings, ...others]) {
          expect(index.indexOf(text)).toBe(strings.indexOf(text));
          const framed = utf8(`é${text}é`);
          expect(index.find(framed, 2, framed.length - 2)).toBe(strings.indexOf(text));
        }
        const again = strings.findIndex((text, i) => strings.indexOf(text) < i);
        expect(index.repeated).toEqual(again < 0 ? undefined : [strings.indexOf(strings[again]!), again]);
      }),
    );
  });
});

describe("MergeTable", () => {
  it("finds what a map does: of two merges of one pair the later", () => {
    const id = fc.integer({ min: 0, max: 30 });
    fc.assert(
      fc.property(fc.array(fc.tuple(id, id, id), { maxLength: 400 }), (merges) => {
        const table = new MergeTable(merges.length);
        const map = new Map<string, { rank: number; id: number }>();
        for (const [rank, [left, right, made]] of merges.entries()) {
          table.add(left, right, made);
          map.set(`${left} ${right}`, { rank, id: made });
        }
        for (let left = 0; left <= 31; left++) {
          for (let right = 0; right <= 31; right++) {
            expect(table.find(left, right)).toEqual(map.get(`${left} ${right}`));
          }
        }
      }),
      { numRuns: 30 },
    );
  });
});
