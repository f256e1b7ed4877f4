/** Countdown without thoughts, and what a base that is trained on reads. */
import { describe, expect, it } from "vitest";
import { exploredOn, isAnswerAlone, withoutThoughts } from "../../bench/no-thought.ts";
import { Random } from "../../src/compute/tensor/random.ts";
import { readAnswer } from "../../src/learn/tasks/answer.ts";
import { evaluateExpression } from "../../src/learn/tasks/countdown/expression.ts";
import { type Puzzle, splitOf } from "../../src/learn/tasks/countdown/puzzle.ts";
import { solve } from "../../src/learn/tasks/countdown/solve.ts";
import { countdownTask } from "../../src/learn/tasks/countdown/task.ts";
import { explore } from "../../src/learn/tasks/countdown/traces.ts";
import { verifyCountdown } from "../../src/learn/tasks/countdown/verify.ts";
import { HIT, MISS } from "../../src/learn/tasks/countdown/walks.ts";
import { judge } from "../../src/learn/tasks/judge.ts";
import type { Trace } from "../../src/learn/tasks/task.ts";
import { THINK_TAGS } from "../../src/model/text/think.ts";
import { characterTokenizer } from "../../src/model/text/tokenizer.ts";

const options = { heldOutCount: 8 };
const task = withoutThoughts(options);

const draw = (write: ((random: Random) => Trace) | undefined, count: number): Trace[] =>
  Array.from({ length: count }, (_, i) => write!(new Random(7, i)));

function puzzleOf(prompt: string): Puzzle {
  const [, numbers, target] = /^([\d ]+) = (\d+)\n$/.exec(prompt)!;
  return { numbers: numbers!.split(" ").map(Number), target: Number(target) };
}

const guesses = draw(task.explore, 600);
const solutions = draw(task.demonstrate, 600);

/** The task's own verdict on a trace. */
const judged = ({ prompt, completion }: Trace) =>
  judge(task, { text: completion, tokens: 1, truncated: false }, { id: "", prompt, row: puzzleOf(prompt) });

