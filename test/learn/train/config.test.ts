import { describe, expect, it } from "vitest";
import { ConfigError } from "../../../src/base/errors.ts";
import { Random } from "../../../src/compute/tensor/random.ts";
import { COUNTDOWN_GAMES, countdownTask } from "../../../src/learn/tasks/countdown/task.ts";
import {
  changedConfig,
  countdownOptions,
  modelConfig,
  parseRunConfig,
  type RunConfig,
  setOption,
  setOptions,
  sets,
  sizesOf,
  withDepth,
  withLoss,
  withTaskLimits,
} from "../../../src/learn/train/config.ts";
import { PRESETS, presetNamed } from "../../../src/learn/train/presets.ts";
import { architectureOf, parameterCount } from "../../../src/model/arch/models.ts";

const quick = PRESETS.quick.config;

describe("the depth dial", () => {
  it.each([
    [1, { width: 64, heads: 2, kvHeads: 1, hidden: 176 }],
    [2, { width: 64, heads: 2, kvHeads: 1, hidden: 176 }],
    [4, { width: 128, heads: 4, kvHeads: 2, hidden: 344 }],
    [6, { width: 192, heads: 6, kvHeads: 3, hidden: 512 }],
    [8, { width: 256, heads: 8, kvHeads: 4, hidden: 688 }],
  ])("gives depth %i its sizes", (depth, sizes) => {
    expect(sizesOf(depth)).toEqual({ layers: depth, headWidth: 32, ...sizes });
    const model = modelConfig(sizesOf(depth), { vocabSize: 30, maxPositions: 100 });
    expect(() => architectureOf(model).check(model)).not.toThrow();
  });

  it("gives about 0.7 million weights at depth 4", () => {
    const count = parameterCount(modelConfig(sizesOf(4), { vocabSize: 28, maxPositions: 100 }));
    // By hand: 4·(128·128·2 + 2·128·64 + 3·128·344 + 2·128) + 2·28·128 + 128.
    expect(count).toBe(4 * (32768 + 16384 + 132096 + 256) + 7168 + 128);
  });

  it("carries AdamW's rates and the batch along, and leaves Muon's rates", () => {
    const deep = withDepth(quick, 16);
    const [wide, narrow] = [deep.model.width, quick.model.width];
    expect(deep.pretrain.rates.adamW).toBeCloseTo(quick.pretrain.rates.adamW * Math.sqrt(narrow / wide), 12);
    expect(deep.rl.rates.adamW).toBeCloseTo(quick.rl.rates.adamW * Math.sqrt(narrow / wide), 12);
    expect(deep.pretrain.rates.muon).toBe(quick.pretrain.rates.muon);
    expect(deep.pretrain.rows).toBe(Math.round((quick.pretrain.rows * 16) / quick.model.layers));
    expect(withDepth(quick, quick.model.layers)).toEqual(quick);
  });

  it("says what a depth must be", () => {
    expect(() => sizesOf(0)).toThrow(/--depth: must be a whole number from 1; got 0/);
  });
});

