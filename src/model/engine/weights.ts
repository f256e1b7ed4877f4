/** A model's weights where programs can read them. */

import { DeviceTensor, type Elements } from "../../compute/runtime/device-tensor.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import type { DType } from "../../compute/tensor/dtype.ts";
import type { HostArray } from "../../compute/tensor/host.ts";

type Tensors = Readonly<Record<string, HostArray<"f32">>>;
type DeviceTensors = Record<string, DeviceTensor<"f32">>;

/** Below this an ArrayBuffer may lie within V8's heap, and move. */
const SMALL_BYTES = 4096;

/** A tensor over an array's own memory; a copy of a small one. */
export function tensorOver<D extends DType>(
  runtime: Runtime,
  { dtype, shape, data }: HostArray<D>,
): DeviceTensor<D> {
  return data.byteLength < SMALL_BYTES
    ? runtime.tensor(dtype, shape, data as Elements<D>)
    : new DeviceTensor(dtype, shape, data);
}

const each = (tensors: Tensors, make: (array: HostArray<"f32">) => DeviceTensor<"f32">): DeviceTensors =>
  Object.fromEntries(Object.entries(tensors).map(([name, array]) => [name, make(array)]));

/** Copies weights, as read from a model's folder, into tensors of the runtime: what `Engine.adopt` takes. */
export function deviceWeights(runtime: Runtime, tensors: Tensors): DeviceTensors {
  return each(tensors, ({ shape, data }) => runtime.tensor("f32", shape, data));
}

/** The same where they are, without a copy: for arrays that nobody changes any more. */
export function weightsInPlace(runtime: Runtime, tensors: Tensors): DeviceTensors {
  return each(tensors, (array) => tensorOver(runtime, array));
}
