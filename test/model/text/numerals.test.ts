import { expect, test } from "vitest";
import { numeralsOf } from "../../../src/model/text/numerals.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";

test("the tokens that are whole numbers, and no others", () => {
  const tokenizer = characterTokenizer({ alphabet: "0129 =+", special: ["10", "120", "✓ ", ": "] });
  const numerals = numeralsOf(tokenizer);
  expect([...numerals.values()].toSorted((a, b) => a - b)).toEqual([0, 1, 2, 9, 10, 120]);
  for (const [id, number] of numerals) expect(tokenizer.decode([id])).toBe(`${number}`);
});
