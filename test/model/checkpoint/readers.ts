/** What of a checkpoint that is no whole model can be read: all of it. */

import {
  adapterPaths,
  loadAdapterFolder,
  withAdaptersMerged,
} from "../../../src/model/checkpoint/adapter.ts";
import { loadModelWeights } from "../../../src/model/checkpoint/folder.ts";
import { openSharded } from "../../../src/model/checkpoint/safetensors.ts";
import { safetensorsFloats } from "../../../src/model/checkpoint/safetensors-floats.ts";
import { isStoredFloat } from "../../../src/model/checkpoint/widen.ts";

/** All tensors of shards, scaled where they have scales. */
export async function readShards(index: string): Promise<void> {
  const source = await openSharded(index);
  await using floats = safetensorsFloats(index, source);
  for (const [name, { dtype }] of source.tensors) {
    if (isStoredFloat(dtype) && floats.shapes.has(name)) await floats.readF32(name);
    else await source.read(name);
  }
}

/** Adapters, and their base with them taken in. */
export async function readAdapters(folder: string): Promise<void> {
  const adapters = await loadAdapterFolder(folder);
  const { tensors } = await loadModelWeights(adapters.base);
  withAdaptersMerged(adapterPaths(folder).weights, tensors, adapters);
}