describe("a configuration read back", () => {
  it("is the same after a way through JSON, for every preset", () => {
    for (const { config } of Object.values(PRESETS)) {
      expect(parseRunConfig(JSON.parse(JSON.stringify(config)))).toEqual(config);
    }
  });

  const broken = (change: (config: Record<string, Record<string, unknown>>) => void): (() => RunConfig) => {
    const config = JSON.parse(JSON.stringify(quick));
    change(config);
    return () => parseRunConfig(config);
  };

  it("names an unknown field's place and the nearest that exists", () => {
    expect(
      broken((c) => {
        c["rl"]!["tempreture"] = 1;
      }),
    ).toThrow(/config\.rl: must be one of .*; got "tempreture"\. Did you mean "temperature"\?/);
    expect(
      broken((c) => {
        c["eval"] = {};
      }),
    ).toThrow(/config: .*got "eval"/);
  });

  it.each<[string, (c: Record<string, Record<string, unknown>>) => void, RegExp]>([
    [
      "a lone sample",
      (c) => {
        c["rl"]!["samples"] = 1;
      },
      /config\.rl\.samples: must be at least 2: a lone sample has no baseline; got 1/,
    ],
    [
      "an unknown loss",
      (c) => {
        c["rl"]!["loss"] = "ppo";
      },
      /config\.rl\.loss: .*grpo.*; got "ppo"/,
    ],
    [
      "a head the kernel does not take",
      (c) => {
        c["model"]!["headWidth"] = 24;
      },
      /headWidth: must be a multiple of 16/,
    ],
    [
      "heads that do not share evenly",
      (c) => {
        c["model"]!["kvHeads"] = 3;
      },
      /kvHeads: must divide heads/,
    ],
    [
      "a width that heads do not divide",
      (c) => {
        c["model"]!["width"] = 130;
      },
      /config\.model\.width: must be a multiple of heads/,
    ],
    [
      "more updates than samples",
      (c) => {
        c["rl"]!["updatesPerRollout"] = 100_000;
      },
      /updatesPerRollout: must be at most the \d+ samples of a step/,
    ],
    [
      "a punishment longer than the limit",
      (c) => {
        Object.assign(c["rl"]!, { overlong: "penalty", overlongSlope: 10_000 });
      },
      /overlongSlope: must be at most maxNewTokens/,
    ],
    [
      "exploration that leaves out every step",
      (c) => {
        c["countdown"]!["explore"] = { skip: 1 };
      },
      /config\.countdown\.explore\.skip: must be below 1; got 1/,
    ],
    ...["stopAfterMiss", "stopAfterHit", "answerLast", "pairs", "checked"].map(
      (name): [string, (c: Record<string, Record<string, unknown>>) => void, RegExp] => [
        `a chance above 1 (${name})`,
        (c) => {
          c["countdown"]!["explore"] = { [name]: 1.01 };
        },
        new RegExp(`config\\.countdown\\.explore\\.${name}: must be from 0 to 1; got 1\\.01`),
      ],
    ),
    [
      "results smaller than the game's numbers",
      (c) => {
        Object.assign(c["countdown"]!, { game: "cd3", explore: { largest: 99 } });
      },
      /explore\.largest: must be at least 100, the largest number of the game cd3; got 99/,
    ],
    [
      "a largest result that is not whole",
      (c) => {
        c["countdown"]!["explore"] = { largest: 150.5 };
      },
      /explore\.largest: must be a whole number; got 150\.5/,
    ],
    [
      "a missing section",
      (c) => {
        delete c["validation"];
      },
      /config\.validation: .*; got nothing/,
    ],
  ])("refuses %s", (_, change, message) => {
    expect(broken(change)).toThrow(ConfigError);
    expect(broken(change)).toThrow(message);
  });
});

describe("the smallest largest result of exploration", () => {
  it.each(["quick", "long", "cd3"] as const)("is enough to draw every kind of text of %s", (game) => {
    for (const thoughts of ["forward", "backward"] as const) {
      const { max } = COUNTDOWN_GAMES[game].numbers;
      const explore = { thoughts, largest: max, checked: 0.5, skip: 0.999_999 };
      const config = parseRunConfig({ ...quick, countdown: { ...quick.countdown, game, explore } });
      const task = countdownTask({ ...countdownOptions(config), heldOutCount: 1 });
      for (let i = 0; i < 40; i++) {
        const random = new Random(1, i);
        for (const trace of [task.explore!(random), task.demonstrate!(random)])
          expect(trace.completion.length).toBeGreaterThan(0);
      }
    }
  });
});

