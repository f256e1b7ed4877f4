/**
 * ONNX Runtime through its C API: zero-copy tensors, prepared bindings, runs on a worker thread.
 *
 * onnxruntime-node's own `run` copies every output into a fresh JavaScript array and blocks the event loop; binding our
 * memory once and calling `RunWithBinding` is several times faster per decoded token and keeps a server answering.
 */

import koffi, { type LibraryHandle } from "koffi";
import { RuntimeError } from "../../base/errors.ts";
import { ELEMENT_TYPE } from "../onnx/proto.ts";
import type { Backend, Binding, NamedTensors, OnnxModel, Port, Session, SessionOptions } from "./backend.ts";
import { dtypeFromOnnx } from "./backend.ts";
import type { DeviceTensor } from "./device-tensor.ts";
import { foreign } from "./ffi.ts";
import * as ort from "./ort-api.ts";
import { Lender } from "./ort-lent.ts";
import { buildModel } from "./ort-model.ts";
import { expectVersion, isMusl, libraryPath, loadFailure } from "./platform.ts";

/** What MLAS and AVX-512 loads like best; also a cache line, so two tensors never share one. */
const ALIGNMENT = 64;

const SESSION_SETTINGS = [
  // Threads that spin between operators take the next one at once; waking them costs more than a small operator.
  ["session.intra_op.allow_spinning", "1"],
  // But not after the run: the idle threads of one program would take the cores from the next. Six programs run in
  // turn on 2 cores took six times as long per step without this, and one alone took the same.
  ["session.force_spinning_stop", "1"],
  ["session.use_env_allocators", "1"],
] as const;

/** The library and what is created once per process from it. */
interface Native {
  readonly api: ort.OrtApi;
  readonly editor: ort.ModelEditorApi;
  readonly version: string;
  readonly env: ort.Handle;
  readonly memoryInfo: ort.Handle;
  readonly allocator: ort.Handle;
}

/** @throws RuntimeError with ONNX Runtime's own message when `status` is a failure; the status is released */
function check(api: ort.OrtApi, where: string, status: ort.Handle): void {
  if (status === null) return;
  const got = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw new RuntimeError({ where, rule: "ONNX Runtime must carry out the call", got });
}

/** Calls a function whose last argument receives a handle, and returns that handle. */
function create(api: ort.OrtApi, where: string, call: (out: [ort.Handle]) => ort.Handle): ort.Handle {
  const out: [ort.Handle] = [null];
  check(api, where, call(out));
  return out[0];
}

/**
 * Where the loaded library is kept. koffi unloads a library once its handle is collected, and the functions decoded
 * from the table do not refer to it: without a global reference every one of them would dangle after a garbage
 * collection. A module variable is not enough under test runners that drop modules.
 */
const KEPT: { [key: symbol]: unknown } = globalThis;
const NATIVE = Symbol.for("pondera.onnxruntime");

function loadNative(): Native {
  const kept = KEPT[NATIVE] as { native: Native } | undefined;
  if (kept !== undefined) return kept.native;
  const library = loadLibrary(libraryPath());
  // struct OrtApiBase { const OrtApi *(*GetApi)(uint32_t version); const char *(*GetVersionString)(void); }
  const base = library.func("OrtGetApiBase", "void *", [])() as bigint;
  const entry = (index: number) => koffi.decode(base, index * koffi.sizeof("void *"), "void *") as bigint;
  const version = koffi.decode(entry(1), koffi.proto("str", []))() as string;
  expectVersion(version);
  const table = koffi.decode(
    entry(0),
    koffi.proto("void *", ["uint32_t"]),
  )(ort.ORT_API_VERSION) as ort.Handle;
  if (table === null) {
    throw new RuntimeError({
      where: "ONNX Runtime",
      rule: `the native library must provide API version ${ort.ORT_API_VERSION}`,
      got: `version ${version} without it`,
    });
  }
  const api = ort.bindOrtApi(table);
  const where = "ONNX Runtime";
  const env = create(api, where, (out) => api.CreateEnv(ort.LOG_FATAL, "pondera", out));
  check(api, where, api.DisableTelemetryEvents(env));
  const memoryInfo = create(api, where, (out) =>
    api.CreateCpuMemoryInfo(ort.ARENA_ALLOCATOR, ort.DEFAULT_MEMORY, out),
  );
  shareArena(api, env, memoryInfo);
  const allocator = create(api, where, (out) => api.GetAllocatorWithDefaultOptions(out));
  const editor = ort.bindModelEditorApi(api.GetModelEditorApi());
  const native: Native = { api, editor, version, env, memoryInfo, allocator };
  KEPT[NATIVE] = { native, library };
  return native;
}

