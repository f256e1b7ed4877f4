import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../../../src/compute/tensor/random.ts";
import { evaluateExpression } from "../../../../src/learn/tasks/countdown/expression.ts";
import { puzzleSource, splitOf } from "../../../../src/learn/tasks/countdown/puzzle.ts";
import { format as show } from "../../../../src/learn/tasks/countdown/rational.ts";
import { makeable } from "../../../../src/learn/tasks/countdown/solve.ts";
import { COUNTDOWN_GAMES } from "../../../../src/learn/tasks/countdown/task.ts";
import {
  COUNTDOWN_ALPHABET,
  COUNTDOWN_TOKENS,
  demonstrate,
  drill,
  type ExploreOptions,
  explorationPuzzle,
  explore,
  puzzlePrompt,
  writeTrace,
} from "../../../../src/learn/tasks/countdown/traces.ts";
import { verifyCountdown } from "../../../../src/learn/tasks/countdown/verify.ts";
import { HIT, MISS } from "../../../../src/learn/tasks/countdown/walks.ts";
import { characterTokenizer } from "../../../../src/model/text/tokenizer.ts";

const game = COUNTDOWN_GAMES.quick;

/** Some explorations, each with its puzzle. */
function explorations(count: number, options = {}) {
  return Array.from({ length: count }, (_, i) => {
    const random = new Random(5, i);
    const puzzle = explorationPuzzle(random, game);
    return { puzzle, ...explore(puzzle, random, options) };
  });
}

function evaluate(text: string): { value: string; numbers: readonly number[] } {
  const read = evaluateExpression(text);
  if (!read.ok) throw new Error(`${text}: ${read.reason}`);
  return { value: show(read.value), numbers: read.numbers };
}

const thoughtOf = (completion: string): string => /<think>(.*)<\/think>/s.exec(completion)![1]!;

describe("exploration", () => {
  it("writes steps that are right and checks that are true", () => {
    let hits = 0;
    for (const { puzzle, completion } of explorations(300)) {
      for (const line of thoughtOf(completion).trimEnd().split("\n")) {
        for (const [, left, value, verdict] of line.matchAll(/(\d+[-+*/]\d+)=(\d+)([✓✗]?)/g)) {
          expect(evaluate(left!).value).toBe(value);
          if (verdict === "") continue;
          expect(verdict).toBe(Number(value) === puzzle.target ? HIT : MISS);
          if (verdict === HIT) hits++;
        }
      }
    }
    expect(hits).toBeGreaterThan(50);
  });

  it("answers with an expression that uses every number once and makes a value that was tried", () => {
    for (const { puzzle, completion } of explorations(300)) {
      const answer = /<answer>(.*)<\/answer>$/.exec(completion)![1]!;
      const read = evaluate(answer);
      expect(read.numbers.toSorted()).toEqual(puzzle.numbers.toSorted());
      expect(thoughtOf(completion)).toMatch(new RegExp(`=${read.value}[${HIT}${MISS}]`));
    }
  });

  it("makes each try once before it walks through the puzzle again", () => {
    const all = explorations(200, { skip: 0, stopAfterMiss: 0, stopAfterHit: 0 });
    // Two equal numbers make equal tries.
    for (const { completion } of all.filter(
      ({ puzzle }) => new Set(puzzle.numbers).size === puzzle.numbers.length,
    )) {
      const tries = thoughtOf(completion)
        .trimEnd()
        .split("\n")
        .flatMap((line) => {
          const [path, entries] = line.includes(": ") ? line.split(": ") : ["", line];
          return entries!.split(" ").map((entry) => `${path}: ${entry}`);
        });
      const once = tries.slice(0, tries.length / 2);
      expect(new Set(once).size).toBe(once.length);
      expect(tries.slice(once.length).toSorted()).toEqual(once.toSorted());
    }
  });

  it("mostly fails on the game, whatever its checks say, yet sometimes succeeds", () => {
    const draw = puzzleSource(game);
    const right = Array.from({ length: 500 }, (_, i) => {
      const random = new Random(6, i);
      const puzzle = draw(random);
      return verifyCountdown(puzzle, explore(puzzle, random).completion).accuracy;
    }).filter((accuracy) => accuracy === 1);
    expect(right.length / 500).toBeGreaterThan(0.04);
    expect(right.length / 500).toBeLessThan(0.2);
  });

  it("never shows a held-out or published puzzle", () => {
    for (const { puzzle } of explorations(500)) expect(splitOf(puzzle)).toBe("train");
  });

  it("depends on its random stream alone", () => {
    expect(explorations(20)).toEqual(explorations(20));
  });

  it("is written in the task's characters, numbers as single tokens", () => {
    const tokenizer = characterTokenizer({
      alphabet: COUNTDOWN_ALPHABET,
      special: ["<think>", "</think>", "<answer>", "</answer>", ...COUNTDOWN_TOKENS],
    });
    for (const { prompt, completion } of explorations(50)) {
      expect(tokenizer.decode(tokenizer.encode(prompt + completion))).toBe(prompt + completion);
    }
    expect(tokenizer.encode("27*3=81")).toHaveLength(5);
  });
});

