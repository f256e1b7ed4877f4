import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ConfigError, FormatError } from "../../../src/base/errors.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";
import { Engine } from "../../../src/model/engine/engine.ts";
import { encodePrompt, generateText, type TextOptions } from "../../../src/model/engine/text.ts";
import { deviceWeights } from "../../../src/model/engine/weights.ts";
import { babbler, parrot, type TinyModel } from "../tiny-model.ts";

let runtime: Runtime;
const engines: Engine[] = [];
beforeAll(async () => {
  runtime = await Runtime.create({ threads: 1 });
});
afterAll(async () => {
  for (const engine of engines) await engine.dispose();
  runtime.dispose();
});

function engineFor(model: TinyModel, slots = 1): Engine {
  const engine = new Engine(runtime, model.config, { slots });
  engine.adopt(deviceWeights(runtime, model.tensors));
  engines.push(engine);
  return engine;
}

const solution = "\n<think>✓</think><answer>6*4</answer>";
const written = solution.slice(1);

describe("generateText", () => {
  const model = parrot(solution);
  const write = (options: TextOptions = {}, samples = 1) =>
    generateText(engineFor(model, 2), model, { prompt: "6 4 = 24\n", samples, seed: 1 }, options);

  it("writes until the stop token, and tells of every piece", async () => {
    const pieces: string[] = [];
    let tokens = 0;
    const [completion] = await write({
      onText: (_, piece) => pieces.push(piece),
      onToken: () => tokens++,
    });
    expect(completion).toEqual({ text: written, tokens: 9, finish: "stop" });
    expect(pieces).toEqual(["<think>", "✓", "</think>", "<answer>", "6", "*", "4", "</answer>"]);
    expect(tokens).toBe(9);
  });

  it("is cut at the limit", async () => {
    expect(await write({ maxNewTokens: 3 })).toEqual([
      { text: "<think>✓</think>", tokens: 3, finish: "length" },
    ]);
  });

  it("ends before a stop text, which spans tokens, and gives out nothing of it", async () => {
    const pieces: string[] = [];
    const [completion] = await write({ stop: ["*5", "6*4"], onText: (_, piece) => pieces.push(piece) });
    expect(completion).toEqual({ text: "<think>✓</think><answer>", tokens: 7, finish: "stop" });
    expect(pieces.join("")).toBe(completion!.text);
  });

  it("gives out what only began like a stop text", async () => {
    const pieces: string[] = [];
    const [completion] = await write({
      stop: ["*5", "</answer>!"],
      onText: (_, piece) => pieces.push(piece),
    });
    expect(completion!.text).toBe(written);
    expect(pieces.join("")).toBe(written);
    expect(pieces).toContain("*4");
  });

  it("keeps what was written when it is interrupted", async () => {
    const interruption = new AbortController();
    const completions = await write(
      { signal: interruption.signal, onText: (_, piece) => piece === "<answer>" && interruption.abort() },
      2,
    );
    for (const { text, finish } of completions) {
      expect(finish).toBe("interrupted");
      expect(written.startsWith(text)).toBe(true);
      expect(text.length).toBeGreaterThan(0);
    }
  });

  it("goes on with the samples that have not stopped", async () => {
    const babbling = babbler();
    const engine = engineFor(babbling, 3);
    const request = { prompt: "1", samples: 8, seed: 3 };
    const whole = await generateText(engine, babbling, request, { maxNewTokens: 12 });
    const stopped = await generateText(engine, babbling, request, { maxNewTokens: 12, stop: ["7"] });
    expect(stopped.map(({ text }) => text)).toEqual(whole.map(({ text }) => text.split("7")[0]));
    expect(new Set(stopped.map(({ finish }) => finish)).size).toBeGreaterThan(1);
  });

  it("draws different samples, the same ones for the same seed", async () => {
    const babbling = babbler();
    const engine = engineFor(babbling, 4);
    const draw = (seed: number) =>
      generateText(engine, babbling, { prompt: "1", samples: 4, seed }, { maxNewTokens: 16 });
    const first = await draw(5);
    expect(new Set(first.map(({ text }) => text)).size).toBe(4);
    expect(await draw(5)).toEqual(first);
    expect(await draw(6)).not.toEqual(first);
  });

  it("names the character that the model does not know, and the prompt that is too long", async () => {
    const engine = engineFor(model);
    const ask = (prompt: string) => generateText(engine, model, { prompt, seed: 1 });
    await expect(ask("6x4")).rejects.toThrow(FormatError);
    await expect(ask("6x4")).rejects.toThrow(/"x" \(U\+0078\)/);
    await expect(ask("1".repeat(50))).rejects.toThrow(ConfigError);
  });
});

describe("encodePrompt", () => {
  it("puts the begin token first, where there is one", () => {
    const { tokenizer } = babbler();
    expect(encodePrompt(tokenizer, "1")).toEqual([tokenizer.bosId, ...tokenizer.encode("1")]);
    const { bosId: _, ...without } = { ...tokenizer, encode: () => [7] };
    expect(encodePrompt(without as typeof tokenizer, "1")).toEqual([7]);
  });
});
