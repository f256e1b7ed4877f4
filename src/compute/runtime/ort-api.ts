/**
 * The part of ONNX Runtime's C API that Pondera calls: position in the function table and signature.
 *
 * `OrtApi` is one struct of function pointers. It is append-only, so a position once right stays right on every
 * platform and in every later release.
 * @source onnxruntime/core/session/onnxruntime_c_api.h, ORT_API_VERSION 29
 */

import koffi from "koffi";

/** The API version the positions were read from; what `GetApi` is asked for. */
export const ORT_API_VERSION = 29;

/** Address of an object that ONNX Runtime owns; null for none. */
export type Handle = bigint | null;

/** Values of `GraphOptimizationLevel`, `OrtLoggingLevel`, `OrtAllocatorType`, `OrtMemType`, `ArenaExtendStrategy`. */
export const ENABLE_ALL_OPTIMIZATIONS = 99;
/** Errors come back as values; printing them as well would tear up a live view. */
export const LOG_FATAL = 4;
export const ARENA_ALLOCATOR = 1;
export const DEFAULT_MEMORY = 0;
export const EXTEND_AS_REQUESTED = 1;

/** What JavaScript passes for each kind of parameter. `out…` take an array of one element, which is filled in. */
interface Parameters {
  /** Object of ONNX Runtime. */
  handle: Handle;
  handles: readonly Handle[];
  /** Memory: a typed array outside V8's heap, or its address. */
  memory: NodeJS.ArrayBufferView | bigint;
  int: number;
  size: number;
  text: string;
  texts: readonly string[];
  /** `ORTCHAR_T *`: wide characters on Windows. */
  path: string;
  outHandle: [Handle];
  outInt: [number];
  outSize: [number | bigint];
}

interface Results {
  /** `OrtStatus *`: null for success, otherwise to be released by the caller. */
  status: Handle;
  handle: Handle;
  text: string;
  void: undefined;
}

type Entry = readonly [index: number, returns: keyof Results, takes: readonly (keyof Parameters)[]];

export const ORT_API = {
  GetErrorMessage: [2, "text", ["handle"]],
  ReleaseStatus: [93, "void", ["handle"]],

  CreateEnv: [3, "status", ["int", "text", "outHandle"]],
  DisableTelemetryEvents: [6, "status", ["handle"]],
  GetAllocatorWithDefaultOptions: [78, "status", ["outHandle"]],
  AllocatorFree: [76, "status", ["handle", "handle"]],
  CreateCpuMemoryInfo: [69, "status", ["int", "int", "outHandle"]],
  CreateArenaCfgV2: [164, "status", ["texts", "memory", "size", "outHandle"]],
  ReleaseArenaCfg: [157, "void", ["handle"]],
  CreateAndRegisterAllocator: [144, "status", ["handle", "handle", "handle"]],

  CreateSessionOptions: [10, "status", ["outHandle"]],
  ReleaseSessionOptions: [100, "void", ["handle"]],
  SetIntraOpNumThreads: [24, "status", ["handle", "int"]],
  SetSessionGraphOptimizationLevel: [23, "status", ["handle", "int"]],
  SetSessionLogSeverityLevel: [22, "status", ["handle", "int"]],
  AddSessionConfigEntry: [130, "status", ["handle", "text", "text"]],
  EnableProfiling: [14, "status", ["handle", "path"]],

  CreateSessionFromArray: [8, "status", ["handle", "memory", "size", "handle", "outHandle"]],
  ReleaseSession: [95, "void", ["handle"]],
  SessionGetInputCount: [30, "status", ["handle", "outSize"]],
  SessionGetOutputCount: [31, "status", ["handle", "outSize"]],
  SessionGetInputName: [36, "status", ["handle", "size", "handle", "outHandle"]],
  SessionGetOutputName: [37, "status", ["handle", "size", "handle", "outHandle"]],
  SessionGetInputTypeInfo: [33, "status", ["handle", "size", "outHandle"]],
  SessionGetOutputTypeInfo: [34, "status", ["handle", "size", "outHandle"]],
  CastTypeInfoToTensorInfo: [55, "status", ["handle", "outHandle"]],
  ReleaseTypeInfo: [98, "void", ["handle"]],
  GetTensorElementType: [60, "status", ["handle", "outInt"]],
  GetDimensionsCount: [61, "status", ["handle", "outSize"]],
  GetDimensions: [62, "status", ["handle", "memory", "size"]],

  GetModelEditorApi: [291, "handle", []],
  CreateTensorTypeAndShapeInfo: [57, "status", ["outHandle"]],
  SetTensorElementType: [58, "status", ["handle", "int"]],
  SetDimensions: [59, "status", ["handle", "memory", "size"]],
  SetSymbolicDimensions: [271, "status", ["handle", "texts", "size"]],
  ReleaseTensorTypeAndShapeInfo: [99, "void", ["handle"]],
  CreateOpAttr: [211, "status", ["text", "memory", "int", "int", "outHandle"]],
  ReleaseGraph: [287, "void", ["handle"]],
  ReleaseModel: [288, "void", ["handle"]],

  CreateTensorWithDataAsOrtValue: [
    49,
    "status",
    ["handle", "memory", "size", "memory", "size", "int", "outHandle"],
  ],
  CreateTensorWithDataAndDeleterAsOrtValue: [
    292,
    "status",
    ["handle", "memory", "size", "memory", "size", "int", "outHandle"],
  ],
  ReleaseValue: [96, "void", ["handle"]],

  CreateIoBinding: [134, "status", ["handle", "outHandle"]],
  ReleaseIoBinding: [135, "void", ["handle"]],
  BindInput: [136, "status", ["handle", "text", "handle"]],
  BindOutput: [137, "status", ["handle", "text", "handle"]],
  RunWithBinding: [133, "status", ["handle", "handle", "handle"]],
} as const satisfies Record<string, Entry>;

