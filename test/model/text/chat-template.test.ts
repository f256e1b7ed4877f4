import { existsSync, readFileSync } from "node:fs";
import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Template } from "@huggingface/jinja";
import { describe, expect, it } from "vitest";
import { FileError, FormatError } from "../../../src/base/errors.ts";
import { ChatTemplate, loadChatTemplate, renderTemplate } from "../../../src/model/text/chat-template.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";

const shared = (name: string): string =>
  fileURLToPath(new URL(`../../../../shared/data/chat-templates/${name}`, import.meta.url));
const readShared = (name: string): string =>
  existsSync(shared(name)) ? readFileSync(shared(name), "utf8") : "";

describe.skipIf(!existsSync(shared("")))("chat templates of other people's models", () => {
  interface Row {
    name: string;
    template: string;
    data: Record<string, unknown>;
    expected: string;
  }
  const rows = readShared("hf-jinja-e2e.jsonl")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Row);

  it.each(rows)("$name", ({ template, data, expected }) => {
    expect(renderTemplate(template, data, { now: () => new Date(2025, 6, 10, 12) })).toBe(expected);
  });

  const [BOS, EOS] = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"];
  const conversation = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "1+1?" },
    { role: "assistant", content: "<think>\nEasy.\n</think>\n\n2" },
    { role: "user", content: "And 2+2?" },
  ];

  it("DeepSeek-R1's drops earlier thoughts and opens the next", () => {
    for (const name of [
      "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
      "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    ]) {
      const template = new ChatTemplate(readShared(`templates/${name}.jinja`), {
        variables: { bos_token: BOS },
      });
      const open = `${BOS}Be brief.<｜User｜>1+1?<｜Assistant｜>\n\n2${EOS}<｜User｜>And 2+2?`;
      expect(template.render(conversation)).toBe(`${open}<｜Assistant｜><think>\n`);
      expect(template.render(conversation, { addGenerationPrompt: false })).toBe(open);
    }
  });

  it("Qwen3's takes variables of its own", () => {
    const template = new ChatTemplate(readShared("templates/Qwen-Qwen3-0.6B.jinja"));
    const thinking = template.render(conversation);
    const silent = template.render(conversation, { variables: { enable_thinking: false } });
    expect(silent).toBe(`${thinking}<think>\n\n</think>\n\n`);
  });
});

