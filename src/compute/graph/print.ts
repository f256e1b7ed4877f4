/** Prints a graph, one application a line, for snapshots and for people. */

import { showSpec } from "../tensor/shape.ts";
import type { Application, Attributes, Graph, Value } from "./ir.ts";

function showAttributes(application: Application): string {
  if (application.primitive === "constant") {
    const { data } = (application.attributes as Attributes["constant"]).value;
    const head = Array.from(data as ArrayLike<number | bigint>, String).slice(0, 4);
    return `{${head.join(", ")}${data.length > 4 ? ", …" : ""}}`;
  }
  const entries = Object.entries(application.attributes).filter(([, value]) => typeof value !== "function");
  if (entries.length === 0) return "";
  return `{${entries.map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(" ")}}`;
}

/** Values are renumbered from 0, so that the text does not depend on what tracing threw away. */
export function printGraph(graph: Graph): string {
  const names = new Map<Value, string>();
  const define = (x: Value): string => {
    const name = `%${names.size}`;
    names.set(x, name);
    return `${name}: ${showSpec(x)}`;
  };
  const use = (x: Value): string => names.get(x) ?? "%?";
  const lines = [...graph.inputs].map(([name, x]) => `input  ${define(x)} = ${name}`);
  for (const application of graph.applications) {
    const inputs = application.inputs.map(use).join(" ");
    const outputs = application.outputs.map(define).join(", ");
    lines.push(`${outputs} = ${application.primitive}${showAttributes(application)} ${inputs}`.trimEnd());
  }
  for (const [name, x] of graph.outputs) lines.push(`output ${name} = ${use(x)}`);
  return lines.join("\n");
}
