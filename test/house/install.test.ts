import { readFile } from "node:fs/promises";
import { expect, it } from "vitest";

const read = (file: string): Promise<string> => readFile(new URL(`../../${file}`, import.meta.url), "utf8");

interface Lock {
  readonly packages: Readonly<Record<string, { readonly hasInstallScript?: boolean }>>;
}

it("nothing is downloaded or compiled by install scripts", async () => {
  const lock = JSON.parse(await read("package-lock.json")) as Lock;
  const scripted = Object.entries(lock.packages).filter(
    ([, { hasInstallScript }]) => hasInstallScript === true,
  );
  // koffi's does nothing where its binary is there, as an optional dependency; the other two are told not to.
  expect(scripted.map(([path]) => path.replace("node_modules/", "")).toSorted()).toEqual([
    "koffi",
    "node-llama-cpp",
    "onnxruntime-node",
  ]);
  expect((await read(".npmrc")).split("\n")).toContain("onnxruntime-node-install=skip");
  const { config } = JSON.parse(await read("package.json")) as { config: Readonly<Record<string, string>> };
  expect(config["nodeLlamaCppPostinstall"]).toBe("skip");
});