describe("a walk without gaps", () => {
  const whole = { skip: 0, stopAfterMiss: 0, stopAfterHit: 1, answerLast: 1 };

  it("tries every sum and quotient, in the order of the numbers, and no product that is too large", () => {
    const { completion } = explore({ numbers: [5, 30, 7], target: 11 }, new Random(1), whole);
    const pass =
      "30+5=35: 35+7=42✗ 35-7=28✗ 35/7=5✗\n30-5=25: 25+7=32✗ 25-7=18✗ 25*7=175✗ 25/7✗\n" +
      "30*5=150: 150+7=157✗ 150-7=143✗ 150/7✗\n30/5=6: 7+6=13✗ 7-6=1✗ 7*6=42✗ 7/6✗\n" +
      "7+5=12: 30+12=42✗ 30-12=18✗ 30/12✗\n7-5=2: 30+2=32✗ 30-2=28✗ 30*2=60✗ 30/2=15✗\n" +
      "7*5=35: 35+30=65✗ 35-30=5✗ 35/30✗\n7/5✗\n30+7=37: 37+5=42✗ 37-5=32✗ 37*5=185✗ 37/5✗\n" +
      "30-7=23: 23+5=28✗ 23-5=18✗ 23*5=115✗ 23/5✗\n30/7✗\n";
    expect(thoughtOf(completion)).toBe(pass + pass);
  });
});

describe("an answer", () => {
  it.each(["forward", "backward"] as const)(
    "walking %s is in the brackets that its thought takes steps in",
    (thoughts) => {
      const answerOf = (numbers: number[], target: number) =>
        /<answer>(.*)<\/answer>/.exec(demonstrate({ numbers, target }, { thoughts }).completion)?.[1];
      expect(answerOf([20, 6, 33], 87)).toBe("(20*6)-33");
      expect(answerOf([11, 6, 36], 66)).toBe("11*(36/6)");
      expect(answerOf([40, 30], 70)).toBe("40+30");
    },
  );
});

describe("a walk from the target back", () => {
  const options = { thoughts: "backward" } as const;
  const completionOf = (numbers: number[], target: number) =>
    demonstrate({ numbers, target }, options).completion;

  it("keeps each number for last, says what the others must make and tries them", () => {
    expect(completionOf([15, 27, 12], 81)).toBe(
      "<think>15 81: +66-96: 27+12=39✗ 27-12=15✗\n27 81: +54-108*3: 15+12=27✗ 15-12=3✓ 27*3=81\n" +
        "</think><answer>27*(15-12)</answer>",
    );
  });

  it("joins two of four numbers first, where that makes them small, and says what is left", () => {
    const thought = thoughtOf(completionOf([50, 2, 3, 4], 31));
    expect(thought).toMatch(
      /^50\/2=25: 3 4 25\n3 31: \+28-34\/93: 25\+4=29✗ 25-4=21✗ 25\*4=100✗\n4 31: \+27-35\/124: /,
    );
    // What does not divide has nothing left to say, and the next line is no part of what went before.
    expect(thought).toContain("\n50/3✗ 50/4✗ 3/2✗\n4/2=2: 50 3 2\n50 31: ");
    expect(thought).toContain("\n50-2=48: 3 4 48\n3 31: ");
    const headings = thought.split("\n").filter((line) => /=\d+: /.test(line));
    expect(new Set(headings).size).toBe(headings.length);
  });

  it("finds a way exactly where a walk forward does, and one that is right", () => {
    const number = fc.integer({ min: 1, max: 60 });
    fc.assert(
      fc.property(
        fc.array(number, { minLength: 2, maxLength: 4 }),
        number,
        fc.nat(),
        (numbers, target, seed) => {
          const largest = 60 + (seed % 200);
          const trace = demonstrate({ numbers, target }, { ...options, largest });
          expect(trace.solved).toBe(makeable(numbers, largest).has(target));
          if (!trace.solved) return;
          expect(verifyCountdown({ numbers, target }, trace.completion)).toMatchObject({
            accuracy: 1,
            format: 1,
          });
          expect(trace.completion.match(/✓/g)).toHaveLength(1);
        },
      ),
      { numRuns: 300 },
    );
  });

  it("says yes exactly to what is needed", () => {
    for (const { puzzle, completion } of explorations(300, options)) {
      if (puzzle.numbers.length < 3) continue;
      for (const line of thoughtOf(completion).trimEnd().split("\n")) {
        const [, kept, list, tries] = /^(\d+) \d+: ([-+*/\d]+): (.*)$/.exec(line)!;
        const needs = [...list!.matchAll(/([-+*/])(\d+)/g)].map(([, operator, value]) => [operator!, value!]);
        for (const [operator, value] of needs) {
          const [low, high] = [Number(kept), Number(value)].toSorted((a, b) => a - b);
          expect(evaluate(`${high}${operator}${low}`).value, line).toBe(`${puzzle.target}`);
        }
        // No other value up to the largest will do.
        const values = needs.map(([, value]) => Number(value));
        for (let value = 0; value <= 198; value++) {
          const [low, high] = [Number(kept), value].toSorted((a, b) => a - b) as [number, number];
          const made = [high + low, high - low, high * low, high / low];
          expect(made.includes(puzzle.target), `${line}: ${value}`).toBe(values.includes(value));
        }
        for (const [, made, verdict] of tries!.matchAll(/=(\d+)([✓✗])/g)) {
          expect(values.includes(Number(made)), line).toBe(verdict === "✓");
        }
      }
    }
  });

  it("answers with every number once, right or not", () => {
    for (const { puzzle, completion } of explorations(300, options)) {
      const { numbers } = evaluate(/<answer>(.*)<\/answer>$/.exec(completion)![1]!);
      expect(numbers.toSorted()).toEqual(puzzle.numbers.toSorted());
    }
  });
});

