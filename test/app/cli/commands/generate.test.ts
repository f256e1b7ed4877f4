import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { saveModelFolder } from "../../../../src/model/checkpoint/folder.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { babbler, guesser, parrot } from "../../../model/tiny-model.ts";
import { pondera } from "../harness.ts";
import { sitAt } from "../terminal.ts";
import { makeRun } from "../tiny-run.ts";

const written = "<think>✓</think><answer>6*4</answer>";
const solver = parrot(`\n${written}`);

let root: string;
beforeEach(async () => {
  root = await temporaryFolder();
});

const generate = (argv: readonly string[], input = "") =>
  pondera(["generate", "--runs", root, "--threads", "1", ...argv], { input });

describe("pondera generate", () => {
  it("completes a prompt with the newest run's model, the prompt ended as its task ends it", async () => {
    await makeRun({ root, name: "one", model: solver });
    expect(await generate(["--prompt", "6 4 = 24"])).toEqual({ code: 0, out: `${written}\n`, err: "" });
    expect((await generate(["--prompt", "6 4 = 24\n"])).out).toBe(`${written}\n`);
    expect((await generate(["--prompt", "-"], "6 4 = 24\n")).out).toBe(`${written}\n`);
    const raw = await generate([
      "--prompt",
      "6 4 = 24",
      "--raw",
      "--max-new-tokens",
      "4",
      "--temperature",
      "0",
    ]);
    expect(raw.out).not.toContain(written);
  });

  it("finds a model by its folder, its run's folder and its run's name", async () => {
    const path = await makeRun({ root, name: "one", model: solver });
    for (const model of ["one", path, join(path, "model")])
      expect((await generate(["--model", model, "--prompt", "6 4 = 24"])).out).toBe(`${written}\n`);
  });

  it("takes the prompt of a model without a run as it is", async () => {
    const folder = join(root, "elsewhere");
    await saveModelFolder(folder, solver);
    expect((await generate(["--model", folder, "--prompt", "6 4 = 24\n"])).out).toBe(`${written}\n`);
    expect((await generate(["--model", folder, "--prompt", "6"])).out).toBe("*4</answer>\n");
  });

  it("reports everything as JSON", async () => {
    const path = await makeRun({ root, name: "one", model: solver });
    const { out } = await generate(["--prompt", "6 4 = 24", "--samples", "2", "--seed", "3", "--json"]);
    const report = JSON.parse(out);
    expect(report).toMatchObject({
      model: join(path, "model"),
      prompt: "6 4 = 24\n",
      seed: 3,
      sampling: { temperature: 1, topP: 1, topK: 0, minP: 0 },
      maxNewTokens: 1024,
    });
    const sample = { text: written, thought: "✓", answer: "6*4", tokens: 9, finish: "stop" };
    expect(report.samples).toEqual([sample, sample]);
    expect(report.tokensPerSecond).toBeGreaterThan(0);
  });

  it("draws the same for the same seed, and other samples for others", async () => {
    await makeRun({ root, name: "one", model: babbler() });
    const draw = async (...argv: string[]) =>
      (await generate(["--prompt", "1", "--samples", "3", ...argv])).out;
    const first = await draw("--seed", "1");
    expect(first).toMatch(/^sample 1 of 3: \d+ tokens.*\n.*sample 3 of 3: /s);
    expect(await draw("--seed", "1")).toBe(first);
    expect(await draw("--seed", "2")).not.toBe(first);
    const greedy = await draw("--temperature", "0", "--seed", "1");
    expect(await draw("--temperature", "0", "--seed", "2")).toBe(greedy);
    expect(await draw("--top-k", "1", "--seed", "9")).toBe(greedy);
  });

  it("asks a model with a chat template as a person would, and stops where the template ends a turn", async () => {
    const folder = join(root, "talker");
    // The prompt ends in "=", and after the answer the template closes the turn with a token that is not the model's end.
    await saveModelFolder(folder, parrot("=42<pad>"));
    const template =
      "{% for m in messages %}{% if m.role == 'system' %}({{ m.content }}){% else %}{{ m.content }}<pad>{% endif %}{% endfor %}" +
      "{% if add_generation_prompt %}={% endif %}";
    await writeFile(join(folder, "chat_template.jinja"), template);
    const asked = async (...argv: string[]) =>
      generate(["--model", folder, "--chat", "--prompt", "6*7", "--temperature", "0", ...argv]);
    expect(await asked()).toEqual({ code: 0, out: "42\n", err: "" });
    const said = JSON.parse((await asked("--system", "1", "--json")).out);
    expect(said).toMatchObject({ chat: true, prompt: "(1)6*7<pad>=" });
    expect(said.samples).toEqual([{ text: "42", thought: "", answer: "42", tokens: 3, finish: "stop" }]);
    // Without it the model goes on, past the mark, to its own end.
    const plain = await generate(["--model", folder, "--prompt", "6=", "--temperature", "0", "--json"]);
    expect(JSON.parse(plain.out)).toMatchObject({ chat: false, prompt: "6=", samples: [{ tokens: 4 }] });
  });

  it("tells the thought from the answer where the template opens it", async () => {
    const folder = join(root, "thinker");
    await saveModelFolder(folder, parrot("<think>✓</think>42"));
    await writeFile(join(folder, "chat_template.jinja"), "{{ messages[0].content }}<think>");
    const { out } = await generate(["--model", folder, "--chat", "--prompt", "1", "--json"]);
    expect(JSON.parse(out).samples[0]).toMatchObject({ text: "✓</think>42", thought: "✓", answer: "42" });
  });

  it("writes the same greedy text while it guesses ahead, and tells how often it was right", async () => {
    const folder = join(root, "guesser");
    await saveModelFolder(folder, guesser());
    const prompted = (...argv: string[]) => generate(["--model", folder, "--prompt", "12+3", ...argv]);
    const plain = await prompted("--temperature", "0");
    const guessed = await prompted("--speculate");
    expect(guessed).toMatchObject({ code: 0, out: plain.out });
    expect(guessed.err).toMatch(
      /^\d+ tokens, \d+ a second; \d+\.\d % of \d+ guesses were right, \d\.\d\d tokens a pass\n$/,
    );
    const said = JSON.parse((await prompted("--speculate", "--json")).out);
    const { passes, drafted, accepted, acceptance, tokensPerPass } = said.speculation;
    expect(said.sampling.temperature).toBe(0);
    expect(acceptance).toBe(accepted / drafted);
    expect(tokensPerPass).toBe(said.samples[0].tokens / passes);
    expect(drafted).toBeGreaterThan(0);
    expect(accepted).toBeLessThanOrEqual(drafted);
    // It stops before a text as it does without guessing.
    const stop = plain.out.trimEnd().slice(3, 5);
    const stopped = await prompted("--speculate", "--stop", stop);
    expect(stopped.out).toBe((await prompted("--temperature", "0", "--stop", stop)).out);
  });

  it("says what guessing ahead needs", async () => {
    await makeRun({ root, name: "one", model: solver });
    const fails = async (...argv: string[]) =>
      (await generate(["--prompt", "1", "--speculate", ...argv])).err;
    expect(await fails()).toMatch(
      /--speculate: needs a model that also predicts the token after next.*got a llama that does not/,
    );
    expect(await fails("--temperature", "0.5")).toMatch(
      /--temperature: must be 0 with --speculate.*got 0\.5/,
    );
    expect(await fails("--samples", "2")).toMatch(/--samples: must be 1 with --speculate.*got 2/);
  });

  it("says what a conversation needs", async () => {
    await makeRun({ root, name: "one", model: solver });
    const fails = async (...argv: string[]) => (await generate(["--prompt", "1", ...argv])).err;
    expect(await fails("--chat")).toMatch(/--chat: needs a model with a chat template; got one, which has/);
    expect(await fails("--system", "x")).toMatch(/--system: is for conversations; got no --chat/);
    expect(await fails("--chat", "--raw")).toMatch(/--chat.*cannot be used with.*--raw/);
  });

  it("samples as the model's generation config says, unless told otherwise", async () => {
    const folder = join(root, "elsewhere");
    await saveModelFolder(folder, { ...babbler(), generationConfig: { temperature: 0.5, top_p: 0.9 } });
    const sampling = async (...argv: string[]) =>
      JSON.parse((await generate(["--model", folder, "--prompt", "1", "--json", ...argv])).out).sampling;
    expect(await sampling()).toEqual({ temperature: 0.5, topP: 0.9, topK: 0, minP: 0 });
    const asked = ["--temperature", "2", "--top-p", "1", "--top-k", "5", "--min-p", "0.1"];
    expect(await sampling(...asked)).toEqual({ temperature: 2, topP: 1, topK: 5, minP: 0.1 });
    await saveModelFolder(folder, { ...babbler(), generationConfig: { do_sample: false, temperature: 0.5 } });
    expect(await sampling()).toMatchObject({ temperature: 0 });
  });

  it("ends at the limit, and before a stop text", async () => {
    await makeRun({ root, name: "one", model: solver });
    expect((await generate(["--prompt", "6 4 = 24", "--max-new-tokens", "2"])).out).toBe("<think>✓\n");
    expect((await generate(["--prompt", "6 4 = 24", "--stop", "4</", "--stop", "<answer>"])).out).toBe(
      "<think>✓</think>\n",
    );
  });

  it("streams to a terminal", async () => {
    await makeRun({ root, name: "one", model: solver });
    const terminal = sitAt(["generate", "--runs", root, "--threads", "1", "--prompt", "6 4 = 24"]);
    await terminal.see(written);
    expect(await terminal.ended).toBe(0);
    expect(terminal.raw).toBe(`${written}\n`);
  });

  it("lets nothing a model writes reach the terminal but text", async () => {
    const sly = parrot("1\u001b[2J\u202e!", "1[2J!\u001b\u202e");
    const folder = join(root, "sly");
    await saveModelFolder(folder, sly);
    const argv = ["generate", "--model", folder, "--threads", "1", "--prompt", "1"];
    const terminal = sitAt(argv);
    expect(await terminal.ended).toBe(0);
    expect(terminal.raw).toBe("[2J!\n");
    expect((await pondera(argv)).out).toBe("!\n");
  });

  it("says what is wrong with a model, a run, a prompt", async () => {
    const fails = async (argv: readonly string[], input?: string) => (await generate(argv, input)).err;
    expect(await fails(["--prompt", "1"])).toMatch(/must hold a run; got none/);
    await makeRun({ root, name: "unfinished" });
    expect(await fails(["--prompt", "1"])).toMatch(
      /must have finished.*got a run that is stopped.*--resume \S+\/unfinished/,
    );
    expect(await fails(["--model", "unfinishd", "--prompt", "1"])).toContain('Did you mean "unfinished"?');
    const empty = join(root, "empty");
    await mkdir(empty);
    expect(await fails(["--model", empty, "--prompt", "1"])).toMatch(/empty: must be a model's folder/);
    await makeRun({ root, name: "one", model: solver });
    expect(await fails(["--model", "one", "--prompt", "6x4"])).toMatch(/every character.*got "x"/);
    expect(await fails(["--model", "one", "--prompt", "1".repeat(60)])).toMatch(
      /from 1 to 47 tokens; got 62/,
    );
    expect(await fails(["--model", "one", "--prompt", "-"], "")).toMatch(
      /standard input: must hold a prompt/,
    );
  });

  it.each([
    ["--samples", "0", "a whole number from 1"],
    ["--temperature", "-1", "a number from 0"],
    ["--top-p", "0", "a number above 0 up to 1"],
    ["--min-p", "1.1", "a number from 0 up to 1"],
    ["--top-k", "1.5", "a whole number from 0"],
    ["--stop", "", "must not be empty"],
    ["--seed", "x", "a whole number."],
  ])("refuses %s %s", async (option, value, rule) => {
    const { code, err } = await generate(["--prompt", "1", option, value]);
    expect(code).toBe(2);
    expect(err).toContain(option);
    expect(err).toContain(rule);
  });
});
