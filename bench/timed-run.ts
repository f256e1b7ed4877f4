/**
 * Runs that take a given time. Schedules count steps, so that a run can be repeated; a time becomes steps by measuring
 * some. A step on text always takes the same. A step of reinforcement learning does not: what a model writes, and how much
 * of it there is to train on, change while it learns. So the number of those is set after two fifths of it, while the rate does
 * not depend on it yet: the run that comes out is the one that had this number from its start.
 */

import { access, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { measured } from "../src/app/bench/measure.ts";
import { writeReport } from "../src/app/report/report.ts";
import { readRun } from "../src/learn/runs/read-run.ts";
import type { StepMetrics } from "../src/learn/runs/records.ts";
import type { Task } from "../src/learn/tasks/task.ts";
import { parseRunConfig, type RunConfig } from "../src/learn/train/config.ts";
import { resumeRun, startRun } from "../src/learn/train/run.ts";
import type { RunObserver, RunOutcome } from "../src/learn/train/training.ts";

/** Steps measured for the time of one, and how many of the first are left out: programs are built in them. */
const PROBED = 24;
const WARMUP = 4;
/** Share of the time of reinforcement learning after which its steps are set, before a schedule's fall begins. */
const SET_AT = 2 / 5;
/** Share of the time, the newest, in which the pace is taken. */
const PACE_OVER = 1 / 4;
/** Steps of reinforcement learning of a run whose number is not set yet. */
export const UNSET = 1_000_000;

/** Phases of a step that are not the stage's own work. */
const BESIDES = ["validate", "checkpoint"];

/** Seconds of a step's own work: what the minutes of a stage are made of. */
export function workSeconds({ timing }: Pick<StepMetrics, "timing">): number {
  const own = Object.entries(timing.phases).filter(([phase]) => !BESIDES.includes(phase));
  return own.reduce((sum, [, seconds]) => sum + seconds, 0);
}

const onStep = (step: (metrics: StepMetrics) => void): RunObserver => ({
  start() {},
  step,
  sample() {},
  note() {},
});

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/** Seconds that a step on a task's texts takes on this machine now: the median of some. */
export async function textStepSeconds<Row>(
  task: Task<Row>,
  config: RunConfig,
  stage: "pretrain" | "sft",
): Promise<number> {
  const root = await mkdtemp(join(tmpdir(), "pondera-probe-"));
  const seconds: number[] = [];
  const none = { pretrain: { ...config.pretrain, steps: 0 }, sft: { ...config.sft, steps: 0 } };
  const probe: RunConfig = {
    ...config,
    ...none,
    [stage]: { ...config[stage], steps: PROBED },
    rl: { ...config.rl, steps: 0 },
    evaluation: { ...config.evaluation, count: 1 },
  };
  try {
    const observer = onStep((metrics) => seconds.push(workSeconds(metrics)));
    await startRun({ root, task, preset: "probe", config: probe, observer });
  } finally {
    await rm(root, { recursive: true, force: true });
  }
  return measured(seconds.slice(WARMUP)).median;
}

export interface TimedRun<Row> {
  /** The folder that holds runs, and the run's name: one that is there already is gone on with. */
  readonly root: string;
  readonly name: string;
  readonly task: Task<Row>;
  readonly preset: string;
  /** Asked for a run that is not there yet. */
  readonly config: () => Promise<RunConfig>;
  /** Time of reinforcement learning. @default that of the steps the configuration says */
  readonly rlSeconds?: number;
  /** Told of the steps of reinforcement learning when their number is set. */
  readonly onSteps?: (steps: number, secondsPerStep: number) => void;
}

const total = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0);

/** Mean of the newest values that together make `least`, or of all. */
function newestMean(values: readonly number[], least: number): number {
  let [sum, count] = [0, 0];
  while (count < values.length && sum < least) sum += values[values.length - ++count]!;
  return sum / count;
}

/**
 * Trains a run to its end.
 * @returns its folder
 * @throws what startRun and resumeRun throw
 */
export async function trainTimed<Row>(options: TimedRun<Row>): Promise<string> {
  const { root, name, task, preset, rlSeconds, onSteps } = options;
  const path = join(root, name);
  const begun = await exists(join(path, "run.json"));
  const known = begun ? await readRun(path) : undefined;
  /** Of every step of reinforcement learning done. */
  const seconds = (known?.metrics ?? []).filter(({ stage }) => stage === "rl").map(workSeconds);

  const watch = (stopAfter: number) => {
    const aborter = new AbortController();
    const observer = onStep((metrics) => {
      if (metrics.stage !== "rl") return;
      // A run that was killed takes the steps since its last checkpoint again.
      seconds.splice(metrics.step - 1, Infinity, workSeconds(metrics));
      if (total(seconds) >= stopAfter) aborter.abort();
    });
    return { observer, signal: aborter.signal, report: writeReport };
  };
  const goOn = (stopAfter: number, set: readonly string[]): Promise<RunOutcome> =>
    resumeRun(path, async () => ({ task: task as unknown as Task<unknown> }), { ...watch(stopAfter), set });
  const start = async (stopAfter: number): Promise<RunOutcome> => {
    const config = await options.config();
    const rl = rlSeconds === undefined ? config.rl : { ...config.rl, steps: UNSET };
    return startRun({ ...watch(stopAfter), root, name, task, preset, config: { ...config, rl } });
  };

  const isSet = known !== undefined && parseRunConfig(known.manifest.config).rl.steps !== UNSET;
  const stopAfter = rlSeconds === undefined || isSet ? Infinity : SET_AT * rlSeconds;
  const outcome = begun ? await goOn(stopAfter, []) : await start(stopAfter);
  if (outcome.kind === "finished" || rlSeconds === undefined) return path;
  const pace = newestMean(seconds, PACE_OVER * rlSeconds);
  const steps = seconds.length + Math.max(1, Math.round((rlSeconds - total(seconds)) / pace));
  onSteps?.(steps, pace);
  await goOn(Infinity, [`rl.steps=${steps}`]);
  return path;
}