describe("drills", () => {
  const drills = Array.from({ length: 200 }, (_, i) => drill(new Random(9, i), game).completion);
  const entries = drills.flatMap((completion) => completion.split(" "));

  it("say what operations make, or that they fail", () => {
    for (const entry of entries) {
      const [, a, operator, b, value] = /^(\d+)([-+*/])(\d+)(?:=(\d+)|✗)$/.exec(entry)!;
      if (value === undefined) expect([operator, Number(a) % Number(b) === 0], entry).toEqual(["/", false]);
      else expect(evaluate(`${a}${operator}${b}`).value, entry).toBe(value);
    }
  });

  it("may be checked against a target, which is mostly one of their results", () => {
    const options = { checked: 1 };
    let hits = 0;
    for (let i = 0; i < 200; i++) {
      const { prompt, completion } = drill(new Random(9, i), game, options);
      const target = /^= (\d+)\n$/.exec(prompt)![1];
      const checks = [...completion.matchAll(/=(\d+)([✓✗])/g)];
      // What makes nothing has a sign of its own.
      expect(checks.length + [...completion.matchAll(/\/\d+✗/g)].length).toBe(16);
      for (const [check, value, verdict] of checks) expect(verdict === HIT, check).toBe(value === target);
      if (completion.includes(HIT)) hits++;
      expect(Number(target)).toBeGreaterThanOrEqual(game.target.min);
      expect(Number(target)).toBeLessThanOrEqual(game.target.max);
    }
    expect(hits).toBeGreaterThan(190);
  });

  it("are checked as often as asked, and never where thoughts go backward", () => {
    const checkedOf = (options: ExploreOptions) =>
      Array.from({ length: 400 }, (_, i) => drill(new Random(9, i), game, options)).filter(
        ({ prompt }) => prompt !== "",
      );
    expect(checkedOf({ checked: 0.25 }).length / 400).toBeCloseTo(0.25, 1);
    expect(checkedOf({})).toEqual([]);
    expect(checkedOf({ checked: 1, thoughts: "backward" })).toEqual([]);
  });

  describe("where thoughts go backward", () => {
    const backward = Array.from(
      { length: 200 },
      (_, i) => drill(new Random(9, i), game, { thoughts: "backward" }).completion,
    ).join(" ");

    it("say what is needed", () => {
      const needs = [...backward.matchAll(/(\d+) (\d+): [-+](\d+)/g)];
      expect(needs.length).toBeGreaterThan(500);
      for (const [, kept, target, difference] of needs) {
        expect(Number(difference)).toBe(Math.abs(Number(kept) - Number(target)));
      }
    });

    it("nearly end thoughts, and say so", () => {
      const lines = [...backward.matchAll(/\d+ \d+: ([-+*/\d]+): ([^:]*)/g)].filter(
        ([, , tries]) => tries!.includes(MISS) && !tries!.includes(HIT),
      );
      const distances = lines.map(([, needs, tries]) => {
        const needed = needs!.match(/\d+/g)!.map(Number);
        const made = [...tries!.matchAll(/=(\d+)✗/g)].map(([, result]) => Number(result));
        return Math.min(...made.flatMap((result) => needed.map((number) => Math.abs(result - number))));
      });
      expect(distances.length).toBeGreaterThan(150);
      expect(Math.min(...distances)).toBe(1);
      expect(distances.filter((distance) => distance <= 10)).toHaveLength(distances.length);
    });

    it("solve no held-out or published puzzle", () => {
      const solved = [...backward.matchAll(/(\d+) (\d+): [^:]*: [^:]*?(\d+)[-+*/](\d+)=\d+✓/g)];
      expect(solved.length).toBeGreaterThan(200);
      for (const [, kept, target, a, b] of solved) {
        expect(splitOf({ numbers: [kept, a, b].map(Number), target: Number(target) })).toBe("train");
      }
    });

    it("end thoughts, with each operator about as often", () => {
      const ends = [...backward.matchAll(/(\d+) (\d+): ([^:]*): [^:]*?=(\d+)✓ ((\d+)([-+*/])(\d+))=(\d+)/g)];
      const counts: Record<string, number> = { "+": 0, "-": 0, "*": 0, "/": 0 };
      for (const [, kept, target, needs, made, step, a, operator, b, value] of ends) {
        expect(needs!.match(/\d+/g)).toContain(made);
        expect([a, b].toSorted()).toEqual([kept, made].toSorted());
        expect([value, evaluate(step!).value]).toEqual([target, target]);
        counts[operator!]! += 1;
      }
      for (const count of Object.values(counts)) expect(count / ends.length).toBeGreaterThan(0.08);
    });
  });

  it("ask for divisions that are whole and for those that are not about as often", () => {
    const divisions = entries.filter((entry) => entry.includes("/"));
    const failed = divisions.filter((entry) => entry.endsWith(MISS));
    expect(divisions.length / entries.length).toBeCloseTo(0.5, 1);
    expect(failed.length / divisions.length).toBeCloseTo(0.45, 1);
  });
});

