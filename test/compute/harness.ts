/**
 * The machinery behind test/compute/rows.ts: a row becomes a graph, is run by the engine and by the reference
 * interpreter, and is differentiated both by rule and by finite differences.
 */

import { AssertionError } from "node:assert";
import { grad } from "../../src/compute/grad/reverse.ts";
import type { Graph, Value } from "../../src/compute/graph/ir.ts";
import { add, mul, sum } from "../../src/compute/graph/primitives.ts";
import { checkGraph, type Outputs, trace } from "../../src/compute/graph/trace.ts";
import { interpretWide, type WideArray } from "../../src/compute/runtime/interpreter.ts";
import { compile, tensorsOf } from "../../src/compute/runtime/jit.ts";
import { Runtime } from "../../src/compute/runtime/runtime.ts";
import type { DType } from "../../src/compute/tensor/dtype.ts";
import { fromHalfBits, toHalfBits } from "../../src/compute/tensor/half.ts";
import { f32, type HostArray, hostArray, i32 } from "../../src/compute/tensor/host.ts";
import { Random } from "../../src/compute/tensor/random.ts";
import { type Shape, showSpec, sizeOf, stridesOf, type TensorSpec } from "../../src/compute/tensor/shape.ts";

export type Arrays = Readonly<Record<string, HostArray>>;
export type Traced = Readonly<Record<string, Value>>;

/** One case: a function to trace and what to feed it. */
export interface Row {
  readonly name: string;
  /** The inputs, from a source of randomness that depends on the row's name alone. */
  readonly inputs: (random: Random) => Arrays;
  readonly fn: (inputs: Traced) => Value | Outputs;
  /** Inputs whose gradient is checked. By default every f32 input, if every output is f32. */
  readonly differentiable?: readonly string[];
  /** Pairs of an input and the output that is written over it. */
  readonly inPlace?: readonly (readonly [input: string, output: string])[];
  /** For an output of which only some elements mean something: 1 for those, 0 for the others. */
  readonly meaningful?: Readonly<Record<string, readonly number[]>>;
}

// Inputs

function fill(shape: Shape, next: (index: number) => number): number[] {
  return Array.from({ length: sizeOf(shape) }, (_, i) => next(i));
}

/** Standard normal numbers. */
export function normal(random: Random, shape: Shape): HostArray<"f32"> {
  return f32(
    shape,
    fill(shape, () => random.normal()),
  );
}

/** Numbers in [0.5, 2): away from the poles of log, sqrt and division. */
export function positive(random: Random, shape: Shape): HostArray<"f32"> {
  return f32(
    shape,
    fill(shape, () => 0.5 + 1.5 * random.uniform()),
  );
}

/** Integers in [0, n); with more elements than n, some repeat. */
export function ids(random: Random, shape: Shape, n: number): HostArray<"i32"> {
  return i32(
    shape,
    fill(shape, () => random.integer(n)),
  );
}

export function bools(random: Random, shape: Shape): HostArray<"bool"> {
  return hostArray("bool", shape, Uint8Array.from(fill(shape, () => random.integer(2))));
}

export function i64(shape: Shape, values: readonly number[]): HostArray<"i64"> {
  return hostArray("i64", shape, BigInt64Array.from(values, BigInt));
}

export function f16(shape: Shape, values: readonly number[]): HostArray<"f16"> {
  return hostArray("f16", shape, Uint16Array.from(values, toHalfBits));
}

/** The same in every run, whatever other rows there are. */
export function inputsOf(row: Row): Arrays {
  const seed = [...row.name].reduce((hash, letter) => (hash * 31 + letter.charCodeAt(0)) % 2 ** 31, 7);
  return row.inputs(new Random(seed));
}

// Graphs

export function specsOf(arrays: Readonly<Record<string, TensorSpec>>): Record<string, TensorSpec> {
  return Object.fromEntries(
    Object.entries(arrays).map(([name, { dtype, shape }]) => [name, { dtype, shape }]),
  );
}

const isValue = (x: Value | Outputs): x is Value => "trace" in x && typeof x.id === "number";

/** Named results of a row's function; a lone one is called `y`. */
function apply(row: Row, inputs: Traced): Outputs {
  const result = row.fn(inputs);
  return isValue(result) ? { y: result } : result;
}

