import { describe, expect, it } from "vitest";
import { TaskError } from "../../../src/base/errors.ts";
import type { Task } from "../../../src/learn/tasks/task.ts";
import { isEqual, type RolloutOptions, rollOut } from "../../../src/learn/train/rollout.ts";
import { STREAMS } from "../../../src/learn/train/streams.ts";
import type { Completion, GenerateRequest } from "../../../src/model/engine/engine.ts";
import { characterTokenizer } from "../../../src/model/text/tokenizer.ts";
import { letters, madeGroup, scriptedEngine } from "./rollouts.ts";

const tokenizer = characterTokenizer({ alphabet: letters.alphabet });

const written = (text: string, finish: Completion["finish"] = "stop"): Completion => {
  const ids = [...tokenizer.encode(text), ...(finish === "stop" ? [tokenizer.eosId] : [])];
  return { ids, logp: ids.map(() => -0.5), finish };
};

type Script = (request: GenerateRequest, sample: number) => Completion;

function roll(script: Script, change: Partial<RolloutOptions<number>> = {}) {
  const engine = scriptedEngine(script);
  const options = { engine, tokenizer, task: letters, seed: 9, step: 4, ...change };
  const shape = { prompts: 3, samples: 2, maxNewTokens: 5, temperature: 0.7, resampleAttempts: 0 };
  return { engine, rollout: rollOut({ ...shape, ...options }) };
}

/** Samples differ from each other exactly when the prompt's stream says so. */
const mixedWhen =
  (isMixed: (p: number, attempt: number) => boolean): Script =>
  ({ path }, sample) =>
    written(sample === 0 && isMixed(path![2]!, path![3]!) ? "aa" : "b");

describe("a rollout", () => {
  it("asks for G completions of P prompts, each with a stream of its own, and judges them", async () => {
    const { engine, rollout } = roll((_, sample) => written(sample === 0 ? "ab" : "aab"));
    const { groups, drawn } = await rollout;
    const [{ requests, options }] = engine.asked as [(typeof engine.asked)[number]];
    expect(requests.map(({ samples, seed, path }) => ({ samples, seed, path }))).toEqual(
      [0, 1, 2].map((p) => ({ samples: 2, seed: 9, path: [STREAMS.completion, 4, p, 0] })),
    );
    expect(options).toEqual({ maxNewTokens: 5, temperature: 0.7, stopIds: [tokenizer.eosId] });
    expect(new Set(groups.map(({ example }) => example.id)).size).toBe(3);
    expect(groups.map(({ prompt }) => tokenizer.decode(prompt))).toEqual(
      groups.map(({ example }) => `<bos>${example.prompt}`),
    );
    expect(groups[0]!.samples.map(({ judged, reward }) => ({ ...judged, reward }))).toEqual([
      { text: "ab", tokens: 3, truncated: false, reward: 1 },
      { text: "aab", tokens: 4, truncated: false, reward: 2 },
    ]);
    expect(drawn).toEqual(groups);
  });

  it("knows a completion that was cut", async () => {
    const { groups } = await roll(() => written("aaaaa", "length")).rollout;
    expect(groups[0]!.samples[0]!.judged).toEqual({ text: "aaaaa", tokens: 5, truncated: true });
  });

  it("draws other prompts at another step, and the same at the same", async () => {
    const ids = async (step: number) =>
      (await roll(() => written("a"), { step }).rollout).groups.map(({ example }) => example.id);
    expect(await ids(4)).toEqual(await ids(4));
    expect(await ids(5)).not.toEqual(await ids(4));
  });

  it("waits for judges that take their time", async () => {
    const slow: Task<number> = {
      ...letters,
      rewards: {
        later: { weight: 1, reward: (_, { row }) => new Promise((done) => setTimeout(() => done(row), 5)) },
      },
    };
    const { groups } = await roll(() => written("a"), { task: slow }).rollout;
    expect(groups.map(({ samples }) => samples[0]!.reward)).toEqual(groups.map(({ example }) => example.row));
  });

  it("says which task and example a reward failed on", async () => {
    const broken: Task<number> = { ...letters, rewards: { bad: { weight: 1, reward: () => Number.NaN } } };
    await expect(roll(() => written("a"), { task: broken }).rollout).rejects.toThrow(TaskError);
    await expect(roll(() => written("a"), { task: broken }).rollout).rejects.toThrow(
      /task letters: reward bad, example #\d+: must return a finite number/,
    );
  });
});

describe("dynamic sampling", () => {
  it("replaces the groups whose rewards are equal, and only those, in their places", async () => {
    // Prompt 0 is mixed at once, 1 at the third attempt, 2 at the second.
    const script = mixedWhen((p, attempt) => attempt >= [0, 2, 1][p]!);
    const { engine, rollout } = roll(script, { resampleAttempts: 5 });
    const { groups, drawn } = await rollout;
    expect(engine.asked.map(({ requests }) => requests.map(({ path }) => path!.slice(2)))).toEqual([
      [
        [0, 0],
        [1, 0],
        [2, 0],
      ],
      [
        [1, 1],
        [2, 1],
      ],
      [[1, 2]],
    ]);
    expect(groups.every((group) => !isEqual(group))).toBe(true);
    expect(drawn).toHaveLength(6);
    expect(drawn[0]).toBe(groups[0]);
    expect(drawn[5]).toBe(groups[1]);
  });

  it("gives up after its attempts and keeps the last group", async () => {
    const { engine, rollout } = roll(
      mixedWhen((p) => p === 0),
      { resampleAttempts: 2 },
    );
    const { groups, drawn } = await rollout;
    expect(engine.asked).toHaveLength(3);
    expect(drawn).toHaveLength(7);
    expect(groups.map(isEqual)).toEqual([false, true, true]);
    expect(groups[2]).toBe(drawn[6]);
  });

  it("is off at no attempts", async () => {
    const { engine, rollout } = roll(mixedWhen(() => false));
    expect((await rollout).groups).toHaveLength(3);
    expect(engine.asked).toHaveLength(1);
  });
});

describe("equal rewards", () => {
  it("are those of the samples that got any", () => {
    expect(
      isEqual(
        madeGroup([
          { reward: 1, length: 1 },
          { reward: 1, length: 9 },
        ]),
      ),
    ).toBe(true);
    expect(
      isEqual(
        madeGroup([
          { reward: 1, length: 1 },
          { reward: 0.5, length: 1 },
        ]),
      ),
    ).toBe(false);
    expect(
      isEqual(
        madeGroup([
          { reward: 1, length: 1 },
          { reward: null, length: 1 },
        ]),
      ),
    ).toBe(true);
    expect(
      isEqual(
        madeGroup([
          { reward: null, length: 1 },
          { reward: null, length: 1 },
        ]),
      ),
    ).toBe(true);
  });
});
