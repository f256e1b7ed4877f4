/** Small ONNX models for the runtime's tests. */

import {
  ELEMENT_TYPE,
  encodeModel,
  type NodeProto,
  type TensorProto,
} from "../../../src/compute/onnx/proto.ts";
import type { DType } from "../../../src/compute/tensor/dtype.ts";
import type { TensorSpec } from "../../../src/compute/tensor/shape.ts";

type Specs = Readonly<Record<string, TensorSpec>>;

export interface SmallModel {
  readonly nodes: readonly NodeProto[];
  readonly inputs: Specs;
  readonly outputs: Specs;
  /** External initializers: their values come with `load`. */
  readonly external?: Specs;
}

export function spec(dtype: DType, ...shape: number[]): TensorSpec {
  return { dtype, shape };
}

export function node(
  opType: string,
  input: readonly string[],
  output: readonly string[],
  attributes: Readonly<Record<string, number>> = {},
  domain = "",
): NodeProto {
  // AttributeProto.AttributeType.INT is 2.
  const attribute = Object.entries(attributes).map(([name, i]) => ({ name, i, type: 2 }));
  return { opType, input, output, attribute, domain };
}

export function onnx({ nodes, inputs, outputs, external = {} }: SmallModel): Uint8Array {
  const ports = (specs: Specs) =>
    Object.entries(specs).map(([name, { dtype, shape }]) => ({
      name,
      type: {
        tensorType: {
          elemType: ELEMENT_TYPE[dtype],
          shape: { dim: shape.map((dimValue) => ({ dimValue })) },
        },
      },
    }));
  const initializer = Object.entries(external).map(
    ([name, { dtype, shape }]): TensorProto => ({
      name,
      dims: shape,
      dataType: ELEMENT_TYPE[dtype],
      externalData: [{ key: "location", value: name }],
      dataLocation: 1,
    }),
  );
  return encodeModel({
    irVersion: 9,
    producerName: "test",
    opsetImport: [
      { domain: "", version: 18 },
      { domain: "com.microsoft", version: 1 },
    ],
    graph: { name: "test", node: nodes, initializer, input: ports(inputs), output: ports(outputs) },
  });
}
