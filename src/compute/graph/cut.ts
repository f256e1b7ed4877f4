/**
 * Cuts a graph into graphs that run one after the other, each with the weights of its own operators: so weights can be laid out for the
 * processor a part at a time. Constants that several need are in each of them.
 */

import { invariant } from "../../base/errors.ts";
import { type Application, type Graph, isPrimitive, type Value } from "./ir.ts";

/** Start of the names of values that one graph hands to a later one. */
const HANDED = "handed/";

function lastUses(steps: readonly Application[]): Map<Value, number> {
  const uses = new Map<Value, number>();
  for (const [i, { inputs }] of steps.entries()) for (const x of inputs) uses.set(x, i);
  return uses;
}

/** For every operator how many values those before it make for it and those after it. */
function crossings(steps: readonly Application[], lastUse: ReadonlyMap<Value, number>): number[] {
  const counts: number[] = [];
  let open: Value[] = [];
  for (const [i, { outputs }] of steps.entries()) {
    counts.push(open.length);
    open = [...open, ...outputs].filter((x) => (lastUse.get(x) ?? -1) > i);
  }
  return counts;
}

/** The graph of the operators from `start` to before `end`, and whatever constants they need. */
function part(graph: Graph, steps: readonly Application[], start: number, end: number): Graph {
  const own = steps.slice(start, end);
  const used = new Set(own.flatMap(({ inputs }) => inputs));
  const made = new Set(own.flatMap(({ outputs }) => outputs));
  const madeBefore = steps.slice(0, start).flatMap(({ outputs }) => outputs);
  const usedLater = new Set(steps.slice(end).flatMap(({ inputs }) => inputs));
  const handed = (values: readonly Value[]) => values.map((x) => [`${HANDED}${x.id}`, x] as const);
  const constants = graph.applications.filter(
    (application) => isPrimitive(application, "constant") && application.outputs.some((x) => used.has(x)),
  );
  return {
    inputs: new Map([
      ...[...graph.inputs].filter(([, x]) => used.has(x)),
      ...handed(madeBefore.filter((x) => used.has(x))),
    ]),
    applications: [...constants, ...own],
    outputs: new Map([
      ...[...graph.outputs].filter(([, x]) => made.has(x)),
      ...handed([...made].filter((x) => usedLater.has(x))),
    ]),
  };
}

/**
 * @param graph   one whose outputs are all made by operators
 * @param weigh   how much an input weighs; each counts where it is last used
 * @param parts   how many graphs at most, of about the same weight: fewer where there are no places to cut
 * @returns       the graphs, in the order in which they run; what one hands to later ones bears the same name in all of them
 */
export function cutGraph(graph: Graph, weigh: (input: string) => number, parts: number): Graph[] {
  const steps = graph.applications.filter((application) => !isPrimitive(application, "constant"));
  const made = new Set(steps.flatMap(({ outputs }) => outputs));
  for (const [name, x] of graph.outputs) invariant(made.has(x), `output ${name} is made by an operator`);
  const lastUse = lastUses(steps);
  const names = new Map([...graph.inputs].map(([name, x]) => [x, name]));
  /** Weight of all operators before each. */
  const before: number[] = [];
  let total = 0;
  for (const [i, { inputs }] of steps.entries()) {
    before.push(total);
    for (const x of new Set(inputs)) {
      const name = names.get(x);
      if (name !== undefined && lastUse.get(x) === i) total += weigh(name);
    }
  }
  // Where little is handed over no operator is torn from those it works with.
  const counts = crossings(steps, lastUse);
  const fewest = Math.min(...counts.slice(1));
  const places = counts.flatMap((count, i) => (i > 0 && count === fewest ? [i] : []));
  const starts = new Set([0]);
  for (let cut = 1; cut < parts && places.length > 0; cut++) {
    const distance = (place: number): number => Math.abs(before[place]! - (total * cut) / parts);
    starts.add(places.reduce((best, place) => (distance(place) < distance(best) ? place : best)));
  }
  const inOrder = [...starts].sort((a, b) => a - b);
  return inOrder.map((start, i) => part(graph, steps, start, inOrder[i + 1] ?? steps.length));
}
