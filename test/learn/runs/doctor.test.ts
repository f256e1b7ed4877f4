import { describe, expect, it } from "vitest";
import type { RolloutMetrics, StepMetrics } from "../../../src/learn/runs/records.ts";
import { diagnose, PROGRESS, REFERENCE_AGE, WINDOW } from "../../../src/learn/runs/doctor.ts";
import { step } from "./synthetic.ts";

function run(
  steps: number,
  change: (i: number) => Partial<StepMetrics> = () => ({}),
  rl: (i: number) => Partial<RolloutMetrics> = () => ({}),
) {
  return { metrics: Array.from({ length: steps }, (_, i) => step(i, steps, change(i), rl(i))) };
}

const rulesOf = (r: { metrics: StepMetrics[] }) => diagnose(r).map((f) => `${f.level}: ${f.rule}`);

describe("diagnose", () => {
  it("finds a good run healthy, and says nothing else", () => {
    expect(rulesOf(run(100))).toEqual(["good: healthy"]);
    expect(diagnose(run(100))[0]?.evidence).toContain(
      "pass@1 25 % in the first 20 steps, 65 % in the last 20",
    );
  });

  it("does not judge a run without steps or with a few", () => {
    expect(rulesOf({ metrics: [] })).toEqual(["good: too-early"]);
    expect(rulesOf(run(4))).toEqual(["good: too-early"]);
    expect(rulesOf(run(5))).toEqual(["good: healthy"]);
  });

  const pass = (pass1: number) => ({ pass1, passG: pass1, reward: { mean: pass1, std: 0 } });
  it.each<[string, string, (i: number) => Partial<RolloutMetrics>]>([
    ["rewards that never differ", "problem: equal-rewards", () => ({ equalGroups: 0.97 })],
    ["rewards that seldom differ", "warning: equal-rewards", () => ({ equalGroups: 0.85 })],
    ["a task that is solved", "good: equal-rewards", () => ({ equalGroups: 0.97, ...pass(0.99) })],
    [
      "answers that never parse",
      "problem: never-parses",
      () => ({ rewards: { format: { mean: 0.01, std: 0.1 } } }),
    ],
    ["completions all cut off", "problem: truncated", () => ({ truncatedFraction: 0.99 })],
    ["completions often cut off", "warning: truncated", () => ({ truncatedFraction: 0.6 })],
    ["entropy that collapsed", "problem: entropy-collapsed", () => ({ entropy: 0.005 })],
    ["entropy that fell steeply", "warning: entropy-collapsed", (i) => ({ entropy: i < 50 ? 1 : 0.05 })],
    ["a high KL", "warning: kl-exploding", () => ({ kl: 2 })],
    ["an exploding KL", "problem: kl-exploding", () => ({ kl: 9 })],
    ["an old reference", "warning: reference-old", (i) => ({ kl: 0.1, referenceAge: REFERENCE_AGE + i })],
    ["a ratio that drifts", "problem: ratio-drift", () => ({ ratio: { mean: 0.7, max: 9 } })],
    ["much clipping", "warning: ratio-drift", () => ({ clipLow: 0.2, clipHigh: 0.2 })],
  ])("names %s", (_, expected, rl) => {
    expect(rulesOf(run(100, undefined, rl))).toEqual([expected]);
  });

  it("tells a task out of reach from a reward that never differs", () => {
    const [first] = diagnose(run(30, undefined, () => ({ equalGroups: 0.99, ...pass(0.001) })));
    expect(first?.finding).toMatch(/out of reach/);
    expect(first?.remedy).toMatch(/easier prompts/);
  });

  it("excuses low entropy once the task is nearly solved", () => {
    expect(rulesOf(run(40, undefined, () => ({ entropy: 0.005, ...pass(0.9) })))).toEqual(["good: healthy"]);
  });

  it("judges by the recent past, not by a bad start", () => {
    expect(rulesOf(run(100, undefined, (i) => ({ truncatedFraction: i < 80 ? 1 : 0 })))).toEqual([
      "good: healthy",
    ]);
  });

  it("names growing gradients, but not one spike", () => {
    expect(rulesOf(run(100, (i) => ({ gradientNorm: i < 80 ? 0.5 : 3 })))).toEqual([
      "warning: gradients-exploding",
    ]);
    expect(rulesOf(run(100, (i) => ({ gradientNorm: i < 80 ? 0.5 : 50 })))).toEqual([
      "problem: gradients-exploding",
    ]);
    expect(rulesOf(run(100, (i) => ({ gradientNorm: i === 95 ? 500 : 0.5 })))).toEqual(["good: healthy"]);
  });

  it("names a step that was not finite, also when JSON made it null", () => {
    const broken = run(30, (i) => (i === 29 ? { loss: Number.NaN } : {}));
    const reread = { metrics: JSON.parse(JSON.stringify(broken.metrics)) as StepMetrics[] };
    expect(rulesOf(broken)[0]).toBe("problem: not-finite");
    expect(diagnose(reread)[0]?.evidence).toContain("rl step 30: loss null");
  });

  it("names a reward that rises while validation falls", () => {
    const validated = (pass1: (i: number) => number) => (i: number) =>
      i % 20 === 19 ? { validation: { pass1: pass1(i), count: 400, meanLength: 50 } } : {};
    expect(
      rulesOf(
        run(
          100,
          validated((i) => (i < 50 ? 0.6 : 0.3)),
        ),
      ),
    ).toEqual(["problem: reward-hacking"]);
    // A fall within two standard errors of 400 puzzles is no fall.
    expect(
      rulesOf(
        run(
          100,
          validated((i) => (i < 50 ? 0.6 : 0.55)),
        ),
      ),
    ).toEqual(["good: healthy"]);
    expect(
      rulesOf(
        run(
          100,
          validated((i) => 0.3 + i / 300),
        ),
      ),
    ).toEqual(["good: healthy"]);
    const falling = run(
      100,
      validated((i) => (i < 50 ? 0.6 : 0.3)),
      (i) => pass(0.6 - i / 400),
    );
    expect(rulesOf(falling)).toContain("warning: reward-hacking");
  });

  it("names a run that does not move, once progress is due", () => {
    const flat = (steps: number) => run(steps, undefined, () => pass(0.3));
    expect(rulesOf(flat(PROGRESS.steps))).toEqual(["warning: no-progress"]);
    expect(rulesOf(flat(PROGRESS.steps - 1))).toEqual(["good: healthy"]);
  });

  it("ignores steps before reinforcement learning and puts problems first", () => {
    const { metrics } = run(WINDOW, undefined, () => ({ kl: 2, truncatedFraction: 1 }));
    const { rl: _, ...pretrain } = { ...step(0, 10), stage: "pretrain" as const, gradientNorm: 99 };
    expect(rulesOf({ metrics: [pretrain, ...metrics] })).toEqual([
      "problem: truncated",
      "warning: kl-exploding",
    ]);
  });

  it("gives a remedy with every fault", () => {
    const sick = run(100, undefined, () => ({
      kl: 9,
      truncatedFraction: 1,
      entropy: 0,
      equalGroups: 1,
      referenceAge: 900,
    }));
    for (const finding of diagnose(sick)) {
      expect(finding.remedy).toMatch(/^[A-Z].*\.$/);
      expect(finding.finding).toMatch(/^[A-Z].*\.$/);
    }
  });
});
