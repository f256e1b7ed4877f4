/** The fixtures stay small: every clone carries them, and the tests of damaged files read many of them over and over. */

import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { fixturePath } from "../fixture.ts";

/** Of all files together. Smaller shapes make room for what is new; test/reference/README.md tells how each is made. */
const LIMIT_BYTES = 2_000_000;

it("all fixtures together are below 2 MB", () => {
  const files = readdirSync(fixturePath(""), { withFileTypes: true, recursive: true }).filter((entry) =>
    entry.isFile(),
  );
  const sizes = files.map(({ parentPath, name }) => [statSync(join(parentPath, name)).size, name] as const);
  expect(sizes.length).toBeGreaterThan(50);
  const largest = sizes.sort(([a], [b]) => b - a).slice(0, 5);
  const total = sizes.reduce((sum, [size]) => sum + size, 0);
  expect(total, `the largest: ${largest.map((file) => file.join(" ")).join(", ")}`).toBeLessThan(LIMIT_BYTES);
});