/**
 * `OrtModelEditorApi`: builds models from parts. What is added to a graph or a model belongs to it from then on.
 * @source the same header, since version 22
 */
export const MODEL_EDITOR_API = {
  CreateTensorTypeInfo: [0, "status", ["handle", "outHandle"]],
  CreateValueInfo: [5, "status", ["text", "handle", "outHandle"]],
  CreateNode: [
    6,
    "status",
    ["text", "text", "text", "texts", "size", "texts", "size", "handles", "size", "outHandle"],
  ],
  CreateGraph: [7, "status", ["outHandle"]],
  SetGraphInputs: [8, "status", ["handle", "handles", "size"]],
  SetGraphOutputs: [9, "status", ["handle", "handles", "size"]],
  AddInitializerToGraph: [10, "status", ["handle", "text", "handle", "int"]],
  AddNodeToGraph: [11, "status", ["handle", "handle"]],
  CreateModel: [12, "status", ["texts", "memory", "size", "outHandle"]],
  AddGraphToModel: [13, "status", ["handle", "handle"]],
  CreateSessionFromModel: [14, "status", ["handle", "handle", "handle", "outHandle"]],
} as const satisfies Record<string, Entry>;

type Arguments<Kinds extends readonly (keyof Parameters)[]> = {
  -readonly [I in keyof Kinds]: Parameters[Kinds[I]];
};

interface NativeFunction<Kinds extends readonly (keyof Parameters)[], Result> {
  (...args: Arguments<Kinds>): Result;
  /** The same call on a worker thread; `done` runs on the event loop. */
  async(...args: [...Arguments<Kinds>, done: (error: unknown, result: Result) => void]): void;
}

/** A bound function table. */
type Bound<Table extends Readonly<Record<string, Entry>>> = {
  readonly [Name in keyof Table]: NativeFunction<Table[Name][2], Results[Table[Name][1]]>;
};

export type OrtApi = Bound<typeof ORT_API>;
export type ModelEditorApi = Bound<typeof MODEL_EDITOR_API>;

const POINTER = "void *";

function parameterType(kind: keyof Parameters) {
  switch (kind) {
    case "handle":
    case "memory":
      return POINTER;
    case "handles":
      return "void **";
    case "int":
      return "int";
    case "size":
      return "size_t";
    case "text":
      return "str";
    case "texts":
      return "str *";
    case "path":
      return process.platform === "win32" ? "str16" : "str";
    case "outHandle":
      return koffi.out(koffi.pointer(POINTER));
    case "outInt":
      return koffi.out(koffi.pointer("int"));
    case "outSize":
      return koffi.out(koffi.pointer("size_t"));
  }
}

const RESULT_TYPES: { readonly [Kind in keyof Results]: string } = {
  status: POINTER,
  handle: POINTER,
  text: "str",
  void: "void",
};

/** The functions of a table at an address, callable from JavaScript. */
function bindTable<Table extends Readonly<Record<string, Entry>>>(
  table: Table,
  address: Handle,
): Bound<Table> {
  const pointerBytes = koffi.sizeof(POINTER);
  const bind = ([index, returns, takes]: Entry) =>
    koffi.decode(
      koffi.decode(address!, index * pointerBytes, POINTER),
      koffi.proto(RESULT_TYPES[returns], takes.map(parameterType)),
    ) as unknown;
  const functions = Object.entries(table).map(([name, entry]) => [name, bind(entry)]);
  return Object.fromEntries(functions) as Bound<Table>;
}

/** @param address  of the struct that `OrtApiBase::GetApi` returned */
export const bindOrtApi = (address: Handle): OrtApi => bindTable(ORT_API, address);

/** @param address  of the struct that `OrtApi::GetModelEditorApi` returned */
export const bindModelEditorApi = (address: Handle): ModelEditorApi => bindTable(MODEL_EDITOR_API, address);
