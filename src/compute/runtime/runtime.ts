/**
 * The way to run graphs: tensors in memory that ONNX Runtime shares, and programs loaded from ONNX bytes.
 *
 * ```ts
 * const runtime = await Runtime.create();
 * const x = runtime.tensor("f32", [2, 3], [1, 2, 3, 4, 5, 6]);
 * const y = runtime.tensor("f32", [2, 3]);
 * const program = await runtime.load(onnxBytes, { inputs: { x }, outputs: { y } });
 * const call = program.bind({ x }, { y });
 * await call.run(); // y.data holds the result
 * ```
 */

import { availableParallelism } from "node:os";
import { ConfigError, expectKnown, PonderaError, RuntimeError, ShapeError } from "../../base/errors.ts";
import type { ModelProto } from "../onnx/proto.ts";
import { BYTES, type DType, typedArray } from "../tensor/dtype.ts";
import { type Shape, sizeOf } from "../tensor/shape.ts";
import { type Backend, OnnxModel } from "./backend.ts";
import { DeviceTensor, type Elements } from "./device-tensor.ts";
import { collectGarbage } from "./memory.ts";
import { keepToItself, SUPPORTED_PLATFORMS } from "./platform.ts";
import {
  checkInitializers,
  createProgram,
  type OwnedSession,
  type Program,
  type ProgramIO,
} from "./program.ts";

export interface RuntimeOptions {
  /** Threads that share the work of one operator, the caller's included. @default every core this process may use */
  readonly threads?: number;
  /**
   * How ONNX Runtime is reached: `ffi` calls its C API, `node` goes through onnxruntime-node, which copies outputs and
   * blocks the event loop; `auto` takes the first that loads.
   * @default "auto"
   */
  readonly backend?: "auto" | "ffi" | "node";
  /** Writes a profile per program to `<profile>-<n>_<date>.json` (Chrome trace format) when the program is disposed of. */
  readonly profile?: string;
}

const BACKENDS = {
  ffi: async (): Promise<Backend> => (await import("./ort-ffi.ts")).ffiBackend(),
  node: async (): Promise<Backend> => (await import("./ort-node.ts")).nodeBackend(),
};

/** A native runtime with its threads. One per process is the rule. */
export class Runtime {
  readonly backend: "ffi" | "node";
  readonly threads: number;
  /** Version of ONNX Runtime. */
  readonly version: string;
  /** Why `auto` did not take the C API; undefined when it did, or was not asked. */
  readonly fallbackReason: string | undefined;
  readonly #backend: Backend;
  readonly #profile: string | undefined;
  readonly #sessions = new Set<OwnedSession>();
  #loaded = 0;
  #disposed = false;

  private constructor(backend: Backend, threads: number, profile?: string, fallbackReason?: string) {
    this.backend = backend.name;
    this.version = backend.version;
    this.threads = threads;
    this.fallbackReason = fallbackReason;
    this.#backend = backend;
    this.#profile = profile;
  }

  /**
   * Loads ONNX Runtime; a warning of the process says so where only onnxruntime-node is left to use it through.
   * @throws ConfigError on an option outside its rule
   * @throws RuntimeError when the library is missing, of the wrong version or cannot be loaded
   */
  static async create(options: RuntimeOptions = {}): Promise<Runtime> {
    for (const key of Object.keys(options)) {
      expectKnown("Runtime.create option", key, ["threads", "backend", "profile"]);
    }
    const { threads = availableParallelism(), backend = "auto", profile } = options;
    expectKnown("Runtime.create backend", backend, ["auto", "ffi", "node"]);
    if (!Number.isInteger(threads) || threads < 1) {
      throw new ConfigError({
        where: "Runtime.create threads",
        rule: "must be a whole number of at least 1",
        got: String(threads),
      });
    }
    if (backend !== "auto") return new Runtime(await open(backend), threads, profile);
    try {
      return new Runtime(await open("ffi"), threads, profile);
    } catch (reason) {
      const { message } = reason as Error;
      try {
        const runtime = new Runtime(await open("node"), threads, profile, message);
        process.emitWarning(
          `onnxruntime-node is used, which copies tensors and is several times slower: ${message}`,
          {
            code: "PONDERA_FALLBACK",
            detail: "Run npm ci without --omit=optional, since koffi's native part is an optional package.",
          },
        );
        return runtime;
      } catch (cause) {
        throw new RuntimeError({
          where: "ONNX Runtime",
          rule: "must load through its C API or through onnxruntime-node",
          got: `neither: ${message} — and: ${(cause as Error).message}`,
          remedy: `Run npm ci on one of ${SUPPORTED_PLATFORMS.join(", ")}`,
          cause,
        });
      }
    }
  }

