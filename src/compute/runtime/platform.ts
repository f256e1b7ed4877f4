/** Which native library of ONNX Runtime fits this machine, among those that onnxruntime-node ships. */

import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { RuntimeError } from "../../base/errors.ts";

/** The release whose function table and kernels this code was measured with; `package.json` pins the same one. */
export const ORT_VERSION = "1.30.0";

/** Relative to the folder of onnxruntime-node; keys are Node's `process.platform` and `process.arch`. */
const LIBRARIES: Readonly<Record<string, string>> = {
  "linux x64": "bin/napi-v6/linux/x64/libonnxruntime.so.1",
  "linux arm64": "bin/napi-v6/linux/arm64/libonnxruntime.so.1",
  // Shipped under two names; this is the one onnxruntime-node's own addon links to, so that it is never loaded twice.
  "darwin arm64": "bin/napi-v6/darwin/arm64/libonnxruntime.1.dylib",
  "win32 x64": "bin/napi-v6/win32/x64/onnxruntime.dll",
  "win32 arm64": "bin/napi-v6/win32/arm64/onnxruntime.dll",
};

/** Platforms with a native library, as `process.platform process.arch`. */
export const SUPPORTED_PLATFORMS: readonly string[] = Object.keys(LIBRARIES);

export interface Machine {
  /** As Node's `process.platform` and `process.arch`. */
  readonly platform: string;
  readonly arch: string;
}

/**
 * Path of the native library for a machine, relative to the folder of onnxruntime-node.
 * @throws RuntimeError where none is shipped, saying where one is
 */
export function libraryFor({ platform, arch }: Machine): string {
  const file = LIBRARIES[`${platform} ${arch}`];
  if (file === undefined) {
    throw new RuntimeError({
      where: "ONNX Runtime",
      rule: `a native library exists for ${SUPPORTED_PLATFORMS.join(", ")}`,
      got: `${platform} ${arch}`,
      remedy: "Run Pondera on one of these platforms",
    });
  }
  return file;
}

/**
 * Absolute path of the native library for this machine.
 * @throws RuntimeError where none is shipped or onnxruntime-node is not installed
 */
export function libraryPath(): string {
  const file = libraryFor(process);
  const require = createRequire(import.meta.url);
  try {
    return join(dirname(require.resolve("onnxruntime-node/package.json")), file);
  } catch (cause) {
    throw new RuntimeError({
      where: "ONNX Runtime",
      rule: "onnxruntime-node must be installed",
      remedy: "Run npm ci",
      cause,
    });
  }
}

/**
 * Keeps ONNX Runtime from writing down what it is used for, which release 1.30 does by default, under an id of the machine, in a
 * database in the user's home folder. To be called before the library is loaded; whoever sets the variable decides.
 * @source the library's own strings: no documentation of it was found
 */
export function keepToItself(): void {
  process.env["ORT_DISABLE_TELEMETRY"] ??= "1";
}

/** Whether this is a Linux with another C library than glibc, which the shipped libraries need: musl, as on Alpine. */
export function isMusl(): boolean {
  if (process.platform !== "linux") return false;
  const { header } = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return header !== undefined && header.glibcVersionRuntime === undefined;
}

/** What to tell a user for whom the library at `path` would not load. */
export function loadFailure(path: string, musl: boolean, cause: unknown): RuntimeError {
  return new RuntimeError({
    where: "ONNX Runtime",
    rule: "its native library must load",
    got: `${(cause as Error).message} (${path})`,
    remedy: musl
      ? "The library needs glibc and this system has musl: use a glibc distribution, as node:22-slim in place of node:22-alpine"
      : "Run npm ci to install it anew",
    cause,
  });
}

/**
 * Refuses any release but the pinned one: operators and kernels change between releases without a warning.
 * @throws RuntimeError
 */
export function expectVersion(version: string): void {
  if (version === ORT_VERSION) return;
  throw new RuntimeError({
    where: "ONNX Runtime",
    rule: `the native library must be version ${ORT_VERSION}`,
    got: version,
    remedy: "Run npm ci, which installs the version pinned in package-lock.json",
  });
}
