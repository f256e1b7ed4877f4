/**
 * The part of ONNX's protobuf schema that graphs need, as a protobufjs reflection root.
 * Field numbers from onnx/onnx.proto3 of the ONNX project (IR version 9).
 */

import protobuf from "protobufjs";
import type { DType } from "../tensor/dtype.ts";

const root = protobuf.Root.fromJSON({
  nested: {
    onnx: {
      nested: {
        AttributeProto: {
          fields: {
            name: { id: 1, type: "string" },
            f: { id: 2, type: "float" },
            i: { id: 3, type: "int64" },
            s: { id: 4, type: "bytes" },
            ints: { id: 8, type: "int64", rule: "repeated" },
            type: { id: 20, type: "int32" },
          },
        },
        NodeProto: {
          fields: {
            input: { id: 1, type: "string", rule: "repeated" },
            output: { id: 2, type: "string", rule: "repeated" },
            name: { id: 3, type: "string" },
            opType: { id: 4, type: "string" },
            attribute: { id: 5, type: "AttributeProto", rule: "repeated" },
            domain: { id: 7, type: "string" },
          },
        },
        StringStringEntryProto: {
          fields: { key: { id: 1, type: "string" }, value: { id: 2, type: "string" } },
        },
        TensorProto: {
          fields: {
            dims: { id: 1, type: "int64", rule: "repeated" },
            dataType: { id: 2, type: "int32" },
            name: { id: 8, type: "string" },
            rawData: { id: 9, type: "bytes" },
            externalData: { id: 13, type: "StringStringEntryProto", rule: "repeated" },
            dataLocation: { id: 14, type: "int32" },
          },
        },
        Dimension: {
          fields: { dimValue: { id: 1, type: "int64" }, dimParam: { id: 2, type: "string" } },
          oneofs: { value: { oneof: ["dimValue", "dimParam"] } },
        },
        TensorShapeProto: { fields: { dim: { id: 1, type: "Dimension", rule: "repeated" } } },
        TensorTypeProto: {
          fields: { elemType: { id: 1, type: "int32" }, shape: { id: 2, type: "TensorShapeProto" } },
        },
        TypeProto: { fields: { tensorType: { id: 1, type: "TensorTypeProto" } } },
        ValueInfoProto: { fields: { name: { id: 1, type: "string" }, type: { id: 2, type: "TypeProto" } } },
        GraphProto: {
          fields: {
            node: { id: 1, type: "NodeProto", rule: "repeated" },
            name: { id: 2, type: "string" },
            initializer: { id: 5, type: "TensorProto", rule: "repeated" },
            input: { id: 11, type: "ValueInfoProto", rule: "repeated" },
            output: { id: 12, type: "ValueInfoProto", rule: "repeated" },
          },
        },
        OperatorSetIdProto: {
          fields: { domain: { id: 1, type: "string" }, version: { id: 2, type: "int64" } },
        },
        ModelProto: {
          fields: {
            irVersion: { id: 1, type: "int64" },
            producerName: { id: 2, type: "string" },
            graph: { id: 7, type: "GraphProto" },
            opsetImport: { id: 8, type: "OperatorSetIdProto", rule: "repeated" },
          },
        },
      },
    },
  },
});

const ModelProto = root.lookupType("onnx.ModelProto");

/** ONNX's own numbers for element types. @source onnx.proto, TensorProto.DataType */
export const ELEMENT_TYPE: { readonly [D in DType]: number } = {
  f32: 1,
  u8: 2,
  i8: 3,
  i32: 6,
  i64: 7,
  bool: 9,
  f16: 10,
};

export interface AttributeProto {
  readonly name: string;
  readonly type: number;
  readonly f?: number;
  readonly i?: number;
  readonly s?: Uint8Array;
  readonly ints?: readonly number[];
}

export interface NodeProto {
  readonly input: readonly string[];
  readonly output: readonly string[];
  readonly opType: string;
  readonly domain?: string;
  readonly attribute: readonly AttributeProto[];
}

export interface TensorProto {
  readonly name: string;
  readonly dims: readonly number[];
  readonly dataType: number;
  readonly rawData?: Uint8Array;
  readonly externalData?: readonly { readonly key: string; readonly value: string }[];
  /** 1: the data is external. */
  readonly dataLocation?: number;
}

/** A size, or the name of one that is known when the graph runs. */
export interface DimensionProto {
  readonly dimValue?: number;
  readonly dimParam?: string;
}

export interface ValueInfoProto {
  readonly name: string;
  readonly type: {
    readonly tensorType: {
      readonly elemType: number;
      readonly shape: { readonly dim: readonly DimensionProto[] };
    };
  };
}

export interface ModelProto {
  readonly irVersion: number;
  readonly producerName: string;
  readonly opsetImport: readonly { readonly domain: string; readonly version: number }[];
  readonly graph: {
    readonly name: string;
    readonly node: readonly NodeProto[];
    readonly initializer: readonly TensorProto[];
    readonly input: readonly ValueInfoProto[];
    readonly output: readonly ValueInfoProto[];
  };
}

/** The bytes of an ONNX file. */
export function encodeModel(model: ModelProto): Uint8Array {
  return ModelProto.encode(model as object as protobuf.Message).finish();
}

/** Reads the fields above back from an ONNX file; others are skipped. */
export function decodeModel(bytes: Uint8Array): ModelProto {
  const options = { longs: Number, arrays: true, defaults: true };
  return ModelProto.toObject(ModelProto.decode(bytes), options) as ModelProto;
}
