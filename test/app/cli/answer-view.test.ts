import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { AnswerView, type AnswerViewOptions } from "../../../src/app/cli/answer-view.ts";

const plain = { dim: String } as unknown as AnswerViewOptions["colors"];

/** What is shown of an answer that comes in these pieces, one a token. */
function shown(pieces: readonly string[], options: Partial<AnswerViewOptions> = {}): string {
  const output = new PassThrough();
  const view = new AnswerView({
    ...{ output, colors: plain, interactive: false, hideThinking: false, thinkOpened: false },
    ...options,
  });
  for (const piece of pieces) {
    view.push(piece);
    view.token();
  }
  view.end();
  return output.read()?.toString("utf8") ?? "";
}

describe("AnswerView", () => {
  it("sets the thought apart from the answer, with no empty lines at their ends", () => {
    const answer = [
      "<think>",
      "\n",
      "1+2",
      "=3",
      "\n",
      "\n\n",
      "so 3",
      "\n",
      "</think>",
      "\n\n",
      "<answer>",
      "3",
      "</answer>",
      "\n",
    ];
    expect(shown(answer)).toBe("  │ 1+2=3\n\n  │ so 3\n  3\n");
    expect(shown([answer.join("")])).toBe("  │ 1+2=3\n\n  │ so 3\n  3\n");
  });

  it("begins inside the thought that the prompt opened", () => {
    expect(shown(["hm", "</think>", "3"], { thinkOpened: true })).toBe("  │ hm\n  3\n");
  });

  it("shows a thought that never ends, and nothing of an empty answer", () => {
    expect(shown(["<think>", "hm", " hm "])).toBe("  │ hm hm \n");
    expect(shown([])).toBe("");
    expect(shown(["<think>", "\n", "</think>", " "])).toBe("");
  });

  it("passes text alone: no escape sequence, control or direction character", () => {
    expect(shown(["a\u001b[31mb", "\u001b", "[2J", "\u0007\u202e\u009b", "c"])).toBe("  ab[2Jc\n");
    const thought = shown(["<think>", "\u001b]0;title\u0007x", "</think>"]);
    expect(thought).not.toContain("\u001b");
    expect(thought).not.toContain("\u0007");
  });

  it("counts a hidden thought, its tags not", () => {
    const answer = ["<think>", "1", "+", "2", "</think>", "3"];
    expect(shown(answer, { hideThinking: true })).toBe("  (a thought of 3 tokens)\n  3\n");
    expect(shown(["1", "+", "2", "</think>", "3"], { hideThinking: true, thinkOpened: true })).toBe(
      "  (a thought of 3 tokens)\n  3\n",
    );
    const running = shown(answer, { hideThinking: true, interactive: true });
    expect(running.split("\r\u001b[K")).toEqual([
      "",
      "  thinking… 1 token",
      "  thinking… 2 tokens",
      "  thinking… 3 tokens",
      "  (a thought of 3 tokens)\n  3\n",
    ]);
  });
});