/** The row's function as a checked graph. */
export function forwardGraph(row: Row, arrays: Arrays): Graph {
  const graph = trace(specsOf(arrays), (inputs) => apply(row, inputs));
  checkGraph(graph);
  return graph;
}

/** Names of the inputs whose gradient is checked. */
export function differentiableInputs(row: Row, arrays: Arrays): readonly string[] {
  if (row.differentiable !== undefined) return row.differentiable;
  const outputs = [...forwardGraph(row, arrays).outputs.values()];
  if (outputs.some((x) => x.dtype !== "f32")) return [];
  return Object.keys(arrays).filter((name) => arrays[name]!.dtype === "f32");
}

/**
 * The loss Σ weight · output with random weights, so that no two elements of a result count alike, and its gradients
 * with respect to `wrt`, named `gradient of …`.
 */
export function lossGraph(
  row: Row,
  arrays: Arrays,
  wrt: readonly string[],
): { graph: Graph; arrays: Record<string, HostArray> } {
  const random = new Random(11);
  const weights = [...forwardGraph(row, arrays).outputs].map(
    ([name, { shape }]) => [`weight of ${name}`, normal(random, shape)] as const,
  );
  const all = { ...arrays, ...Object.fromEntries(weights) };
  const graph = trace(specsOf(all), (inputs) => {
    const terms = Object.entries(apply(row, inputs)).map(([name, y]) =>
      sum(mul(y, inputs[`weight of ${name}`]!)),
    );
    const loss = terms.reduce((a, b) => add(a, b));
    const gradients = grad(
      loss,
      wrt.map((name) => inputs[name]!),
    );
    return { loss, ...Object.fromEntries(wrt.map((name, i) => [`gradient of ${name}`, gradients[i]!])) };
  });
  checkGraph(graph);
  return { graph, arrays: all };
}

/** Step of the central difference: its error grows with step² on one side and with 2^−52/step on the other. */
const STEP = 1e-5;

/** Gradients of the row's loss by central differences through the interpreter, in float64. */
export function finiteDifferences(
  row: Row,
  arrays: Arrays,
  wrt: readonly string[],
): Record<string, WideArray> {
  const { graph, arrays: all } = lossGraph(row, arrays, []);
  return Object.fromEntries(
    wrt.map((name) => {
      const { dtype, shape, data } = all[name]!;
      const moved = Float64Array.from(data as Float32Array);
      const lossAt = (index: number, x: number): number => {
        const before = moved[index]!;
        moved[index] = x;
        const { loss } = interpretWide(graph, { ...all, [name]: { dtype, shape, data: moved } });
        moved[index] = before;
        return loss!.data[0]!;
      };
      const gradient = moved.map(
        (x, index) => (lossAt(index, x + STEP) - lossAt(index, x - STEP)) / (2 * STEP),
      );
      return [`gradient of ${name}`, { dtype, shape, data: gradient }];
    }),
  );
}

// The engine

/** Two threads, so that kernels which race are given the chance to. */
export function createEngine(): Promise<Runtime> {
  return Runtime.create({ threads: 2 });
}

/** Compiles a graph and runs it once. */
export async function runOnEngine(
  engine: Runtime,
  graph: Graph,
  arrays: Arrays,
  inPlace: Row["inPlace"] = [],
): Promise<Record<string, HostArray>> {
  const { program, outputs: specs } = await compile(engine, graph, { inPlace });
  const inputs = Object.fromEntries(
    Object.entries(arrays).map(([name, { dtype, shape, data }]) => [name, engine.tensor(dtype, shape, data)]),
  );
  const outputs = tensorsOf(engine, specs);
  for (const [input, output] of inPlace) outputs[output] = inputs[input]!;
  const call = program.bind(inputs, outputs);
  await call.run();
  program.dispose();
  return Object.fromEntries(
    Object.entries(outputs).map(([name, { dtype, shape, data }]) => [
      name,
      hostArray(dtype, shape, data.slice()),
    ]),
  );
}

// Comparison

/** An element may be off by `relative` of itself plus `floor` of the largest element of its array. */
export interface Tolerance {
  readonly relative: number;
  readonly floor: number;
}