  /**
   * A tensor in memory of its own, aligned to 64 bytes; zeros without `init`.
   * @param init  as many elements as the shape holds, copied
   * @throws ShapeError when `shape` holds anything but whole, non-negative sizes, or `init` another number of elements
   */
  tensor<D extends DType>(dtype: D, shape: Shape, init?: Elements<D>): DeviceTensor<D> {
    this.#expectLive();
    if (!shape.every((n) => Number.isInteger(n) && n >= 0)) {
      throw new ShapeError({
        where: `tensor ${dtype}`,
        rule: "sizes must be whole and not negative",
        got: `[${shape.join(",")}]`,
      });
    }
    const size = sizeOf(shape);
    if (init !== undefined && init.length !== size) {
      throw new ShapeError({
        where: `tensor ${dtype}[${shape.join(",")}]`,
        rule: `init must have ${size} elements`,
        got: `${init.length}`,
      });
    }
    const { buffer, byteOffset } = this.#backend.allocate(size * BYTES[dtype]);
    const data = typedArray(dtype, size, buffer, byteOffset);
    // The elements fit the dtype by type; TypeScript cannot see through the indexed access.
    if (init !== undefined) (data as { set(values: Elements<D>): void }).set(init);
    return new DeviceTensor(dtype, [...shape], data);
  }

  /**
   * Builds a program from an ONNX model, or from its bytes.
   * @throws FormatError when the bytes are no ONNX model
   * @throws ConfigError, ShapeError or DTypeError naming the tensor where `io` and the model differ
   * @throws RuntimeError with ONNX Runtime's message when it refuses the model
   */
  async load(onnx: Uint8Array | ModelProto, io: ProgramIO): Promise<Program> {
    this.#expectLive();
    const number = ++this.#loaded;
    const name = io.name ?? `#${number}`;
    const where = `program "${name}"`;
    const model = new OnnxModel(where, onnx);
    checkInitializers(where, model.proto, io.initializers ?? {});
    const session = await this.#backend.load(model, {
      where,
      threads: Math.min(io.threads ?? this.threads, this.threads),
      initializers: io.initializers ?? {},
      ...(io.returned === undefined ? {} : { returned: io.returned }),
      ...(this.#profile === undefined ? {} : { profile: `${this.#profile}-${number}` }),
    });
    const program = createProgram(name, session, io, this.#sessions);
    if (this.#disposed) program.dispose();
    this.#expectLive();
    return program;
  }

  /** Frees what nobody uses any more now, and gives it back to the system: for many megabytes at once. */
  freeGarbage(): void {
    collectGarbage();
    this.#backend.trim?.();
  }

  /** Disposes of every program; tensors go with their last reference. */
  dispose(): void {
    this.#disposed = true;
    for (const session of this.#sessions) session.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #expectLive(): void {
    if (this.#disposed)
      throw new RuntimeError({ where: "Runtime", rule: "must not be used after dispose()" });
  }
}

/** @throws RuntimeError whatever the reason the backend does not load */
async function open(backend: "ffi" | "node"): Promise<Backend> {
  keepToItself();
  try {
    return await BACKENDS[backend]();
  } catch (cause) {
    if (cause instanceof PonderaError) throw cause;
    throw new RuntimeError({
      where: `ONNX Runtime (backend ${backend})`,
      rule: "must load on this machine",
      got: (cause as Error).message,
      remedy: "Run npm ci without --omit=optional, since koffi's native part is an optional package",
      cause,
    });
  }
}
