/** `run.json`: what a run was asked to do. */

import { join } from "node:path";
import { z } from "zod";
import { FileError } from "../../base/errors.ts";
import { exists, readJson, writeFileAtomic } from "../../base/files.ts";
import { jsonText, parsedBy } from "../../base/json.ts";

/** Raised when the layout or the records change so that an older run cannot be read. */
export const FORMAT = 1;

const Manifest = z.object({
  format: z.literal(FORMAT),
  name: z.string(),
  task: z.string(),
  preset: z.string(),
  seed: z.number().int(),
  /** ISO 8601, when the run was created. */
  created: z.iso.datetime(),
  /** Everything the run is configured with; resuming reads it back. */
  config: z.record(z.string(), z.unknown()),
  /** What was changed when the run went on after so many steps: fields, as `field=value`, and what data had been. */
  changes: z
    .array(
      z.object({
        step: z.number().int(),
        set: z.array(z.string()),
        data: z.record(z.string(), z.string()).optional(),
      }),
    )
    .optional(),
  /** Of Pondera, Node, the runtime, the machine. */
  versions: z.record(z.string(), z.string()),
  /** Absolute path of the file that defines the task, for a task that is not built in. */
  taskFile: z.string().optional(),
  /** The pretrained model it began with, for a run that does not make its own. */
  model: z.object({ name: z.string(), path: z.string(), sha256: z.string() }).optional(),
  /** SHA-256 of the file that defines the task, and of each file of prompts that it names, by name. */
  data: z.record(z.string(), z.string()),
});

/** `run.json`. */
export type RunManifest = Readonly<z.infer<typeof Manifest>>;

/** @throws FileError when it cannot be written */
export function writeManifest(path: string, manifest: RunManifest): Promise<void> {
  return writeFileAtomic(join(path, "run.json"), jsonText(manifest));
}

/** @throws FileError when the folder is no run; FormatError when its run.json is damaged or of another version */
export async function readManifest(path: string): Promise<RunManifest> {
  const file = join(path, "run.json");
  if (!(await exists(file))) {
    throw new FileError({
      where: path,
      rule: "a run's folder holds run.json",
      got: (await exists(path)) ? "none" : "no such folder",
      remedy: "See `pondera runs list` for the runs there are",
    });
  }
  return parsedBy(Manifest, file, await readJson(file));
}
