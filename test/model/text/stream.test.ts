import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TextStream } from "../../../src/model/text/stream.ts";
import { characterTokenizer, loadTokenizer, type Tokenizer } from "../../../src/model/text/tokenizer.ts";

const fixture = fileURLToPath(new URL("../../fixtures/byte-level", import.meta.url));
const characters = characterTokenizer({ alphabet: "ab <>/✓" });
const bytes = await loadTokenizer(fixture);

function stream(tokenizer: Tokenizer, ids: readonly number[]): string[] {
  const text = new TextStream(tokenizer);
  return [...ids.map((id) => text.push(id)), text.end()];
}

describe("TextStream", () => {
  it.each([
    ["characters", characters],
    ["bytes", bytes],
  ])("gives out, piece by piece, what decoding gives at once: %s", (_, tokenizer) => {
    const ids = fc.array(fc.integer({ min: 0, max: tokenizer.vocabSize - 1 }), { maxLength: 24 });
    fc.assert(
      fc.property(ids, (chosen) => {
        expect(stream(tokenizer, chosen).join("")).toBe(tokenizer.decode(chosen, { skipSpecial: true }));
      }),
    );
  });

  it("waits for the rest of a character that several tokens share", () => {
    const ids = bytes.encode("é✓");
    expect(ids.length).toBeGreaterThan(2);
    const pieces = stream(bytes, ids).filter((piece) => piece !== "");
    expect(pieces.join("")).toBe("é✓");
    for (const piece of pieces) expect(piece).not.toContain("\ufffd");
  });

  it("gives out half a character at the end, as decoding does", () => {
    const ids = bytes.encode("a✓").slice(0, -1);
    expect(stream(bytes, ids).join("")).toBe(bytes.decode(ids));
    expect(stream(bytes, ids).join("")).toContain("\ufffd");
  });

  it("leaves out the tokens that mark begin and end, and keeps tags", () => {
    const ids = [characters.bosId!, ...characters.encode("<think>a"), characters.eosId];
    expect(stream(characters, ids)).toEqual(["", "<think>", "a", "", ""]);
  });
});