describe("demonstration", () => {
  it("goes on until a check says yes and answers that", () => {
    for (let i = 0; i < 200; i++) {
      const random = new Random(7, i);
      const puzzle = explorationPuzzle(random, game);
      const { completion } = demonstrate(puzzle);
      expect(verifyCountdown(puzzle, completion)).toMatchObject({ accuracy: 1, format: 1 });
      expect(completion.match(/✓/g)).toHaveLength(1);
      expect(thoughtOf(completion)).toMatch(/✓\n$/);
    }
  });

  it("finds a way exactly where there is one within the largest result allowed", () => {
    const number = fc.integer({ min: 1, max: 60 });
    fc.assert(
      fc.property(
        fc.array(number, { minLength: 2, maxLength: 3 }),
        number,
        fc.nat(),
        (numbers, target, seed) => {
          const largest = 60 + (seed % 200);
          const trace = demonstrate({ numbers, target }, { largest });
          expect(trace.solved).toBe(makeable(numbers, largest).has(target));
        },
      ),
      { numRuns: 300 },
    );
  });

  it("goes to the end where the largest result allowed is too small, without a yes, and answers with all numbers", () => {
    const { solved, completion } = demonstrate({ numbers: [15, 27, 12], target: 81 }, { largest: 80 });
    expect(solved).toBe(false);
    expect(completion).not.toContain(HIT);
    expect(completion).toMatch(/ 15\/15=1✗\n27\/12✗\n<\/think><answer>15\/\(27-12\)<\/answer>$/);
  });
});

describe("a trace", () => {
  const puzzle = { numbers: [15, 27, 12], target: 81 };

  it("puts tries with the same path on one line", () => {
    const start = "15-12=3: ";
    const tries = [
      { start: "27+15=42: ", last: "42-12=30", made: { expression: "27+15-12", value: 30 } },
      { start: "27+15=42: ", last: "42/12" },
      { start, last: "27+3=30", made: { expression: "27+(15-12)", value: 30 } },
      { start, last: "27*3=81", made: { expression: "27*(15-12)", value: 81 } },
    ];
    expect(writeTrace(puzzle, tries, "27*(15-12)")).toEqual({
      prompt: "15 27 12 = 81\n",
      completion:
        "<think>27+15=42: 42-12=30✗ 42/12✗\n15-12=3: 27+3=30✗ 27*3=81✓\n</think><answer>27*(15-12)</answer>",
    });
  });

  it("has no path where two numbers are all there is", () => {
    const tries = [
      { start: "", last: "7+5=12", made: { expression: "7+5", value: 12 } },
      { start: "", last: "7-5=2", made: { expression: "7-5", value: 2 } },
    ];
    expect(writeTrace({ numbers: [5, 7], target: 2 }, tries, "7-5").completion).toBe(
      "<think>7+5=12✗ 7-5=2✓\n</think><answer>7-5</answer>",
    );
    expect(puzzlePrompt(puzzle)).toBe("15 27 12 = 81\n");
  });
});
