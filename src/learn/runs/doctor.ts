/**
 * Reads a run's metrics and samples as somebody who has trained such models would: says in plain words what is wrong, on
 * what evidence, and what to change. Every rule is a row of one table, with its thresholds named above it.
 */

import { mean } from "../../base/numbers.ts";
import { shellPath } from "../../base/shell.ts";
import { readAnswer } from "../tasks/answer.ts";
import { describe } from "../tasks/task.ts";
import { type RunFailure, remedyOf } from "./failure.ts";
import type { RolloutMetrics, SampleRecord, StepMetrics } from "./records.ts";

/** `problem`: the run cannot succeed like this. `warning`: it may. `good`: nothing to do. */
export type Level = "problem" | "warning" | "good";

export interface Finding {
  /** Stable name of the rule, for scripts. */
  readonly rule: string;
  readonly level: Level;
  /** What is wrong, in one plain sentence. */
  readonly finding: string;
  /** The numbers it rests on. */
  readonly evidence: string;
  /** What to change; empty when nothing has to. */
  readonly remedy: string;
}

/** Steps of reinforcement learning that make up "now": enough to average out the draw of prompts. */
export const WINDOW = 20;
/** Below this many steps of reinforcement learning nothing is said about trends. */
export const MIN_STEPS = 5;
/** Fraction of groups whose samples all got one reward, from where most of the work is wasted, or all of it. */
export const EQUAL_GROUPS = { warning: 0.8, problem: 0.95 };
/** pass@1 above which equal rewards mean "solved" and below which they mean "out of reach". */
export const SOLVED = 0.95;
export const HOPELESS = 0.02;
/** Share of completions that can be read, or mean of a reward for the form, under which answers practically never parse. */
export const FORMAT = 0.05;
/** Fewest samples to judge by: if none of 20 has something, with 95 % certainty fewer than one in seven has it. */
export const MIN_SAMPLES = 20;
export const TRUNCATED = { warning: 0.5, problem: 0.9 };
/** Nats per token. A collapsed policy samples the same completion again and again. */
export const ENTROPY_FLOOR = 0.02;
/** Entropy now over entropy at the start, under which the loss of variety is worth a warning. */
export const ENTROPY_FALL = 0.1;
/** pass@1 above which low entropy is no fault: a solved task leaves little to be unsure of. */
export const ENTROPY_EXCUSED = 0.8;
/** Mean KL to the reference, nats per token. R1's β of 0.001 makes 1 nat cost a thousandth of a reward. */
export const KL = { warning: 1, problem: 5 };
/** Median gradient norm now, over the newest half of a stage's steps at most, to its median before. */
export const GRADIENT_GROWTH = { warning: 5, problem: 20 };
/** R1 refreshes its reference every 400 steps. */
export const REFERENCE_AGE = 400;
/** |mean ratio − 1| from where the data no longer come from the policy they train. */
export const RATIO_DRIFT = { warning: 0.05, problem: 0.2 };
/** Share of tokens whose ratio is clipped, which therefore teach nothing. */
export const CLIPPED = 0.3;
/** Validation pass@1 must fall by this much, and by more than two standard errors, to count as falling. */
export const VALIDATION_FALL = 0.03;
/** Steps after which some progress is due, and the least rise of pass@1 that counts as progress. */
export const PROGRESS = { steps: 60, rise: 0.02 };

/** The tag of an answer in the R1 way of writing (answer.ts), opened or closed. */
const TAG = /<\/?answer>/;

type RlStep = StepMetrics & { readonly rl: RolloutMetrics };

/** What the rules look at, computed once. */
interface Chart {
  readonly rl: readonly RlStep[];
  /** The first and the last {@link WINDOW} steps; they overlap in a short run. */
  readonly first: readonly RlStep[];
  readonly last: readonly RlStep[];
  /** Those of the last steps that were written down; none in a run that keeps no samples. */
  readonly samples: readonly SampleRecord[];
  /** Whether a prompt or completion of the run has an answer tag: then answers are read from between tags. */
  readonly tagged: boolean;
  /** Whether prompts whose samples were all rewarded alike are drawn anew already. */
  readonly redraws: boolean;
}

