import { afterEach, beforeEach, expect, test, vi } from "vitest";

beforeEach(() => vi.resetModules());
afterEach(() => vi.doUnmock("koffi"));

/** The runtime as it is where koffi's native part, and perhaps onnxruntime-node's, is missing. */
async function runtimeWithout(...modules: readonly string[]) {
  for (const module of modules) {
    vi.doMock(module, () => {
      throw new Error(`no native part of ${module} here`);
    });
  }
  const { Runtime } = await import("../../../src/compute/runtime/runtime.ts");
  return Runtime;
}

test("without koffi, auto falls back to onnxruntime-node and says why", async () => {
  const Runtime = await runtimeWithout("koffi");
  const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => {});
  using runtime = await Runtime.create({ threads: 1 });
  expect(warn).toHaveBeenCalledExactlyOnceWith(
    expect.stringMatching(/^onnxruntime-node is used.*slower: .*backend ffi/),
    expect.objectContaining({ code: "PONDERA_FALLBACK", detail: expect.stringContaining("npm ci") }),
  );
  warn.mockRestore();
  expect(runtime.backend).toBe("node");
  expect(runtime.fallbackReason).toMatch(/backend ffi/);
  expect(runtime.version).toBe("1.30.0");
});

test("without koffi, the C API asked for by name is an error", async () => {
  const Runtime = await runtimeWithout("koffi");
  await expect(Runtime.create({ backend: "ffi" })).rejects.toMatchObject({
    name: "RuntimeError",
    remedy: expect.stringContaining("npm ci"),
  });
});

test("where neither loads, the error gives both reasons and a remedy", async () => {
  const Runtime = await runtimeWithout("koffi", "onnxruntime-node");
  const error = await Runtime.create().catch((reason) => reason);
  expect(error).toMatchObject({ name: "RuntimeError" });
  expect(error.message).toMatch(/backend ffi.*backend node.*Run npm ci on one of linux x64/s);
});