describe("renderTemplate", () => {
  const render = (source: string, variables: Record<string, unknown> = {}) =>
    renderTemplate(source, variables);

  it("does what the library does, also where values are checked on the way", () => {
    const sources = [
      "{{ 'a-b-c' | replace('-', '+') }} {{ 'a-b'.replace('-', '+', 1) }} {{ 'a b  c'.split() }} {{ 'a,b'.split(',')[1] }}",
      "{{ [1, 'x', none] | join(', ') }} {{ 'abc' | join('-') }} {{ 'a\nb' | indent(2) }} {{ 'a\nb' | indent(width=3, first=true) }}",
      "{{ {'a': [1, {'b': 'ü'}]} | tojson(indent=2) }} {{ [1, 2] | tojson(separators=(',', ':')) }} {{ [] | tojson }}",
      "{% filter indent(4) %}a\nb{% endfilter %}{% filter upper %}x{% endfilter %}",
      "{% set ns = namespace(n=0) %}{% for i in range(2, 9, 3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
      "{% macro greet(name, mark='!') %}Hi {{ name }}{{ mark }}{% endmacro %}{{ greet('a') }}{{ greet('b', mark='?') }}",
      "{% for k, v in x.items() %}{{ k }}={{ v.upper() }};{% endfor %}{{ x.get('q', 'none') }}{{ x.a['upper']() }}",
      "{{ x.a.strip().title() ~ 1 }}{{ ([1] + [2])[-1] }}{{ 'a'[::-1] }}{{ range(3) | list }}{{ 'b' if x.z is defined else 'c' }}",
      "{% set f = namespace %}{% set a, b = (1, 2) %}{{ a }}{{ b }}{{ x.a | default('d') }}{{ x.z | default('d') }}",
    ];
    for (const source of sources) {
      const x = { a: "one", b: "two" };
      expect(render(source, { x }), source).toBe(new Template(source).render({ x }));
    }
  });

  it("says what the template says of messages that it refuses", () => {
    const source = "{{ raise_exception('Roles must alternate') }}";
    expect(() => render(source)).toThrow(FormatError);
    expect(() => render(source)).toThrow(
      "chat template: must take these messages; got Roles must alternate.",
    );
    expect(() => render("{{ raise_exception('x' * 2) }}")).toThrow(FormatError);
  });

  it("says what is wrong with a template", () => {
    const rows = [
      "{% if %}",
      "{{ range(0, 10 ** 300) }}",
      "{{ range(1.5) }}",
      "{{ 1 + none }}",
      "{{",
      "{% for x in 1 %}{% endfor %}",
      "{{ x() }}",
    ];
    for (const source of rows) {
      expect(() => render(source), source).toThrow("must be a Jinja template that these messages fit");
    }
    expect(() => renderTemplate("x".repeat(2 ** 20 + 1), {}, { where: "here" })).toThrow(
      "here: must have at most 1048576 characters; got 1048577",
    );
    expect(render("{{ [] | first }}")).toBe("");
  });

  it("writes dates in English, whatever the machine speaks", () => {
    const now = () => new Date(2024, 1, 3, 16, 5, 9);
    const source = "{{ strftime_now('%Y-%m-%d %H:%M:%S %I %p %B %b %A %a %y %% %q') }}";
    expect(renderTemplate(source, {}, { now })).toBe(
      "2024-02-03 16:05:09 04 PM February Feb Saturday Sat 24 % %q",
    );
  });

  const doubling = (start: string, step: string, times: number) =>
    `{% set ns = namespace(x=${start}) %}${`{% set ns.x = ${step} %}`.repeat(times)}`;
  const hostile: [name: string, source: string][] = [
    ["a text doubled", `${doubling("'ab'", "ns.x + ns.x", 40)}`],
    ["a text doubled by ~", `${doubling("'ab'", "ns.x ~ ns.x", 40)}`],
    ["a list doubled", `${doubling("[1]", "ns.x + ns.x", 40)}`],
    ["a list of itself, printed", `${doubling("[1]", "[ns.x, ns.x]", 40)}{{ ns.x }}`],
    ["a list of itself, as JSON", `${doubling("[1]", "[ns.x, ns.x]", 40)}{{ ns.x | tojson }}`],
    ["a list of itself, compared", `${doubling("[1]", "(ns.x, ns.x)", 40)}{{ ns.x == 'a' }}`],
    ["a mapping of itself", `${doubling("'a'", "{'a': ns.x, 'b': ns.x}", 40)}{{ ns.x | string }}`],
    ["namespaces in each other", "{% set a = namespace() %}{% set a.x = [a, a] %}{{ a.x | tojson }}"],
    ["a namespace in itself", "{% set a = namespace() %}{% set a.x = a %}{{ a | tojson }}"],
    ["a long range", "{{ range(1000000000) | length }}"],
    [
      "every character replaced",
      `${doubling("'aaaaaaaa'", "ns.x + ns.x", 16)}{{ ns.x | replace('a', ns.x) }}`,
    ],
    ["nothing replaced by much", `${doubling("'aaaaaaaa'", "ns.x + ns.x", 16)}{{ ns.x.replace('', ns.x) }}`],
    ["a method by another name", "{% set f = 'aa'.replace %}{{ f('a', 'b') }}"],
    [
      "a method by a computed name",
      `${doubling("'aaaaaaaa'", "ns.x + ns.x", 16)}{{ ns.x['repl' + 'ace']('a', ns.x) }}`,
    ],
    ["arguments unpacked", "{{ 'aa'.replace(*['a', 'b']) }}"],
    ["a long separator", `${doubling("'aaaaaaaa'", "ns.x + ns.x", 13)}{{ range(60000) | join(ns.x) }}`],
    ["a wide indentation", "{{ 'a\nb' | indent(400000000) }}"],
    ["a wide indentation of JSON", "{{ [1] | tojson(indent=400000000) }}"],
    ["a wide indentation of a block", "{% filter indent(400000000) %}a\nb{% endfilter %}"],
    ["many words", `${doubling("'a '", "ns.x + ns.x", 20)}{{ ns.x.split() | length }}`],
    ["many parts", `${doubling("'a '", "ns.x + ns.x", 20)}{{ ns.x.split('a') | length }}`],
    [
      "many texts kept",
      `{% set ns = namespace() %}{% set ns.x = ${"'abcdefgh' + ".repeat(9)}'' %}${doubling("'abcdefgh'", "ns.x + ns.x", 19)}{% set k = namespace() %}${Array.from({ length: 60 }, (_, i) => `{% set k.k${i} = ns.x + 'a' %}`).join("")}`,
    ],
  ];
  it.each(hostile)("bounds what it makes: %s", (_, source) => {
    expect(() => render(source)).toThrow(FormatError);
    expect(() => render(source)).toThrow("must not use up the machine");
  });

  it.each(["", "abcdefgh"])("bounds the time of loops that write %j", (text) => {
    const loop = `{% for a in range(60000) %}{% for b in range(60000) %}${text}{% endfor %}{% endfor %}`;
    expect(() => render(loop)).toThrow(/must be done within 3 seconds|must not use up the machine/);
  });

  it("bounds recursion and depth", () => {
    expect(() => render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")).toThrow(FormatError);
    expect(() => render(`{{ ${"(".repeat(50_000)}1${")".repeat(50_000)} }}`)).toThrow(FormatError);
    let deep: unknown = "x";
    for (let i = 0; i < 50_000; i++) deep = [deep];
    expect(() => render("{{ deep }}", { deep })).toThrow(FormatError);
  });

  it("has no way out to JavaScript", () => {
    for (const name of ["constructor", "__proto__", "prototype", "toString"]) {
      expect(
        render(`{{ x.${name} is defined }}{{ x['${name}'] is defined }}{{ 'a'.${name} is defined }}`, {
          x: {},
        }),
      ).toBe("falsefalsefalse");
    }
    expect(render("{{ process is defined }}{{ globalThis is defined }}")).toBe("falsefalse");
  });

  it("takes long conversations", () => {
    const messages = Array.from({ length: 200 }, (_, i) => ({
      role: i % 2 === 0 ? "user" : "assistant",
      content: "word ".repeat(1000),
    }));
    const source =
      "{% for m in messages %}{% if m.role == 'user' %}{{ '[' + m.content | trim + ']' }}{% else %}{{ m.content.split('x')[-1].replace('word', 'w') }}{% endif %}{% endfor %}";
    expect(render(source, { messages }).length).toBe(100 * (2 + 4999) + 100 * 2000);
  });
});

describe("loadChatTemplate", () => {
  const BYTE_LEVEL = fileURLToPath(new URL("../../fixtures/byte-level", import.meta.url));
  async function folderWith(config: object, own?: string): Promise<string> {
    const folder = await temporaryFolder();
    await cp(BYTE_LEVEL, folder, { recursive: true });
    const path = join(folder, "tokenizer_config.json");
    await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, "utf8")), ...config }));
    if (own !== undefined) await writeFile(join(folder, "chat_template.jinja"), own);
    return folder;
  }
  const shown = async (config: object, own?: string) =>
    (await loadChatTemplate(await folderWith(config, own)))?.render([{ role: "user", content: "hi" }]);

  it("finds the template and the tokens that it writes", async () => {
    const source =
      "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{% if add_generation_prompt %}>{% endif %}";
    const config = { chat_template: source, bos_token: { content: "<bos>" }, eos_token: "<eos>" };
    expect(await shown(config)).toBe("<bos>hi<eos>>");
    const several = [
      { name: "tool_use", template: "tools" },
      { name: "default", template: "plain" },
    ];
    expect(await shown({ chat_template: several })).toBe("plain");
    expect(await shown({ chat_template: several.slice(0, 1) })).toBe("tools");
    expect(await shown({ chat_template: "config" }, "own {{ eos_token }}")).toMatch(/^own </);
    expect(await shown({})).toBeUndefined();
    expect(await shown({ chat_template: null })).toBeUndefined();
  });

  it("says what is missing or damaged, and whose template fails", async () => {
    await expect(loadChatTemplate(await temporaryFolder())).rejects.toThrow(FileError);
    await expect(shown({ chat_template: 7 })).rejects.toThrow(
      /tokenizer_config\.json: chat_template: must be a template's text/,
    );
    await expect(shown({ chat_template: "{% if %}" })).rejects.toThrow(
      /tokenizer_config\.json: chat_template: must be a Jinja/,
    );
    await expect(shown({}, "{% if %}")).rejects.toThrow(/chat_template\.jinja: must be a Jinja/);
  });
});