describe("--set", () => {
  it("sets numbers, names and fields that were absent", () => {
    let config = setOption(quick, "rl.clipHigh=0.5");
    config = setOption(config, "rl.loss = gspo");
    config = setOption(config, "rl.ratioCap=4");
    config = setOption(config, "rl.schedule.warmup=7");
    expect(parseRunConfig(config).rl).toEqual({
      ...quick.rl,
      clipHigh: 0.5,
      loss: "gspo",
      ratioCap: 4,
      schedule: { ...quick.rl.schedule, warmup: 7 },
    });
    expect(quick.rl.loss).not.toBe("gspo");
  });

  it.each([
    ["rl.temprature=1", /--set rl: .*Did you mean "temperature"\?/],
    [
      "temperature=1",
      /--set temperature: must be a field's whole name.*Did you mean "(rl|evaluation)\.temperature"\?/,
    ],
    ["rl=3", /--set rl: must name one field, not a section.*It has steps, prompts/],
    ["rl.samples", /--set: takes field=value; got "rl\.samples"/],
    ["=3", /--set: takes field=value/],
    ["rl.samples.more=3", /--set rl samples: /],
    ["__proto__.x=1", /--set: must be one of/],
  ])("refuses %s", (assignment, message) => {
    expect(() => setOption(quick, assignment)).toThrow(message);
  });

  it("a loss brings the clip bounds of its paper, but for those that are set, in whatever order", () => {
    expect(setOptions(quick, ["rl.loss=gspo"]).rl).toMatchObject({ clipLow: 3e-4, clipHigh: 4e-4 });
    expect(setOptions(quick, ["rl.clipHigh=9", "rl.loss=cispo"]).rl).toMatchObject({
      loss: "cispo",
      clipLow: 1,
      clipHigh: 9,
    });
    expect(setOptions(quick, ["rl.steps=3"]).rl).toEqual({ ...quick.rl, steps: 3 });
    expect(() => parseRunConfig(setOptions(quick, ["rl.loss=gsppo"]))).toThrow(/config\.rl\.loss: /);
    expect(withLoss(quick, "grpo").rl).toMatchObject({
      ...{ loss: "grpo", clipLow: 0.2, clipHigh: 0.2 },
      scaling: "group",
    });
    expect(setOptions(quick, ["rl.scaling=batch", "rl.loss=dapo"]).rl.scaling).toBe("batch");
    // The presets' own loss keeps its presets' settings.
    expect(withLoss(quick, quick.rl.loss)).toEqual(quick);
    expect(changedConfig(quick, ["rl.loss=gspo"]).rl.clipHigh).toBe(4e-4);
  });

  it("refuses a cap of ratios that would clip what is rewarded, or that the loss does not know", () => {
    const set = (...assignments: string[]) => parseRunConfig(setOptions(quick, assignments));
    expect(set("rl.ratioCap=3").rl.ratioCap).toBe(3);
    expect(() => set("rl.ratioCap=1.28")).toThrow(
      /^config\.rl\.ratioCap: must be above 1 \+ clipHigh \(1\.28\)/,
    );
    expect(() => set("rl.loss=cispo", "rl.ratioCap=9")).toThrow(
      /^config\.rl\.ratioCap: has no meaning for cispo/,
    );
  });

  it("takes the limit of completions that a task names", () => {
    expect(withTaskLimits(quick, {})).toBe(quick);
    expect(withTaskLimits(quick, { maxNewTokens: 20 }).rl).toMatchObject({
      maxNewTokens: 20,
      overlongSlope: 20,
    });
    expect(sets(["rl.maxNewTokens = 9"], "rl.maxNewTokens")).toBe(true);
    expect(() => changedConfig(quick, ["rl.maxNewTokens=9"])).toThrow(/must stay as it is/);
  });

  it("leaves values to be checked with the whole", () => {
    expect(() => parseRunConfig(setOption(quick, "rl.temperature=hot"))).toThrow(
      /config\.rl\.temperature: must be a number; got "hot"/,
    );
  });
});

describe("a configuration changed while its run rests", () => {
  it("may get other rates and more steps of reinforcement learning", () => {
    const changed = changedConfig(quick, ["rl.rates.muon=0.001", "rl.steps=9"]);
    expect(changed.rl).toEqual({ ...quick.rl, steps: 9, rates: { ...quick.rl.rates, muon: 0.001 } });
  });

  it.each([
    "seed=2",
    "model.layers=5",
    "pretrain.steps=3",
    "rl.optimizer.matrices=adamw",
    "countdown.game=long",
    "evaluation.temperature=0",
  ])("may not get %s", (assignment) => {
    expect(() => changedConfig(quick, [assignment])).toThrow(/must stay as it is once a run has begun/);
  });
});

describe("the game of a configuration", () => {
  it("may ask for every number once, and shape length and repetition", () => {
    const set = [
      "countdown.use=exactly-once",
      "countdown.lengthWeight=0.1",
      "countdown.repetitionWeight=0.2",
    ];
    const config = setOptions(quick, set);
    expect(countdownOptions(config)).toMatchObject({
      ...{ use: "exactly-once", repetitionWeight: 0.2 },
      length: { weight: 0.1, maxTokens: config.rl.maxNewTokens },
    });
    expect(countdownOptions(quick)).not.toHaveProperty("use");
    expect(countdownOptions(quick)).toMatchObject({ repetitionWeight: 0, length: { weight: 0 } });
  });
});

describe("presets", () => {
  it("are found by name, with a hint for the nearest", () => {
    expect(presetNamed("r1")).toBe(PRESETS.r1);
    expect(() => presetNamed("quik")).toThrow(/Did you mean "quick"\?/);
  });

  it("differ in what they are for", () => {
    expect(PRESETS.quick.config.sft.steps).toBe(0);
    expect(PRESETS.r1.config.sft.steps).toBeGreaterThan(0);
    expect(PRESETS.long.config.countdown.game).toBe("long");
  });
});
