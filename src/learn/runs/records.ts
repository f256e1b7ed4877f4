/**
 * The records of a run: what each step writes to `metrics.jsonl` and `samples.jsonl`, and what the run leaves in
 * `result.json`. Everything outside `timing` is a function of the configuration and the seed alone, so that a resumed
 * run can be compared with an uninterrupted one byte for byte.
 */

/** Stages in the order a run may take them. */
export type Stage = "pretrain" | "sft" | "rl";

/** Mean and population standard deviation over the batch's samples; `NaN`-free: absent when every sample skipped. */
export interface Spread {
  readonly mean: number;
  readonly std: number;
}

/** What reinforcement learning adds to a step's record. */
export interface RolloutMetrics {
  /** Total reward, and each named reward before its weight. */
  readonly reward: Spread;
  readonly rewards: Readonly<Record<string, Spread>>;
  /** Fraction of groups whose samples all got the same reward: they teach nothing. */
  readonly equalGroups: number;
  /** Groups drawn again by dynamic sampling. */
  readonly resampledGroups: number;
  /** Fraction of samples that are correct; fraction of groups with at least one correct sample. */
  readonly pass1: number;
  readonly passG: number;
  /** Mean completion length in tokens, of all samples and of those that ended or were cut; absent when there were none. */
  readonly length: { readonly all: number; readonly terminated?: number; readonly truncated?: number };
  readonly truncatedFraction: number;
  /** Mean entropy of the policy over completion tokens, nats. */
  readonly entropy: number;
  /**
   * Mean k3 estimate of KL(policy ‖ reference), nats, over the tokens trained on, of which `thinBelow` takes few from samples that say
   * little; absent without a reference, and where nothing was trained on.
   */
  readonly kl?: number;
  /** Steps since the reference model was last refreshed. */
  readonly referenceAge?: number;
  /** Fractions of tokens trained on whose ratio was clipped below and above. */
  readonly clipLow: number;
  readonly clipHigh: number;
  readonly ratio: { readonly mean: number; readonly max: number };
}

/** How tokens were spread over the experts of a step's batches, padding not counted. */
export interface ExpertMetrics {
  /** Largest load over the mean load, minus 1 (arXiv:2408.15664, MaxVio): 0 is even; of each layer, and their mean. */
  readonly violation: number;
  readonly violations: readonly number[];
  /** Experts, of all layers, that no token went to. */
  readonly idle: number;
}

export interface StepMetrics {
  readonly stage: Stage;
  /** 1-based within the stage, and how many the stage has. */
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  /** Global norm before clipping. */
  readonly gradientNorm: number;
  readonly learningRate: number;
  /** Tokens generated and trained on in this step, and in the whole run so far. */
  readonly tokens: { readonly rollout: number; readonly train: number; readonly total: number };
  /** Floating-point operations of this step, by the model's own count. */
  readonly flops: number;
  readonly rl?: RolloutMetrics;
  /** Absent where the model has no experts, and where no update was taken. */
  readonly experts?: ExpertMetrics;
  /** Accuracy on validation puzzles, on the steps that measure it. */
  readonly validation?: { readonly pass1: number; readonly count: number; readonly meanLength: number };
  readonly timing: {
    /** Seconds since the run began, pauses between resumes not counted. */
    readonly elapsed: number;
    /** Seconds in each phase of this step: rollout, reward, pack, train, checkpoint, validate. */
    readonly phases: Readonly<Record<string, number>>;
    readonly rolloutTokensPerSecond?: number;
    readonly trainTokensPerSecond: number;
    /** Share of the machine's measured matrix-multiplication peak. */
    readonly utilization?: number;
    readonly rssBytes: number;
  };
}

/** A completion and what its judges said. */
export interface CompletionRecord {
  readonly id: string;
  readonly prompt: string;
  readonly completion: string;
  readonly rewards: Readonly<Record<string, number | null>>;
  readonly reward: number;
  readonly correct: boolean;
  readonly tokens: number;
  readonly truncated: boolean;
}

/** One line of `samples.jsonl`. */
export interface SampleRecord extends CompletionRecord {
  readonly stage: Stage;
  readonly step: number;
}

/** A pass@1 estimate on held-out prompts. */
export interface EvalSummary {
  readonly pass1: number;
  /** 95 % interval (Wilson when each prompt has one sample, clustered by prompt otherwise). */
  readonly interval: readonly [number, number];
  readonly count: number;
  readonly samplesPerPrompt: number;
  /** pass@k for the measured k, unbiased. */
  readonly passK: Readonly<Record<string, number>>;
  /** Mean completion length in tokens. */
  readonly meanLength: number;
  readonly truncatedFraction: number;
}

/** `result.json`. */
export interface RunResult {
  readonly name: string;
  readonly task: string;
  readonly preset: string;
  readonly seed: number;
  readonly parameters: number;
  readonly minutes: number;
  readonly stages: readonly { readonly stage: Stage; readonly steps: number; readonly minutes: number }[];
  /** Before anything is rewarded or demonstrated, and at the end; `sft` between them, where a cold start came before reinforcement. */
  readonly base: EvalSummary;
  readonly sft?: EvalSummary;
  readonly final: EvalSummary;
  /** How these were sampled. Absent in runs from before it was written down. */
  readonly sampling?: { readonly temperature: number; readonly topP: number };
  readonly tokens: number;
  readonly flops: number;
  readonly cpuHours: number;
  readonly dollars: number;
  /** Solved puzzles with their thoughts. */
  readonly solved: readonly SampleRecord[];
  /** The first sample that went back after a failed check and was then right, and its step. */
  readonly firstBacktrack?: SampleRecord;
  /** Folder of the model, from the run's own. */
  readonly model: string;
}

/** The measured points of a run in order, each with its name; the last but one is what the last stage is to be compared with. */
export function milestones({
  base,
  sft,
  final,
  stages,
}: RunResult): { name: string; summary: EvalSummary }[] {
  const reinforced = stages.some(({ stage }) => stage === "rl");
  return [
    { name: sft === undefined && reinforced ? "before RL" : "base", summary: base },
    ...(sft === undefined ? [] : [{ name: "cold start", summary: sft }]),
    { name: reinforced ? "after RL" : "trained", summary: final },
  ];
}
