/**
 * Models whose initializers stay where they are. ONNX Runtime copies the initializers of a model that it reads from bytes; of one
 * that is built through its model editor it reads them in place, so that weights lie in memory once for all programs.
 */

import type { ModelProto, NodeProto, TensorProto, ValueInfoProto } from "../onnx/proto.ts";
import { typedArray } from "../tensor/dtype.ts";
import { sizeOf } from "../tensor/shape.ts";
import { dtypeFromOnnx, type NamedTensors } from "./backend.ts";
import { DeviceTensor } from "./device-tensor.ts";
import type * as ort from "./ort-api.ts";

/** What building a model takes of the backend. */
export interface ModelEditing {
  readonly api: ort.OrtApi;
  readonly editor: ort.ModelEditorApi;
  /** Calls a function whose last argument receives a handle, and returns that handle. @throws RuntimeError */
  readonly create: (call: (out: [ort.Handle]) => ort.Handle) => ort.Handle;
  /** @throws RuntimeError for a failure */
  readonly check: (status: ort.Handle) => void;
  /** A value over memory, to be released by the caller; `returned`, where it is given, is called when nobody reads that any more. */
  readonly value: (name: string, tensor: DeviceTensor, returned?: () => void) => ort.Handle;
}

/** Smaller initializers the model editor wants for its own: shapes may be worked out from them. */
const SMALLEST_IN_PLACE = 128;

/** `OrtOpAttrType`, by the numbers that ONNX's own attributes have for their types. */
const ATTRIBUTE_TYPES: Readonly<Record<number, number>> = { 1: 3, 2: 1, 3: 5, 7: 2 };

const FLOAT = 1;
const STRING = 3;
const INTEGERS = 7;

function attributes({ api, create }: ModelEditing, { attribute }: NodeProto): ort.Handle[] {
  return attribute.map(({ name, type, f, i, s, ints }) => {
    const data =
      type === FLOAT
        ? Float32Array.of(f!)
        : type === STRING
          ? s!
          : BigInt64Array.from(type === INTEGERS ? ints! : [i!], BigInt);
    return create((out) => api.CreateOpAttr(name, data, data.length, ATTRIBUTE_TYPES[type]!, out));
  });
}

/** An input or output. */
function port({ api, editor, create, check }: ModelEditing, { name, type }: ValueInfoProto): ort.Handle {
  const { elemType, shape } = type.tensorType;
  const info = create((out) => api.CreateTensorTypeAndShapeInfo(out));
  try {
    check(api.SetTensorElementType(info, elemType));
    const dims = BigInt64Array.from(shape.dim, ({ dimValue }) => BigInt(dimValue || -1));
    check(api.SetDimensions(info, dims, dims.length));
    const names = shape.dim.map(({ dimParam }) => dimParam ?? "");
    check(api.SetSymbolicDimensions(info, names, names.length));
    const tensor = create((out) => editor.CreateTensorTypeInfo(info, out));
    try {
      return create((out) => editor.CreateValueInfo(name, tensor, out));
    } finally {
      api.ReleaseTypeInfo(tensor);
    }
  } finally {
    api.ReleaseTensorTypeAndShapeInfo(info);
  }
}

/** An initializer that the model itself holds, copied to memory that does not move. */
function ownTensor({ dims, dataType, rawData }: TensorProto): DeviceTensor {
  const dtype = dtypeFromOnnx(dataType)!;
  const buffer = new ArrayBuffer(rawData!.length);
  new Uint8Array(buffer).set(rawData!);
  return new DeviceTensor(dtype, dims, typedArray(dtype, sizeOf(dims), buffer, 0));
}

/**
 * The model over the tensors given as its external initializers.
 * @param kept  takes what must be kept alive for as long as a session of the model lives, and loses what is read no more
 * @param returned  called with the name of each initializer that is read no more, once the model or the session is released
 * @returns  to be released by the caller
 */
export function buildModel(
  editing: ModelEditing,
  { graph, opsetImport }: ModelProto,
  initializers: NamedTensors,
  kept: Set<unknown>,
  returned: (name: string) => void,
): ort.Handle {
  const { api, editor, create, check, value } = editing;
  // What a handle is given to owns it from then on, and frees it when the call fails or the model goes.
  const built = create((out) => editor.CreateGraph(out));
  let model: ort.Handle = null;
  try {
    const inputs = graph.input.map((each) => port(editing, each));
    check(editor.SetGraphInputs(built, inputs, inputs.length));
    const outputs = graph.output.map((each) => port(editing, each));
    check(editor.SetGraphOutputs(built, outputs, outputs.length));
    for (const initializer of graph.initializer) {
      const { name } = initializer;
      const given = initializer.dataLocation === 1 ? initializers[name] : undefined;
      const tensor = given ?? ownTensor(initializer);
      const { data } = tensor;
      kept.add(data);
      const inPlace = given !== undefined && given.data.byteLength >= SMALLEST_IN_PLACE;
      const readNoMore = (): void => {
        kept.delete(data);
        returned(name);
      };
      const made = value(name, tensor, inPlace ? readNoMore : undefined);
      check(editor.AddInitializerToGraph(built, name, made, inPlace ? 1 : 0));
    }
    for (const node of graph.node) {
      const own = attributes(editing, node);
      const { opType, domain = "", input, output } = node;
      const [ins, outs] = [input.length, output.length];
      const created = create((out) =>
        editor.CreateNode(opType, domain, "", input, ins, output, outs, own, own.length, out),
      );
      check(editor.AddNodeToGraph(built, created));
    }
    const domains = opsetImport.map(({ domain }) => domain);
    const versions = Int32Array.from(opsetImport, ({ version }) => version);
    model = create((out) => editor.CreateModel(domains, versions, domains.length, out));
    check(editor.AddGraphToModel(model, built));
    return model;
  } catch (error) {
    if (model === null) api.ReleaseGraph(built);
    else api.ReleaseModel(model);
    throw error;
  }
}
