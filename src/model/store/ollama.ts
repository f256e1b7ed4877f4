/**
 * The protocol of Ollama's registry (that of container registries, with media types of its own): a manifest lists layers, each a
 * blob named by its sha256. A model is one GGUF file with its template, parameters and licence beside it.
 */

import { createHash } from "node:crypto";
import { z } from "zod";
import { ConfigError, FormatError } from "../../base/errors.ts";
import { type Http, type RetryTeller, shownUrl } from "./http.ts";
import { HttpError } from "./http-error.ts";
import { type RemoteFile, type RemoteModel, under } from "./remote.ts";

export const OLLAMA_ENDPOINT = "https://registry.ollama.ai";

export interface RegistryOptions {
  readonly http: Http;
  readonly endpoint: URL;
  /** `library/deepseek-r1`. */
  readonly repo: string;
  readonly tag: string;
  readonly signal?: AbortSignal | undefined;
  readonly onRetry?: RetryTeller;
}

const MOST_BYTES = 4 * 2 ** 20;
const MOST_LAYERS = 1000;

const Layer = z.object({
  mediaType: z.string(),
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  size: z.int().nonnegative(),
});

const RegistryManifest = z.object({
  schemaVersion: z.literal(2),
  config: Layer,
  layers: z.array(Layer).min(1).max(MOST_LAYERS),
});

const IMAGE = "application/vnd.ollama.image.";

/** File names by kind of layer: those that people and other programs look for. Further ones of a kind get a number. */
const NAMES: Readonly<Record<string, readonly [stem: string, extension: string]>> = {
  model: ["model", ".gguf"],
  projector: ["mmproj", ".gguf"],
  adapter: ["adapter", ".gguf"],
  template: ["template", ""],
  system: ["system", ""],
  params: ["params", ".json"],
  messages: ["messages", ".json"],
  license: ["LICENSE", ""],
};

/** Not config.json, which is what tells a folder in Hugging Face layout. */
const CONFIG_NAME = "ollama.json";

/** @throws FormatError when no layer is a model */
function filesOf(where: string, manifest: z.infer<typeof RegistryManifest>, blob: (digest: string) => URL) {
  const files: RemoteFile[] = [];
  const notes: string[] = [];
  const counts = new Map<string, number>();
  const add = (path: string, { digest, size }: z.infer<typeof Layer>) => {
    const hash = { kind: "sha256", hex: digest.slice("sha256:".length) } as const;
    files.push({ path, url: blob(digest), content: { size, hash } });
  };
  for (const layer of manifest.layers) {
    const kind = layer.mediaType.startsWith(IMAGE) ? layer.mediaType.slice(IMAGE.length) : "";
    const name = Object.hasOwn(NAMES, kind) ? NAMES[kind] : undefined;
    if (name === undefined) {
      notes.push(`left out a layer of the kind ${JSON.stringify(layer.mediaType.slice(0, 80))}`);
      continue;
    }
    const count = (counts.get(kind) ?? 0) + 1;
    counts.set(kind, count);
    add(`${name[0]}${count === 1 ? "" : `-${count}`}${name[1]}`, layer);
  }
  if (!counts.has("model")) {
    throw new FormatError({
      where,
      rule: "must have a layer with a GGUF model",
      got: manifest.layers
        .map((layer) => layer.mediaType.slice(0, 60))
        .slice(0, 5)
        .join(", "),
      remedy: "Models in other formats, or that run on Ollama's servers alone, cannot be pulled from here",
    });
  }
  add(CONFIG_NAME, manifest.config);
  return { files, notes };
}

/**
 * A model's layers as files.
 * @throws ConfigError when there is no such model; HttpError when the registry cannot be reached; FormatError when it answers in
 *   no known way
 */
export async function listRegistry(options: RegistryOptions): Promise<RemoteModel> {
  const { http, endpoint, repo, tag, signal, onRetry } = options;
  const url = under(endpoint, `v2/${repo}/manifests/${encodeURIComponent(tag)}`);
  const where = `${repo}:${tag} at ${endpoint.host}`;
  let answer: Awaited<ReturnType<Http["json"]>>;
  try {
    answer = await http.json(url, {
      ...{ most: MOST_BYTES, signal },
      headers: { accept: "application/vnd.docker.distribution.manifest.v2+json" },
      ...(onRetry === undefined ? {} : { onRetry }),
    });
  } catch (error) {
    if (!(error instanceof HttpError) || ![401, 403, 404].includes(error.status ?? 0)) throw error;
    throw new ConfigError({
      where,
      rule: "must be a model that the registry has and everybody may read",
      got: error.got ?? String(error.status),
      remedy:
        "Check the name and the tag. Models of the Hugging Face hub are named owner/model; short names for some are r1-1.5b, r1-7b, r1-8b, r1-14b, r1-32b and r1-70b",
      cause: error,
    });
  }
  const parsed = RegistryManifest.safeParse(answer.value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    throw new FormatError({
      where: shownUrl(url),
      rule: "must be the manifest of a model",
      got: `${issue.path.join(".") || "the whole"}: ${issue.message}`,
    });
  }
  const { files, notes } = filesOf(where, parsed.data, (digest) =>
    under(endpoint, `v2/${repo}/blobs/${digest}`),
  );
  const digest = createHash("sha256").update(answer.bytes).digest("hex");
  return {
    source: { hub: "ollama", endpoint: shownUrl(endpoint).replace(/\/$/, ""), repo, tag, digest },
    files,
    notes,
  };
}
