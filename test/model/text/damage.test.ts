/** Tokenizers and chat templates that are cut, changed or made to hurt: a typed error that names the file, or a tokenizer. */

import { cp, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { PonderaError } from "../../../src/base/errors.ts";
import { loadChatTemplate } from "../../../src/model/text/chat-template.ts";
import { loadTokenizer } from "../../../src/model/text/tokenizer.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { fixturePath } from "../../fixture.ts";
import { countRefusals, cuts, type Damage, flipped, Patient, refusal, refusalsOfJson } from "../damage.ts";
import { copyOfFixtures, fixturesOf } from "../fixture-files.ts";

async function copyOf(fixture: string): Promise<string> {
  const folder = join(await temporaryFolder(), "model");
  await cp(fixturePath(fixture), folder, { recursive: true });
  return folder;
}

/** Loads a tokenizer and uses it: what it cannot express is told, too. */
async function use(folder: string): Promise<void> {
  const tokenizer = await loadTokenizer(folder);
  try {
    tokenizer.decode(tokenizer.encode("12 + 3 = a<think>"));
  } catch (error) {
    if (!(error instanceof PonderaError)) throw error;
  }
}

describe("a damaged tokenizer is refused, or read", () => {
  const copy = copyOfFixtures();

  it.each(fixturesOf("tokenizer"))("%s", async (name) => {
    using patient = new Patient(copy(name));
    const folder = dirname(patient.file);
    expect(await refusalsOfJson(patient, () => use(folder), { folder, numRuns: 160 })).toBeGreaterThan(20);
  });
});

describe("a tokenizer made to hurt", () => {
  async function changed(change: (json: Record<string, unknown>) => unknown): Promise<string> {
    const folder = await copyOf("byte-level");
    const file = join(folder, "tokenizer.json");
    await writeFile(file, JSON.stringify(change(JSON.parse(await readFile(file, "utf8")))));
    return folder;
  }

  async function refused(folder: string): Promise<PonderaError | undefined> {
    const file = join(folder, "tokenizer.json");
    return refusal({ what: "changed", bytes: await readFile(file) }, file, () => use(folder));
  }

  it("by parts within parts is refused for its depth", async () => {
    const nest = (key: string) => {
      let part: object = { type: "Sequence", [key]: [] };
      for (let i = 0; i < 500; i++) part = { type: "Sequence", [key]: [part] };
      return part;
    };
    for (const [part, key] of [
      ["pre_tokenizer", "pretokenizers"],
      ["post_processor", "processors"],
      ["normalizer", "normalizers"],
      ["decoder", "decoders"],
    ] as const) {
      const folder = await changed((json) => ({ ...json, [part]: nest(key) }));
      const error = await refused(folder);
      expect(error?.message, part).toContain("must not nest deeper than 64");
    }
  });

  it("by an added token of a million characters takes little more than the file", async () => {
    const content = Array.from({ length: 2 ** 20 }, (_, i) => String.fromCharCode(97 + (i % 26))).join("");
    const folder = await changed((json) => ({
      ...json,
      added_tokens: [
        ...(json["added_tokens"] as object[]),
        {
          id: 9999,
          content,
          special: true,
          single_word: false,
          lstrip: false,
          rstrip: false,
          normalized: false,
        },
      ],
    }));
    expect((await refused(folder))?.message).toMatch(/added_tokens: must have at most 65536/);
  });

  it("by an added token that only looks like a text is refused", async () => {
    // The library would look for it in every text, for ever.
    const content = { length: 2 ** 31 };
    const folder = await changed((json) => ({
      ...json,
      added_tokens: [...(json["added_tokens"] as object[]), { id: 400, content, special: false }],
    }));
    const error = await refused(folder);
    expect(error?.message).toContain("added_tokens: each must have its text as content");
  });

  it("by ids that are no numbers, or beyond every vocabulary, is refused", async () => {
    for (const id of [2 ** 26, 2 ** 53, -1, 0.5, "1"]) {
      const folder = await changed((json) => {
        const model = json["model"] as { vocab: object };
        return { ...json, model: { ...model, vocab: { ...model.vocab, extra: id } } };
      });
      const error = await refused(folder);
      expect(error?.message, `${id}`).toMatch(/model\.vocab: ids must be whole numbers below 4194304/);
    }
  });
});

describe("a damaged chat template", () => {
  const SOURCE =
    "{% for message in messages %}{% if message.role == 'user' %}<u>{{ message.content | trim }}{% else %}" +
    "{{ raise_exception('no') }}{% endif %}{% endfor %}{{ eos_token if add_generation_prompt }}";

  const render = async (folder: string) =>
    (await loadChatTemplate(folder))?.render([{ role: "user", content: "hi" }]);

  it("in a file of its own, cut anywhere or with bytes changed, is refused, or renders", async () => {
    const folder = await copyOf("byte-level");
    const file = join(folder, "chat_template.jinja");
    await writeFile(file, SOURCE);
    using patient = new Patient(file);
    const { whole } = patient;
    const reading = (damage: Damage) => {
      patient.write(damage.bytes);
      return refusal(damage, file, () => render(folder));
    };
    for (const damage of cuts(whole, whole.length)) await reading(damage);
    expect(await countRefusals(flipped(whole), 150, reading)).toBeGreaterThan(50);
    patient.write(whole);
    expect(await render(folder)).toMatch(/^<u>hi/);
  });

  it("nested 10,000 deep, or larger than any template, is refused", async () => {
    const folder = await copyOf("byte-level");
    const file = join(folder, "chat_template.jinja");
    for (const source of [
      `${"{% if true %}".repeat(10_000)}x${"{% endif %}".repeat(10_000)}`,
      `{{ ${"(".repeat(10_000)}1${")".repeat(10_000)} }}`,
      `{{ ${"[".repeat(10_000)}${"]".repeat(10_000)} }}`,
      `{{ 1${" + 1".repeat(10_000)} }}`,
      "x".repeat(5 * 2 ** 20),
    ]) {
      await writeFile(file, source);
      const damage = { what: source.slice(0, 40), bytes: Buffer.from(source) };
      await refusal(damage, file, () => render(folder));
    }
    await expect(render(folder)).rejects.toThrow(/chat_template\.jinja: must have at most 4194304 bytes/);
  });

  it("in tokenizer_config.json, whatever it is, is refused, or renders", async () => {
    const folder = await copyOf("byte-level");
    const file = join(folder, "tokenizer_config.json");
    const json = JSON.parse(await readFile(file, "utf8")) as object;
    const templates = [
      { name: "default", template: SOURCE },
      { name: "tool_use", template: "{{ tools }}" },
    ];
    await writeFile(file, JSON.stringify({ ...json, chat_template: templates }));
    using patient = new Patient(file);
    await refusalsOfJson(patient, () => render(folder), { folder, numRuns: 160 });
  });
});