function loadLibrary(path: string): LibraryHandle {
  try {
    return foreign().load(path);
  } catch (cause) {
    throw loadFailure(path, isMusl(), cause);
  }
}

/**
 * Gives all programs one arena for what they compute on the way. An arena keeps its peak for ever; with one per program
 * four training graphs of different sizes held 2.5 GB where together they hold 1.3.
 */
function shareArena(api: ort.OrtApi, env: ort.Handle, memoryInfo: ort.Handle): void {
  const where = "ONNX Runtime arena";
  // Growing by what is asked instead of by powers of two: shapes are static, so requests repeat.
  const strategy = BigUint64Array.of(BigInt(ort.EXTEND_AS_REQUESTED));
  const config = create(api, where, (out) =>
    api.CreateArenaCfgV2(["arena_extend_strategy"], strategy, 1, out),
  );
  try {
    check(api, where, api.CreateAndRegisterAllocator(env, memoryInfo, config));
  } finally {
    api.ReleaseArenaCfg(config);
  }
}

/** Loads the native library, once per process. @throws RuntimeError when it cannot be loaded or is of another version */
export function ffiBackend(): Backend {
  const native = loadNative();
  return {
    name: "ffi",
    version: native.version,
    allocate(bytes) {
      // An ArrayBuffer's bytes lie outside V8's heap and never move; a small typed array of its own might be inside.
      const buffer = new ArrayBuffer(Math.max(bytes, ALIGNMENT) + ALIGNMENT);
      const misaligned = Number(koffi.address(buffer) % BigInt(ALIGNMENT));
      return { buffer, byteOffset: misaligned === 0 ? 0 : ALIGNMENT - misaligned };
    },
    load: (model, options) => createSession(native, model, options),
    trim: trimmer(),
  };
}

/** glibc keeps what is freed unless it is told; others do without. */
function trimmer(): () => void {
  if (process.platform !== "linux" || isMusl()) return () => {};
  try {
    const trim = koffi.load("libc.so.6").func("malloc_trim", "int", ["size_t"]);
    return () => trim(0);
  } catch {
    return () => {};
  }
}

/**
 * An OrtValue over the tensor's memory, which it does not keep alive; to be released by the caller.
 * @param lent  who lends the memory, and what is called when nobody reads it any more
 */
function createValue(
  { api, memoryInfo }: Native,
  where: string,
  tensor: DeviceTensor,
  lent?: { readonly lender: Lender; readonly returned: () => void },
): ort.Handle {
  const { data, shape, dtype } = tensor;
  const address = koffi.address(data.buffer) + BigInt(data.byteOffset);
  const dims = BigInt64Array.from(shape, BigInt);
  const rest = [address, data.byteLength, dims, dims.length, ELEMENT_TYPE[dtype]] as const;
  if (lent === undefined) {
    return create(api, where, (out) => api.CreateTensorWithDataAsOrtValue(memoryInfo, ...rest, out));
  }
  const { lender, returned } = lent;
  lender.lend(address, returned);
  return create(api, where, (out) =>
    api.CreateTensorWithDataAndDeleterAsOrtValue(lender.address, ...rest, out),
  );
}

async function createSession(native: Native, model: OnnxModel, options: SessionOptions): Promise<Session> {
  const { api, editor, env } = native;
  const { where, initializers } = options;
  const settings = create(api, where, (out) => api.CreateSessionOptions(out));
  /** What the session reads for as long as it lives. */
  const kept = new Set<unknown>();
  const lender = new Lender(native.memoryInfo);
  let built: ort.Handle = null;
  let session: Session | undefined;
  try {
    check(api, where, api.SetIntraOpNumThreads(settings, options.threads));
    check(api, where, api.SetSessionGraphOptimizationLevel(settings, ort.ENABLE_ALL_OPTIMIZATIONS));
    check(api, where, api.SetSessionLogSeverityLevel(settings, ort.LOG_FATAL));
    for (const [key, value] of SESSION_SETTINGS) {
      check(api, where, api.AddSessionConfigEntry(settings, key, value));
    }
    if (options.profile !== undefined) check(api, where, api.EnableProfiling(settings, options.profile));
    const out: [ort.Handle] = [null];
    // koffi does not keep alive the memory it passes on: what the worker thread reads is held until it is done.
    const inUse: unknown[] = [kept];
    const status = await new Promise<ort.Handle>((resolve, reject) => {
      const done = (error: unknown, result: ort.Handle): void => {
        inUse.length = 0;
        if (error) reject(error);
        else resolve(result);
      };
      if (Object.keys(initializers).length > 0) {
        built = buildModel(
          {
            api,
            editor,
            create: (call) => create(api, where, call),
            check: (each) => check(api, where, each),
            value: (name, tensor, returned) =>
              createValue(
                native,
                `${where}: initializer ${name}`,
                tensor,
                returned === undefined ? undefined : { lender, returned },
              ),
          },
          model.proto,
          initializers,
          kept,
          options.returned ?? (() => {}),
        );
        editor.CreateSessionFromModel.async(env, built, settings, out, done);
      } else {
        const { bytes } = model;
        inUse.push(bytes);
        api.CreateSessionFromArray.async(env, bytes, bytes.length, settings, out, done);
      }
    });
    check(api, where, status);
    session = new FfiSession(native, where, out[0], { kept, lender });
    return session;
  } finally {
    // What the session reads no more is given back here.
    if (built !== null) api.ReleaseModel(built);
    api.ReleaseSessionOptions(settings);
    if (session === undefined) lender.dispose();
  }
}

