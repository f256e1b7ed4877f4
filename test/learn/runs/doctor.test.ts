import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { diagnose, MIN_SAMPLES, PROGRESS, REFERENCE_AGE, WINDOW } from "../../../src/learn/runs/doctor.ts";
import type { RolloutMetrics, StepMetrics } from "../../../src/learn/runs/records.ts";
import { setOption } from "../../../src/learn/train/config.ts";
import { PRESETS } from "../../../src/learn/train/presets.ts";
import { pretrainStep, sample, step } from "./synthetic.ts";

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

  it("does not tell to turn on what is on", () => {
    const remedy = (resampledGroups: number) =>
      diagnose(run(30, undefined, () => ({ equalGroups: 0.9, resampledGroups })))[0]?.remedy;
    expect(remedy(0)).toMatch(/^Draw other prompts for such groups \(rl\.resampleAttempts=4\), /);
    expect(remedy(2)).toMatch(/^Draw prompts anew more often \(rl\.resampleAttempts\), /);
  });

  it("names fields that a configuration has", () => {
    const source = readFileSync(new URL("../../../src/learn/runs/doctor.ts", import.meta.url), "utf8");
    const named = [...source.matchAll(/[(,] ?((?:rl|pretrain)\.\w+(?:\.\w+)?)(?==|,|\))/g)].map(
      ([, field]) => field,
    );
    expect(named.length).toBeGreaterThan(15);
    for (const field of named)
      expect(() => setOption(PRESETS.quick.config, `${field}=1`), field).not.toThrow();
    for (const stage of ["pretrain", "sft", "rl"])
      for (const field of ["rates.adamW", "rates.muon", "schedule.warmup", "optimizer.clipNorm"])
        expect(() => setOption(PRESETS.quick.config, `${stage}.${field}=1`)).not.toThrow();
  });

  it("tells a task out of reach from a reward that never differs", () => {
    const [first] = diagnose(run(30, undefined, () => ({ equalGroups: 0.99, ...pass(0.001) })));
    expect(first?.finding).toMatch(/out of reach/);
    expect(first?.remedy).toMatch(/easier prompts/);
  });

  describe("of answers that never parse", () => {
    const none = { pass1: 0, passG: 0, reward: { mean: 0, std: 0 } };
    /** A run that is never right, what its rewards beside accuracy come to, and what it writes. */
    const wrong = (beside: Record<string, number>, writes?: (i: number) => string, rl = {}) => {
      const rewards = Object.fromEntries(
        Object.entries({ accuracy: 0, ...beside }).map(([name, value]) => [name, { mean: value, std: 0 }]),
      );
      const { metrics } = run(30, undefined, () => ({ ...none, rewards, ...rl }));
      const samples = metrics.map((_, i) =>
        sample(i + 1, { completion: writes?.(i) ?? "?", correct: false }),
      );
      return writes === undefined ? { metrics } : { metrics, samples };
    };
    const found = (r: Parameters<typeof diagnose>[0]) => diagnose(r).find((f) => f.rule === "never-parses");

    it("says so of a reward for the form, whatever its name", () => {
      const finding = found(wrong({ schema: 0.01, overlong: -0.2 }, () => "{age:7"));
      expect(finding).toMatchObject({
        level: "problem",
        finding: expect.stringMatching(/^Nothing is right/),
      });
      expect(finding?.evidence).toBe(
        'pass@1 0 % over the last 20 steps; mean reward of schema 0.01; the newest sample is "{age:7"',
      );
      expect(found(wrong({ schema: 0.01 }))?.evidence).not.toContain("newest");
    });

    it("says nothing where some reward for the form is earned, some are right, or there is none", () => {
      expect(found(wrong({ schema: 0.9, runs: 0 }))).toBeUndefined();
      expect(found(wrong({ runs: 0 }, undefined, { pass1: 0.1 }))).toBeUndefined();
      expect(found(wrong({}))).toBeUndefined();
      expect(found(wrong({ overlong: -0.2 }))).toBeUndefined();
    });

    it("reads the samples of a run that writes answer tags, or is asked to", () => {
      const lost = wrong({}, (i) => (i === 0 ? "<answer>7</answer>" : "<think>7, 7, 7"));
      expect(found(lost)).toMatchObject({
        finding: expect.stringMatching(/^Answers practically never parse/),
        evidence: expect.stringContaining("0 of 20 samples have an answer between <answer> and </answer>"),
      });
      const asked = wrong({}, () => "It is 7.");
      expect(found(asked)).toBeUndefined();
      const samples = asked.samples!.map((s) => ({ ...s, prompt: "Write <answer>…</answer>." }));
      expect(found({ ...asked, samples })?.level).toBe("problem");
      // Half of them readable and wrong is another fault, whatever else is not rewarded.
      expect(
        found(wrong({ polite: 0 }, (i) => (i % 2 === 0 ? "<answer>7</answer>" : "<answer>"))),
      ).toBeUndefined();
    });

    it("lets the reward named format decide, and does not judge by a few samples", () => {
      expect(found(wrong({ format: 0.9, schema: 0 }, () => "<answer>"))).toBeUndefined();
      const { metrics, samples } = wrong({}, () => "<answer>");
      expect(found({ metrics, samples: samples!.slice(-MIN_SAMPLES) })).toBeDefined();
      expect(found({ metrics, samples: samples!.slice(-MIN_SAMPLES + 1) })).toBeUndefined();
    });

    it("tells rewards that are all null from rewards that are zero", () => {
      const { metrics } = run(30, undefined, () => ({ ...none, rewards: {} }));
      const silent = diagnose({ metrics }).find((f) => f.rule === "skipped");
      expect(silent).toMatchObject({ level: "problem", remedy: expect.stringMatching(/^Return 0/) });
      const seldom = wrong({}, () => "?");
      expect(rulesOf(seldom)).not.toContain("problem: skipped");
      const samples = seldom.samples!.map((s) => ({ ...s, rewards: { accuracy: null } }));
      const skipped = diagnose({ ...seldom, samples }).find((f) => f.rule === "skipped");
      expect(skipped?.evidence).toBe('no reward said anything of 20 of 20 samples; the newest sample is "?"');
    });
  });

  it("shows what is written where the task is out of reach", () => {
    const { metrics } = run(30, undefined, () => ({ equalGroups: 0.99, ...pass(0.001) }));
    const [first] = diagnose({ metrics, samples: [sample(30, { completion: "7\n".repeat(60) })] });
    expect(first?.evidence).toMatch(/the newest sample is "7\\n7.*…$/);
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

  it("names gradients that grow in a short run, and in a stage before", () => {
    const grows = (i: number) => ({ gradientNorm: 10 ** i });
    expect(rulesOf(run(9, grows))).toEqual(["good: healthy"]);
    expect(rulesOf(run(10, grows))).toEqual(["problem: gradients-exploding"]);
    const text = Array.from({ length: 60 }, (_, i) => ({
      ...pretrainStep(i, 60),
      gradientNorm: i < 40 ? 0.1 : 0.7,
    }));
    expect(rulesOf({ metrics: text })).toEqual(["warning: gradients-exploding", "good: too-early"]);
    const [finding] = diagnose({ metrics: [...text, ...run(30).metrics] });
    expect(finding?.evidence).toBe(
      "pretrain: median norm 0.7 over the last 20 steps that trained, 7× what it was before",
    );
    expect(finding?.remedy).toContain("pretrain.rates.muon");
  });

  it("does not take steps that trained on nothing for small gradients", () => {
    expect(rulesOf(run(45, (i) => ({ gradientNorm: i < 25 ? 0 : 0.4 })))).toEqual(["good: healthy"]);
    const seldom = (late: number) => run(100, (i) => ({ gradientNorm: i % 4 > 0 ? 0 : i < 60 ? 0.4 : late }));
    expect(rulesOf(seldom(0.4))).toEqual(["good: healthy"]);
    expect(rulesOf(seldom(40))).toEqual(["problem: gradients-exploding"]);
  });

  it("names what stopped the run, also where it is too early for the rest, and what to type", () => {
    const failure = {
      step: 3,
      error: "update 4: the loss must be finite; got NaN",
      from: 2,
      set: ["a=1", "b=2"],
    };
    const [first, second] = diagnose({ ...run(3), failure, path: "my runs/mine" }, "npx pondera");
    expect(first).toMatchObject({
      rule: "not-finite",
      level: "problem",
      evidence: "after step 3: update 4: the loss must be finite; got NaN",
      remedy:
        "For example, npx pondera train --resume 'my runs/mine' --set a=1 --set b=2 goes on after step 2 with lower rates; where that fails, too, begin a new run with them.",
    });
    expect(second?.rule).toBe("too-early");
    expect(diagnose({ ...run(30), failure }).map(({ rule }) => rule)).toEqual(["not-finite"]);
  });

  it("says the KL to an old reference over the steps that measured it, and none where none did", () => {
    const evidence = (kl: (i: number) => Partial<RolloutMetrics>) =>
      diagnose(run(30, undefined, (i) => ({ referenceAge: REFERENCE_AGE + i, ...kl(i) })))[0]?.evidence;
    // The last step is one of those that do not ask the reference.
    expect(evidence((i) => (i % 2 === 0 ? { kl: i < 20 ? 0.1 : 0.3 } : {}))).toBe(
      "429 steps since its last refresh, KL 0.2 nats",
    );
    expect(evidence(() => ({}))).toBe("429 steps since its last refresh");
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
