/**
 * What a prompt looks like to a model that was trained on a task. Known from what its run left behind; the code of a user's
 * task is run only when a prompt is drawn from it.
 */

import { z } from "zod";
import { Random } from "../../compute/tensor/random.ts";
import { type RunView, readSamples } from "../../learn/runs/read-run.ts";
import { puzzleSource } from "../../learn/tasks/countdown/puzzle.ts";
import { solve } from "../../learn/tasks/countdown/solve.ts";
import { COUNTDOWN_GAMES, type CountdownGame } from "../../learn/tasks/countdown/task.ts";
import { puzzlePrompt } from "../../learn/tasks/countdown/traces.ts";
import { NUMBER_USES, type NumberUse, type Puzzle } from "../../learn/tasks/countdown/types.ts";
import { verifyCountdown } from "../../learn/tasks/countdown/verify.ts";
import { MISS } from "../../learn/tasks/countdown/walks.ts";
import { judge } from "../../learn/tasks/judge.ts";
import type { Judged, Task } from "../../learn/tasks/task.ts";
import { openNamedTask } from "./task.ts";

/** What can be said of an answer without asking the model. */
export interface Verdict {
  readonly correct: boolean;
  /** Why, in a few words. */
  readonly reason: string;
  /** How many tries of the thought failed its own check. */
  readonly failedTries: number;
  /** Of a wrong answer: a right one, or null when there is none. */
  readonly solution?: string | null;
}

/** A fresh prompt, and what is to be said of answers to it. */
export interface DrawnPrompt {
  readonly prompt: string;
  readonly judge: (answer: Judged) => Verdict | Promise<Verdict>;
}

export interface TaskPrompts {
  readonly task: string;
  /** A prompt as the model saw it in training. */
  readonly example: string;
  /** A prompt the model was not trained on; absent where the task is not known. */
  readonly draw?: (random: Random) => DrawnPrompt | Promise<DrawnPrompt>;
  /** A typed prompt in the task's own form; undefined when it is none of the task's. */
  readonly rewrite?: (typed: string) => string | undefined;
  /** The verdict on an answer to a typed prompt; undefined when that is none of the task's, absent where it cannot be told. */
  readonly judge?: (prompt: string, answer: Judged) => Verdict | undefined;
}

/** What a prompt of the task ends in that nobody types: a line break, the tag that opens the thought. */
const endingOf = (prompt: string): string => /\s*(?:<think>\s*)?$/.exec(prompt)![0];

/** A typed prompt as the task writes it: with the ending that its prompts have, and countdown's in countdown's own words. */
export function completePrompt(typed: string, prompts: TaskPrompts | undefined): string {
  if (prompts === undefined) return typed;
  const written = prompts.rewrite?.(typed);
  if (written !== undefined) return written;
  const ending = endingOf(prompts.example);
  return typed.endsWith(ending) ? typed : typed.slice(0, typed.length - endingOf(typed).length) + ending;
}

/** A prompt as a person types it. */
export const typedPrompt = (prompt: string): string =>
  prompt.slice(0, prompt.length - endingOf(prompt).length);

/** More numbers than any game has. */
const MOST_NUMBERS = 6;

/** The puzzle of a countdown prompt, `83 18 75 = 10`, also with commas or without blanks around the sign. */
export function readPuzzle(prompt: string): Puzzle | undefined {
  const match = /^\s*(\d{1,6}(?:[\s,]+\d{1,6})*)\s*=\s*(-?\d{1,9})\s*$/.exec(prompt);
  if (match === null) return undefined;
  const numbers = match[1]!.split(/[\s,]+/).map(Number);
  return numbers.length <= MOST_NUMBERS ? { numbers, target: Number(match[2]) } : undefined;
}