interface SessionMemory {
  /** What the session reads and knows only the address of. */
  readonly kept: Set<unknown>;
  /** Who lent it. */
  readonly lender: Lender;
}

class FfiSession implements Session {
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly #native: Native;
  readonly #where: string;
  readonly #session: ort.Handle;
  readonly #memory: SessionMemory;

  constructor(native: Native, where: string, session: ort.Handle, memory: SessionMemory) {
    this.#native = native;
    this.#where = where;
    this.#session = session;
    this.#memory = memory;
    this.inputs = this.#ports("Input");
    this.outputs = this.#ports("Output");
  }

  bind(inputs: NamedTensors, outputs: NamedTensors): Binding {
    const { api } = this.#native;
    const where = this.#where;
    const session = this.#session;
    const binding = create(api, where, (out) => api.CreateIoBinding(session, out));
    /** Keeps alive what the binding only knows the address of. */
    const memory: unknown[] = [];
    try {
      for (const [kind, tensors] of [
        ["BindInput", inputs],
        ["BindOutput", outputs],
      ] as const) {
        for (const [name, tensor] of Object.entries(tensors)) {
          const value = createValue(this.#native, `${where}: ${name}`, tensor);
          // The binding holds its own reference to the value, so ours can go at once.
          try {
            check(api, `${where}: ${name}`, api[kind](binding, name, value));
          } finally {
            api.ReleaseValue(value);
          }
          memory.push(tensor.data);
        }
      }
    } catch (error) {
      api.ReleaseIoBinding(binding);
      throw error;
    }
    return {
      run: () =>
        new Promise((resolve, reject) => {
          api.RunWithBinding.async(session, null, binding, (error, status) => {
            if (error) return reject(error);
            try {
              check(api, where, status);
              resolve();
            } catch (failure) {
              reject(failure);
            }
          });
        }),
      runSync: () => check(api, where, api.RunWithBinding(session, null, binding)),
      release: () => {
        api.ReleaseIoBinding(binding);
        memory.length = 0;
      },
    };
  }

  release(): void {
    this.#native.api.ReleaseSession(this.#session);
    this.#memory.kept.clear();
    this.#memory.lender.dispose();
  }

  /** The inputs or outputs as the model declares them. */
  #ports(kind: "Input" | "Output"): Port[] {
    const { api, allocator } = this.#native;
    const where = this.#where;
    const session = this.#session;
    const count: [number | bigint] = [0];
    check(api, where, api[`SessionGet${kind}Count`](session, count));
    return Array.from({ length: Number(count[0]) }, (_, index) => {
      const text = create(api, where, (out) => api[`SessionGet${kind}Name`](session, index, allocator, out));
      const name = koffi.decode.string(text);
      check(api, where, api.AllocatorFree(allocator, text));
      const info = create(api, where, (out) => api[`SessionGet${kind}TypeInfo`](session, index, out));
      try {
        // Belongs to `info`; null for what is no tensor, which Pondera never makes.
        const tensor = create(api, where, (out) => api.CastTypeInfoToTensorInfo(info, out));
        if (tensor === null) return { name, dtype: undefined, dims: [] };
        const type: [number] = [0];
        check(api, where, api.GetTensorElementType(tensor, type));
        const rank: [number | bigint] = [0];
        check(api, where, api.GetDimensionsCount(tensor, rank));
        const dims = new BigInt64Array(Number(rank[0]));
        check(api, where, api.GetDimensions(tensor, dims, dims.length));
        return { name, dtype: dtypeFromOnnx(type[0]), dims: Array.from(dims, Number) };
      } finally {
        api.ReleaseTypeInfo(info);
      }
    });
  }
}
