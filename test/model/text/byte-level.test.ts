import fc from "fast-check";
import { expect, it } from "vitest";
import { spellBytes, utf8 } from "../../../src/model/text/byte-level.ts";

it.each([
  [[0x20, 0xf0, 0x9f, 0x98], " <0xF0><0x9F><0x98>"],
  [[0x80], "<0x80>"],
  [[0xe2, 0x9c, 0x93, 0x61], "✓a"],
  [[0xe2, 0x61, 0x62], "<0xE2>ab"],
  [[0xef, 0xbb, 0xbf], "\ufeff"],
  [[], ""],
])("bytes %j are spelled %j", (bytes, text) => expect(spellBytes(Uint8Array.from(bytes))).toBe(text));

it("text is spelled as it is", () => {
  fc.assert(
    fc.property(fc.string({ unit: "grapheme" }), (text) => {
      expect(spellBytes(utf8(text))).toBe(text);
    }),
  );
});

it("no byte is lost, whatever they are", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
      const parts = spellBytes(bytes).split(/<0x([0-9A-F]{2})>/);
      const back = parts.flatMap((part, i) => (i % 2 === 0 ? [...utf8(part)] : [Number.parseInt(part, 16)]));
      expect(back).toEqual([...bytes]);
    }),
  );
});
