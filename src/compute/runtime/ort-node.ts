/**
 * ONNX Runtime through onnxruntime-node, for machines where its C API cannot be called.
 *
 * Same kernels and the same results, but slower: besides writing the bound outputs every run copies each of them into
 * a fresh array that is thrown away, and the event loop stands still meanwhile.
 */

import { env, Tensor } from "onnxruntime-node";
// The public `InferenceSession.run` is this addon's behind a `setImmediate`; `runSync` needs it without.
import { binding as addon, initOrt } from "onnxruntime-node/dist/binding.js";
import { RuntimeError } from "../../base/errors.ts";
import type { DType } from "../tensor/dtype.ts";
import {
  type Backend,
  type Binding,
  dtypeFromOnnx,
  type NamedTensors,
  type OnnxModel,
  type Port,
  type Session,
  type SessionOptions,
} from "./backend.ts";
import { expectVersion } from "./platform.ts";

const TENSOR_TYPE: { readonly [D in DType]: Tensor.Type } = {
  f32: "float32",
  f16: "float16",
  i64: "int64",
  i32: "int32",
  i8: "int8",
  u8: "uint8",
  bool: "bool",
};

/** Starts onnxruntime-node. @throws RuntimeError when it is of another version than the pinned one */
export function nodeBackend(): Backend {
  const version = env.versions.node ?? "unknown";
  expectVersion(version);
  env.logLevel = "fatal";
  initOrt();
  return {
    name: "node",
    version,
    allocate: (bytes) => ({ buffer: new ArrayBuffer(bytes), byteOffset: 0 }),
    load: async (model, options) => createSession(model, options),
  };
}

/** Runs `call`, turning the addon's errors into typed ones. */
function guard<T>(where: string, call: () => T): T {
  try {
    return call();
  } catch (cause) {
    throw new RuntimeError({
      where,
      rule: "ONNX Runtime must carry out the call",
      got: (cause as Error).message,
      cause,
    });
  }
}

function createSession(model: OnnxModel, options: SessionOptions): Session {
  const { where, profile } = options;
  const session = new addon.InferenceSession();
  const { buffer, byteOffset, byteLength } = model.bytes;
  guard(where, () =>
    session.loadModel(buffer as ArrayBuffer, byteOffset, byteLength, {
      intraOpNumThreads: options.threads,
      graphOptimizationLevel: "all",
      logSeverityLevel: 4,
      // As through the C API; the reasons are there.
      extra: { session: { intra_op: { allow_spinning: "1" }, force_spinning_stop: "1" } },
      // The location of an external initializer is its name.
      externalData: Object.entries(options.initializers).map(([path, { data }]) => ({
        path,
        data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
      })),
      ...(profile === undefined ? {} : { enableProfiling: true, profileFilePrefix: profile }),
    }),
  );
  return {
    inputs: session.inputMetadata.map(portOf),
    outputs: session.outputMetadata.map(portOf),
    bind: (inputs, outputs) => bind(where, session, inputs, outputs),
    release: () => session.dispose(),
  };
}

function portOf(metadata: { name: string; type: number; shape: number[] }): Port {
  return { name: metadata.name, dtype: dtypeFromOnnx(metadata.type), dims: metadata.shape };
}

function bind(
  where: string,
  session: InstanceType<typeof addon.InferenceSession>,
  inputs: NamedTensors,
  outputs: NamedTensors,
): Binding {
  // Outputs given as tensors are written where they lie.
  const feeds = overMemory(inputs);
  const fetches = overMemory(outputs);
  const runSync = () => guard(where, () => void session.run(feeds, fetches, {}));
  return {
    run: () =>
      new Promise((resolve, reject) => {
        setImmediate(() => {
          try {
            resolve(runSync());
          } catch (error) {
            reject(error);
          }
        });
      }),
    runSync,
    release: () => {},
  };
}

/** onnxruntime-node's tensors over the same memory. */
function overMemory(tensors: NamedTensors): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, tensor]) => [
      name,
      new Tensor(TENSOR_TYPE[tensor.dtype], tensor.data, tensor.shape),
    ]),
  );
}
