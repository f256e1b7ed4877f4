import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { saveModelFolder } from "../../../../src/model/checkpoint/folder.ts";
import { saveModelGguf } from "../../../../src/model/checkpoint/gguf/save.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { babbler } from "../../../model/tiny-model.ts";
import { pondera } from "../harness.ts";
import { sitAt } from "../terminal.ts";

const TEMPLATE =
  "{{ bos_token }}{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}" +
  "{{ raise_exception('only user and assistant speak') }}{% endif %}" +
  "{{ m.role[0] }}={{ m.content }}\n{% endfor %}{% if tools %}{{ tools | length }} tools\n{% endif %}" +
  "{% if add_generation_prompt %}a={% if quiet %}!{% endif %}{% endif %}";
const model = babbler("0123456789=+au!ols \n");
const CONVERSATION = [
  { role: "user", content: "1+1" },
  { role: "assistant", content: "2" },
];

let root: string;
let folder: string;
beforeEach(async () => {
  root = await temporaryFolder();
  folder = join(root, "tiny");
  await saveModelFolder(folder, model);
  await writeFile(join(folder, "chat_template.jinja"), TEMPLATE);
});

const render = (messages: unknown, ...argv: readonly string[]) =>
  pondera(["render", "--runs", root, folder, "-", ...argv], {
    input: typeof messages === "string" ? messages : JSON.stringify(messages),
  });

describe("pondera render", () => {
  it("writes what the model is given, with or without the place where it goes on", async () => {
    const file = join(root, "messages.json");
    await writeFile(file, JSON.stringify(CONVERSATION));
    expect(await pondera(["render", folder, file])).toEqual({
      code: 0,
      out: "<bos>u=1+1\na=2\na=\n",
      err: "",
    });
    expect((await render(CONVERSATION, "--no-generation-prompt")).out).toBe("<bos>u=1+1\na=2\n\n");
  });

  it("takes tools and variables", async () => {
    const { out } = await render({ messages: CONVERSATION.slice(0, 1), tools: [{}, {}], model: "any" });
    expect(out).toBe("<bos>u=1+1\n2 tools\na=\n");
    expect((await render(CONVERSATION, "--variables", '{"quiet": true}')).out).toMatch(/a=!\n$/);
  });

  it("tells a program the text and its tokens", async () => {
    const said = JSON.parse((await render(CONVERSATION, "--json")).out);
    expect(said).toMatchObject({ model: folder, text: "<bos>u=1+1\na=2\na=", tokens: 13 });
    expect(said.ids).toEqual(model.tokenizer.encode(said.text));
  });

  it("runs the template of a GGUF file, and one that it is given", async () => {
    const gguf = join(root, "tiny.gguf");
    await saveModelGguf(
      gguf,
      { ...model, extra: {}, chatTemplate: { source: TEMPLATE } },
      { type: "F32", name: "tiny" },
    );
    const input = JSON.stringify(CONVERSATION);
    expect((await pondera(["render", gguf, "-"], { input })).out).toBe("<bos>u=1+1\na=2\na=\n");
    const file = join(root, "other.jinja");
    await writeFile(file, "{{ bos_token }}{{ messages | length }}");
    expect((await render(CONVERSATION, "--template", file)).out).toBe("<bos>2\n");
  });

  it.each([
    ["[", /standard input: must be JSON/],
    ['"hello"', /must be a list of messages, or an object with one under messages; got "hello"\. Write \[/],
    ["[]", /standard input: must hold a message; got \[\]\./],
    ['{"message": []}', /standard input: messages: must be a list; got nothing\./],
    ['[{"content": "x"}]', /standard input: \[0\]\.role: must be a text, such as user; got nothing\./],
    ['[{"role": "user"}]', /\[0\]\.content: must be a text, a list of parts.*; got nothing\. Write/],
    ['[{"role": "user", "content": 7}]', /\[0\]\.content: must be a text.*; got 7\./],
    ['{"messages": [{"role": "", "content": "x"}]}', /messages\[0\]\.role: must not be empty; got ""/],
  ])("refuses %s", async (messages, rule) => {
    const { code, out, err } = await render(messages);
    expect({ code, out }).toEqual({ code: 1, out: "" });
    expect(err).toMatch(rule);
  });

  it("says what the template refuses, and that a model has none", async () => {
    expect((await render([{ role: "system", content: "" }])).err).toMatch(
      /chat_template\.jinja: must take these messages; got only user and assistant speak/,
    );
    const bare = join(root, "bare");
    await saveModelFolder(bare, model);
    const { code, err } = await pondera(["render", bare, "-"], { input: JSON.stringify(CONVERSATION) });
    expect(code).toBe(2);
    expect(err).toMatch(/bare: must have a chat template, .*Give it one with --template FILE\.jinja\./);
    expect((await render(CONVERSATION, "--variables", "3")).err).toMatch(
      /--variables: must be an object of JSON; got 3/,
    );
  });

  it("gives a terminal text alone", async () => {
    const file = join(root, "sly.json");
    await writeFile(file, JSON.stringify([{ role: "user", content: "1\u001b[2J\u202e" }]));
    const terminal = sitAt(["render", folder, file]);
    expect(await terminal.ended).toBe(0);
    expect(terminal.raw).toBe("<bos>u=1\na=\n");
  });
});
