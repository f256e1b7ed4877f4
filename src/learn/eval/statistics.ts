/**
 * What a handful of samples says about a model: proportions with intervals, pass@k without bias, majority votes.
 * All are pure functions of counts; nothing here draws a random number.
 */

import { ConfigError } from "../../base/errors.ts";
import { mean } from "../../base/numbers.ts";
import type { EvalSummary } from "../runs/records.ts";

/** The 97.5th percentile of the standard normal: two-sided 95 %. */
const Z95 = 1.959963984540054;

/** The Wilson interval at a sample size that need not be whole. */
function wilson(p: number, n: number): [number, number] {
  const z2 = Z95 * Z95;
  const centre = (p + z2 / (2 * n)) / (1 + z2 / n);
  const half = (Z95 / (1 + z2 / n)) * Math.sqrt((p * (1 - p)) / n + z2 / (4 * n * n));
  // At p = 0 and 1 the exact ends are 0 and 1; rounding may miss them by one unit in the last place.
  return [p === 0 ? 0 : Math.max(0, centre - half), p === 1 ? 1 : Math.min(1, centre + half)];
}

/**
 * The 95 % Wilson score interval of a proportion. Unlike p ± 1.96·SE it stays inside [0, 1] and keeps a width when
 * every trial succeeded.
 * @param trials   at least 0; without trials nothing is known and the interval is [0, 1]
 * @source E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927)
 */
export function wilsonInterval(successes: number, trials: number): [number, number] {
  if (!Number.isInteger(trials) || !(successes >= 0 && successes <= trials)) {
    throw new ConfigError({
      where: "wilsonInterval",
      rule: "successes must lie between 0 and a whole number of trials",
      got: `${successes} of ${trials}`,
    });
  }
  return trials === 0 ? [0, 1] : wilson(successes / trials, trials);
}

/**
 * The mean of per-prompt means and its 95 % interval, prompts being the independent units: samples of one prompt
 * resemble each other, so eight samples of a prompt count for less than eight prompts.
 *
 * The variance is that of the prompt means over P prompts (denominator P − 1). It is turned into an effective sample
 * size n = p(1 − p) / SE², held between P (samples of a prompt all alike) and all samples (independent), and the
 * Wilson interval at that n is returned. So it is the plain Wilson interval at one sample per prompt, and honest at
 * 0 % and 100 %, where the usual t interval has no width. The normal quantile is used; under some 30 prompts it is a
 * little narrow.
 * @param scores   per prompt, its samples' scores in [0, 1]; every prompt needs at least one
 * @source effective sample size in a Wilson interval: N. Dean and M. Pagano, "Evaluating confidence interval methods
 *         for binomial proportions in clustered surveys", J. Survey Statistics and Methodology 3 (2015)
 */
export function clusteredInterval(scores: readonly (readonly number[])[]): {
  mean: number;
  interval: [number, number];
} {
  const P = scores.length;
  if (P === 0) return { mean: 0, interval: [0, 1] };
  let samples = 0;
  const means = scores.map((group, i) => {
    if (group.length === 0 || group.some((s) => !(s >= 0 && s <= 1))) {
      throw new ConfigError({
        where: `clusteredInterval (prompt ${i})`,
        rule: "every prompt needs at least one sample with a score in [0, 1]",
        got: `[${group.join(", ")}]`,
      });
    }
    samples += group.length;
    return mean(group);
  });
  const p = mean(means);
  const squaredError = P < 2 ? 0 : means.reduce((sum, m) => sum + (m - p) ** 2, 0) / (P - 1) / P;
  const effective = squaredError === 0 ? P : (p * (1 - p)) / squaredError;
  return { mean: p, interval: wilson(p, Math.min(samples, Math.max(P, effective))) };
}

/**
 * The chance that at least one of k samples is correct, estimated without bias from n ≥ k samples, c of them correct:
 * 1 − C(n − c, k) / C(n, k), as a product so that no binomial overflows.
 * @throws ConfigError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n
 * @source M. Chen et al., "Evaluating large language models trained on code", arXiv:2107.03374, eq. 1 and fig. 3
 */
export function passAtK(n: number, c: number, k: number): number {
  if (
    !(
      Number.isInteger(n) &&
      Number.isInteger(c) &&
      Number.isInteger(k) &&
      c >= 0 &&
      c <= n &&
      k >= 1 &&
      k <= n
    )
  ) {
    throw new ConfigError({
      where: "passAtK",
      rule: "needs 0 ≤ correct ≤ samples and 1 ≤ k ≤ samples",
      got: `samples=${n}, correct=${c}, k=${k}`,
      remedy: "Draw at least k samples per prompt",
    });
  }
  if (n - c < k) return 1;
  let allWrong = 1;
  for (let i = n - c + 1; i <= n; i++) allWrong *= 1 - k / i;
  return 1 - allWrong;
}

/**
 * The answer most samples agree on. Samples without an answer do not vote; of answers with equally many votes the one
 * given first wins, so the result depends on the samples' order and on nothing else.
 * @returns undefined when no sample gave an answer
 */
export function majorityVote(answers: readonly (string | null)[]): string | undefined {
  const votes = new Map<string, number>();
  for (const answer of answers) if (answer !== null) votes.set(answer, (votes.get(answer) ?? 0) + 1);
  let winner: string | undefined;
  let most = 0;
  // A Map iterates in order of first insertion; only a strictly larger count displaces the leader.
  for (const [answer, count] of votes) {
    if (count > most) [winner, most] = [answer, count];
  }
  return winner;
}

/** One judged completion, as far as statistics need it. */
export interface Outcome {
  readonly correct: boolean;
  /** Completion length in tokens. */
  readonly tokens: number;
  readonly truncated: boolean;
}

/**
 * Sums up an evaluation: `outcomes[p][g]` is sample g of prompt p.
 * pass@k is reported for each asked k up to the smallest number of samples a prompt has.
 * @throws ConfigError when there is no prompt or a prompt has no sample
 */
export function summarize(
  outcomes: readonly (readonly Outcome[])[],
  options: { readonly ks?: readonly number[] } = {},
): EvalSummary {
  const samplesPerPrompt = outcomes.reduce(
    (least, group) => Math.min(least, group.length),
    Number.POSITIVE_INFINITY,
  );
  if (outcomes.length === 0 || samplesPerPrompt === 0) {
    throw new ConfigError({
      where: "summarize",
      rule: "an evaluation needs at least one prompt, and each prompt at least one sample",
      got: `${outcomes.length} prompts`,
    });
  }
  const { mean: pass1, interval } = clusteredInterval(
    outcomes.map((group) => group.map((o) => (o.correct ? 1 : 0))),
  );
  const ks = (options.ks ?? [1, 2, 4, 8, 16, 32, 64]).filter((k) => k <= samplesPerPrompt);
  const passK = Object.fromEntries(
    ks.map((k) => {
      const each = outcomes.map((group) => passAtK(group.length, group.filter((o) => o.correct).length, k));
      return [String(k), mean(each)];
    }),
  );
  const all = outcomes.flat();
  return {
    pass1,
    interval,
    count: outcomes.length,
    samplesPerPrompt,
    passK,
    meanLength: all.reduce((sum, o) => sum + o.tokens, 0) / all.length,
    truncatedFraction: all.filter((o) => o.truncated).length / all.length,
  };
}
