/**
 * What a person sees while a model learns. In a terminal: a panel that redraws itself, with the two curves that matter
 * (is it right more often, does it think longer) and a thought now and then. Elsewhere: one line per step.
 * What to draw is a pure function of the state, {@link render}; only {@link createTrainingView} writes.
 */

import { createLogUpdate } from "log-update";
import picocolors from "picocolors";
import { mean } from "../../base/numbers.ts";
import { shellWord } from "../../base/shell.ts";
import { milestones, type RunResult, type SampleRecord, type StepMetrics } from "../../learn/runs/records.ts";
import type { RunFacts } from "../../learn/train/training.ts";
import { clock, compact, dollars, flops, percent, sampledAt, stageName, times } from "../format.ts";
import { promptText, splitCompletion } from "../thought.ts";
import { bar, columnsOf, ellipsize, printable, sparkline, wrap } from "./text.ts";

/** What only the caller knows of a step. */
export interface StepExtra {
  /** Until the whole run ends. */
  readonly etaSeconds?: number;
  /** Cost of the run so far. */
  readonly dollars?: number;
}

export interface TrainingView {
  start(info: RunFacts): void;
  step(metrics: StepMetrics, extra?: StepExtra): void;
  /** A sample worth showing. */
  sample(sample: SampleRecord): void;
  /** A line that stays: a stage that ended, a checkpoint, a warning. */
  note(text: string): void;
  /** How many tokens of an evaluation are written. */
  measuring(tokens: number): void;
  finish(result: RunResult): void;
  /** Leaves the terminal as it was; more calls do nothing. */
  stop(): void;
}

/** Everything the panel shows. */
export interface ViewState {
  readonly info: RunFacts;
  /** The last step, absent before the first. */
  readonly step?: StepMetrics;
  readonly extra: StepExtra;
  /** pass@1 and mean completion length of every step of reinforcement learning so far. */
  readonly accuracy: readonly number[];
  readonly length: readonly number[];
  /** Loss of every step of the stage before reinforcement learning that is under way. */
  readonly loss: readonly number[];
  readonly sample?: SampleRecord;
  /** Tokens that are written of the evaluation under way. */
  readonly measured?: number;
}

/** The state before the first step, or before the next one of a run that goes on. */
export function begin(info: RunFacts): ViewState {
  const fresh: ViewState = { info, extra: {}, accuracy: [], length: [], loss: [] };
  return info.earlier.reduce((state, step) => advance(state, step, {}), fresh);
}

/** The state after a step. */
export function advance(
  { measured: _, ...state }: ViewState,
  step: StepMetrics,
  extra: StepExtra,
): ViewState {
  const sameStage = state.step?.stage === step.stage;
  return {
    ...state,
    step,
    extra,
    accuracy: step.rl === undefined ? state.accuracy : [...state.accuracy, step.rl.pass1],
    length: step.rl === undefined ? state.length : [...state.length, step.rl.length.all],
    loss: sameStage ? [...state.loss, step.loss] : [step.loss],
  };
}

export type Colors = ReturnType<typeof picocolors.createColors>;

/** A piece of a line and how it is painted; lines are cut to width before they are painted. */
interface Piece {
  readonly text: string;
  readonly paint?: (text: string) => string;
}

function line(pieces: readonly Piece[], width: number): string {
  let room = width;
  let painted = "";
  for (const { text, paint } of pieces) {
    const cut = ellipsize(text, room);
    painted += paint === undefined || cut === "" ? cut : paint(cut);
    room -= columnsOf(cut);
    if (cut !== text) break;
  }
  return painted;
}

/** Mean of the newest values, to steady a number that jumps from batch to batch. */
function recent(values: readonly number[], count = 5): number {
  const last = values.slice(-count);
  return mean(last);
}

const early = (values: readonly number[]): number => recent(values.slice(0, 5));

/** How the learner seems to feel about it: a face and a few words. */
export function mood(state: ViewState): { readonly face: string; readonly words: string } {
  const { step } = state;
  if (step === undefined) return { face: "(·_·)", words: "waking up" };
  if (step.stage === "pretrain") {
    return step.step < step.steps / 2
      ? { face: "(·_·)", words: "learning the notation: tries, checks, dead ends" }
      : { face: "(o_o)", words: "knows its sums, gives up easily" };
  }
  if (step.stage === "sft") return { face: "(o_o)", words: "reading good solutions" };
  const right = recent(state.accuracy);
  const gained = right - early(state.accuracy);
  const longer = recent(state.length) / early(state.length);
  if (right >= 0.95) return { face: "\\(^‿^)/", words: "hardly ever wrong" };
  if (right >= 0.75) return { face: "(^‿^)", words: "gets three out of four" };
  if (right >= 0.5) return { face: "(•‿•)", words: "right more often than wrong" };
  if (gained > 0.05 && longer > 1.15) return { face: "(•_•)", words: "thinks longer, and it pays" };
  if (gained > 0.05) return { face: "(•_•)", words: "getting the hang of it" };
  if (state.accuracy.length < 10)
    return { face: "(o_o)", words: "nobody shows it solutions now; only right answers count" };
  return { face: "(o_o)", words: "trying things out" };
}

