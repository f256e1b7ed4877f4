/** Manifests that are cut, changed or made to hurt: a typed error that says where, or a manifest. */

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Http } from "../../../src/model/store/http.ts";
import { readManifest } from "../../../src/model/store/manifest.ts";
import { listRegistry } from "../../../src/model/store/ollama.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { countRefusals, Patient, refusal, refusalsOfJson, wrongValue } from "../damage.ts";

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
    await writeFile(file, `${JSON.stringify(STORED, undefined, 2)}\n`);
    const read = () => readManifest(file);
    expect(await read()).toEqual(STORED);
    using patient = new Patient(file);
    expect(await refusalsOfJson(patient, read, { folder: file, numRuns: 300 })).toBeGreaterThan(150);
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
    const damage = wrongValue(JSON.stringify(MANIFEST));
    const refused = await countRefusals(damage, 400, (damage) =>
      refusal(damage, "", () => list(Buffer.from(damage.bytes))),
    );
    expect(refused).toBeGreaterThan(200);
  });
});
