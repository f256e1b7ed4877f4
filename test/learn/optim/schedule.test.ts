import { describe, expect, it } from "vitest";
import { ConfigError } from "../../../src/base/errors.ts";
import { type Schedule, scheduleFactor } from "../../../src/learn/optim/schedule.ts";

const factors = (schedule: Schedule, steps: number): number[] =>
  Array.from({ length: steps }, (_, i) => scheduleFactor(schedule, i + 1, steps));

const CONSTANT: Schedule = { warmup: 0, decay: 0, final: 1 };

describe("scheduleFactor", () => {
  it("is 1 throughout when constant, also for a single step", () => {
    expect(factors(CONSTANT, 4)).toEqual([1, 1, 1, 1]);
    expect(factors(CONSTANT, 1)).toEqual([1]);
  });

  it("rises linearly over the warm-up: the first step moves, the last of the warm-up is full", () => {
    expect(factors({ warmup: 4, decay: 0, final: 1 }, 6)).toEqual([0.25, 0.5, 0.75, 1, 1, 1]);
  });

  it("falls over the last share of the steps; the last step still moves, `final` would be next", () => {
    expect(factors({ warmup: 0, decay: 0.5, final: 0 }, 8)).toEqual([1, 1, 1, 1, 1, 0.75, 0.5, 0.25]);
    expect(factors({ warmup: 0, decay: 0.4, final: 0.5 }, 10)).toEqual([
      1, 1, 1, 1, 1, 1, 1, 0.875, 0.75, 0.625,
    ]);
  });

  it("falls from the first step on when all of the steps decay, as torch's LambdaLR does with 1 − (step − 1)/steps", () => {
    expect(factors({ warmup: 0, decay: 1, final: 0 }, 4)).toEqual([1, 0.75, 0.5, 0.25]);
    expect(factors({ warmup: 0, decay: 1, final: 0 }, 1)).toEqual([1]);
  });

  it("multiplies where warm-up and decay meet", () => {
    expect(factors({ warmup: 2, decay: 1, final: 0 }, 4)).toEqual([0.5, 0.75, 0.5, 0.25]);
  });

  it("never reaches a decay shorter than a step", () => {
    expect(factors({ warmup: 0, decay: 0.1, final: 0 }, 5)).toEqual([1, 1, 1, 1, 1]);
  });

  it.each([-0.1, 1.1, Number.NaN])("refuses a decay of %d", (decay) => {
    const call = () => scheduleFactor({ warmup: 0, decay, final: 0 }, 1, 10);
    expect(call).toThrow(ConfigError);
    expect(call).toThrow(/schedule: decay: must be a share from 0 to 1; got/);
  });
});