/** A sample as a few lines: the puzzle, the thought dim, the answer and its verdict. */
export function renderSample(sample: SampleRecord, width: number, colors: Colors, maxLines = 4): string[] {
  const { thought, answer } = splitCompletion(sample.prompt, sample.completion);
  // As it was written, line by line; empty lines would take the place of words.
  const lines = wrap(printable(thought, { keepLines: true }), width - 4).filter((text) => text.trim() !== "");
  const shown =
    lines.length <= maxLines
      ? lines
      : [...lines.slice(0, maxLines - 2), `… ${lines.length - maxLines + 1} more lines …`, lines.at(-1)!];
  const verdict = sample.correct
    ? colors.green("right")
    : colors.yellow(sample.truncated ? "cut off" : "wrong");
  return [
    line(
      [
        { text: "  ╭ ", paint: colors.dim },
        { text: printable(promptText(sample.prompt)), paint: colors.bold },
      ],
      width,
    ),
    ...shown.map((text) =>
      line(
        [
          { text: "  │ ", paint: colors.dim },
          { text, paint: colors.dim },
        ],
        width,
      ),
    ),
    // The verdict is painted apart, so the answer is cut to what room it leaves.
    `${colors.dim("  ╰ ")}${ellipsize(answer === "" ? "no answer" : printable(answer).trim(), Math.max(0, width - 12))} ${verdict}`,
  ];
}

/**
 * The panel.
 * @returns lines of at most `width` columns, painted
 */
export function render(state: ViewState, width: number, colors: Colors): string[] {
  const { info, step, extra } = state;
  const { face, words } = mood(state);
  const wide = width >= 64;
  const label = (text: string): Piece => ({ text: `  ${text.padEnd(9)}`, paint: colors.dim });
  const title: Piece[] = [
    { text: `  ${face} `, paint: colors.cyan },
    { text: printable(info.task), paint: colors.bold },
    { text: `  ${words}`, paint: colors.dim },
  ];
  const about = `${printable(info.name)} · seed ${info.seed} · ${compact(info.parameters)} parameters · ${info.machine}`;
  const lines = ["", line(title, width), line([{ text: `  ${about}`, paint: colors.dim }], width), ""];
  if (state.measured !== undefined) {
    const written = `  measuring: ${state.measured.toLocaleString("en")} tokens written`;
    return [...lines, line([{ text: written, paint: colors.dim }], width)];
  }
  if (step === undefined) return lines;

  const stageNumber = info.stages.findIndex((s) => s.stage === step.stage);
  const heading = `${stageName(step.stage)}${info.stages.length > 1 ? ` (${stageNumber + 1} of ${info.stages.length})` : ""}`;
  lines.push(line([{ text: `  ${heading}`, paint: colors.bold }], width));
  const position = ` step ${step.step} of ${step.steps}`;
  const left = extra.etaSeconds === undefined ? "" : ` · ${clock(extra.etaSeconds)} left`;
  const { filled, rest } = bar(
    step.step / step.steps,
    Math.max(4, Math.min(40, width - 4 - position.length - left.length)),
  );
  lines.push(
    line(
      [
        { text: "  " },
        { text: filled, paint: colors.cyan },
        { text: rest, paint: colors.dim },
        { text: `${position}${left}` },
      ],
      width,
    ),
  );
  lines.push("");

  const curveWidth = Math.min(32, width - 44);
  const curve = (values: readonly number[], paint: (text: string) => string): Piece[] =>
    wide ? [{ text: sparkline(values, curveWidth).padEnd(curveWidth), paint }, { text: "  " }] : [];
  if (step.rl !== undefined) {
    const { accuracy, length } = state;
    const longer = recent(length) / early(length);
    lines.push(
      line(
        [
          label("right"),
          { text: percent(recent(accuracy)).padEnd(13), paint: colors.green },
          ...curve(accuracy, colors.green),
          ...(accuracy.length > 5 ? [{ text: `from ${percent(early(accuracy))}`, paint: colors.dim }] : []),
        ],
        width,
      ),
      line(
        [
          label("thought"),
          { text: `${recent(length).toFixed(0)} tokens`.padEnd(13), paint: colors.magenta },
          ...curve(length, colors.magenta),
          ...(length.length > 5 ? [{ text: `${times(longer)} the start`, paint: colors.dim }] : []),
        ],
        width,
      ),
      line(
        [
          label("reward"),
          { text: step.rl.reward.mean.toFixed(3).padEnd(13) },
          { text: "entropy ", paint: colors.dim },
          { text: `${step.rl.entropy.toFixed(3)} nats` },
          ...(step.rl.kl === undefined
            ? []
            : [{ text: "   KL ", paint: colors.dim }, { text: step.rl.kl.toFixed(4) }]),
        ],
        width,
      ),
    );
  } else {
    lines.push(
      line(
        [
          label("loss"),
          { text: step.loss.toFixed(3).padEnd(13), paint: colors.yellow },
          ...curve(state.loss, colors.yellow),
        ],
        width,
      ),
    );
  }
  if (step.validation !== undefined) {
    const { pass1, count } = step.validation;
    lines.push(
      line([label("held out"), { text: `${percent(pass1)} of ${count} right`, paint: colors.green }], width),
    );
  }
  const { rolloutTokensPerSecond, trainTokensPerSecond, elapsed } = step.timing;
  const speeds = [
    ...(rolloutTokensPerSecond === undefined
      ? []
      : [`${compact(Math.round(rolloutTokensPerSecond))} tokens/s thinking`]),
    `${compact(Math.round(trainTokensPerSecond))} tokens/s training`,
  ];
  lines.push(line([label("speed"), { text: speeds.join(" · ") }], width));
  const spent = extra.dollars === undefined ? "" : ` · ${dollars(extra.dollars)}`;
  lines.push(
    line(
      [label("so far"), { text: `${clock(elapsed)} · ${compact(step.tokens.total)} tokens${spent}` }],
      width,
    ),
  );
  if (state.sample !== undefined) {
    lines.push("", line([{ text: `  one thought, step ${state.sample.step}`, paint: colors.dim }], width));
    lines.push(...renderSample(state.sample, width, colors));
  }
  return [...lines, ""];
}

