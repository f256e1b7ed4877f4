import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import * as pondera from "../src/index.ts";

const index = fileURLToPath(new URL("../src/index.ts", import.meta.url));

/** What a fresh process prints that runs this program, jiti reading its TypeScript. */
function print(program: string): string {
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", program], {
    encoding: "utf8",
    env: { ...process.env, PONDERA_INDEX: index },
  });
  expect(stderr).toBe("");
  return stdout;
}

describe("the public API", () => {
  it("has what task files and their examples import", () => {
    for (const file of ["arithmetic", "json-extraction", "sql"]) {
      const source = readFileSync(new URL(`../examples/${file}.ts`, import.meta.url), "utf8");
      const imported = /import \{([^}]*)\} from "pondera"/.exec(source)?.[1] ?? "";
      const names = imported.split(",").map((name) => name.trim());
      expect(names).toContain("defineTask");
      for (const name of names) if (!name.startsWith("type ")) expect(pondera).toHaveProperty(name);
    }
  });

  it("throws errors that callers can tell apart", () => {
    expect(() => pondera.softOverlong({ maxTokens: 1, slopeTokens: 2 })).toThrow(pondera.ConfigError);
    expect(new pondera.TaskError({ where: "a", rule: "b" })).toBeInstanceOf(pondera.PonderaError);
  });

  it("loads no native library before a runtime is created", () => {
    const libraries = print(`
      const { createJiti } = await import("jiti");
      const { Runtime } = await createJiti(process.cwd() + "/x.mjs").import(process.env.PONDERA_INDEX);
      const native = () => process.report.getReport().sharedObjects.filter((file) => /koffi|onnxruntime/.test(file));
      const before = native().length;
      const runtime = await Runtime.create({ threads: 1 });
      console.log(before, native().length > 0);
      runtime.dispose();
    `);
    expect(libraries.trim()).toBe("0 true");
  });
});
