/**
 * The two ways a thought may go through a game of Countdown, each value worked out in steps and checked. Results that
 * would be too large are not tried, but as the first step backward from four numbers, where they fail.
 *
 * `forward` takes steps until all numbers are used, and checks what they made against the target: nothing but sums, and
 * much of it. Division always is tried, and fails without a result where that would not be whole: whether two numbers divide is decided
 * where both have been read. A line takes some steps and then tries every way to finish from there; the next line has gone back.
 *
 * ```
 * <think>27+15=42: 42+12=54✗ 42-12=30✗ 42/12✗
 * 27-15=12: 12+12=24✗ 12-12=0✗ 12*12=144✗ 12/12=1✗
 * 27/15✗
 * 27+12=39: 39+15=54✗ 39-15=24✗ 39/15✗
 * 27-12=15: 15+15=30✗ 15-15=0✗ 15/15=1✗
 * 27/12✗
 * 15+12=27: 27+27=54✗ 27-27=0✗ 27/27=1✗
 * 15-12=3: 27+3=30✗ 27-3=24✗ 27*3=81✓
 * </think><answer>27*(15-12)</answer>
 * ```
 *
 * `backward` keeps one number for last, says what the rest would have to make for it and how the two would then be joined, and tries
 * what the rest makes. Where that is among what is needed, the last step is written down. Of four numbers it joins two first, and
 * says what is left.
 *
 * ```
 * <think>27 81: +54-108*3: 15+12=27✗ 15-12=3✓ 27*3=81
 * </think><answer>27*(15-12)</answer>
 * ```
 */

import type { Puzzle } from "./puzzle.ts";

export const HIT = "✓";
export const MISS = "✗";

export interface Term {
  readonly value: number;
  /** How it is made, as an answer writes it. */
  readonly text: string;
}

interface Step {
  readonly operator: string;
  readonly line: string;
  /** Undefined for one that fails: a quotient that is not whole, or a result that is too large. */
  readonly term: Term | undefined;
}

/** What joins two terms, the larger first, in the order + − × ÷. */
function joinsOf(x: Term, y: Term, largest: number): Step[] {
  const [a, b] = x.value >= y.value ? [x, y] : [y, x];
  const join = (operator: string, value: number): Step => {
    const step = `${a.value}${operator}${b.value}`;
    return Number.isInteger(value) && value <= largest
      ? { operator, line: `${step}=${value}`, term: { value, text: `${a.text}${operator}${b.text}` } }
      : { operator, line: step, term: undefined };
  };
  return [
    join("+", a.value + b.value),
    join("-", a.value - b.value),
    join("*", a.value * b.value),
    join("/", a.value / b.value),
  ];
}

/** Of what joins two terms the results up to `largest`, and the quotient that is not whole, which fails. */
export function stepsOf(x: Term, y: Term, largest: number): Step[] {
  return joinsOf(x, y, largest).filter(({ operator, term }) => term !== undefined || operator === "/");
}

/** A number as it is given. */
export const termOf = (value: number): Term => ({ value, text: `${value}` });

/** One way to use all numbers, or a step that fails. */
export interface Try {
  /** A line of its own before it, where tries are of fewer numbers than the game: said once for all of these. */
  readonly heading?: string;
  /** What its line begins with: tries that begin alike share a line. */
  readonly start: string;
  readonly last: string;
  /** What it makes, where it is the last step and does not fail. */
  readonly made?: { readonly expression: string; readonly value: number };
  /** The step left where what it makes is the target. */
  readonly finish?: string;
}

/**
 * All tries of a game, in a fixed order.
 * @param largest  largest result a step may have
 * @param keep     decides of each step whether it is taken
 */
type Walk = (game: Game, largest: number, keep: () => boolean) => Generator<Try>;

interface Game {
  readonly terms: readonly Term[];
  readonly target: number;
}

export const gameOf = ({ numbers, target }: Puzzle): Game => ({ terms: numbers.map(termOf), target });

