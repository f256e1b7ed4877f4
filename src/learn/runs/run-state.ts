/** Where a run stands, apart from its tensors: what a checkpoint holds as JSON. */

import { z } from "zod";
import { parsedBy } from "../../base/json.ts";
import type { EvalSummary, SampleRecord, Stage } from "./records.ts";

export interface RunState {
  /** Index of the stage that is under way, and steps of it that are done; after the last stage, their number and 0. */
  readonly stage: number;
  readonly step: number;
  /** Updates the stage's optimizer has taken. */
  readonly updates: number;
  /** The step of the whole run that last moved the weights; absent where none has. */
  readonly moved?: number;
  /** The step of reinforcement learning before which the reference became what it is. */
  readonly reference?: number;
  readonly tokens: number;
  readonly flops: number;
  /** Seconds of the run so far, and of each stage. */
  readonly elapsed: number;
  readonly seconds: Readonly<Partial<Record<Stage, number>>>;
  /** Evaluations done. */
  readonly base?: EvalSummary;
  readonly sft?: EvalSummary;
  readonly firstBacktrack?: SampleRecord;
}

export const FRESH: RunState = {
  stage: 0,
  step: 0,
  updates: 0,
  tokens: 0,
  flops: 0,
  elapsed: 0,
  seconds: {},
};

const whole = z.number().int().nonnegative();
const amount = z.number().nonnegative();
/** The records inside are this program's own, of the format that run.json names. */
const Schema = z.looseObject({
  stage: whole,
  step: whole,
  updates: whole,
  moved: whole.optional(),
  reference: whole.optional(),
  tokens: whole,
  flops: amount,
  elapsed: amount,
  seconds: z.record(z.string(), amount),
});

/** @throws FormatError naming the checkpoint when it holds something else */
export function parseRunState(where: string, value: unknown): RunState {
  return parsedBy(Schema, where, value) as unknown as RunState;
}