/** Upper median; robust against a single spike. */
function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

/** Mean of what some steps carry; undefined where none does. */
function meanOf(
  steps: readonly RlStep[],
  pick: (rl: RolloutMetrics) => number | undefined,
): number | undefined {
  const values = steps.map((s) => pick(s.rl)).filter((v) => v !== undefined);
  return values.length === 0 ? undefined : mean(values);
}

const percent = (fraction: number): string =>
  `${(100 * fraction).toFixed(fraction > 0 && fraction < 0.01 ? 2 : 0)} %`;
const number = (value: number): string => String(Number(value.toPrecision(3)));
const level = (value: number, limits: { warning: number; problem: number }): Level | undefined =>
  value >= limits.problem ? "problem" : value >= limits.warning ? "warning" : undefined;

/** What the policy writes now, as a piece of evidence. */
function newest(samples: readonly SampleRecord[]): string {
  const last = samples.at(-1);
  return last === undefined ? "" : `; the newest sample is ${describe(last.completion)}`;
}

/**
 * Why it seems that no answer can be read; undefined where answers are read or nothing can be told. What a task can read
 * only its rewards know. The one named `format` decides where there is one. Without it a right completion was read,
 * whatever it looks like. Where none is right, answer tags decide if the run has any, and else the rewards beside
 * accuracy, which pay for JSON that is valid or a query that runs: a guess, as they might be for something else.
 */
function unread({ last, samples, tagged }: Chart): { guess: boolean; evidence: string } | undefined {
  const over = `over the last ${last.length} steps`;
  const earned = (name: string) => meanOf(last, (rl) => rl.rewards[name]?.mean);
  const format = earned("format");
  if (format !== undefined) {
    if (format > FORMAT) return undefined;
    return { guess: false, evidence: `mean format reward ${number(format)} ${over}` };
  }
  const pass1 = meanOf(last, (rl) => rl.pass1)!;
  if (pass1 > HOPELESS) return undefined;
  const nothing = `pass@1 ${percent(pass1)} ${over}`;
  if (tagged && samples.length >= MIN_SAMPLES) {
    const read = samples.filter(({ completion }) => readAnswer(completion) !== undefined).length;
    if (read > FORMAT * samples.length) return undefined;
    const counted = `${read} of ${samples.length} samples have an answer between <answer> and </answer>`;
    return { guess: false, evidence: `${nothing}; ${counted}` };
  }
  const names = new Set(last.flatMap((s) => Object.keys(s.rl.rewards)));
  // The only reward is the one for being right.
  const beside = names.size < 2 ? [] : [...names].filter((name) => name !== "accuracy");
  // Below zero it is a penalty, which says nothing of whether an answer was read.
  const paid = beside.map((name) => [name, earned(name)!] as const).filter(([, value]) => value >= 0);
  if (paid.length === 0 || paid.some(([, value]) => value > FORMAT)) return undefined;
  const means = paid.map(([name, value]) => `${name} ${number(value)}`).join(", ");
  return { guess: true, evidence: `${nothing}; mean reward of ${means}` };
}

type Rule = (chart: Chart) => Omit<Finding, "rule"> | undefined;

