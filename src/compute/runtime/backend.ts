/** What the runtime asks of a way to reach ONNX Runtime. `ort-ffi.ts` and `ort-node.ts` provide it. */

import { FormatError } from "../../base/errors.ts";
import { decodeModel, ELEMENT_TYPE, encodeModel, type ModelProto } from "../onnx/proto.ts";
import type { DType } from "../tensor/dtype.ts";
import type { DeviceTensor } from "./device-tensor.ts";

/** An input or output as the model itself declares it. */
export interface Port {
  readonly name: string;
  /** Absent for an element type Pondera has no name for. */
  readonly dtype: DType | undefined;
  /** A negative size leaves the axis open. */
  readonly dims: readonly number[];
}

/** Tensors by the name of the input, output or initializer they stand for. */
export type NamedTensors = Readonly<Record<string, DeviceTensor>>;

/** Inputs and outputs bound once, run many times. */
export interface Binding {
  /** Runs without blocking the event loop where the backend can. */
  run(): Promise<void>;
  runSync(): void;
  release(): void;
}

/** A model ready to run. Its bindings must be released first. */
export interface Session {
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  /** The tensors' memory stays in use, and is kept alive, until the binding is released. */
  bind(inputs: NamedTensors, outputs: NamedTensors): Binding;
  release(): void;
}

export interface SessionOptions {
  /** Name of the program, for errors. */
  readonly where: string;
  readonly threads: number;
  readonly initializers: NamedTensors;
  /** Told of initializers that are read no more, by a backend that knows. */
  readonly returned?: (name: string) => void;
  /** Start of the name of a profile to write; none without it. */
  readonly profile?: string;
}

export interface Backend {
  readonly name: "ffi" | "node";
  /** Version of ONNX Runtime. */
  readonly version: string;
  /** At least `bytes` zeroed bytes from `byteOffset` on, aligned as the backend's kernels like it. */
  allocate(bytes: number): { readonly buffer: ArrayBuffer; readonly byteOffset: number };
  load(model: OnnxModel, options: SessionOptions): Promise<Session>;
  /** Gives memory that was freed back to the system, where it would be kept for what comes next. */
  readonly trim?: () => void;
}

/** An ONNX model, and its bytes, which are written when they are asked for. */
export class OnnxModel {
  readonly proto: ModelProto;
  #bytes: Uint8Array | undefined;

  /** @throws FormatError, which names `where`, when bytes are no ONNX model */
  constructor(where: string, model: Uint8Array | ModelProto) {
    if (model instanceof Uint8Array) {
      // A copy, so that nobody can write to it or detach it while it is loaded.
      this.#bytes = new Uint8Array(model);
      this.proto = decoded(where, this.#bytes);
    } else this.proto = model;
  }

  get bytes(): Uint8Array {
    this.#bytes ??= encodeModel(this.proto);
    return this.#bytes;
  }
}

function decoded(where: string, bytes: Uint8Array): ModelProto {
  let model: ModelProto;
  try {
    model = decodeModel(bytes);
  } catch (cause) {
    const got = (cause as Error).message;
    throw new FormatError({ where, rule: "must be the bytes of an ONNX model", got, cause });
  }
  if (model.graph !== null) return model;
  throw new FormatError({ where, rule: "must be an ONNX model with a graph" });
}

/** The dtype with this number in ONNX, if Pondera has it. */
export function dtypeFromOnnx(type: number): DType | undefined {
  return (Object.keys(ELEMENT_TYPE) as DType[]).find((dtype) => ELEMENT_TYPE[dtype] === type);
}
