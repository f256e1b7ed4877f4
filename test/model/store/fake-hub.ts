/**
 * A Hugging Face hub, an Ollama registry and the storage behind them, on this machine: two servers, since the storage is another
 * host than the hub. Both speak their protocols as the real ones do until a test makes them misbehave.
 */

import { createHash } from "node:crypto";
import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { onTestFinished } from "vitest";

export const sha256 = (content: Uint8Array): string => createHash("sha256").update(content).digest("hex");
export const gitHash = (content: Uint8Array): string =>
  createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex");

export interface Seen {
  readonly server: "hub" | "storage";
  /** Path and query. */
  readonly url: string;
  readonly headers: IncomingMessage["headers"];
}

/** Takes over an answer when it returns true. */
export type Misbehaviour = (seen: Seen, response: ServerResponse) => boolean | Promise<boolean>;

interface Repository {
  readonly commit: string;
  readonly files: Readonly<Record<string, Uint8Array>>;
  /** Entries of the tree instead of the true ones. */
  readonly tree?: readonly unknown[];
}

export interface RegistryModel {
  readonly layers: readonly { readonly mediaType: string; readonly content: Uint8Array }[];
  readonly config: Uint8Array;
}

/** Files from this size on are kept in the storage, as LFS does. */
const LFS_FROM = 1000;

/** Sends content, or the range of it that is asked for. */
export function sendContent(seen: Seen, response: ServerResponse, content: Uint8Array): void {
  const match = /^bytes=(\d+)-(\d+)$/.exec(seen.headers.range ?? "");
  if (match === null) {
    response.writeHead(200, { "content-length": content.length, "accept-ranges": "bytes" }).end(content);
    return;
  }
  const [start, end] = [Number(match[1]), Math.min(Number(match[2]), content.length - 1)];
  response.writeHead(206, {
    "content-length": end - start + 1,
    "content-range": `bytes ${start}-${end}/${content.length}`,
  });
  response.end(content.subarray(start, end + 1));
}

export function sendJson(
  response: ServerResponse,
  value: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(200, { "content-type": "application/json", ...headers }).end(JSON.stringify(value));
}

export class FakeHub {
  readonly seen: Seen[] = [];
  readonly repositories = new Map<string, Repository>();
  readonly registry = new Map<string, RegistryModel>();
  misbehave: Misbehaviour = () => false;
  /** The token without which nothing is shown. */
  token: string | undefined;
  /** Entries of one page of a tree. */
  pageSize = 1000;
  readonly #blobs = new Map<string, Uint8Array>();
  #hub!: Server;
  #storage!: Server;

