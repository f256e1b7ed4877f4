import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { FormatError } from "../../../src/base/errors.ts";
import { ChatTemplate } from "../../../src/model/text/chat-template.ts";
import {
  fitConversation,
  opensThought,
  turnEndIds,
  withoutThought,
} from "../../../src/model/text/conversation.ts";
import { characterTokenizer, loadTokenizer } from "../../../src/model/text/tokenizer.ts";

const shared = (name: string): string =>
  fileURLToPath(new URL(`../../../../shared/data/${name}`, import.meta.url));

const LINES =
  "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}";

describe("withoutThought", () => {
  it.each([
    ["<think>a</think>\n\n2", false, "\n\n2"],
    ["a</think>\n\n2", true, "\n\n2"],
    ["a</think>b<think>c</think>d", true, "d"],
    ["plain", false, "plain"],
    ["plain", true, ""],
    ["so <think>a", false, "so "],
    ["", false, ""],
  ])("of %j, the thought opened: %s", (completion, opened, kept) => {
    expect(withoutThought(completion, opened)).toBe(kept);
  });

  it("keeps what DeepSeek-R1's template keeps", () => {
    const file = shared("chat-templates/templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja");
    if (!existsSync(file)) return;
    const template = new ChatTemplate(readFileSync(file, "utf8"));
    const written = "<think>\nEasy.\n</think>\n\n2";
    const ask = (content: string) =>
      template.render([
        { role: "user", content: "1+1?" },
        { role: "assistant", content },
        { role: "user", content: "And 2+2?" },
      ]);
    expect(ask(withoutThought(written))).toBe(ask(written));
    expect(opensThought(ask(written))).toBe(true);
  });
});

describe("turnEndIds", () => {
  const tokenizer = characterTokenizer({ alphabet: "ponderau:1\n", special: ["<think>", "<|end|>"] });
  const endOf = (source: string) => turnEndIds(new ChatTemplate(source), tokenizer);

  it("is the control token after what the assistant says", () => {
    const [end] = tokenizer.encode("<|end|>");
    expect(endOf("{% for m in messages %}{{ m.content }}<|end|>\n{% endfor %}")).toEqual([end]);
    expect(endOf("{% for m in messages %}{{ m.content }}<eos>{% endfor %}")).toEqual([tokenizer.eosId]);
  });

  it("is none where the turn ends with text, with nothing, or cannot be told", () => {
    expect(endOf(LINES)).toEqual([]);
    expect(endOf("{% for m in messages %}{{ m.content }}{% endfor %}")).toEqual([]);
    expect(endOf("{{ messages[0].content }}")).toEqual([]);
    expect(endOf("{{ raise_exception('no') }}")).toEqual([]);
  });

  it.skipIf(!existsSync(shared("tokenizer-deepseek-v3")))("is DeepSeek's end of sentence", async () => {
    const deepseek = await loadTokenizer(shared("tokenizer-deepseek-v3"));
    const source = readFileSync(shared("chat-templates/templates/deepseek-ai-DeepSeek-V3.jinja"), "utf8");
    expect(turnEndIds(new ChatTemplate(source), deepseek)).toEqual([deepseek.eosId]);
  });
});

describe("fitConversation", () => {
  const template = new ChatTemplate(LINES);
  const turns = [
    { role: "system", content: "S" },
    ...["1", "2", "3"].flatMap((n) => [
      { role: "user", content: `u${n}` },
      { role: "assistant", content: `a${n}` },
    ]),
    { role: "user", content: "u4" },
  ];
  const fitted = (limit: number) =>
    fitConversation(template, turns, { limit, lengthOf: ({ length }) => length });

  it("leaves out the oldest turns, whole, and keeps what the system says", () => {
    const whole = "s:S\nu:u1\na:a1\nu:u2\na:a2\nu:u3\na:a3\nu:u4\na:";
    expect(fitted(whole.length)).toEqual({ prompt: whole, messages: turns, dropped: 0 });
    expect(fitted(whole.length - 1)).toMatchObject({
      prompt: "s:S\nu:u2\na:a2\nu:u3\na:a3\nu:u4\na:",
      dropped: 2,
    });
    expect(fitted(20)).toMatchObject({ prompt: "s:S\nu:u4\na:", dropped: 6 });
  });

  it("keeps the last turn, whatever its length", () => {
    expect(fitted(1)).toMatchObject({ prompt: "s:S\nu:u4\na:", dropped: 6 });
    expect(fitConversation(template, turns.slice(0, 2), { limit: 1, lengthOf: () => 9 }).dropped).toBe(0);
  });

  it("says what the template refuses", () => {
    const refusing = new ChatTemplate("{{ raise_exception('no') }}");
    expect(() => fitConversation(refusing, turns, { limit: 9, lengthOf: () => 1 })).toThrow(FormatError);
  });
});
