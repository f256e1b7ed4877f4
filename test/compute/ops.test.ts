/** Every primitive and composite against its oracles; the cases are the tables of rows.ts. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SHAPE_RULES } from "../../src/compute/graph/rules.ts";
import { interpret, interpretWide } from "../../src/compute/runtime/interpreter.ts";
import type { Runtime } from "../../src/compute/runtime/runtime.ts";
import {
  createEngine,
  DIFFERENCE_TOLERANCE,
  differentiableInputs,
  expectAllClose,
  finiteDifferences,
  forwardGraph,
  inputsOf,
  lossGraph,
  type Row,
  runOnEngine,
} from "./harness.ts";
import { COMPOSITE_ROWS, PRIMITIVE_ROWS, TWINS } from "./rows.ts";

let engine: Runtime;
beforeAll(async () => {
  engine = await createEngine();
});
afterAll(() => engine.dispose());

/** Gradients of the row's loss: in float64, rounded as the interpreter rounds, and by the engine. */
async function gradients(row: Row, wrt: readonly string[]) {
  const { graph, arrays } = lossGraph(row, inputsOf(row), wrt);
  const withoutLoss = <T>({ loss: _, ...rest }: Record<string, T>): Record<string, T> => rest;
  return {
    wide: withoutLoss(interpretWide(graph, arrays)),
    rounded: withoutLoss(interpret(graph, arrays)),
    engine: withoutLoss(await runOnEngine(engine, graph, arrays)),
  };
}

function checkRow(row: Row): void {
  const arrays = inputsOf(row);
  const wrt = differentiableInputs(row, arrays);
  it(`${row.name}: the engine agrees with the interpreter`, async () => {
    const graph = forwardGraph(row, arrays);
    const actual = await runOnEngine(engine, graph, arrays, row.inPlace);
    expectAllClose(row.name, actual, interpret(graph, arrays), undefined, row.meaningful);
  });
  if (wrt.length === 0) return;
  it(`${row.name}: the gradient agrees with finite differences, and the engine with both`, async () => {
    const { wide, rounded, engine } = await gradients(row, wrt);
    expectAllClose(row.name, wide, finiteDifferences(row, arrays, wrt), DIFFERENCE_TOLERANCE);
    expectAllClose(`${row.name}, engine`, engine, rounded);
  });
}

describe.each(Object.entries(PRIMITIVE_ROWS))("primitive %s", (name, rows) => {
  for (const row of rows) checkRow(row);

  it("occurs in each of its rows", () => {
    for (const row of rows) {
      const used = forwardGraph(row, inputsOf(row)).applications.map(({ primitive }) => primitive);
      expect(used, row.name).toContain(name);
    }
  });
});

describe.each(Object.entries(COMPOSITE_ROWS))("composite %s", (_, rows) => {
  for (const row of rows) checkRow(row);
});

describe("the tables", () => {
  it("have at least one row for every primitive with a shape rule", () => {
    const covered = Object.entries(PRIMITIVE_ROWS).flatMap(([name, rows]) => (rows.length > 0 ? [name] : []));
    expect(covered.sort()).toEqual(Object.keys(SHAPE_RULES).sort());
  });

  it("name every row differently, so that no two share their inputs by accident", () => {
    const names = [...Object.values(PRIMITIVE_ROWS), ...Object.values(COMPOSITE_ROWS)]
      .flat()
      .map((row) => row.name);
    expect(new Set(names).size).toBe(names.length);
  });
});

describe("fused primitives and their unfused twins", () => {
  it.each(TWINS)("$name: the same values and gradients, interpreted and on the engine", async (twins) => {
    const [fused, unfused]: [Row, Row] = [
      { ...twins, fn: twins.fused },
      { ...twins, fn: twins.unfused },
    ];
    const arrays = inputsOf(fused);
    const [graph, twin] = [forwardGraph(fused, arrays), forwardGraph(unfused, arrays)];
    expectAllClose(twins.name, interpretWide(graph, arrays), interpretWide(twin, arrays), {
      relative: 1e-7,
      floor: 1e-7,
    });
    expectAllClose(twins.name, await runOnEngine(engine, graph, arrays), interpret(twin, arrays));

    const wrt = differentiableInputs(fused, arrays);
    if (wrt.length === 0) return;
    const [ofFused, ofUnfused] = [await gradients(fused, wrt), await gradients(unfused, wrt)];
    expectAllClose(`${twins.name}, gradient`, ofFused.wide, ofUnfused.wide, DIFFERENCE_TOLERANCE);
    expectAllClose(`${twins.name}, gradient on the engine`, ofFused.engine, ofUnfused.rounded);
  });
});