const rules: Readonly<Record<string, Rule>> = {
  skipped({ last, samples }) {
    const silent = last.every((s) => Object.keys(s.rl.rewards).length === 0);
    const skips = samples.filter(({ rewards }) => Object.values(rewards).every((value) => value === null));
    const most = samples.length >= MIN_SAMPLES && skips.length >= (1 - FORMAT) * samples.length;
    if (!silent && !most) return undefined;
    const evidence = silent
      ? `no reward said anything over the last ${last.length} steps`
      : `no reward said anything of ${skips.length} of ${samples.length} samples`;
    return {
      level: "problem",
      finding: "Practically every sample is skipped: rewards return null, so there is nothing to learn from.",
      evidence: evidence + newest(samples),
      remedy:
        "Return 0 for a completion that is bad or cannot be read; null is for samples that should not count.",
    };
  },

  "never-parses"(chart) {
    const found = unread(chart);
    if (found === undefined) return undefined;
    return {
      level: "problem",
      finding: found.guess
        ? "Nothing is right and nothing else is rewarded: probably no answer can be read."
        : "Answers practically never parse, so being right cannot be rewarded.",
      evidence: found.evidence + newest(chart.samples),
      remedy:
        "Show the format in the prompt, pre-train or cold-start on text in that format, allow more new tokens (rl.maxNewTokens), and look at samples.jsonl for what is written instead.",
    };
  },

  "equal-rewards"({ last, samples, redraws }) {
    const equal = meanOf(last, (rl) => rl.equalGroups)!;
    const pass1 = meanOf(last, (rl) => rl.pass1)!;
    const found = level(equal, EQUAL_GROUPS);
    if (found === undefined) return undefined;
    const evidence = `in ${percent(equal)} of groups all samples got the same reward; pass@1 ${percent(pass1)}`;
    if (pass1 >= SOLVED) {
      return {
        level: "good",
        finding: "The task is solved: nearly every sample is right, so nothing is left to learn from it.",
        evidence,
        remedy: "Stop here, or draw harder prompts.",
      };
    }
    if (pass1 <= HOPELESS) {
      return {
        level: found,
        finding:
          "The task is out of reach: nearly every sample is wrong, so no sample is better than its siblings.",
        evidence: evidence + newest(samples),
        remedy:
          "Start with easier prompts, take more samples per prompt (rl.samples), pre-train the base longer (pretrain.steps), add a cold start (--preset r1), or give partial rewards; and look in samples.jsonl for answers that the reward should have read.",
      };
    }
    return {
      level: found,
      finding: "Rewards hardly ever differ inside a group, so most samples teach nothing.",
      evidence,
      remedy: `${redraws ? "Draw prompts anew more often (rl.resampleAttempts)" : "Draw other prompts for such groups (rl.resampleAttempts=4)"}, take more samples per prompt (rl.samples), raise the temperature (rl.temperature), mix easy and hard prompts, and check that the reward looks at the completion.`,
    };
  },

  truncated({ last }) {
    const cut = meanOf(last, (rl) => rl.truncatedFraction)!;
    const found = level(cut, TRUNCATED);
    if (found === undefined) return undefined;
    return {
      level: found,
      finding:
        found === "problem"
          ? "Nearly every completion is cut off before its end."
          : "Many completions are cut off.",
      evidence: `${percent(cut)} of samples reach the length limit; mean length ${number(meanOf(last, (rl) => rl.length.all)!)} tokens`,
      remedy:
        "Allow more new tokens (rl.maxNewTokens), penalize overlong completions softly (rl.overlong=penalty) or mask them (rl.overlong=mask), and check that the base has learnt to end its answers.",
    };
  },

  "entropy-collapsed"({ first, last }) {
    const now = meanOf(last, (rl) => rl.entropy)!;
    const start = meanOf(first, (rl) => rl.entropy)!;
    if (meanOf(last, (rl) => rl.pass1)! >= ENTROPY_EXCUSED) return undefined;
    const evidence = `${number(now)} nats per token, ${number(start)} at the start`;
    const remedy =
      "Raise the upper clip (rl.clipHigh), add an entropy bonus (rl.entropyBonus), lower the learning rate (rl.rates.adamW), or raise the temperature (rl.temperature).";
    if (now < ENTROPY_FLOOR) {
      return {
        level: "problem",
        finding:
          "Entropy has collapsed: the policy writes the same thing every time and can find nothing new.",
        evidence,
        remedy,
      };
    }
    if (now < ENTROPY_FALL * start) {
      return {
        level: "warning",
        finding: "Entropy has fallen steeply before the task is solved.",
        evidence,
        remedy,
      };
    }
    return undefined;
  },

  "kl-exploding"({ last }) {
    const kl = meanOf(last, (rl) => rl.kl);
    const found = kl === undefined ? undefined : level(kl, KL);
    if (found === undefined) return undefined;
    return {
      level: found,
      finding: "The policy has moved very far from its reference.",
      evidence: `mean KL ${number(kl!)} nats per token`,
      remedy:
        "Lower the learning rate (rl.rates.adamW), raise the KL weight (rl.klBeta), or refresh the reference more often (rl.referenceEvery).",
    };
  },

  "reference-old"({ last }) {
    const age = last.at(-1)?.rl.referenceAge;
    if (age === undefined || age < REFERENCE_AGE) return undefined;
    // A step that trained on nothing has no KL.
    const kl = meanOf(last, (rl) => rl.kl);
    return {
      level: "warning",
      finding: "The reference model is old: the KL term pulls towards a policy long left behind.",
      evidence: `${age} steps since its last refresh${kl === undefined ? "" : `, KL ${number(kl)} nats`}`,
      remedy: `Refresh the reference every ${REFERENCE_AGE} steps or more often, as R1 did (rl.referenceEvery), or train without one (rl.klBeta=0).`,
    };
  },

  "ratio-drift"({ last }) {
    const drift = mean(last.map((s) => Math.abs(s.rl.ratio.mean - 1)));
    const clipped = meanOf(last, (rl) => rl.clipLow + rl.clipHigh)!;
    const found = level(drift, RATIO_DRIFT) ?? (clipped >= CLIPPED ? "warning" : undefined);
    if (found === undefined) return undefined;
    return {
      level: found,
      finding: "The policy drifts away from the samples it is trained on within one rollout.",
      evidence: `mean ratio off 1 by ${number(drift)}, ${percent(clipped)} of tokens clipped, largest ratio ${number(Math.max(...last.map((s) => s.rl.ratio.max)))}`,
      remedy:
        "Do fewer updates per rollout (rl.updatesPerRollout, rl.epochs) or lower the learning rate (rl.rates.adamW); at the first update the ratio must be 1.",
    };
  },

  "reward-hacking"({ rl }) {
    const measured = rl.filter((s) => s.validation !== undefined);
    const now = measured.at(-1);
    const best = measured.slice(0, -1).reduce<RlStep | undefined>((top, s) => {
      return top === undefined || s.validation!.pass1 > top.validation!.pass1 ? s : top;
    }, undefined);
    if (now === undefined || best === undefined) return undefined;
    const fall = best.validation!.pass1 - now.validation!.pass1;
    const variance = (s: RlStep) => (s.validation!.pass1 * (1 - s.validation!.pass1)) / s.validation!.count;
    if (fall < Math.max(VALIDATION_FALL, 2 * Math.sqrt(variance(best) + variance(now)))) return undefined;
    const rewardAt = (s: RlStep) =>
      mean(rl.slice(Math.max(0, rl.indexOf(s) - WINDOW + 1), rl.indexOf(s) + 1).map((r) => r.rl.reward.mean));
    const rising = rewardAt(now) >= rewardAt(best);
    return {
      level: rising ? "problem" : "warning",
      finding: rising
        ? "Reward rises while held-out accuracy falls: the policy has found a way to be paid without being right."
        : "Held-out accuracy is falling.",
      evidence: `validation pass@1 ${percent(best.validation!.pass1)} at step ${best.step}, ${percent(now.validation!.pass1)} at step ${now.step}; reward ${number(rewardAt(best))} then, ${number(rewardAt(now))} now`,
      remedy: rising
        ? "Read samples.jsonl for what is rewarded, tighten the verifier, and lower the weight of rewards other than accuracy."
        : "Lower the learning rate (rl.rates.adamW), add a KL term (rl.klBeta), and go back to the checkpoint of the best step.",
    };
  },

  "no-progress"({ rl, first, last }) {
    if (rl.length < PROGRESS.steps) return undefined;
    const before = meanOf(first, (r) => r.pass1)!;
    const now = meanOf(last, (r) => r.pass1)!;
    if (now >= SOLVED || now - before >= PROGRESS.rise) return undefined;
    return {
      level: "warning",
      finding: "There is no progress: as many samples are right as at the start.",
      evidence: `pass@1 ${percent(before)} in the first ${first.length} steps, ${percent(now)} in the last ${last.length}`,
      remedy:
        "Raise the learning rate (rl.rates.adamW), take more samples per prompt (rl.samples), check pass@G (if it is no higher than pass@1, the policy does not explore), or make the prompts easier.",
    };
  },
};

