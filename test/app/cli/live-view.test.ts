import { PassThrough } from "node:stream";
import { stripVTControlCharacters } from "node:util";
import picocolors from "picocolors";
import { describe, expect, it } from "vitest";
import {
  advance,
  begin,
  createTrainingView,
  mood,
  render,
  renderLine,
  renderResult,
  renderSample,
  type ViewState,
} from "../../../src/app/cli/live-view.ts";
import { columnsOf } from "../../../src/app/cli/text.ts";
import type { RunFacts } from "../../../src/learn/train/training.ts";
import { pretrainStep, result, sample, step } from "../../learn/runs/synthetic.ts";

const plain = picocolors.createColors(false);
const painted = picocolors.createColors(true);

const info: RunFacts = {
  name: "countdown-quick-2026-11-23-1",
  task: "countdown",
  preset: "quick",
  seed: 1,
  parameters: 796_000,
  machine: "2 threads, ffi",
  stages: [
    { stage: "pretrain", steps: 300 },
    { stage: "rl", steps: 150 },
  ],
  earlier: [],
};
const fresh: ViewState = begin(info);

function learnt(steps: number, pass1?: (i: number) => number): ViewState {
  let state = fresh;
  for (let i = 0; i < steps; i++) {
    state = advance(state, step(i, 150, {}, pass1 === undefined ? {} : { pass1: pass1(i) }), {
      etaSeconds: 161,
      dollars: 0.011,
    });
  }
  return state;
}

describe("render", () => {
  it("shows stage, step, accuracy, length, reward, entropy, speed, time left and cost", () => {
    const text = render(learnt(87), 80, plain).join("\n").replaceAll("\u00a0", " ");
    for (const part of [
      "countdown",
      "796k parameters",
      "reinforcement learning (2 of 2)",
      "step 87 of 150 · 2:41 left",
      "48.0 %",
      "from 20.7 %",
      "62 tokens",
      "1.5× the start",
      "0.487",
      "entropy 0.300 nats",
      "2.00k tokens/s thinking",
      "87.0k tokens · $0.011",
    ]) {
      expect(text).toContain(part);
    }
    expect(text).toMatch(/▁.*█/);
  });

  it("shows the loss while the base is made, and starts its curve anew with each stage", () => {
    const state = advance(advance(fresh, pretrainStep(0, 300), {}), pretrainStep(1, 300), {});
    expect(render(state, 80, plain).join("\n")).toContain("pre-training (1 of 2)");
    expect(render(state, 80, plain).join("\n")).toContain("loss     2.727");
    expect(state.loss).toHaveLength(2);
    expect(advance(state, step(0, 150), {}).loss).toEqual([0.01]);
  });

  it("never exceeds the width, painted or not, at any width", () => {
    const state = {
      ...learnt(87),
      sample: sample(80, { completion: `<think>${"数字 ".repeat(80)}</think>` }),
    };
    for (const colors of [plain, painted]) {
      for (const width of [16, 24, 40, 63, 64, 80, 200]) {
        for (const text of render(state, width, colors)) {
          expect(columnsOf(stripVTControlCharacters(text))).toBeLessThanOrEqual(width);
        }
      }
    }
  });

  it("paints without changing a character", () => {
    const lines = render(learnt(87), 80, painted);
    expect(lines.map((text) => stripVTControlCharacters(text))).toEqual(render(learnt(87), 80, plain));
    expect(lines.join("")).toContain("\u001b[");
  });

  it("is cheered by progress", () => {
    expect(mood(fresh).words).toBe("waking up");
    expect(mood(learnt(60)).words).toBe("thinks longer, and it pays");
    expect(mood(learnt(60, () => 0.2)).words).toBe("trying things out");
    expect(mood(learnt(60, () => 0.97)).words).toBe("hardly ever wrong");
  });
});

describe("renderSample", () => {
  it("shows puzzle, thought, answer and verdict", () => {
    expect(renderSample(sample(1), 80, plain)).toEqual([
      "  ╭ 83 18 75:10",
      "  │ 83-18=64 no;83-18=65;75-65=10 yes",
      "  ╰ 75-(83-18) right",
    ]);
  });

  it("keeps the lines of a thought apart, and leaves out empty ones", () => {
    const completion = "<think>83-18=64 no\n\n83-18=65\n75-65=10 yes\n</think><answer>75-(83-18)</answer>";
    expect(renderSample(sample(1, { completion }), 80, plain).slice(1, -1)).toEqual([
      "  │ 83-18=64 no",
      "  │ 83-18=65",
      "  │ 75-65=10 yes",
    ]);
  });

  it("keeps the beginning and the end of a long thought", () => {
    const lines = renderSample(
      sample(1, { completion: `<think>start ${"more ".repeat(200)}end` }),
      40,
      plain,
    );
    expect(lines).toHaveLength(6);
    expect(lines[1]).toContain("start");
    expect(lines[3]).toMatch(/… \d+ more lines …/);
    expect(lines[4]).toContain("end");
    expect(lines[5]).toBe("  ╰ no answer right");
  });

  it("tells cut off from wrong", () => {
    expect(renderSample(sample(1, { correct: false, truncated: true }), 80, plain).at(-1)).toContain(
      "cut off",
    );
    expect(renderSample(sample(1, { correct: false }), 80, plain).at(-1)).toContain("wrong");
  });

  it("lets nothing a model writes reach the terminal as a command", () => {
    const nasty = sample(1, {
      prompt: "\u001b[2J\u001b]0;x\u0007",
      completion: "<think>\u001b[31m\u0000\u202e\n\u009b1m",
    });
    expect(renderSample(nasty, 80, plain).join("")).not.toMatch(/[\p{Cc}\p{Cf}]/u);
  });
});

