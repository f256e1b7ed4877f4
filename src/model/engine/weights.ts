/** A model's weights where programs can read them. */

import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import type { HostArray } from "../../compute/tensor/host.ts";

/** Copies weights, as read from a model's folder, into tensors of the runtime: what `Engine.adopt` takes. */
export function deviceWeights(
  runtime: Runtime,
  tensors: Readonly<Record<string, HostArray<"f32">>>,
): Record<string, DeviceTensor<"f32">> {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { shape, data }]) => [name, runtime.tensor("f32", shape, data)]),
  );
}