/** One step as one line, for logs. */
export function renderLine(step: StepMetrics, extra: StepExtra): string {
  const { rl, validation, timing } = step;
  const speed =
    rl === undefined
      ? timing.trainTokensPerSecond
      : (timing.rolloutTokensPerSecond ?? timing.trainTokensPerSecond);
  const fields = [
    `${step.stage} ${step.step}/${step.steps}`,
    ...(rl === undefined
      ? [`loss ${step.loss.toFixed(4)}`]
      : [
          `reward ${rl.reward.mean.toFixed(3)}`,
          `right ${percent(rl.pass1)}`,
          `length ${rl.length.all.toFixed(1)}`,
          `entropy ${rl.entropy.toFixed(3)}`,
          ...(rl.kl === undefined ? [] : [`kl ${rl.kl.toFixed(4)}`]),
        ]),
    `gradient ${step.gradientNorm.toFixed(2)}`,
    ...(validation === undefined ? [] : [`held out ${percent(validation.pass1)} of ${validation.count}`]),
    `${compact(Math.round(speed))} tokens/s`,
    ...(extra.etaSeconds === undefined ? [] : [`${clock(extra.etaSeconds)} left`]),
    ...(extra.dollars === undefined ? [] : [dollars(extra.dollars)]),
  ];
  return fields.join("  ").replaceAll("\u00a0", " ");
}

function paragraph(text: string, width: number): string[] {
  return wrap(text, width - 4).map((part) => `  ${part}`);
}

/** How commands are typed, for what to type next. */
export interface Typed {
  /** What they begin with. @default "pondera" */
  readonly command?: string;
  /** The folder that the run is in, where commands would not look by themselves. */
  readonly runs?: string;
}