const pairsOf = (terms: readonly Term[]): [Term, Term, Term[]][] =>
  terms.flatMap((a, i) =>
    terms.slice(i + 1).map((b): [Term, Term, Term[]] => [a, b, terms.filter((c) => c !== a && c !== b)]),
  );

/** In brackets whatever goes around it: an answer then copies what its thought says, and needs no rules of its own. */
const bracketed = ({ value, text }: Term): Term => ({ value, text: `(${text})` });

/** Depth first: pairs in the order of the numbers, operators in the order + − × ÷. */
function* forward(
  { terms, target }: Game,
  largest: number,
  keep: () => boolean,
  path: readonly string[] = [],
): Generator<Try> {
  const start = path.length === 0 ? "" : `${path.join(" ")}: `;
  for (const [a, b, rest] of pairsOf(terms)) {
    for (const { line, term } of stepsOf(a, b, largest)) {
      if (!keep()) continue;
      if (term === undefined) yield { start, last: line };
      else if (rest.length > 0)
        yield* forward({ terms: [...rest, bracketed(term)], target }, largest, keep, [...path, line]);
      else yield { start, last: line, made: { expression: term.text, value: term.value } };
    }
  }
}

/**
 * A number kept for last, the target, and what the rest must make so that the two make it, each after the operator that then joins
 * them: `15 81: +66-96` says that 66 will do, added to 15, and 96, less 15.
 */
export function needsOf(kept: number, target: number, largest: number): string {
  const [least, most] = kept < target ? [kept, target] : [target, kept];
  const [sum, product] = [most + least, most * least];
  const needs = [
    `${kept > target ? "-" : "+"}${most - least}`,
    ...(sum <= largest ? [`-${sum}`] : []),
    ...(product <= largest ? [`/${product}`] : []),
    ...(least > 0 && most % least === 0 ? [`${kept > target ? "/" : "*"}${most / least}`] : []),
  ];
  return `${kept} ${target}: ${needs.join("")}`;
}

/** The order in which two of many are joined: what makes small numbers first, where most solutions lie. */
const JOINS = ["/", "-", "*", "+"] as const;

/** Three numbers: each is kept for last in turn. Two: tried as they are. More: two are joined, and the rest is such a game. */
function* backward(
  { terms, target }: Game,
  largest: number,
  keep: () => boolean,
  heading?: string,
): Generator<Try> {
  const head = heading === undefined ? {} : { heading };
  if (terms.length > 3) {
    const joins = pairsOf(terms).flatMap(([a, b, rest]) =>
      joinsOf(a, b, largest).map((step) => ({ ...step, rest })),
    );
    for (const { line, term, rest } of JOINS.flatMap((o) => joins.filter(({ operator }) => operator === o))) {
      if (!keep()) continue;
      if (term === undefined) {
        yield { ...head, start: "", last: line };
        continue;
      }
      const left = [...rest, bracketed(term)];
      const next = `${line}: ${left.map(({ value }) => value).join(" ")}`;
      yield* backward({ terms: left, target }, largest, keep, next);
    }
    return;
  }
  if (terms.length < 3) {
    yield* forward({ terms, target }, largest, keep);
    return;
  }
  for (const kept of terms) {
    if (!keep()) continue;
    const start = `${needsOf(kept.value, target, largest)}: `;
    const [a, b] = terms.filter((term) => term !== kept) as [Term, Term];
    for (const { line, term } of stepsOf(a, b, largest)) {
      if (term === undefined || !keep()) continue;
      const joined = stepsOf(bracketed(term), kept, largest).filter((step) => step.term !== undefined);
      const finish = joined.find((step) => step.term?.value === target);
      const made = (finish ?? joined[0])?.term;
      yield {
        ...head,
        start,
        last: line,
        ...(made === undefined ? {} : { made: { expression: made.text, value: made.value } }),
        ...(finish === undefined ? {} : { finish: finish.line }),
      };
    }
  }
}

export const WALKS = { forward, backward } as const satisfies Record<string, Walk>;

export type Thoughts = keyof typeof WALKS;
