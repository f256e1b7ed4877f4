/** Reverse-mode differentiation: adds the gradient computation to the trace that holds the loss. */

import { invariant, ShapeError } from "../../base/errors.ts";
import type { Application, Value } from "../graph/ir.ts";
import { add, broadcast, concat, full, scalar } from "../graph/primitives.ts";
import { sameShape, showSpec } from "../tensor/shape.ts";
import { type Contribution, GRADIENT_RULES } from "./rules.ts";

/**
 * The gradient of a scalar with respect to each of the given values, in the same trace.
 * A value the loss does not depend on gets zeros.
 * @param loss  f32 with one element
 * @throws ShapeError when the loss is no scalar, or the path runs through a primitive without a gradient
 */
export function grad(loss: Value, wrt: readonly Value[]): Value[] {
  if (loss.shape.some((n) => n !== 1)) {
    throw new ShapeError({
      where: "grad",
      rule: "the loss must be a scalar",
      got: showSpec(loss),
      remedy: "Sum it",
    });
  }
  const order = dependents(loss, wrt);
  const received = new Map<Value, Contribution[]>();
  const receive = (x: Value, contribution: Contribution): void => {
    const known = received.get(x);
    if (known === undefined) received.set(x, [contribution]);
    else known.push(contribution);
  };
  receive(loss, { kind: "whole", value: broadcast(scalar(loss, 1), loss.shape) });

  for (const application of order.applications.reverse()) {
    // Every differentiable primitive has one output that matters.
    const result = application.outputs[0]!;
    const contributions = received.get(result);
    if (contributions === undefined) continue;
    const rule = GRADIENT_RULES[application.primitive] as
      | ((application: Application, g: Value) => readonly (Value | Contribution | null)[])
      | null;
    if (rule === null) {
      throw new ShapeError({
        where: "grad",
        rule: `${application.primitive} has no gradient`,
        remedy: "Use its differentiable twin in the training graph",
      });
    }
    const cotangents = rule(application, total(result, contributions));
    for (const [i, cotangent] of cotangents.entries()) {
      const x = application.inputs[i]!;
      if (cotangent === null || !order.needed.has(x)) continue;
      const contribution: Contribution =
        "kind" in cotangent ? cotangent : { kind: "whole", value: cotangent };
      if (contribution.kind === "whole") {
        invariant(
          sameShape(contribution.value.shape, x.shape),
          `${application.primitive}: cotangent ${i} has shape [${contribution.value.shape}], argument [${x.shape}]`,
        );
      }
      receive(x, contribution);
    }
  }
  return wrt.map((x) => {
    const contributions = received.get(x);
    return contributions === undefined ? full(loss, x.shape, 0) : total(x, contributions);
  });
}

/** Applications on a path from `wrt` to the loss, in order, and the values along those paths. */
function dependents(loss: Value, wrt: readonly Value[]): { applications: Application[]; needed: Set<Value> } {
  const needed = new Set(wrt);
  const applications: Application[] = [];
  const seen = new Set<Application>();
  // An explicit stack: a deep network must not overflow the call stack.
  const stack: { readonly application: Application; next: number }[] = [];
  const push = (x: Value): void => {
    if (x.node !== undefined && !seen.has(x.node)) {
      seen.add(x.node);
      stack.push({ application: x.node, next: 0 });
    }
  };
  push(loss);
  for (let top = stack.at(-1); top !== undefined; top = stack.at(-1)) {
    const input = top.application.inputs[top.next++];
    if (input !== undefined) {
      push(input);
      continue;
    }
    stack.pop();
    if (top.application.inputs.some((x) => needed.has(x))) {
      for (const x of top.application.outputs) needed.add(x);
      applications.push(top.application);
    }
  }
  return { applications, needed };
}

/** Adds up what a value received. Slices are put side by side first: one concat instead of many padded sums. */
function total(x: Value, contributions: readonly Contribution[]): Value {
  const wholes = contributions.flatMap((c) => (c.kind === "whole" ? [c.value] : []));
  const slices = contributions.filter((c) => c.kind === "slice");
  for (let rest = slices; rest.length > 0; ) {
    const axis = rest[0]!.axis;
    const row: typeof slices = [];
    const later: typeof slices = [];
    for (const part of rest.toSorted((a, b) => a.start - b.start)) {
      const fits = part.axis === axis && (row.length === 0 || row.at(-1)!.end <= part.start);
      (fits ? row : later).push(part);
    }
    wholes.push(sideBySide(x, axis, row));
    rest = later;
  }
  return wholes.reduce((a, b) => add(a, b));
}

/** Disjoint slices along one axis, in order, with zeros in the gaps. */
function sideBySide(x: Value, axis: number, row: readonly (Contribution & { kind: "slice" })[]): Value {
  const parts: Value[] = [];
  const gap = (from: number, to: number): void => {
    if (from < to)
      parts.push(
        full(
          row[0]!.value,
          x.shape.map((n, i) => (i === axis ? to - from : n)),
          0,
        ),
      );
  };
  let position = 0;
  for (const part of row) {
    gap(position, part.start);
    parts.push(part.value);
    position = part.end;
  }
  gap(position, x.shape[axis]!);
  return concat(parts, axis);
}
