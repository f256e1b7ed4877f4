import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  mergeThinkEvents,
  parseThink,
  THINK_TAGS,
  type ThinkKind,
  ThinkParser,
} from "../../../src/model/text/think.ts";

/** `kind:text` for each event, which is how the tables below write them. */
const shown = (text: string, open?: ThinkKind) =>
  parseThink(text, open === undefined ? {} : { open }).map((event) => `${event.kind}:${event.text}`);

describe("parseThink", () => {
  it("knows the four tags", () => {
    expect(THINK_TAGS).toEqual(["<think>", "</think>", "<answer>", "</answer>"]);
  });

  const rows: [string, string, string[], ThinkKind?][] = [
    ["nothing", "", []],
    ["plain text", "1 < 2", ["text:1 < 2"]],
    ["R1: a thought, then text", "<think>\na\n</think>\n\nb", ["think:\na\n", "text:\n\nb"]],
    [
      "R1-Zero: a thought and an answer",
      "<think>a</think> <answer>b</answer>",
      ["think:a", "text: ", "answer:b"],
    ],
    ["the tag opened by the template", "a</think>b", ["think:a", "text:b"], "think"],
    ["and repeated by the model", "<think>a</think>b", ["think:a", "text:b"], "think"],
    ["a thought never closed", "<think>a <b", ["think:a <b"]],
    ["a thought never closed, cut inside its tag", "<think>a</thin", ["think:a</thin"]],
    ["an empty thought", "<think></think>b", ["text:b"]],
    ["nested thoughts: the first end ends", "<think>a<think>b</think>c</think>d", ["think:ab", "text:cd"]],
    ["two thoughts", "<think>a</think>b<think>c</think>", ["think:a", "text:b", "think:c"]],
    ["a closing tag that closes nothing", "a</think>b</answer>c", ["text:abc"]],
    [
      "a thought about answers",
      "<think>in <answer> tags</answer></think>b",
      ["think:in <answer> tags</answer>", "text:b"],
    ],
    ["an answer about thoughts", "<answer><think>a</think></answer>", ["answer:<think>a</think>"]],
    [
      "what only looks like a tag",
      "<thinker><Think></ think><<think>a",
      ["text:<thinker><Think></ think><", "think:a"],
    ],
    ["an answer the template opened", "12</answer>", ["answer:12"], "answer"],
  ];
  it.each(rows)("%s", (_, text, events, open) => {
    expect(shown(text, open)).toEqual(events);
  });
});

describe("ThinkParser", () => {
  it("says at once what is certain, and holds back what may become a tag", () => {
    const parser = new ThinkParser();
    expect(parser.push("a<")).toEqual([{ kind: "text", text: "a" }]);
    expect(parser.push("thi")).toEqual([]);
    expect(parser.push("nk>b")).toEqual([{ kind: "think", text: "b" }]);
    expect(parser.kind).toBe("think");
    expect(parser.push("</x")).toEqual([{ kind: "think", text: "</x" }]);
    expect(parser.push("</thin")).toEqual([]);
    expect(parser.end()).toEqual([{ kind: "think", text: "</thin" }]);
    expect(parser.kind).toBe("think");
  });

  /** Text rich in tags, pieces of tags and what lies between. */
  const tagged = fc
    .array(fc.constantFrom(...THINK_TAGS, "<", "</", ">", "think", "answer", "a", " ", "\n", "<th", "</answ"))
    .map((parts) => parts.join(""));
  const opened = fc.constantFrom<ThinkKind>("text", "think", "answer");

  it("gives the same result for any chunking", () => {
    fc.assert(
      fc.property(tagged, opened, fc.infiniteStream(fc.integer({ min: 1, max: 9 })), (text, open, sizes) => {
        const parser = new ThinkParser({ open });
        const events = [];
        for (let start = 0; start < text.length; ) {
          const size = sizes.next().value;
          events.push(...parser.push(text.slice(start, start + size)));
          start += size;
        }
        events.push(...parser.end());
        expect(events.every((event) => event.text !== "")).toBe(true);
        expect(mergeThinkEvents(events)).toEqual(parseThink(text, { open }));
      }),
      { numRuns: 1000 },
    );
  });

  it("does as a walk over the text split at its tags", () => {
    const walk = (text: string, open: ThinkKind) => {
      const events = [];
      let kind = open;
      for (const part of text.split(/(<\/?(?:think|answer)>)/)) {
        const [, slash, name] = /^<(\/?)(think|answer)>$/.exec(part) ?? [];
        if (name !== undefined && (kind === "text" || kind === name)) {
          kind = slash === "/" ? "text" : (name as ThinkKind);
        } else if (part !== "") {
          events.push({ kind, text: part });
        }
      }
      return mergeThinkEvents(events);
    };
    fc.assert(
      fc.property(tagged, opened, (text, open) => {
        expect(parseThink(text, { open })).toEqual(walk(text, open));
      }),
      { numRuns: 1000 },
    );
  });
});
