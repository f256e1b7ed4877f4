import { describe, expect, it } from "vitest";
import { promptText, splitCompletion } from "../../src/app/thought.ts";

describe("splitCompletion", () => {
  it("tells thought from answer, with the tag written by the model or by the prompt", () => {
    const split = { thought: "1+2=3", answer: "1+2" };
    expect(splitCompletion("1 2:3", "<think>1+2=3</think><answer>1+2</answer>")).toEqual(split);
    expect(splitCompletion("1 2:3<think>\n", "1+2=3</think>\n<answer>1+2</answer>")).toEqual(split);
    expect(promptText("1 2:3<think>\n")).toBe("1 2:3");
  });

  it("takes an unfinished thought for a thought, and text without tags for an answer", () => {
    expect(splitCompletion("q<think>", "hm, 1+")).toEqual({ thought: "hm, 1+", answer: "" });
    expect(splitCompletion("q", "42")).toEqual({ thought: "", answer: "42" });
  });
});