/** A puzzle's shortest solution; null when there is none, undefined when the numbers are too large to tell. */
function solutionOf(puzzle: Puzzle, use: NumberUse): string | null | undefined {
  const largest = Math.max(2, ...puzzle.numbers);
  const count = puzzle.numbers.length;
  if (2 ** (count - 1) * largest ** count > Number.MAX_SAFE_INTEGER) return undefined;
  return (solve(puzzle, { use, fractions: true, negatives: true })[0]?.text ?? null) as string | null;
}

function judgeCountdown(puzzle: Puzzle, { text }: Judged, use: NumberUse): Verdict {
  const { accuracy, reason } = verifyCountdown(puzzle, text, { use });
  const failedTries = text.split(MISS).length - 1;
  if (accuracy === 1) return { correct: true, reason: `makes ${puzzle.target}`, failedTries };
  const solution = solutionOf(puzzle, use);
  return { correct: false, reason, failedTries, ...(solution === undefined ? {} : { solution }) };
}

const CountdownConfig = z.object({
  countdown: z.object({
    game: z.enum(Object.keys(COUNTDOWN_GAMES) as CountdownGame[]),
    use: z.enum(NUMBER_USES).default("at-most-once"),
  }),
});

/** The countdown game of a run's configuration and how often it wants each number used, or the defaults. */
export function countdownOf(config: unknown): { readonly game: CountdownGame; readonly use: NumberUse } {
  const parsed = CountdownConfig.safeParse(config);
  return parsed.success ? parsed.data.countdown : { game: "quick", use: "at-most-once" };
}

function countdownPrompts(config: unknown): TaskPrompts {
  const { game: name, use } = countdownOf(config);
  const game = COUNTDOWN_GAMES[name];
  // Of the test split: puzzles that no run of this game has trained on.
  const source = puzzleSource({ ...game, split: "test" });
  const draw = (random: Random): DrawnPrompt => {
    const puzzle = source(random);
    return { prompt: puzzlePrompt(puzzle), judge: (answer) => judgeCountdown(puzzle, answer, use) };
  };
  return {
    task: "countdown",
    example: draw(new Random(1)).prompt,
    draw,
    rewrite: (typed) => {
      const puzzle = readPuzzle(typed);
      return puzzle === undefined ? undefined : puzzlePrompt(puzzle);
    },
    judge: (prompt, answer) => {
      const puzzle = readPuzzle(prompt);
      return puzzle === undefined ? undefined : judgeCountdown(puzzle, answer, use);
    },
  };
}

/** Draws from the prompts that a user's task holds out, and judges as the task does. */
function drawFromFile(file: string): (random: Random) => Promise<DrawnPrompt> {
  let opened: Promise<Task<unknown>> | undefined;
  return async (random) => {
    opened ??= openNamedTask(file, {}).then(({ task }) => task);
    const task = await opened;
    const example = random.pick(task.validation);
    const verdict = async (answer: Judged): Promise<Verdict> => {
      const { correct, rewards } = await judge(task, answer, example);
      const reason = Object.entries(rewards).map(([name, value]) => `${name} ${value ?? "skipped"}`);
      return { correct, reason: reason.join(", "), failedTries: 0 };
    };
    return { prompt: example.prompt, judge: verdict };
  };
}

/** A prompt that the run has kept; undefined when it has kept none. */
async function keptPrompt(run: RunView): Promise<string | undefined> {
  const solved = run.result?.solved[0];
  if (solved !== undefined) return solved.prompt;
  for await (const { prompt } of readSamples(run.path)) return prompt;
  return undefined;
}

/** What is known of the prompts of a run's task; undefined when the run has left none. */
export async function promptsOf(run: RunView): Promise<TaskPrompts | undefined> {
  const { task, taskFile, config } = run.manifest;
  if (taskFile === undefined && task === "countdown") return countdownPrompts(config);
  const example = await keptPrompt(run);
  if (example === undefined) return undefined;
  return { task, example, ...(taskFile === undefined ? {} : { draw: drawFromFile(taskFile) }) };
}