/** The closing words of a run: what it was before and after, what it cost, what it thought, what to type next. */
export function renderResult(result: RunResult, width: number, colors: Colors, typed: Typed = {}): string[] {
  const { base, final } = result;
  const { command = "pondera", runs } = typed;
  const row = (name: string, summary: RunResult["base"], paint: (text: string) => string) =>
    line(
      [
        { text: `  ${name.padEnd(11)}`, paint: colors.dim },
        { text: percent(summary.pass1).padStart(7), paint },
        {
          text: `  95 % [${percent(summary.interval[0])}, ${percent(summary.interval[1])}]`.padEnd(28),
          paint: colors.dim,
        },
        { text: `  ${summary.meanLength.toFixed(0)} tokens a thought` },
      ],
      width,
    );
  const grown = final.meanLength / base.meanLength;
  const summary = `${percent(base.pass1)} → ${percent(final.pass1)} right on ${final.count.toLocaleString("en")} held-out prompts${sampledAt(result.sampling)}`;
  const spent = [
    `${result.minutes.toFixed(1)} minutes`,
    `${compact(result.tokens)} tokens`,
    flops(result.flops),
    `${result.cpuHours.toFixed(2)} CPU-hours`,
    dollars(result.dollars),
  ];
  const run = `${shellWord(result.name)}${runs === undefined ? "" : ` --runs ${shellWord(runs)}`}`;
  const next: readonly [string, string][] = [
    [`${command} chat ${run}`, "ask it something"],
    [`${command} eval ${run}`, "measure it again, on any puzzles"],
    [`${command} runs show ${run}`, "its curves, and where the report is"],
  ];
  const longest = Math.max(...next.map(([words]) => words.length));
  return [
    "",
    ...paragraph(`${printable(result.task)}: ${summary}`, width).map(colors.bold),
    "",
    ...milestones(result).map(({ name, summary }) =>
      row(name, summary, summary === final ? colors.green : colors.yellow),
    ),
    "",
    ...paragraph(`Thoughts are ${times(grown)} as long as the base's. It took ${spent.join(" · ")}.`, width),
    ...(result.solved.length === 0 ? [] : ["", line([{ text: "  Solved", paint: colors.bold }], width)]),
    ...result.solved.slice(0, 3).flatMap((sample) => ["", ...renderSample(sample, width, colors, 6)]),
    ...(result.firstBacktrack === undefined
      ? []
      : [
          "",
          line(
            [
              {
                text: `  The first time it went back and was then right, step ${result.firstBacktrack.step}`,
                paint: colors.bold,
              },
            ],
            width,
          ),
          "",
          ...renderSample(result.firstBacktrack, width, colors, 6),
        ]),
    "",
    line([{ text: "  Next", paint: colors.bold }], width),
    ...next.flatMap(([words, why]) => {
      const padded = `    ${words.padEnd(longest)}`;
      const meaning = `   ${why}`;
      // A command that was cut could not be typed, so a long one has its lines to itself.
      if (columnsOf(padded) + columnsOf(meaning) <= width)
        return `${colors.cyan(padded)}${colors.dim(meaning)}`;
      return [colors.cyan(`    ${words}`), line([{ text: `    ${meaning}`, paint: colors.dim }], width)];
    }),
    "",
  ];
}

/** For streams that are no terminal: a log file, whose reader has room. */
const DEFAULT_COLUMNS = 100;

export interface ViewOptions extends Typed {
  readonly stream: NodeJS.WritableStream;
  /** Whether the stream is a terminal that can move its cursor. */
  readonly isTTY: boolean;
  /** Width in columns; absent, the stream's own at each drawing. */
  readonly columns?: number;
  /** @default whether the stream is a terminal and the environment wants colour (NO_COLOR, FORCE_COLOR, TERM) */
  readonly color?: boolean;
}

/** No more often than anybody reads. */
const MEASURING_EVERY_MS = 250;

/** A view on a stream: the live panel in a terminal, one line per step elsewhere. */
export function createTrainingView(options: ViewOptions): TrainingView {
  const { stream, isTTY } = options;
  const colors = picocolors.createColors(options.color ?? (isTTY && picocolors.isColorSupported));
  const width = () => options.columns ?? ((stream as { columns?: number }).columns || DEFAULT_COLUMNS);
  const log = isTTY ? createLogUpdate(stream) : undefined;
  let state: ViewState | undefined;
  let stopped = false;
  let drawn = Number.NEGATIVE_INFINITY;

  const print = (lines: readonly string[]) => {
    const text = lines.join("\n");
    if (log === undefined) stream.write(`${text}\n`);
    else log.persist(text);
  };
  const draw = () => {
    if (log !== undefined && state !== undefined && !stopped) log(render(state, width(), colors).join("\n"));
  };
  const stop = () => {
    if (stopped) return;
    stopped = true;
    log?.done();
  };

  return {
    start(info) {
      state = begin(info);
      if (log === undefined) {
        print([
          printable(
            `${info.name}: ${info.task}, ${info.preset}, seed ${info.seed}, ${compact(info.parameters)} parameters, ${info.machine}`,
          ),
        ]);
      }
      draw();
    },
    step(metrics, extra = {}) {
      if (state === undefined || stopped) return;
      state = advance(state, metrics, extra);
      if (log === undefined) print([renderLine(metrics, extra)]);
      draw();
    },
    sample(sample) {
      if (state === undefined) return;
      state = { ...state, sample };
      draw();
    },
    note(text) {
      if (stopped) return;
      print(wrap(printable(text, { keepLines: true }), width()));
      draw();
    },
    measuring(tokens) {
      if (state === undefined || log === undefined || performance.now() - drawn < MEASURING_EVERY_MS) return;
      drawn = performance.now();
      state = { ...state, measured: tokens };
      draw();
    },
    finish(result) {
      if (stopped) return;
      log?.clear();
      print(renderResult(result, width(), colors, options));
      stop();
    },
    stop,
  };
}