describe("countdown without thoughts", () => {
  it("writes answers and nothing else, in the game's vocabulary and within its limit", () => {
    const { alphabet, tokens = [], maxNewTokens = 0 } = task;
    const tokenizer = characterTokenizer({ alphabet, special: [...THINK_TAGS, ...tokens] });
    const lengths = [...guesses, ...solutions].map(({ prompt, completion }) => {
      expect(completion).toMatch(/^<answer>[-+*/()\d]+<\/answer>$/);
      tokenizer.encode(prompt);
      return tokenizer.encode(completion).length + 1;
    });
    // The longest have brackets, and the limit leaves them no token to spare.
    expect(Math.max(...lengths)).toBe(maxNewTokens);
  });

  it("leaves the longest answers of four numbers room, and no more", () => {
    const long = withoutThoughts({ game: "long", heldOutCount: 1 });
    const { alphabet, tokens = [] } = long;
    const tokenizer = characterTokenizer({ alphabet, special: [...THINK_TAGS, ...tokens] });
    expect(tokenizer.encode("<answer>(25-(24-(23-22)))</answer>").length + 1).toBeGreaterThan(
      long.maxNewTokens!,
    );
    for (const answer of ["(25+24)*(23-22)", "25-(24-(23-22))"]) {
      expect(tokenizer.encode(`<answer>${answer}</answer>`).length + 1).toBe(long.maxNewTokens);
    }
  });

  it("shows training puzzles alone", () => {
    for (const { prompt } of [...guesses, ...solutions]) expect(splitOf(puzzleOf(prompt))).toBe("train");
    for (let i = 0; i < 100; i++) expect(splitOf(task.train.draw(new Random(8, i)).row)).toBe("train");
  });

  it("measures on the same held-out puzzles as the game with thoughts", () => {
    for (const heldOut of ["validation", "test"] as const) {
      const examples = withoutThoughts({ ...options, heldOut }).validation;
      expect(examples).toEqual(countdownTask({ ...options, heldOut }).validation);
      for (const { row } of examples) expect(splitOf(row)).toBe(heldOut);
    }
  });

  it("guesses with every number once", () => {
    for (const { prompt, completion } of guesses) {
      const read = evaluateExpression(readAnswer(completion)!);
      expect(read.ok && read.numbers.toSorted()).toEqual(puzzleOf(prompt).numbers.toSorted());
    }
  });

  it("guesses right as often as chance has it", () => {
    const everything = { skip: 0, stopAfterMiss: 0, stopAfterHit: 0 };
    let [right, expected, variance] = [0, 0, 0];
    for (const [i, { prompt, completion }] of guesses.entries()) {
      const puzzle = puzzleOf(prompt);
      right += verifyCountdown(puzzle, completion).accuracy;
      const { completion: walk } = explore(puzzle, new Random(9, i), everything);
      // Divisions that are not whole make nothing to answer.
      const made = walk.match(new RegExp(`=\\d+[${HIT}${MISS}]`, "g"))!;
      const chance = made.filter((one) => one.endsWith(HIT)).length / made.length;
      expected += chance;
      variance += chance * (1 - chance);
    }
    expect(expected / guesses.length).toBeGreaterThan(0.1);
    expect(Math.abs(right - expected)).toBeLessThan(3 * Math.sqrt(variance));
  });

  it("demonstrates what the verifier takes", async () => {
    for (const trace of solutions) {
      expect(verifyCountdown(puzzleOf(trace.prompt), trace.completion).reason).toBe("correct");
      const rewards = { accuracy: 1, format: 1 };
      expect(await judged(trace)).toEqual({ rewards, reward: 1.1, correct: true });
    }
  });

  it("demonstrates any of several answers", () => {
    const several = solutions
      .map(({ prompt, completion }) => ({ all: solve(puzzleOf(prompt)), answer: readAnswer(completion) }))
      .filter(({ all }) => all.length > 1);
    const places = several.map(({ all, answer }) => all.findIndex(({ text }) => text === answer));
    expect(several.length).toBeGreaterThan(10);
    expect(places).not.toContain(-1);
    expect(places).toContain(0);
    expect(places.some((place) => place > 0)).toBe(true);
  });

  it("rewards a right answer and its form apart, and thoughts not at all", async () => {
    const prompt = "3 4 5 = 35\n";
    const of = async (completion: string) => (await judged({ prompt, completion })).rewards;
    expect(await of("<answer>(3+4)*5</answer>")).toEqual({ accuracy: 1, format: 1 });
    expect(await of("<answer>3+4*5</answer>")).toEqual({ accuracy: 0, format: 1 });
    expect(await of("<answer>(3+4)*5</answer> <answer>(3+4)*5</answer>")).toEqual({ accuracy: 1, format: 0 });
    expect(await of("<think></think><answer>(3+4)*5</answer>")).toEqual({ accuracy: 1, format: 0 });
    expect(await of("(3+4)*5")).toEqual({ accuracy: 0, format: 0 });
  });

  it.each([
    ["<answer>1+2</answer>", true],
    [" <answer>1+2</answer>\n", true],
    ["<answer></answer>", true],
    ["3 <answer>1+2</answer>", false],
    ["<answer>1+2</answer> 3", false],
    ["<answer>1+2", false],
    ["<answer>1+2</think></answer>", false],
    ["", false],
  ])("takes %j for an answer alone: %s", (text, expected) => {
    expect(isAnswerAlone(text)).toBe(expected);
  });
});

describe("the game that a base is trained on with", () => {
  it("demonstrates what it explores, and is the game in all else", () => {
    const on = exploredOn(options);
    expect(draw(on.demonstrate, 50)).toEqual(draw(on.explore, 50));
    expect(draw(on.explore, 50)).toEqual(draw(countdownTask(options).explore, 50));
    expect(on.maxNewTokens).toBeUndefined();
  });
});
