import { describe, expect, it } from "vitest";
import { ConfigError } from "../../../src/base/errors.ts";
import { evaluate } from "../../../src/learn/eval/evaluate.ts";
import type { Example } from "../../../src/learn/tasks/task.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";
import { letters, scriptedEngine } from "../train/rollouts.ts";

const tokenizer = characterTokenizer({ alphabet: letters.alphabet });
const examples: Example<number>[] = [0, 1, 2, 3].map((row) => ({ id: `#${row}`, prompt: `${row}`, row }));

/** Sample s of prompt p is right where s < p, and is cut where it says nothing. */
const engine = () =>
  scriptedEngine(({ path }, sample) => {
    const right = sample < path!.at(-1)!;
    const ids = right ? [...tokenizer.encode("a"), tokenizer.eosId] : tokenizer.encode("bbbb");
    return { ids, logp: ids.map(() => 0), finish: right ? "stop" : "length" };
  });

describe("an evaluation", () => {
  it("judges every sample of every prompt and sums them up", async () => {
    const options = { samples: 3, temperature: 0.6, topP: 0.95, maxNewTokens: 4, seed: 8 };
    const used = engine();
    const { summary, records } = await evaluate(used, tokenizer, letters, examples, options);
    expect(summary).toMatchObject({ pass1: 0.5, count: 4, samplesPerPrompt: 3, truncatedFraction: 0.5 });
    // Prompts 1, 2 and 3 have 1, 2 and 3 right of 3: pass@2 is 2/3, 1 and 1.
    expect(summary.passK).toEqual({ "1": 0.5, "2": expect.closeTo((2 / 3 + 2) / 4, 12) });
    expect(summary.meanLength).toBe(3);
    expect(summary.interval[0]).toBeLessThan(0.5);
    expect(records.map((group) => group.filter(({ correct }) => correct).length)).toEqual([0, 1, 2, 3]);
    expect(records[1]!.slice(0, 2)).toEqual([
      {
        id: "#1",
        prompt: "1",
        completion: "a",
        rewards: { count: 1 },
        reward: 1,
        correct: true,
        tokens: 2,
        truncated: false,
      },
      {
        id: "#1",
        prompt: "1",
        completion: "bbbb",
        rewards: { count: 0 },
        reward: 0,
        correct: false,
        tokens: 4,
        truncated: true,
      },
    ]);
    const [{ requests, options: asked }] = used.asked as [(typeof used.asked)[number]];
    expect(asked).toEqual({ maxNewTokens: 4, temperature: 0.6, topP: 0.95, stopIds: [tokenizer.eosId] });
    expect(new Set(requests.map(({ path }) => JSON.stringify(path))).size).toBe(4);
    expect(requests.every(({ seed, samples }) => seed === 8 && samples === 3)).toBe(true);
  });

  it("counts a sample that every reward skipped as wrong and worth 0", async () => {
    const skipping = { ...letters, rewards: { never: { weight: 1, reward: () => null } } };
    const { summary, records } = await evaluate(engine(), tokenizer, skipping, examples, {
      maxNewTokens: 4,
      seed: 1,
    });
    expect(summary.pass1).toBe(0);
    expect(records[0]![0]).toMatchObject({ reward: 0, rewards: { never: null }, correct: false });
  });

  it("needs a prompt", async () => {
    await expect(evaluate(engine(), tokenizer, letters, [], { maxNewTokens: 4, seed: 1 })).rejects.toThrow(
      ConfigError,
    );
  });
});
