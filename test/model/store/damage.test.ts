/** Manifests that are cut, changed or made to hurt: a typed error that says where, or a manifest. */

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { PonderaError } from "../../../src/base/errors.ts";
import type { Http } from "../../../src/model/store/http.ts";
import { readManifest } from "../../../src/model/store/manifest.ts";
import { listRegistry } from "../../../src/model/store/ollama.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { cuts, flips, refusal, wrongValues } from "../damage.ts";

const SHA = "0123456789abcdef".repeat(4);

const STORED = {
  format: 1,
  name: "owner/model:q4",
  source: {
    hub: "hf",
    endpoint: "https://hub.example",
    repo: "owner/model",
    revision: "main",
    commit: "abc",
  },
  pulled: "2026-01-02T03:04:05.000Z",
  files: [
    { path: "config.json", size: 12, sha256: SHA },
    { path: "onnx/model.onnx", size: 34, sha256: SHA },
  ],
};

describe("a damaged manifest of the store", () => {
  it("is refused, or read", async () => {
    const file = join(await temporaryFolder(), "manifest.json");
    const whole = Buffer.from(`${JSON.stringify(STORED, undefined, 2)}\n`);
    const read = () => readManifest(file);
    await writeFile(file, whole);
    expect(await read()).toEqual(STORED);
    for (const [what, bytes] of cuts(whole)) {
      await writeFile(file, bytes);
      expect(await refusal(what, file, read), what).toBeDefined();
    }
    let refused = 0;
    for (const [what, bytes] of [...flips(whole, 200), ...wrongValues(whole, 300)]) {
      await writeFile(file, bytes);
      if ((await refusal(what, file, read)) !== undefined) refused++;
    }
    expect(refused).toBeGreaterThan(250);
  });
});

describe("a damaged manifest of Ollama's registry", () => {
  const layer = (kind: string) => ({
    mediaType: `application/vnd.ollama.image.${kind}`,
    digest: `sha256:${SHA}`,
    size: 12,
  });
  const MANIFEST = {
    schemaVersion: 2,
    mediaType: "application/vnd.docker.distribution.manifest.v2+json",
    config: layer("config"),
    layers: ["model", "template", "params", "license"].map(layer),
  };

  /** A registry that answers with these bytes, which are JSON. */
  const list = (bytes: Buffer) => {
    const http = {
      json: async () => ({
        value: JSON.parse(bytes.toString("utf8")) as unknown,
        bytes,
        headers: new Headers(),
      }),
    } as unknown as Http;
    return listRegistry({ http, endpoint: new URL("https://registry.example"), repo: "library/x", tag: "1" });
  };

  it("is refused, or listed", async () => {
    const whole = Buffer.from(JSON.stringify(MANIFEST));
    const paths = (await list(whole)).files.map(({ path }) => path);
    expect(paths).toEqual(["model.gguf", "template", "params.json", "LICENSE", "ollama.json"]);
    let refused = 0;
    for (const [what, bytes] of wrongValues(whole, 400)) {
      const error = await list(bytes).then(
        () => undefined,
        (it: unknown) => it,
      );
      if (error === undefined) continue;
      expect(error, what).toBeInstanceOf(PonderaError);
      expect((error as PonderaError).message.length, what).toBeLessThan(1000);
      refused++;
    }
    expect(refused).toBeGreaterThan(200);
  });
});
