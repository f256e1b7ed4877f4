import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { fixturePath } from "../../../fixture.ts";
import { DEEPSEEK_V3_JSON } from "../../../model/models.ts";
import { pondera } from "../harness.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "pondera-inspect-"));
});
afterEach(() => rm(folder, { recursive: true }));

describe("pondera inspect", () => {
  it("tells a program what a config says of 671 billion weights", async () => {
    const file = join(folder, "r1.json");
    await writeFile(file, JSON.stringify(DEEPSEEK_V3_JSON));
    const { code, out } = await pondera(["inspect", file, "--json"]);
    expect(code).toBe(0);
    const said = JSON.parse(out);
    expect(said.architecture).toBe("deepseek_v3");
    expect(said.parameters.total).toBe(671_026_419_200);
    expect(said.cache.bytesPerToken).toBe(70_272);
    expect(Object.keys(said.memory)).toEqual(["float32", "bfloat16", "fp8", "int8", "int4"]);
    expect(said.machine.memoryBytes).toBeGreaterThan(0);
    expect(said.machine.fits).toHaveLength(5);
  });

  it("shows a person a model's folder", async () => {
    const { code, out } = await pondera(["inspect", fixturePath("arch-deepseek-mtp")]);
    expect(code).toBe(0);
    expect(out).toMatch(/^deepseek_v3: [\d,]+ weights, and [\d.]+k that predict the token after next\n/);
    expect(out).toContain("experts");
    expect(out).toContain("0-7 (8)");
    expect(out).toMatch(/float32 .*yes, with 128 tokens/);
  });

  it("says what is missing", async () => {
    const absent = await pondera(["inspect", join(folder, "none")]);
    expect(absent.code).toBe(1);
    const empty = await pondera(["inspect", folder]);
    expect(empty.code).toBe(1);
    expect(empty.err).toContain("config.json");
  });
});
