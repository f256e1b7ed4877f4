/**
 * Countdown without thoughts: a completion is `<answer>…</answer>` and nothing else, and has no room for more. Prompts,
 * puzzles, vocabulary, verifier and weights of the rewards are those of the game with thoughts.
 *
 * What its base model reads are answers that nobody selected: of a puzzle's numbers any expression, each with the same
 * chance whatever its value. What it may be shown instead, as no model that learns by reinforcement alone is, are right
 * answers from the solver.
 */

import { invariant } from "../src/base/errors.ts";
import type { Random } from "../src/compute/tensor/random.ts";
import { hasFormat, readAnswer } from "../src/learn/tasks/answer.ts";
import { solve } from "../src/learn/tasks/countdown/solve.ts";
import { COUNTDOWN_GAMES, type CountdownOptions, countdownTask } from "../src/learn/tasks/countdown/task.ts";
import { explorationPuzzle, explore, puzzlePrompt } from "../src/learn/tasks/countdown/traces.ts";
import type { Puzzle } from "../src/learn/tasks/countdown/types.ts";
import type { Task } from "../src/learn/tasks/task.ts";

/** Whether a text is one answer and nothing else, white space around it aside: what the format asks after a thought. */
export const isAnswerAlone = (text: string): boolean => hasFormat(`<think></think>${text}`);

/**
 * Tokens of the longest answer to so many numbers: the numbers, an operator between each two, brackets around all but
 * the outermost operation, two tags and the end.
 */
const longestAnswer = (numbers: number): number =>
  numbers + (numbers - 1) + 2 * Math.max(0, numbers - 2) + 2 + 1;

const answerOf = (puzzle: Puzzle, expression: string) => ({
  prompt: puzzlePrompt(puzzle),
  completion: `<answer>${expression}</answer>`,
});

/** An expression of all the numbers, each that exploration may try with the same chance; the target plays no part. */
function guess(
  puzzle: Puzzle,
  random: Random,
  { largest }: NonNullable<CountdownOptions["explore"]>,
): string {
  const everything = { skip: 0, stopAfterMiss: 0, stopAfterHit: 0, answerLast: 0 };
  const { completion } = explore(puzzle, random, {
    ...everything,
    ...(largest === undefined ? {} : { largest }),
  });
  const expression = readAnswer(completion);
  invariant(expression !== undefined, "an exploration has an answer");
  return expression;
}

/**
 * The game without thoughts; `demonstrate` shows right answers, of a puzzle that has several any of them.
 * @throws ConfigError for a game that does not exist
 */
export function withoutThoughts(options: CountdownOptions = {}): Task<Puzzle> {
  const { wentBack: _, ...task } = countdownTask(options);
  const { game: name = "quick", use, explore: exploring = {} } = options;
  const game = COUNTDOWN_GAMES[name];
  const { accuracy, format } = task.rewards;
  invariant(accuracy !== undefined && format !== undefined, "countdown rewards accuracy and format");
  return {
    ...task,
    name: "countdown-no-thought",
    description: "Make the target from the numbers, answering at once",
    rewards: { accuracy, format: { ...format, reward: ({ text }) => (isAnswerAlone(text) ? 1 : 0) } },
    explore(random) {
      const puzzle = explorationPuzzle(random, game, exploring);
      return answerOf(puzzle, guess(puzzle, random, exploring));
    },
    demonstrate(random) {
      const { row: puzzle } = task.train.draw(random);
      return answerOf(puzzle, random.pick(solve(puzzle, use === undefined ? {} : { use })).text);
    },
    maxNewTokens: longestAnswer(Math.max(...game.counts)),
  };
}

/** The game as it is, whose demonstrations are no better than its explorations: training on is training on the same. */
export function exploredOn(options: CountdownOptions = {}): Task<Puzzle> {
  const task = countdownTask(options);
  invariant(task.explore !== undefined, "countdown is explored");
  return { ...task, name: "countdown-base-on", demonstrate: task.explore };
}