  /** @param tls  key and certificate of the hub, where it is to speak https */
  static async start(tls?: { readonly key: Buffer; readonly cert: Buffer }): Promise<FakeHub> {
    const fake = new FakeHub();
    const answer =
      (server: Seen["server"]): RequestListener =>
      async (request, response) => {
        const seen: Seen = { server, url: request.url ?? "", headers: request.headers };
        fake.seen.push(seen);
        if (await fake.misbehave(seen, response)) return;
        if (server === "hub") fake.#answerHub(seen, response);
        else fake.#answerStorage(seen, response);
      };
    fake.#hub = await listen(
      tls === undefined ? createServer(answer("hub")) : createTlsServer(tls, answer("hub")),
    );
    fake.#storage = await listen(createServer(answer("storage")));
    onTestFinished(() => fake.stop());
    return fake;
  }

  get port(): number {
    return (this.#hub.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Another name for the same machine, so that it is another host also to who looks at names alone. */
  get storageUrl(): string {
    return `http://localhost:${(this.#storage.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    for (const server of [this.#hub, this.#storage]) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  /** What was asked for at addresses that hold this. */
  requests(part: string): Seen[] {
    return this.seen.filter(({ url }) => url.includes(part));
  }

  publish(
    repo: string,
    files: Readonly<Record<string, Uint8Array | string>>,
    tree?: readonly unknown[],
  ): string {
    const bytes = Object.fromEntries(
      Object.entries(files).map(([path, content]) => [path, Buffer.from(content)]),
    );
    const commit = createHash("sha1").update(JSON.stringify(bytes)).digest("hex");
    this.repositories.set(repo, { commit, files: bytes, ...(tree === undefined ? {} : { tree }) });
    for (const content of Object.values(bytes)) this.#blobs.set(sha256(content), content);
    return commit;
  }

  publishOllama(name: string, model: RegistryModel): void {
    this.registry.set(name, model);
    for (const content of [model.config, ...model.layers.map((layer) => layer.content)]) {
      this.#blobs.set(sha256(content), content);
    }
  }

  /** What it returns is of no interest. */
  #answerHub(seen: Seen, response: ServerResponse): unknown {
    const url = new URL(seen.url, this.url);
    const fail = (status: number, code: string) =>
      response.writeHead(status, { "x-error-code": code }).end(JSON.stringify({ error: code }));
    if (this.token !== undefined && seen.headers.authorization !== `Bearer ${this.token}`) {
      return fail(401, "RepoNotFound");
    }
    const api = /^\/api\/models\/([^/]+\/[^/]+)\/(revision|tree)\/([^/]+)$/.exec(url.pathname);
    const file = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname);
    const repository = this.repositories.get(api?.[1] ?? file?.[1] ?? "");
    const registry = /^\/v2\/(.+)\/(manifests|blobs)\/(.+)$/.exec(url.pathname);
    if (registry !== null) return this.#answerRegistry(registry, response);
    if (repository === undefined) return fail(404, "RepoNotFound");
    const revision = decodeURIComponent(api?.[3] ?? file?.[2] ?? "");
    if (!["main", "v2", "refs/pr/1", repository.commit].includes(revision))
      return fail(404, "RevisionNotFound");
    if (api?.[2] === "revision")
      return sendJson(response, { id: api[1], sha: repository.commit, siblings: [] });
    if (api !== null) return this.#answerTree(repository, url, response);
    const content = repository.files[file![3]!.split("/").map(decodeURIComponent).join("/")];
    if (content === undefined) return fail(404, "EntryNotFound");
    if (content.length < LFS_FROM) return sendContent(seen, response, content);
    response.writeHead(302, {
      location: `${this.storageUrl}/blobs/${sha256(content)}?signature=secret`,
      "x-linked-size": content.length,
      "x-linked-etag": `"${sha256(content)}"`,
    });
    return response.end();
  }

  #answerTree({ files, tree }: Repository, url: URL, response: ServerResponse): void {
    const entries = tree ?? [
      { type: "directory", oid: "0".repeat(40), size: 0, path: "folder" },
      ...Object.entries(files).map(([path, content]) => ({
        type: "file",
        oid: gitHash(content),
        size: content.length,
        path,
        ...(content.length < LFS_FROM
          ? {}
          : { lfs: { oid: sha256(content), size: content.length, pointerSize: 134 } }),
      })),
    ];
    const from = Number(url.searchParams.get("cursor") ?? 0);
    const more = from + this.pageSize < entries.length;
    url.searchParams.set("cursor", String(from + this.pageSize));
    // The real hub's name, as mirrors have been seen to leave in.
    const link = `<https://huggingface.co${url.pathname}${url.search}>; rel="next"`;
    sendJson(response, entries.slice(from, from + this.pageSize), more ? { link } : {});
  }

  #answerRegistry([, repo, kind, what]: readonly string[], response: ServerResponse): void {
    if (kind === "blobs") {
      response
        .writeHead(307, { location: `${this.storageUrl}/blobs/${what!.replace("sha256:", "")}?X-Amz=1` })
        .end();
      return;
    }
    const model = this.registry.get(`${repo}:${what}`);
    if (model === undefined) {
      response.writeHead(404, { "content-type": "application/json" });
      response.end('{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}');
      return;
    }
    const layer = (mediaType: string, content: Uint8Array) => ({
      mediaType,
      digest: `sha256:${sha256(content)}`,
      size: content.length,
    });
    sendJson(response, {
      schemaVersion: 2,
      mediaType: "application/vnd.docker.distribution.manifest.v2+json",
      config: layer("application/vnd.docker.container.image.v1+json", model.config),
      layers: model.layers.map(({ mediaType, content }) => layer(mediaType, content)),
    });
  }

  #answerStorage(seen: Seen, response: ServerResponse): void {
    const content = this.#blobs.get(/^\/blobs\/([0-9a-f]{64})/.exec(seen.url)?.[1] ?? "");
    if (content === undefined) response.writeHead(404).end();
    else sendContent(seen, response, content);
  }

  /** What the storage would send for a request. */
  contentFor(seen: Seen): Uint8Array {
    return this.#blobs.get(/([0-9a-f]{64})/.exec(seen.url)![1]!)!;
  }
}

export async function listen(server: Server): Promise<Server> {
  await new Promise<void>((resolve) => server.listen(0, resolve));
  return server;
}

/** Bytes that no compressor shortens, the same for each seed. */
export function noise(bytes: number, seed = 1): Buffer {
  const blocks: Buffer[] = [];
  for (let i = 0; i * 64 < bytes; i++) blocks.push(createHash("sha512").update(`${seed} ${i}`).digest());
  return Buffer.concat(blocks).subarray(0, bytes);
}
