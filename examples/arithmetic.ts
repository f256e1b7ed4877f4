/**
 * Sums of three numbers, worked out step by step: `17+25-8=` wants `42-8=34` in the thought and 34 as the answer.
 *
 * The base has seen right sums of two numbers, but rarely a thought that goes on to the end: it guesses, stops half-way
 * or adds the wrong pair, and is right about one time in four. Reinforcement learning has to teach it to finish.
 *
 *     pondera train ./examples/arithmetic.ts --preset quick
 */
import { defineTask, formatReward, type Random, readAnswer } from "pondera";

type Sign = "+" | "-";

interface Sum {
  readonly prompt: string;
  readonly numbers: readonly [number, number, number];
  readonly signs: readonly [Sign, Sign];
  readonly total: number;
}

/** Small, so that a model of a million parameters has few sums of two to learn. */
const MOST = 29;

const apply = (a: number, sign: Sign, b: number): number => (sign === "+" ? a + b : a - b);

/** A sum of two numbers as the thought writes it: `17+25=42`. */
const step = (a: number, sign: Sign, b: number): string => `${a}${sign}${b}=${apply(a, sign, b)}`;

/** A sign for the next number, which must not take the total below zero. */
const drawSign = (random: Random, total: number, next: number): Sign =>
  next <= total && random.integer(2) === 0 ? "-" : "+";

function drawSum(random: Random): Sum {
  const [a, b, c] = [random.integer(MOST + 1), random.integer(MOST + 1), random.integer(MOST + 1)];
  const first = drawSign(random, a, b);
  const half = apply(a, first, b);
  const second = drawSign(random, half, c);
  return {
    prompt: `${a}${first}${b}${second}${c}=`,
    numbers: [a, b, c],
    signs: [first, second],
    total: apply(half, second, c),
  };
}

function explore(random: Random): { prompt: string; completion: string } {
  const { prompt, numbers, signs, total } = drawSum(random);
  const [a, b, c] = numbers;
  const half = apply(a, signs[0], b);
  const firstStep = step(a, signs[0], b);
  const write = (thought: string, answer: number) => ({
    prompt,
    completion: `<think>${thought}</think><answer>${answer}</answer>`,
  });
  const mood = random.uniform();
  if (mood < 0.25) return write(`${firstStep} ${step(half, signs[1], c)}`, total);
  if (mood < 0.5) return write(firstStep, half);
  if (mood < 0.75) return write(`${firstStep} ${step(b, "+", c)}`, b + c);
  return write("", random.integer(3 * MOST));
}

export default defineTask<Sum>({
  name: "arithmetic",
  description: "Sums and differences of three numbers, worked out in steps",
  alphabet: "0123456789+-= ",
  prompts: drawSum,
  explore,
  reward: {
    accuracy: { weight: 1, reward: ({ text }, { row }) => (readAnswer(text) === `${row.total}` ? 1 : 0) },
    format: { weight: 0.2, reward: formatReward() },
  },
  maxPromptTokens: 16,
  maxNewTokens: 40,
});
