import { EventEmitter } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { beforeEach, describe, expect, it } from "vitest";
import { chat, verdictLine } from "../../../../src/app/cli/commands/chat.ts";
import { saveModelFolder } from "../../../../src/model/checkpoint/folder.ts";
import { temporaryFolder } from "../../../base/temporary-folder.ts";
import { babbler, parrot } from "../../../model/tiny-model.ts";
import { pondera } from "../harness.ts";
import { sitAt } from "../terminal.ts";
import { makeRun } from "../tiny-run.ts";

const solver = parrot("\n<think>✓</think><answer>6*4</answer>");

let root: string;
beforeEach(async () => {
  root = await temporaryFolder();
});

const argv = (...more: readonly string[]) => ["chat", "--runs", root, "--threads", "1", ...more];

describe("pondera chat, from a pipe", () => {
  const piped = (lines: readonly string[], ...more: string[]) =>
    pondera(argv(...more), { input: lines.map((line) => `${line}\n`).join("") });

  it("answers every line, the thought behind a rule, and checks countdown answers", async () => {
    await makeRun({ root, name: "one", model: solver });
    const { code, out, err } = await piped(["6 4 = 24", "", "4 6 2 = 26"]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const lines = out.split("\n");
    expect(lines.slice(0, 4)).toEqual(["> 6 4 = 24", "  │ ✓", "  6*4", "  ✓ makes 24  (^‿^)"]);
    expect(lines.slice(4, 7)).toEqual(["> 4 6 2 = 26", "  │ ✓", "  6*4"]);
    expect(lines[7]).toMatch(/^ {2}✗ makes 24, not 26 {2}one way: (4\*6\+2|2\+4\*6)$/);
    expect(lines.slice(8)).toEqual(["1 of 2 right. Until next time!", ""]);
  });

  it("says of an impossible puzzle that it is one", async () => {
    await makeRun({ root, name: "one", model: solver });
    const { out } = await piped(["6 4 = 99"]);
    expect(out).toContain("✗ makes 24, not 99  but nobody could: these numbers do not make it (·_·)\n");
  });

  it("judges by the rule that the run was trained with", async () => {
    const config = { countdown: { game: "quick", use: "exactly-once" } };
    await makeRun({ root, name: "strict", model: solver, config });
    const { out } = await piped(["6 4 = 24", "6 4 1 = 24", "6 4 7 = 24"]);
    const verdicts = out.split("\n").filter((line) => /^ {2}[✓✗] /.test(line));
    expect(verdicts[0]).toMatch(/✓ makes 24/);
    // All of the numbers make 24, or no 24 at all: what some of them make is no way.
    expect(verdicts[1]).toMatch(/✗ 1 is not used {2}one way: (?=.*1)(?=.*4)(?=.*6)/);
    expect(verdicts[2]).toMatch(/✗ 7 is not used {2}but nobody could/);
  });

  it("writes a puzzle as the task does, however it was typed", async () => {
    await makeRun({ root, name: "one", model: solver });
    for (const typed of ["6,4=24", " 6, 4 =24 ", "6 4 = 24"])
      expect((await piped([typed])).out).toContain("makes 24");
  });

  it("gives no verdict on what is no puzzle", async () => {
    await makeRun({ root, name: "one", model: solver });
    expect((await piped(["6+4"])).out).toBe("> 6+4\n  │ ✓\n  6*4\n");
  });

  it("goes on after a prompt that the model cannot read", async () => {
    await makeRun({ root, name: "one", model: solver });
    const { code, out } = await piped(["6×4 = ?", "1".repeat(60), "6 4 = 24"]);
    expect(code).toBe(0);
    expect(out).toMatch(
      /^ {2}This model has never seen "×" \(U\+00D7\)\. A prompt looks like: \d+ \d+ \d+ = \d+$/m,
    );
    expect(out).toMatch(/^ {2}The prompt must have from 1 to 47 tokens; it has 62\./m);
    expect(out).toContain("✓ makes 24");
  });

  it("counts the thought instead of showing it", async () => {
    await makeRun({ root, name: "one", model: solver });
    expect((await piped(["6 4 = 24"], "--hide-thinking")).out).toBe(
      "> 6 4 = 24\n  (a thought of 1 token)\n  6*4\n  ✓ makes 24  (^‿^)\n",
    );
  });

  it("knows the prompts of another task from the run's samples, and nothing of a model without a run", async () => {
    const path = await makeRun({ root, name: "other", task: "sums", model: solver });
    expect((await piped(["6"])).out).toBe("> 6\n  *4\n");
    const alone = join(root, "alone");
    await saveModelFolder(alone, solver);
    expect((await piped(["6", "/new"], alone)).out).toBe(
      "> 6\n  *4\n> /new\n  No task is known to draw a puzzle from.\n",
    );
    expect((await piped(["6"], join(path, "model"))).out).toBe("> 6\n  *4\n");
  });

  it("draws from the task that the run was trained on, and judges as it does", async () => {
    const taskFile = fileURLToPath(new URL("../../../../examples/arithmetic.ts", import.meta.url));
    const model = parrot("=<answer>7</answer>");
    await makeRun({ root, name: "sums", task: "arithmetic", model, taskFile, prompt: "1+2-3=" });
    const { out } = await piped(["/new"]);
    expect(out).toMatch(/^> \/new\n> \d+[+-]\d+[+-]\d+=\n {2}7\n {2}✗ accuracy 0, format 0\n$/);
  });

  it("obeys commands", async () => {
    await makeRun({ root, name: "one", model: solver });
    const { out } = await piped([
      "/help",
      "/temperature",
      "/temperature 0",
      "/seed 9",
      "/new",
      "/exit",
      "6 4 = 24",
    ]);
    for (const name of ["/help", "/new", "/temperature T", "/seed N", "/exit"])
      expect(out).toContain(`  ${name}`);
    expect(out).toContain("  temperature 1\n");
    expect(out).toContain("  temperature 0\n");
    expect(out).toContain("  seed 9\n");
    expect(out).toMatch(/> \/new\n> \d+ \d+ \d+ = \d+\n {2}│ ✓\n {2}6\*4\n {2}✗ /);
    expect(out).not.toContain("6 4 = 24");
  });

  it("says what is wrong with a command, and goes on", async () => {
    await makeRun({ root, name: "one", model: solver });
    const { code, out } = await piped(["/hlp", "/temperature -1", "/seed x", "6 4 = 24"]);
    expect(code).toBe(0);
    expect(out).toContain('Did you mean "/help"?');
    expect(out).toContain("/temperature: It must be a number from 0; got -1.");
    expect(out).toContain("/seed: It must be a whole number; got x.");
    expect(out).toContain("✓ makes 24");
  });

  it("gives the same answers for the same seed, and another one when asked again", async () => {
    await makeRun({ root, name: "one", model: babbler() });
    const answers = (
      await piped(["1 2 = 3", "1 2 = 3", "/seed 0", "1 2 = 3"], "--max-new-tokens", "20")
    ).out.split("> 1 2 = 3\n");
    const plain = answers
      .slice(1)
      .map((answer) => answer.split("\n").filter((line) => /^ {2}(?![✗(])/.test(line)));
    expect(plain[0]).not.toEqual(plain[1]);
    expect(plain[2]!.slice(0, plain[0]!.length)).toEqual(plain[0]);
  });
});

describe("pondera chat, with a model that has a chat template", () => {
  const TEMPLATE =
    "{% for m in messages %}{% if m.role == 'assistant' %}={{ m.content }}/{% else %}{{ m.content }}{% endif %}{% endfor %}" +
    "{% if add_generation_prompt %}={% endif %}";
  let folder: string;
  beforeEach(async () => {
    folder = join(root, "talker");
    await saveModelFolder(folder, parrot("=<think>✓</think>42"));
    await writeFile(join(folder, "chat_template.jinja"), TEMPLATE);
  });
  const talk = (lines: readonly string[], ...more: string[]) =>
    pondera(["chat", folder, "--threads", "1", ...more], {
      input: lines.map((line) => `${line}\n`).join(""),
    });

  it("remembers what was said, but for the thoughts, and leaves out the oldest when it no longer fits", async () => {
    const { code, out, err } = await talk(["6", "1", "8", "9"], "--context", "16", "--max-new-tokens", "6");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const answer = "  │ ✓\n  42\n";
    // Prompts of the turns: 6= of 3 tokens, 6=42/1= of 8, 6=42/1=42/8= of 13, which is more than 16 − 6.
    expect(out).toBe(
      `> 6\n${answer}> 1\n${answer}> 8\n  (the oldest 2 messages no longer fit and are left out: --context is 16)\n${answer}` +
        `> 9\n  (the oldest 2 messages no longer fit and are left out: --context is 16)\n${answer}`,
    );
  });

  it("forgets, and takes what the system says", async () => {
    const small = ["--context", "14", "--max-new-tokens", "6"];
    const left = /left out/;
    expect((await talk(["6", "1", "8"], ...small)).out).toMatch(left);
    expect((await talk(["6", "/clear", "1", "/clear", "8"], ...small)).out).not.toMatch(left);
    const { out } = await talk(["/system 12", "6", "/system", "/help"], "--system", "1");
    expect(out).toContain("  system: 12\n");
    expect(out).toContain("  no system message\n");
    expect(out).toContain("  /clear           forget what was said\n");
    expect(out).not.toContain("/new");
  });

  it("goes on after a line that the model cannot read, as if it had not been said", async () => {
    const { code, out } = await talk(["×", "6"]);
    expect(code).toBe(0);
    expect(out).toMatch(/^> ×\n {2}text to encode.*got "×"/);
    expect(out).toContain("> 6\n  │ ✓\n  42\n");
  });

  it("goes on from every line without the template", async () => {
    expect((await talk(["6="], "--no-template")).out).toBe("> 6=\n  │ ✓\n  42\n");
  });

  it("greets with what it remembers", async () => {
    const terminal = sitAt(["chat", folder, "--threads", "1"]);
    await terminal.see("It reads the conversation so far, up to 48 tokens.");
    await terminal.see("> ");
    terminal.type("6\r");
    await terminal.see("  42");
    await terminal.see("> ");
    terminal.type("\u0004");
    expect(await terminal.ended).toBe(0);
  });

  it("needs a template for a system message", async () => {
    await makeRun({ root, name: "one", model: solver });
    const { code, err } = await pondera(argv("--system", "x"));
    expect(code).toBe(2);
    expect(err).toMatch(/--system: needs a model with a chat template/);
  });
});

describe("pondera chat, at a terminal", () => {
  it("greets, answers, keeps a history and leaves on Ctrl-D", async () => {
    await makeRun({ root, name: "one", model: solver });
    const terminal = sitAt(argv());
    await terminal.see(/one · [\d.]+k? parameters · 1 thread/);
    await terminal.see(/trained on countdown\. A prompt looks like: {2}\d+ \d+ \d+ = \d+/);
    await terminal.see("> ");
    terminal.type("6 4 = 24\r");
    await terminal.see("  │ ✓");
    await terminal.see("✓ makes 24");
    await terminal.see("> ");
    terminal.type("\u001b[A"); // Arrow up: the line before.
    await terminal.see("6 4 = 24");
    terminal.type("\r");
    await terminal.see("✓ makes 24");
    await terminal.see("> ");
    terminal.type("\u0004");
    await terminal.see("2 of 2 right. Until next time!");
    expect(await terminal.ended).toBe(0);
  });

  it("counts a hidden thought as it grows", async () => {
    await makeRun({ root, name: "one", model: solver });
    const terminal = sitAt(argv("--hide-thinking"));
    terminal.type("6 4 = 24\r");
    await terminal.see("thinking… 1 token");
    await terminal.see("(a thought of 1 token)");
    await terminal.see("> ");
    terminal.type("/exit\r");
    expect(await terminal.ended).toBe(0);
    expect(terminal.raw).not.toContain("│");
  });

  it("shows thoughts dim and hits green, in colour", async () => {
    await makeRun({ root, name: "one", model: solver });
    const terminal = sitAt(argv(), { NO_COLOR: "" });
    terminal.type("6 4 = 24\r");
    await terminal.see("makes 24");
    await terminal.see("> ");
    terminal.type("\u0004");
    await terminal.ended;
    expect(terminal.raw).toContain("\u001b[2m✓\u001b[22m");
    expect(terminal.raw).toContain("\u001b[32m✓ makes 24\u001b[39m");
  });

  it("asks the lines of a paste one after another", async () => {
    await makeRun({ root, name: "one", model: solver });
    const terminal = sitAt(argv());
    await terminal.see("> ");
    terminal.type("6 4 = 24\r4 6 = 24\r/exit\r");
    await terminal.see("✓ makes 24");
    await terminal.see("> 4 6 = 24");
    await terminal.see("2 of 2 right");
    expect(await terminal.ended).toBe(0);
  });

  it("lasts: no listener is left behind by a line", async () => {
    await makeRun({ root, name: "one", model: solver });
    const warnings: Error[] = [];
    const onWarning = (warning: Error): void => void warnings.push(warning);
    process.on("warning", onWarning);
    const terminal = sitAt(argv());
    for (let i = 0; i < 15; i++) {
      await terminal.see("> ");
      terminal.type("/seed 1\r");
      await terminal.see("  seed 1");
    }
    await terminal.see("> ");
    terminal.type("\u0004");
    expect(await terminal.ended).toBe(0);
    process.off("warning", onWarning);
    expect(warnings).toEqual([]);
  });

  it("clears a line on Ctrl-C, and leaves on two on an empty one", async () => {
    await makeRun({ root, name: "one", model: solver });
    const terminal = sitAt(argv());
    await terminal.see("> ");
    terminal.type("1 2 3");
    await terminal.see("1 2 3");
    terminal.type("\u0003");
    terminal.type("6 4 = 24\r");
    await terminal.see("✓ makes 24");
    await terminal.see("> ");
    terminal.type("\u0003");
    await terminal.see("Ctrl-C again leaves");
    terminal.type("\u0003");
    expect(await terminal.ended).toBe(0);
  });
});

describe("an answer that is stopped", () => {
  it("ends where it is, and the chat goes on", async () => {
    await makeRun({ root, name: "one", model: solver });
    const signals = new EventEmitter();
    const output = new PassThrough();
    let shown = "";
    output.setEncoding("utf8").on("data", (text: string) => {
      shown += text;
      // The thought has begun: the person presses Ctrl-C, in the first answer only.
      if (shown.endsWith("│ ")) signals.emit("SIGINT");
    });
    // Written at once, so that the signal comes in the middle of an answer.
    const stdout = Object.assign(output, { write: output.write.bind(output) });
    const io = {
      stdin: Readable.from(["6 4 = 24\n"]),
      stdout,
      stderr: new PassThrough(),
      env: {},
      exitWith() {},
    };
    await chat("one", { runs: root, seed: 0, threads: 1 }, io, signals);
    await new Promise(setImmediate);
    expect(shown).toContain("  (stopped)\n");
    expect(shown).not.toContain("makes 24");
    expect(signals.eventNames()).toEqual([]);
  });
});

describe("verdictLine", () => {
  const plain = { green: String, red: String, dim: String } as unknown as Parameters<typeof verdictLine>[1];
  it("is glad of persistence", () => {
    const verdict = { correct: true, reason: "makes 24" };
    expect(verdictLine({ ...verdict, failedTries: 1 }, plain)).toBe(
      "✓ makes 24, after a try that failed  (^‿^)",
    );
    expect(verdictLine({ ...verdict, failedTries: 3 }, plain)).toBe(
      "✓ makes 24, after 3 tries that failed  \\(^‿^)/",
    );
  });
});