/**
 * How far the engine may be from the interpreter.
 * f32: the interpreter rounds once an application, to 2^−24 = 6e-8; the engine rounds within sums too and takes exp
 * and sigmoid from polynomials, and cancellation turns those errors into errors relative to the largest element.
 * f16: both round to 2^−11, and may fall on different sides of a tie that float32 had rounded. Integers are exact.
 */
export const ENGINE_TOLERANCE: { readonly [D in DType]: Tolerance } = {
  f32: { relative: 2e-6, floor: 1e-6 },
  f16: { relative: 2 ** -10, floor: 0 },
  i64: { relative: 0, floor: 0 },
  i32: { relative: 0, floor: 0 },
  i8: { relative: 0, floor: 0 },
  u8: { relative: 0, floor: 0 },
  bool: { relative: 0, floor: 0 },
};

/**
 * How far a rule's gradient may be from finite differences, both in float64: constants of a rule, as 1/n of a mean, are
 * stored in float32 (6e-8), and the difference itself is good to about 1e-9.
 */
export const DIFFERENCE_TOLERANCE: Tolerance = { relative: 1e-6, floor: 1e-7 };

type Comparable = HostArray | WideArray;

function numbers({ dtype, data }: Comparable): Float64Array {
  if (data instanceof Float64Array) return data;
  const wide = data instanceof BigInt64Array ? Float64Array.from(data, Number) : Float64Array.from(data);
  return dtype === "f16" ? wide.map(fromHalfBits) : wide;
}

/**
 * Compares two arrays element by element.
 * @throws AssertionError naming the element that is worst relative to what is allowed: its index, both values, the
 * relative error
 */
export function expectClose(
  what: string,
  actual: Comparable,
  expected: Comparable,
  tolerance: Tolerance = ENGINE_TOLERANCE[expected.dtype],
  meaningful?: readonly number[],
): void {
  if (showSpec(actual) !== showSpec(expected)) {
    throw new AssertionError({ message: `${what}: is ${showSpec(actual)}, expected ${showSpec(expected)}` });
  }
  const [a, e] = [numbers(actual), numbers(expected)];
  const largest = e.reduce((m, x) => (Number.isFinite(x) ? Math.max(m, Math.abs(x)) : m), 0);
  let wrong = 0;
  let worst = { excess: 1, index: 0, error: 0 };
  for (let i = 0; i < e.length; i++) {
    if (meaningful?.[i] === 0 || Object.is(a[i], e[i]) || a[i] === e[i]) continue;
    const error = Math.abs(a[i]! - e[i]!);
    const allowed = tolerance.relative * Math.abs(e[i]!) + tolerance.floor * largest;
    const excess = Number.isFinite(error) && error > 0 ? error / allowed : Number.POSITIVE_INFINITY;
    if (excess <= 1) continue;
    wrong++;
    if (excess > worst.excess) worst = { excess, index: i, error: error / Math.abs(e[i]!) };
  }
  if (wrong === 0) return;
  const index = stridesOf(expected.shape).map(
    (stride, axis) => Math.floor(worst.index / stride) % expected.shape[axis]!,
  );
  throw new AssertionError({
    message:
      `${what}: ${wrong} of ${e.length} elements differ; worst at [${index}]: ${a[worst.index]}, ` +
      `expected ${e[worst.index]}, relative error ${worst.error.toExponential(1)}, ` +
      `${worst.excess.toPrecision(3)} times what is allowed`,
  });
}

/** Compares every array of a record; both must have the same names. */
export function expectAllClose(
  what: string,
  actual: Readonly<Record<string, Comparable>>,
  expected: Readonly<Record<string, Comparable>>,
  tolerance?: Tolerance,
  meaningful: Row["meaningful"] = {},
): void {
  const names = Object.keys(expected);
  if (names.join() !== Object.keys(actual).join()) {
    throw new AssertionError({ message: `${what}: has ${Object.keys(actual)}, expected ${names}` });
  }
  for (const name of names) {
    expectClose(`${what}: ${name}`, actual[name]!, expected[name]!, tolerance, meaningful[name]);
  }
}
