/** Nodes and constants of an ONNX graph as they are written one after another, for the lowering and for exports. */

import type { DType, TypedArrayOf } from "../tensor/dtype.ts";
import type { Shape } from "../tensor/shape.ts";
import {
  type AttributeProto,
  ELEMENT_TYPE,
  type ModelProto,
  type NodeProto,
  type TensorProto,
} from "./proto.ts";

const OPSET = 18;
const IR_VERSION = 9;

/** What a model says before its graph. @param domains of operators that are not ONNX's own */
export function modelHeader(...domains: readonly string[]): Omit<ModelProto, "graph"> {
  return {
    irVersion: IR_VERSION,
    producerName: "pondera",
    opsetImport: [{ domain: "", version: OPSET }, ...domains.map((domain) => ({ domain, version: 1 }))],
  };
}

export type AttributeValue = number | string | readonly number[] | { readonly float: number };

function attribute(name: string, value: AttributeValue): AttributeProto {
  if (typeof value === "number") return { name, type: 2, i: value };
  if (typeof value === "string") return { name, type: 3, s: new TextEncoder().encode(value) };
  if ("float" in value) return { name, type: 1, f: value.float };
  return { name, type: 7, ints: value };
}

function bytesOf(data: TypedArrayOf[DType]): Uint8Array {
  return new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
}

/** Collects nodes and initializers. */
export class NodeWriter {
  readonly nodes: NodeProto[] = [];
  readonly initializers: TensorProto[] = [];
  /** Names that the graph's inputs and outputs bear. */
  readonly #claimed = new Set<string>();
  readonly #shared = new Map<string, string>();
  #next = 0;

  /** Keeps {@link fresh} from giving that name to something else. */
  claimName(name: string): void {
    this.#claimed.add(name);
  }

  fresh(): string {
    for (;;) {
      const name = `t${this.#next++}`;
      if (!this.#claimed.has(name)) return name;
    }
  }

  node(
    opType: string,
    input: readonly string[],
    output: readonly string[],
    attributes: Readonly<Record<string, AttributeValue>> = {},
    domain = "",
  ): void {
    const list = Object.entries(attributes).map(([name, value]) => attribute(name, value));
    this.nodes.push({ opType, input, output, attribute: list, domain });
  }

  /** A node with one result, whose name does not matter. @returns that name */
  temporary(
    opType: string,
    input: readonly string[],
    attributes: Readonly<Record<string, AttributeValue>> = {},
  ): string {
    const name = this.fresh();
    this.node(opType, input, [name], attributes);
    return name;
  }

  tensor(dtype: DType, dims: Shape, data: TypedArrayOf[DType], name = this.fresh()): string {
    this.initializers.push({ name, dims, dataType: ELEMENT_TYPE[dtype], rawData: bytesOf(data) });
    return name;
  }

  /** A shared int64 constant, of one dimension unless `dims` says otherwise: shapes, axes, bounds. */
  integers(values: readonly number[], dims: Shape = [values.length]): string {
    return this.#share(`i64:${dims}:${values}`, () =>
      this.tensor("i64", dims, BigInt64Array.from(values, BigInt)),
    );
  }

  /** A shared float constant of the given shape. */
  floats(values: readonly number[], dims: Shape): string {
    return this.#share(`f32:${dims}:${values}`, () => this.tensor("f32", dims, Float32Array.from(values)));
  }

  #share(key: string, make: () => string): string {
    const name = this.#shared.get(key) ?? make();
    this.#shared.set(key, name);
    return name;
  }
}
