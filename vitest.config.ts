import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

export default defineConfig({
  resolve: { alias: { pondera: fileURLToPath(new URL("./src/index.ts", import.meta.url)) } },
  test: {
    include: ["test/**/*.test.ts"],
    // Child processes, not threads: the native runtime owns threads of its own, and two files at once fill two cores.
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 60_000,
  },
});
