/** Judging a completion: every reward of its task, their weighted sum, and whether pass@1 counts it. */
import { TaskError } from "../../base/errors.ts";
import { describe, type Example, type Judged, type Reward, type Task, type WeightedReward } from "./task.ts";

export interface Judgement {
  /** Each named reward before its weight; null where it had nothing to say. */
  readonly rewards: Readonly<Record<string, number | null>>;
  /** Σ weight · reward over the rewards that spoke; null when none did, and the sample should not be trained on. */
  readonly reward: number | null;
  readonly correct: boolean;
}

async function callReward<Row>(
  where: string,
  reward: Reward<Row>,
  completion: Judged,
  example: Example<Row>,
): Promise<number | null> {
  let value: unknown;
  try {
    value = await reward(completion, example);
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : describe(cause);
    throw new TaskError({
      where,
      rule: "must not throw",
      got: `${JSON.stringify(message)} on ${describe(completion.text)}`,
      remedy: "Return 0 for a bad completion, or null to skip it",
      cause,
    });
  }
  if (value === null || (typeof value === "number" && Number.isFinite(value))) return value;
  throw new TaskError({
    where,
    rule: "must return a finite number, or null to skip",
    got: `${describe(value)} on ${describe(completion.text)}`,
  });
}

/** Σ weight · value over the values that are numbers; null when none is. */
export function weightedSum<Row>(
  rewards: Readonly<Record<string, WeightedReward<Row>>>,
  values: Readonly<Record<string, number | null>>,
): number | null {
  let sum: number | null = null;
  for (const [name, { weight }] of Object.entries(rewards)) {
    const value = values[name];
    if (typeof value === "number") sum = (sum ?? 0) + weight * value;
  }
  return sum;
}

/** Several rewards as one, for use inside another task or reward. Skips only where all of them do. */
export function combine<Row>(rewards: Readonly<Record<string, WeightedReward<Row>>>): Reward<Row> {
  return async (completion, example) => {
    const values: Record<string, number | null> = {};
    for (const [name, { reward }] of Object.entries(rewards))
      values[name] = await reward(completion, example);
    return weightedSum(rewards, values);
  };
}

/**
 * What a task says of one completion.
 * @throws TaskError naming the task, the reward and the example when a reward throws or returns no finite number
 */
export async function judge<Row>(
  task: Pick<Task<Row>, "name" | "rewards" | "correct">,
  completion: Judged,
  example: Example<Row>,
): Promise<Judgement> {
  const rewards: Record<string, number | null> = {};
  for (const [name, { reward, shaping }] of Object.entries(task.rewards)) {
    const where = `task ${task.name}: reward ${name}, example ${example.id}`;
    const isSkipped = shaping === true && Object.values(rewards).every((value) => value === null);
    rewards[name] = isSkipped ? null : await callReward(where, reward, completion, example);
  }
  const reward = weightedSum(task.rewards, rewards);
  if (task.correct === undefined) {
    const deciding = "accuracy" in rewards ? rewards["accuracy"] : Object.values(rewards)[0];
    return { rewards, reward, correct: typeof deciding === "number" && deciding >= 1 };
  }
  const where = `task ${task.name}: correct, example ${example.id}`;
  const { correct: isCorrect } = task;
  const correct = await callReward(
    where,
    async () => ((await isCorrect(completion, example)) ? 1 : 0),
    completion,
    example,
  );
  return { rewards, reward, correct: correct === 1 };
}
