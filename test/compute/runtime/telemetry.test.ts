/** In processes of their own: the library is loaded once a process. */

import { execFile } from "node:child_process";
import { readdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../base/temporary-folder.ts";

const RUNTIME = fileURLToPath(new URL("../../../src/compute/runtime/runtime.ts", import.meta.url));

/** Names of what a runtime that was made and disposed of leaves in its user's home. */
async function leftBehind(backend: "ffi" | "node", env: NodeJS.ProcessEnv = {}): Promise<string[]> {
  const home = await temporaryFolder();
  const code = `const { createJiti } = await import("jiti");
    const { Runtime } = await createJiti(${JSON.stringify(RUNTIME)}).import(${JSON.stringify(RUNTIME)});
    (await Runtime.create({ backend: ${JSON.stringify(backend)}, threads: 1 })).dispose();`;
  const args = ["--input-type=module", "-e", code];
  // Nothing of our own environment: the library also keeps quiet where `CI` and its like are set.
  await promisify(execFile)(process.execPath, args, { env: { HOME: home, ...env } });
  return readdir(home, { recursive: true });
}

describe("a runtime", () => {
  it.each(["ffi", "node"] as const)("writes nothing down about its use: %s", async (backend) => {
    expect(await leftBehind(backend)).toEqual([]);
  });

  // As a check that there is something to keep it from.
  it.runIf(process.platform === "linux")("does where it is told to", async () => {
    const files = await leftBehind("ffi", { ORT_DISABLE_TELEMETRY: "" });
    expect(files.filter((file) => file.endsWith("onnxruntime.db")).length).toBe(1);
  });
});