/** The stages whose gradients grow, each apart: they are of different losses. */
function exploding(metrics: readonly StepMetrics[]): Finding[] {
  return [...new Set(metrics.map(({ stage }) => stage))].flatMap((stage) => {
    // A step that trained on nothing has a norm of 0.
    const norms = metrics.filter((m) => m.stage === stage && m.gradientNorm > 0).map((m) => m.gradientNorm);
    const recent = Math.min(WINDOW, norms.length >> 1);
    if (recent < MIN_STEPS) return [];
    const now = median(norms.slice(-recent));
    const growth = now / median(norms.slice(0, -recent));
    const found = level(growth, GRADIENT_GROWTH);
    if (found === undefined) return [];
    return [
      {
        rule: "gradients-exploding",
        level: found,
        finding: "Gradients are exploding.",
        evidence: `${stage}: median norm ${number(now)} over the last ${recent} steps that trained, ${number(growth)}× what it was before`,
        remedy: `Lower the learning rate (${stage}.rates.adamW${stage === "rl" ? "" : `, ${stage}.rates.muon`}), warm up longer (${stage}.schedule.warmup), take more samples per step, or clip harder (${stage}.optimizer.clipNorm).`,
      },
    ];
  });
}

/**
 * What is wrong with a run and what to change, worst first. A run without faults gets one finding, `healthy`; a run too
 * short to judge gets `too-early`.
 * @param run.metrics   every step of the run in order
 * @param run.samples   every sample of the run in order; without them less can be told
 * @param run.failure   what stopped it, if something did
 * @param run.path      says how the run is named in what to type
 * @param command       what is typed before `train`
 */
