/** Judged groups made by hand, and an engine that says what it is told to, for tests of what is done with rollouts. */

import type { Example, Task } from "../../../src/learn/tasks/task.ts";
import type { Group, Sample } from "../../../src/learn/train/rollout.ts";
import type {
  Completion,
  Engine,
  GenerateOptions,
  GenerateRequest,
} from "../../../src/model/engine/engine.ts";

export interface MadeSample {
  readonly reward: number | null;
  readonly length: number;
  readonly truncated?: boolean;
  readonly correct?: boolean;
  /** Log-probability of every token. @default -1 */
  readonly logp?: number;
}

export function madeSample({ reward, length, truncated = false, correct, logp = -1 }: MadeSample): Sample {
  return {
    ids: Array.from({ length }, (_, i) => 3 + (i % 5)),
    logp: Array.from({ length }, () => logp),
    judged: { text: "x".repeat(length), tokens: length, truncated },
    rewards: { accuracy: reward },
    reward,
    correct: correct ?? reward === 1,
  };
}

export function madeGroup(samples: readonly MadeSample[], prompt: readonly number[] = [1, 3]): Group<number> {
  return { example: { id: "x", prompt: "p", row: 0 }, prompt, samples: samples.map(madeSample) };
}

/** An engine that writes `write(request, sample)` for every sample, and remembers what it was asked. */
export function scriptedEngine(
  write: (request: GenerateRequest, sample: number) => Completion,
): Engine & { readonly asked: { requests: readonly GenerateRequest[]; options: GenerateOptions }[] } {
  const asked: { requests: readonly GenerateRequest[]; options: GenerateOptions }[] = [];
  const generate = async (
    requests: readonly GenerateRequest[],
    options: GenerateOptions,
  ): Promise<Completion[][]> => {
    asked.push({ requests, options });
    return requests.map((request) =>
      Array.from({ length: request.samples }, (_, sample) => write(request, sample)),
    );
  };
  return { asked, generate } as unknown as ReturnType<typeof scriptedEngine>;
}

/** A task whose prompts are `0`, `1`, … by the random stream, and whose reward is the number of letters a. */
export const letters: Task<number> = {
  name: "letters",
  alphabet: "ab0123456789",
  train: {
    draw: (random): Example<number> => {
      const row = random.integer(1000);
      return { id: `#${row}`, prompt: `${row}`, row };
    },
  },
  validation: [],
  rewards: { count: { weight: 1, reward: ({ text }) => text.split("a").length - 1 } },
};
