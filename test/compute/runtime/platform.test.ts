import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { RuntimeError } from "../../../src/base/errors.ts";
import {
  expectVersion,
  isMusl,
  libraryFor,
  libraryPath,
  loadFailure,
  ORT_VERSION,
  SUPPORTED_PLATFORMS,
} from "../../../src/compute/runtime/platform.ts";
import { Runtime } from "../../../src/compute/runtime/runtime.ts";

const require = createRequire(import.meta.url);
const folder = dirname(require.resolve("onnxruntime-node/package.json"));

test.each(SUPPORTED_PLATFORMS)(
  "onnxruntime-node ships the library for %s beside its own addon",
  (machine) => {
    const [platform, arch] = machine.split(" ") as [string, string];
    const library = libraryFor({ platform, arch });
    expect(existsSync(join(folder, library))).toBe(true);
    const addon = readFileSync(join(folder, dirname(library), "onnxruntime_binding.node"));
    // Both must be the same file, or a process that uses both would load the runtime twice.
    expect(addon.includes(library.split("/").at(-1)!)).toBe(true);
  },
);

test("the issue's platforms are all there", () => {
  expect(SUPPORTED_PLATFORMS).toEqual(
    expect.arrayContaining(["linux x64", "linux arm64", "darwin arm64", "win32 x64"]),
  );
});

test("the library for this machine exists", () => {
  expect(existsSync(libraryPath())).toBe(true);
});

describe("a machine without a library is told so", () => {
  test.each([
    ["darwin", "x64"],
    ["linux", "riscv64"],
    ["freebsd", "x64"],
  ])("%s %s", (platform, arch) => {
    expect(() => libraryFor({ platform, arch })).toThrow(RuntimeError);
    expect(() => libraryFor({ platform, arch })).toThrow(
      `a native library exists for linux x64, linux arm64, darwin arm64, win32 x64, win32 arm64; got ${platform} ${arch}.`,
    );
  });
});

test("a library that does not load names its path, the reason and what to do", () => {
  const cause = new Error("no such file");
  const error = loadFailure("lib/libonnxruntime.so.1", false, cause);
  expect(error).toBeInstanceOf(RuntimeError);
  expect(error.message).toBe(
    "ONNX Runtime: its native library must load; got no such file (lib/libonnxruntime.so.1). Run npm ci to install it anew.",
  );
  expect(error.cause).toBe(cause);
  expect(loadFailure("lib", true, cause).remedy).toMatch(/needs glibc and this system has musl/);
});

test("a system that loads the library has glibc", async () => {
  using runtime = await Runtime.create({ backend: "ffi" });
  expect(runtime.backend).toBe("ffi");
  expect(isMusl()).toBe(false);
});

test("only the pinned version is accepted, and it is the one package.json pins", () => {
  expectVersion(ORT_VERSION);
  expect(() => expectVersion("1.29.2")).toThrow(
    `ONNX Runtime: the native library must be version ${ORT_VERSION}; got 1.29.2. Run npm ci`,
  );
  const manifest = JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8"));
  expect(manifest.dependencies["onnxruntime-node"]).toBe(ORT_VERSION);
});