export function diagnose(
  run: {
    readonly metrics: readonly StepMetrics[];
    readonly samples?: readonly SampleRecord[];
    readonly failure?: RunFailure;
    readonly path?: string;
  },
  command = "pondera",
): Finding[] {
  const findings = exploding(run.metrics);
  const { failure, path } = run;
  if (failure !== undefined) {
    findings.push({
      rule: "not-finite",
      level: "problem",
      finding: "A number was not finite, and training stopped.",
      evidence: `after step ${failure.step}: ${failure.error}`,
      remedy: `${remedyOf(failure, path === undefined ? "RUN" : shellPath(path), command)}.`,
    });
  }
  const rl = run.metrics.filter((m): m is RlStep => m.rl !== undefined);
  if (rl.length < MIN_STEPS) {
    findings.push({
      rule: "too-early",
      level: "good",
      finding: "It is too early to judge the reinforcement learning.",
      evidence: `${rl.length} of at least ${MIN_STEPS} steps`,
      remedy: "",
    });
    return worstFirst(findings);
  }
  const last = rl.slice(-WINDOW);
  const written = (run.samples ?? []).filter(({ stage }) => stage === "rl");
  const chart: Chart = {
    rl,
    first: rl.slice(0, WINDOW),
    last,
    samples: written.filter(({ step }) => step >= last[0]!.step),
    tagged: written.some(({ prompt, completion }) => TAG.test(`${prompt} ${completion}`)),
    redraws: rl.some((s) => s.rl.resampledGroups > 0),
  };
  for (const [rule, judge] of Object.entries(rules)) {
    const finding = judge(chart);
    if (finding !== undefined) findings.push({ rule, ...finding });
  }
  if (findings.length === 0) {
    const pass = (steps: readonly RlStep[]) => percent(meanOf(steps, (r) => r.pass1)!);
    findings.push({
      rule: "healthy",
      level: "good",
      finding: "The run looks healthy.",
      evidence: `pass@1 ${pass(chart.first)} in the first ${chart.first.length} steps, ${pass(chart.last)} in the last ${chart.last.length}; rewards differ, answers parse, entropy and gradients are steady`,
      remedy: "",
    });
  }
  return worstFirst(findings);
}

const LEVELS: readonly Level[] = ["problem", "warning", "good"];

function worstFirst(findings: readonly Finding[]): Finding[] {
  return [...findings].sort((a, b) => LEVELS.indexOf(a.level) - LEVELS.indexOf(b.level));
}