describe("renderLine", () => {
  it("is one line with the numbers that matter", () => {
    expect(renderLine(step(5, 10, {}, { kl: 0.0123 }), { etaSeconds: 75, dollars: 0.02 })).toBe(
      "rl 6/10  reward 0.450  right 45.0 %  length 60.0  entropy 0.300  kl 0.0123  gradient 0.50  2.00k tokens/s  1:15 left  $0.020",
    );
    expect(renderLine(pretrainStep(0, 10), {})).toBe(
      "pretrain 1/10  loss 3.0000  gradient 0.50  1.00k tokens/s",
    );
    const validated = step(0, 10, { validation: { pass1: 0.5, count: 256, meanLength: 40 } });
    expect(renderLine(validated, {})).toContain("held out 50.0 % of 256");
  });
});

describe("renderResult", () => {
  it("says what it was, what it became, what it cost and what to type next", () => {
    const text = renderResult(result(), 100, plain).join("\n").replace(/\s+/g, " ");
    for (const part of [
      "countdown: 23.1 % → 78.4 % right on 1,000 held-out prompts at temperature 0.6, top-p 0.95",
      "before RL 23.1 % 95 % [20.6 %, 25.8 %] 41 tokens a thought",
      "after RL 78.4 % 95 % [75.7 %, 80.8 %] 79 tokens a thought",
      "1.9× as long as the base's",
      "9.4 minutes · 12.4M tokens · 71.0 TFLOP · 0.31 CPU-hours · $0.015",
      "step 12",
      "pondera chat countdown-quick-2026-11-23-1",
    ]) {
      expect(text).toContain(part);
    }
    expect(text).not.toContain("cold start");
  });

  it("names the folder of runs in what to type next, and cuts no command", () => {
    const folder = `/data/${"deep/".repeat(12)}my runs`;
    const text = renderResult(result(), 80, plain, { runs: folder }).join("\n");
    for (const command of ["chat", "eval", "runs show"]) {
      expect(text).toContain(`    pondera ${command} ${result().name} --runs '${folder}'\n`);
    }
    expect(renderResult(result(), 80, plain).join("\n")).not.toContain("--runs");
    const { name } = result();
    const npx = renderResult(result(), 80, plain, { command: "npx pondera" }).join("\n");
    expect(npx).toContain(`    npx pondera chat ${name}`);
    expect(npx).toContain(`    npx pondera runs show ${name}`);
  });

  it("shows the cold start where there was one, and no empty headings", () => {
    const { firstBacktrack: _, ...rest } = result({ sft: result().final, solved: [] });
    const text = renderResult(rest, 80, plain).join("\n");
    expect(text).toMatch(/^ {2}base .*\n {2}cold start .*\n {2}after RL /m);
    expect(text).not.toContain("Solved");
    expect(text).not.toContain("went back");
  });
});

function output(): { stream: PassThrough; text: () => string } {
  const stream = new PassThrough();
  let text = "";
  stream.on("data", (chunk) => {
    text += chunk;
  });
  return { stream, text: () => text };
}

describe("createTrainingView", () => {
  it("without a terminal writes one line per step and no escape sequence", async () => {
    const { stream, text } = output();
    const view = createTrainingView({ stream, isTTY: false });
    view.start(info);
    view.step(step(0, 2));
    view.sample(sample(1));
    view.step(step(1, 2));
    view.note("checkpoint saved\u001b[2J");
    view.finish(result());
    view.stop();
    await new Promise(setImmediate);
    const lines = text().split("\n");
    expect(lines[0]).toContain("countdown-quick-2026-11-23-1: countdown, quick, seed 1");
    expect(lines[1]).toMatch(/^rl 1\/2 {2}/);
    expect(lines[2]).toMatch(/^rl 2\/2 {2}/);
    expect(lines[3]).toBe("checkpoint saved");
    expect(text()).toContain("before RL");
    expect(text()).not.toContain("\u001b");
  });

  it("goes on from the steps of before, and tells how far an evaluation has come until the next step", () => {
    const earlier = Array.from({ length: 20 }, (_, i) => step(i, 40));
    const state = begin({ ...info, earlier });
    expect(state.accuracy).toHaveLength(20);
    const shown = (view: ViewState) => render(view, 100, plain).join("\n");
    expect(shown(state)).toMatch(/from 22\.5\s%/);
    const measuring = { ...state, measured: 12_345 };
    expect(shown(measuring)).toContain("measuring: 12,345 tokens written");
    expect(shown(advance(measuring, step(20, 40), {}))).not.toContain("measuring");
  });

  it("in a terminal redraws its panel, keeps notes and ends with the result", async () => {
    const { stream, text } = output();
    const view = createTrainingView({ stream, isTTY: true, columns: 80, color: false });
    view.start(info);
    view.step(step(0, 2));
    view.note("first checkpoint");
    view.step(step(1, 2));
    view.finish(result());
    const before = text().length;
    view.step(step(1, 2));
    view.note("late");
    view.stop();
    await new Promise(setImmediate);
    expect(text()).toContain("\u001b["); // It moved the cursor.
    expect(text()).toContain("first checkpoint");
    expect(text()).toContain("step 2 of 2");
    expect(text()).toContain("Next");
    expect(text().length).toBe(before);
  });
});
