/**
 * What the comparisons have in common: turns, A B A B, so that whatever else the machine does meets both alike; ratios of
 * medians, and of each round; a report as JSON or as lines.
 */

import { availableParallelism } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { Command, CommanderError } from "commander";
import { type Machine, type Measured, machineLine, measured } from "../src/app/bench/measure.ts";
import { wholeNumber } from "../src/app/cli/arguments.ts";
import { PonderaError } from "../src/base/errors.ts";
import { PythonPeer } from "./python-peer.ts";

/** Options of every comparison. */
export interface VersusOptions {
  readonly rounds: number;
  readonly threads: number;
  readonly json?: true;
  /** Tells of the progress. */
  readonly onRound?: (done: number) => void;
}

/** Where the Python half is, for tests to put a stand-in there. */
export interface PeerOverride {
  readonly script?: string;
  readonly python?: string;
}

export function startPeer(
  script: string,
  options: Readonly<Record<string, unknown>>,
  { script: other = script, python }: PeerOverride,
): Promise<PythonPeer> {
  return PythonPeer.start(other, options, python === undefined ? {} : { python });
}

/** One of those compared. */
export interface Side {
  readonly name: string;
  /** Seconds of each of some runs. */
  readonly turn: () => Promise<readonly number[]>;
}

export interface Timed {
  readonly name: string;
  readonly seconds: Measured;
  readonly rounds: readonly (readonly number[])[];
}

export interface Ratio {
  /** How many times as fast the first side is as this one, by the medians of all runs. */
  readonly median: number;
  /** The same of each round. */
  readonly rounds: readonly number[];
}

/** After a parallel region OpenMP's threads stay awake for up to 0.2 s, and would be in the other side's way. */
const REST_MS = 300;

/** Lets the sides run in turns. */
export async function takeTurns(
  sides: readonly Side[],
  rounds: number,
  onRound?: (done: number) => void,
): Promise<Timed[]> {
  const all: (readonly number[])[][] = sides.map(() => []);
  for (let round = 0; round < rounds; round++) {
    for (const [i, { turn }] of sides.entries()) {
      await sleep(REST_MS);
      all[i]!.push(await turn());
    }
    onRound?.(round + 1);
  }
  return sides.map(({ name }, i) => ({ name, seconds: measured(all[i]!.flat()), rounds: all[i]! }));
}

/** How many times as fast `ours` is as `theirs`. */
export function ratioOf(ours: Timed, theirs: Timed): Ratio {
  return {
    median: theirs.seconds.median / ours.seconds.median,
    rounds: theirs.rounds.map((round, i) => measured(round).median / measured(ours.rounds[i]!).median),
  };
}

export interface VersusReport {
  readonly benchmark: string;
  /** What was compared, in one line. */
  readonly what: string;
  readonly machine: Machine;
  /** What else there is to say, in lines. */
  readonly notes?: readonly string[];
  /** Of the packages that the other side is. */
  readonly versions: Readonly<Record<string, string>>;
  readonly groups: readonly VersusGroup[];
}

/** Sides on the same work; the first is ours. */
export interface VersusGroup {
  readonly name: string;
  /** Tokens of each run; 0 where tokens are not what it is about. */
  readonly tokens: number;
  readonly sides: readonly Timed[];
  /** Of the first side against each other, by its name. */
  readonly ratios: Readonly<Record<string, Ratio>>;
}

export function groupOf(name: string, tokens: number, sides: readonly Timed[]): VersusGroup {
  const [ours, ...others] = sides;
  return {
    name,
    tokens,
    sides,
    ratios: Object.fromEntries(others.map((side) => [side.name, ratioOf(ours!, side)])),
  };
}

/** The report for people. */
export function versusLines({ what, groups, versions, machine, notes = [] }: VersusReport): string[] {
  const packages = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  return [
    what,
    ...groups.flatMap(({ name, tokens, sides, ratios }) => [
      name,
      ...sides.map(({ name: side, seconds: { median, min, max, all } }) => {
        const ratio = ratios[side];
        const range = ratio === undefined ? [] : [Math.min(...ratio.rounds), Math.max(...ratio.rounds)];
        const compared =
          ratio === undefined
            ? ""
            : `   Pondera is ${ratio.median.toFixed(2)}× as fast (rounds ${range.map((r) => r.toFixed(2)).join(" to ")})`;
        const speed = tokens === 0 ? "" : `${Math.round(tokens / median)} tokens/s`.padStart(16);
        return `  ${side.padEnd(22)} ${median.toFixed(3)} s (min ${min.toFixed(3)}, max ${max.toFixed(3)}, ${all.length} of them) ${speed}${compared}`;
      }),
    ]),
    ...notes,
    packages.join(", "),
    machineLine(machine),
  ];
}

/** A comparison's command line: `define` adds its own options. */
export function versusCommand(
  name: string,
  description: string,
  needs = "PONDERA_PYTHON names the Python; see bench/README.md.",
): Command {
  return new Command(name)
    .description(`${description} ${needs}`)
    .option("--rounds <n>", "turns each side has", wholeNumber({ min: 1 }), 4)
    .option("--threads <n>", "threads of each side", wholeNumber({ min: 1 }), availableParallelism())
    .option("--json", "everything as one object, every measurement in it")
    .exitOverride();
}

/** Whether this file is what Node was started with, and not imported. */
export function isMain(moduleUrl: string): boolean {
  return process.argv[1] !== undefined && pathToFileURL(process.argv[1]).href === moduleUrl;
}

/** Runs a comparison from the command line and prints its report; sets the exit code where it fails. */
export async function main<Options extends VersusOptions>(
  command: Command,
  compare: (options: Options) => Promise<VersusReport>,
): Promise<void> {
  try {
    command.parse();
    const options = command.opts<Options>();
    const onRound = (done: number): void => console.error(`round ${done} of ${options.rounds}`);
    const report = await compare({ ...options, onRound });
    console.log(options.json ? JSON.stringify(report, undefined, 2) : versusLines(report).join("\n"));
  } catch (error) {
    process.exitCode = error instanceof CommanderError ? error.exitCode : 1;
    if (error instanceof CommanderError) return;
    console.error(error instanceof PonderaError ? `error: ${error.message}` : error);
  }
}
