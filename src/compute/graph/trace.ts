/**
 * Tracing: run an ordinary function on symbolic values and record what it does.
 *
 * Recording is hash-consed: the same primitive on the same values yields the same value again, so a mask written in
 * every layer, or a transpose taken by forward and backward alike, is computed once.
 */

import { invariant, ShapeError } from "../../base/errors.ts";
import type { HostArray } from "../tensor/host.ts";
import { sameShape, type TensorSpec } from "../tensor/shape.ts";
import type { Application, Attributes, Graph, PrimitiveName, Value } from "./ir.ts";
import { SHAPE_RULES } from "./rules.ts";

/** The recorder behind one trace. */
class Trace {
  readonly applications: Application[] = [];
  readonly #known = new Map<string, readonly Value[]>();
  /** Constants are told apart by identity, scalars by value. */
  readonly #constants = new Map<HostArray, number>();
  #nextId = 0;

  input(spec: TensorSpec): Value {
    return { id: this.#nextId++, dtype: spec.dtype, shape: spec.shape, node: undefined, trace: this };
  }

  emit<P extends PrimitiveName>(
    primitive: P,
    inputs: readonly Value[],
    attributes: Attributes[P],
  ): readonly Value[] {
    for (const x of inputs) invariant(x.trace === this, `${primitive}: an argument belongs to another trace`);
    const key = `${primitive}(${inputs.map((x) => x.id)})${this.#attributeKey(primitive, attributes)}`;
    const known = this.#known.get(key);
    if (known !== undefined) return known;

    const specs = SHAPE_RULES[primitive](inputs, attributes);
    const outputs: Value[] = [];
    const application: Application<P> = { primitive, inputs, attributes, outputs };
    for (const { dtype, shape } of specs) {
      outputs.push({ id: this.#nextId++, dtype, shape, node: application as Application, trace: this });
    }
    this.applications.push(application as Application);
    this.#known.set(key, outputs);
    return outputs;
  }

  #attributeKey(primitive: PrimitiveName, attributes: object): string {
    // Two functions are never known to be the same.
    if (primitive === "withGradient") return `#${this.applications.length}`;
    if (primitive !== "constant") return JSON.stringify(attributes);
    const { value } = attributes as Attributes["constant"];
    if (value.data.length === 1) {
      // Division tells 0 and −0 apart, their text does not.
      const element = Object.is(value.data[0], -0) ? "-0" : value.data[0];
      return `${value.dtype}[${value.shape}]=${element}`;
    }
    let index = this.#constants.get(value);
    if (index === undefined) {
      index = this.#constants.size;
      this.#constants.set(value, index);
    }
    return `#${index}`;
  }
}

/**
 * Applies a primitive to traced values. The functions in primitives.ts are the typed way in.
 * @throws ShapeError, DTypeError when the primitive's rule is broken
 */
export function apply<P extends PrimitiveName>(
  primitive: P,
  inputs: readonly Value[],
  attributes: Attributes[P],
): readonly Value[] {
  const trace = inputs[0]?.trace;
  invariant(trace instanceof Trace, `${primitive}: needs at least one traced argument`);
  return trace.emit(primitive, inputs, attributes);
}

/** A constant in the same trace as `like`. */
export function constantIn(like: Value, value: HostArray): Value {
  invariant(like.trace instanceof Trace, "constant: needs a traced value");
  return like.trace.emit("constant", [], { value })[0]!;
}

/** What a traced function returns: named values. */
export type Outputs = Readonly<Record<string, Value>>;

/**
 * Records `fn` as a graph. Inputs are named by the keys of `specs`, outputs by the keys of what `fn` returns; what no
 * output needs is left out. An input that nothing uses stays an input.
 */
export function trace<S extends Readonly<Record<string, TensorSpec>>>(
  specs: S,
  fn: (inputs: { readonly [K in keyof S]: Value }) => Outputs,
): Graph {
  const recorder = new Trace();
  const inputs = new Map(Object.entries(specs).map(([name, spec]) => [name, recorder.input(spec)]));
  const outputs = new Map(Object.entries(fn(Object.fromEntries(inputs) as { [K in keyof S]: Value })));
  for (const [name, value] of outputs) {
    if (inputs.has(name)) {
      throw new ShapeError({
        where: "trace",
        rule: "an output may not bear the name of an input",
        got: name,
      });
    }
    invariant(value.trace === recorder, `output ${name} belongs to another trace`);
  }
  return { inputs, outputs, applications: reachable(recorder.applications, outputs.values()) };
}

/** The applications that the given values need, in order. */
function reachable(applications: readonly Application[], wanted: Iterable<Value>): Application[] {
  const needed = new Set<Value>(wanted);
  const kept: Application[] = [];
  for (const application of applications.toReversed()) {
    if (!application.outputs.some((x) => needed.has(x))) continue;
    for (const x of application.inputs) needed.add(x);
    kept.push(application);
  }
  return kept.reverse();
}

/**
 * Verifies a graph after a transformation: every value is defined before use, every application obeys its rule, every
 * output exists. A failure is a bug of ours, never of a user.
 */
export function checkGraph(graph: Graph): void {
  const defined = new Set<Value>(graph.inputs.values());
  for (const { primitive, inputs, attributes, outputs } of graph.applications) {
    for (const x of inputs) invariant(defined.has(x), `${primitive} uses %${x.id} before it is defined`);
    const rule = SHAPE_RULES[primitive] as (
      inputs: readonly TensorSpec[],
      attributes: object,
    ) => TensorSpec[];
    const specs = rule(inputs, attributes);
    invariant(specs.length === outputs.length, `${primitive} yields ${specs.length} values`);
    for (const [i, x] of outputs.entries()) {
      const spec = specs[i]!;
      invariant(
        x.dtype === spec.dtype && sameShape(x.shape, spec.shape),
        `${primitive} mislabels output ${i}`,
      );
      invariant(!defined.has(x), `%${x.id} is defined twice`);
      defined.add(x);
    }
  }
  for (const [name, x] of graph.outputs) invariant(defined.has(x), `output ${name} is never defined`);
}
