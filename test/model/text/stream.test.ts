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

  it("gives out bytes that are no text after a while, and finds back to characters", () => {
    const half = bytes.encode("✓").at(-1)!;
    const ids = [...new Array<number>(100).fill(half), ...bytes.encode("é✓!")];
    const text = new TextStream(bytes);
    const pieces = ids.map((id) => text.push(id));
    expect(pieces.slice(0, 20).join("").length).toBeGreaterThan(0);
    expect(pieces.slice(0, 100).join("").length).toBeGreaterThan(80);
    expect([...pieces, text.end()].join("")).toBe(bytes.decode(ids));
    expect(pieces.at(-1)).toBe("!");
  });

  it("goes on from what was before, without giving it out again", () => {
    const before = bytes.encode("say é");
    const text = new TextStream(bytes, before);
    expect(
      bytes
        .encode("✓!")
        .map((id) => text.push(id))
        .join(""),
    ).toBe("✓!");
    const begun = new TextStream(characters, [characters.bosId!]);
    expect(begun.push(characters.encode("a")[0]!)).toBe("a");
  });

  /** As the library decodes Llama's bytes: a run of them is text as a whole, or a mark for each. */
  const fallback: Pick<Tokenizer, "decode"> = {
    decode(ids) {
      const runs = ids.reduce<number[][]>((all, id) => {
        if (id < 256 && (all.at(-1)?.[0] ?? 256) < 256) all.at(-1)!.push(id);
        else all.push([id]);
        return all;
      }, []);
      const text = runs.map((run) => {
        if (run[0]! >= 256) return " word";
        const whole = Buffer.from(run).toString("utf8");
        return whole.includes("\ufffd") ? "\ufffd".repeat(run.length) : whole;
      });
      return text.join("").replace(/^ /, "");
    },
  };

  it("holds bytes until their run is whole, and writes a word as it follows the prompt", () => {
    const emoji = [...Buffer.from("é🚀✓")];
    const text = new TextStream(fallback);
    const pieces = [256, ...emoji, 256].map((id) => text.push(id));
    expect(pieces.join("")).toBe("wordé🚀✓ word");
    for (const piece of pieces) expect(piece).not.toContain("\ufffd");
    expect(new TextStream(fallback, [256]).push(256)).toBe(" word");
    const after = new TextStream(fallback, [256, ...emoji]);
    expect([...emoji].map((id) => after.push(id)).join("")).toBe("é🚀✓");
  });
});
