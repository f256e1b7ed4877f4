/** `checkpoints/step-N/` of a run: all that is needed to go on from there, whole or absent at any moment. */

import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { FormatError } from "../../base/errors.ts";
import {
  exists,
  fileError,
  makeFolders,
  readJson,
  recoverFolder,
  writeFileAtomic,
  writeFolderAtomic,
} from "../../base/files.ts";
import { parsedBy } from "../../base/json.ts";
import { BYTES, typedArray } from "../../compute/tensor/dtype.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { readSafetensors, type StoredTensor, writeSafetensors } from "../../model/checkpoint/safetensors.ts";
import { FORMAT } from "./manifest.ts";

const CheckpointState = z.object({
  format: z.literal(FORMAT),
  step: z.number().int().nonnegative(),
  metricsBytes: z.number().int().nonnegative(),
  samplesBytes: z.number().int().nonnegative(),
  state: z.unknown(),
});

/** What is needed to go on from a step: tensors, and anything else as JSON. */
export interface CheckpointContent {
  readonly tensors: Readonly<Record<string, HostArray>>;
  readonly state: unknown;
}

/** A checkpoint read back. */
export interface Checkpoint extends CheckpointContent {
  /** Steps of the whole run done when it was taken. */
  readonly step: number;
  readonly metricsBytes: number;
  readonly samplesBytes: number;
}

/** The folder that holds a run's checkpoints. */
const parentOf = (run: string): string => join(run, "checkpoints");

const folderOf = (run: string, step: number): string => join(parentOf(run), `step-${step}`);

/** The steps of the checkpoints that a run has, ascending. */
export async function listCheckpoints(run: string): Promise<number[]> {
  const parent = parentOf(run);
  if (!(await exists(parent))) return [];
  const steps = (await readdir(parent)).map((entry) => /^step-(\d+)$/.exec(entry)?.[1]);
  return steps
    .filter((step) => step !== undefined)
    .map(Number)
    .sort((a, b) => a - b);
}

/**
 * Writes a checkpoint.
 * @throws FileError when the disk is full; nothing is left of it then
 */
export async function writeCheckpoint(run: string, checkpoint: Checkpoint): Promise<void> {
  const { step, metricsBytes, samplesBytes, state, tensors } = checkpoint;
  await makeFolders(parentOf(run));
  await writeFolderAtomic(folderOf(run, step), async (folder) => {
    await writeSafetensors(join(folder, "state.safetensors"), { ...tensors });
    const record: z.infer<typeof CheckpointState> = {
      format: FORMAT,
      step,
      metricsBytes,
      samplesBytes,
      state,
    };
    await writeFileAtomic(join(folder, "state.json"), `${JSON.stringify(record)}\n`);
  });
}

/** A stored tensor as typed numbers. @throws FormatError on a type that the host has no arrays of */
function toHost(where: string, { dtype, shape, data }: StoredTensor): HostArray {
  if (dtype === "bf16" || dtype === "f8_e4m3")
    throw new FormatError({ where, rule: "a checkpoint's tensors have a host dtype", got: dtype });
  return hostArray(dtype, shape, typedArray(dtype, data.byteLength / BYTES[dtype], data.buffer));
}

/**
 * Reads the checkpoint taken after `step` steps.
 * @throws FileError, FormatError when it is missing or damaged
 */
export async function readCheckpoint(run: string, step: number): Promise<Checkpoint> {
  const folder = folderOf(run, step);
  const file = join(folder, "state.json");
  const { metricsBytes, samplesBytes, state } = parsedBy(CheckpointState, file, await readJson(file));
  const stored = await readSafetensors(join(folder, "state.safetensors"));
  const tensors: Record<string, HostArray> = {};
  for (const [name, tensor] of stored.tensors) tensors[name] = toHost(`${folder}: ${name}`, tensor);
  return { step, tensors, state, metricsBytes, samplesBytes };
}

/** Renamed before it is emptied: a checkpoint is whole or absent, also while it goes. */
export async function removeCheckpoint(run: string, step: number): Promise<void> {
  const path = folderOf(run, step);
  const partial = join(parentOf(run), `.step-${step}.${process.pid}-removed.partial`);
  try {
    await rename(path, partial);
    await rm(partial, { recursive: true, force: true });
  } catch (error) {
    throw fileError(path, "removable", error);
  }
}

/** Removes what writers that were killed left under temporary names; only safe while the run is locked. */
export async function clearLeftovers(run: string): Promise<void> {
  const parent = parentOf(run);
  if (!(await exists(parent))) return;
  try {
    for (const entry of await readdir(parent)) {
      const previous = /^\.(step-\d+)\.previous$/.exec(entry)?.[1];
      if (previous !== undefined) await recoverFolder(join(parent, previous));
    }
    for (const entry of await readdir(parent)) {
      if (/^\.step-.*\.(partial|previous)$/.test(entry)) {
        await rm(join(parent, entry), { recursive: true, force: true });
      }
    }
  } catch (error) {
    throw fileError(parent, "writable", error);
  }
}
