/**
 * From a name to a model in the store: list what the hub has, choose, fetch what is not there yet, and give it its name in one
 * step at the end. Whatever happens before that, the store's models stay as they were and what has arrived is kept.
 */

import { setMaxListeners } from "node:events";
import { statfs } from "node:fs/promises";
import { ConfigError, FileError, FormatError } from "../../base/errors.ts";
import { waitForLock } from "../../base/lock.ts";
import { unalias } from "./aliases.ts";
import { type Content, download, hashesOf, Slots } from "./download.ts";
import { checkFilePaths } from "./file-path.ts";
import type { Http } from "./http.ts";
import type { HttpError } from "./http-error.ts";
import { HF_ENDPOINT, listHub } from "./hub.ts";
import { FORMAT, type Manifest, type Source, type StoredFile } from "./manifest.ts";
import { formatModelName, parseModelName, sameName } from "./name.ts";
import { listRegistry, OLLAMA_ENDPOINT } from "./ollama.ts";
import { PartialFile } from "./partial.ts";
import type { Environment } from "./proxy.ts";
import type { RemoteFile, RemoteModel } from "./remote.ts";
import { selectFiles } from "./select.ts";
import type { ModelStore, StoredModel } from "./store.ts";

export type HubKind = Source["hub"];

export interface PullOptions {
  readonly store: ModelStore;
  readonly http: Http;
  /** `HF_TOKEN` and `HF_ENDPOINT` are read from it. */
  readonly env: Environment;
  /** Where from. @default hf for names with an owner and for aliases, else ollama */
  readonly from?: HubKind;
  /** Branch, tag or commit of a Hugging Face repository. @default the name's tag, else main */
  readonly revision?: string;
  /** Patterns of files to fetch. @default all but weights in a second format */
  readonly include?: readonly string[];
  /** Patterns of files to leave out. */
  readonly exclude?: readonly string[];
  /** Name in the store. @default the name it is pulled by */
  readonly as?: string;
  /** The hub's address. @default HF_ENDPOINT or the hub's own */
  readonly endpoint?: string;
  /** Requests at the same time. @default 4 */
  readonly connections?: number;
  /** Reads the files that are there already, and fetches again those that have changed. @default false */
  readonly check?: boolean;
  readonly segmentBytes?: number;
  readonly signal?: AbortSignal;
  readonly onEvent?: (event: PullEvent) => void;
}

/** What happens meanwhile. */
export type PullEvent =
  | {
      /** What there is to do; once. */
      readonly kind: "plan";
      readonly name: string;
      readonly files: number;
      readonly bytes: number;
      /** Bytes that need not be fetched, or not again. */
      readonly present: number;
      /** Left out because the same weights come in another format. */
      readonly omitted: readonly string[];
    }
  | {
      /** Some bytes more, or fewer, are there. */
      readonly kind: "progress";
      /** Of all files together. */
      readonly done: number;
      readonly bytes: number;
    }
  | { readonly kind: "file"; readonly path: string; readonly bytes: number }
  | { readonly kind: "note"; readonly text: string };

export interface Pulled {
  readonly model: StoredModel;
  /** Bytes that came over the network. */
  readonly fetched: number;
  /** Nothing was to be done. */
  readonly upToDate: boolean;
}

/** Content that was complete and is gone at the end, because somebody removed it, is fetched so often again. */
const MOST_ROUNDS = 3;

interface Wanted {
  readonly hub: HubKind;
  /** On the hub: `owner/model`. */
  readonly repo: string;
  /** Revision or tag. */
  readonly version: string;
  /** In the store. */
  readonly name: string;
}

/**
 * What a typed name means.
 * @throws ConfigError when it is no name, or contradicts the options
 */
export function wantedOf(text: string, options: Pick<PullOptions, "from" | "revision" | "as">): Wanted {
  const name = parseModelName(unalias(text));
  const hub = options.from ?? (name.owner === undefined ? "ollama" : "hf");
  const { revision } = options;
  const as = options.as === undefined ? undefined : formatModelName(parseModelName(options.as));
  if (hub === "ollama") {
    if (revision !== undefined) {
      throw new ConfigError({
        where: "--revision",
        rule: "is for models of the Hugging Face hub",
        got: JSON.stringify(revision),
        remedy: `Models of Ollama have tags: ${name.model}:TAG`,
      });
    }
    const version = name.tag ?? "latest";
    const repo = `${name.owner ?? "library"}/${name.model}`;
    return { hub, repo, version, name: as ?? formatModelName({ ...name, tag: version }) };
  }
  if (revision !== undefined && name.tag !== undefined && revision !== name.tag) {
    throw new ConfigError({
      where: "--revision",
      rule: `must be that of the name (${name.tag})`,
      got: revision,
    });
  }
  const version = revision ?? name.tag ?? "main";
  const { tag: _, ...repoName } = name;
  const repo = formatModelName(repoName);
  const full = version === "main" ? repo : `${repo}:${version}`;
  return { hub, repo, version, name: as ?? formatModelName(parseModelName(full)) };
}

/** @throws ConfigError when it is no address of a server */
function parseEndpoint(where: string, text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url !== undefined && /^https?:$/.test(url.protocol) && url.username === "" && url.search === "")
    return url;
  throw new ConfigError({
    where,
    rule: "must be an http or https address",
    got: JSON.stringify(text.replace(/\/\/.*@/, "//…@")),
    remedy: `For instance ${HF_ENDPOINT}`,
  });
}

/** @throws ConfigError when it could not be sent in a header; the message does not show it */
function tokenOf(env: Environment): string | undefined {
  const token = env["HF_TOKEN"]?.trim();
  if (token === undefined || token === "") return undefined;
  if (/^[\x21-\x7e]{1,4096}$/.test(token)) return token;
  throw new ConfigError({
    where: "HF_TOKEN",
    rule: "must be a token of letters, digits and signs",
    got: "other text",
  });
}

function listRemote(wanted: Wanted, options: PullOptions): Promise<RemoteModel> {
  const { http, env, signal, onEvent } = options;
  const shared = {
    http,
    repo: wanted.repo,
    signal,
    onRetry: (error: HttpError, ms: number) =>
      onEvent?.({ kind: "note", text: `${wanted.repo}: ${retryText(error, ms)}` }),
  };
  if (wanted.hub === "ollama") {
    const endpoint = parseEndpoint("--endpoint", options.endpoint ?? OLLAMA_ENDPOINT);
    return listRegistry({ ...shared, endpoint, tag: wanted.version });
  }
  const [where, text] =
    options.endpoint === undefined
      ? ["HF_ENDPOINT", env["HF_ENDPOINT"] || HF_ENDPOINT]
      : ["--endpoint", options.endpoint];
  return listHub({
    ...shared,
    endpoint: parseEndpoint(where, text),
    token: tokenOf(env),
    revision: wanted.version,
  });
}

/** What matters first, for a terminal may cut the rest. */
const retryText = ({ where, rule, got = "nothing" }: HttpError, ms: number): string =>
  `trying again in ${Math.ceil(ms / 1000)} s; got ${got}, but ${where} ${rule}`;

const keyOf = ({ hash, size }: Content): string =>
  hash.kind === "git" ? `git-${hash.hex}-${size}` : `sha256-${hash.hex}`;

/** Files by content: equal ones are fetched once. */
function byContent(files: readonly RemoteFile[]): Map<string, RemoteFile> {
  return new Map(files.map((file) => [keyOf(file.content), file]));
}

class Pull {
  readonly #options: PullOptions;
  readonly #wanted: Wanted;
  readonly #remote: RemoteModel;
  readonly #files: readonly RemoteFile[];
  /** sha256 by key of content, of what is in the store. */
  readonly #there = new Map<string, string>();
  /** Content in the store that is not what its name says. */
  readonly #broken = new Set<string>();
  readonly #progress = new Map<string, number>();
  #fetched = 0;

  constructor(options: PullOptions, wanted: Wanted, remote: RemoteModel, files: readonly RemoteFile[]) {
    this.#options = options;
    this.#wanted = wanted;
    this.#remote = remote;
    this.#files = files;
  }

  get fetched(): number {
    return this.#fetched;
  }

  /** Finds out which content is in the store. */
  async look(before: StoredModel | undefined): Promise<void> {
    const { store, check = false, signal } = this.#options;
    this.#there.clear();
    for (const [key, { path, content }] of byContent(this.#files)) {
      const { hash, size } = content;
      // The store knows no git hashes; the file of the same name is the likely one, if no earlier pull left a note.
      const likely =
        hash.kind === "sha256"
          ? [hash.hex]
          : [
              before?.manifest.files.find((file) => file.path === path && file.size === size)?.sha256,
              await store.arrivalOf(key),
            ];
      for (const sha256 of likely) {
        if (sha256 === undefined || !(await store.hasBlob({ sha256, size }))) continue;
        if (check || hash.kind === "git") {
          const hashes = await hashesOf(store.blobPath(sha256), size, signal);
          if (hashes.sha256 !== sha256) this.#broken.add(sha256);
          if (hashes.sha256 !== sha256 || hashes[hash.kind] !== hash.hex) continue;
        }
        this.#there.set(key, sha256);
      }
    }
  }

  get missing(): RemoteFile[] {
    return [...byContent(this.#files)].filter(([key]) => !this.#there.has(key)).map(([, file]) => file);
  }

  #report(key: string, done: number): void {
    this.#progress.set(key, done);
    const sum = [...this.#progress.values()].reduce((a, b) => a + b, 0);
    this.#options.onEvent?.({ kind: "progress", done: sum, bytes: this.totalBytes });
  }

  get totalBytes(): number {
    return [...byContent(this.#files).values()].reduce((sum, { content }) => sum + content.size, 0);
  }

  async #doneBytes({ content }: RemoteFile): Promise<number> {
    return PartialFile.doneIn(await this.#options.store.partialFolder(keyOf(content)), content.size);
  }

  /** Tells the plan. @throws FileError when it cannot fit on the disk */
  async plan(omitted: readonly RemoteFile[]): Promise<void> {
    const { store, onEvent } = this.#options;
    for (const [key, { content }] of byContent(this.#files)) {
      if (this.#there.has(key)) this.#progress.set(key, content.size);
    }
    let needed = 0;
    for (const file of this.missing) {
      const done = await this.#doneBytes(file);
      this.#progress.set(keyOf(file.content), done);
      needed += file.content.size - done;
    }
    onEvent?.({
      kind: "plan",
      name: this.#wanted.name,
      files: this.#files.length,
      bytes: this.totalBytes,
      present: this.totalBytes - needed,
      omitted: omitted.map(({ path }) => path),
    });
    // A network's file system may not say; then a full disk shows itself later, and what has arrived by then is kept.
    const disk = await statfs(await store.folder()).catch(() => undefined);
    if (disk === undefined || disk.bavail * disk.bsize >= needed) return;
    throw new FileError({
      where: store.root,
      rule: `must have room for ${needed} bytes`,
      got: `${disk.bavail * disk.bsize} free`,
      remedy: "Free some space, or choose another disk with --store or PONDERA_HOME",
    });
  }

  /** Fetches all content that is missing, several files at a time. */
  async fetch(): Promise<void> {
    const { connections = 4 } = this.#options;
    const slots = new Slots(connections);
    const queue = this.missing;
    const stop = new AbortController();
    const outer = this.#options.signal;
    const signal = outer === undefined ? stop.signal : AbortSignal.any([outer, stop.signal]);
    setMaxListeners(0, signal); // One for each connection, which Node takes for a leak from the eleventh on.
    let first: { readonly error: unknown } | undefined;
    const worker = async (): Promise<void> => {
      for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
        if (signal.aborted) return;
        await this.#fetchOne(file, slots, connections, signal);
      }
    };
    const workers = Array.from({ length: Math.min(connections, queue.length) }, () =>
      worker().catch((error: unknown) => {
        first ??= { error };
        stop.abort();
      }),
    );
    await Promise.all(workers);
    outer?.throwIfAborted();
    if (first !== undefined) throw first.error;
  }

  async #fetchOne(file: RemoteFile, slots: Slots, connections: number, signal: AbortSignal): Promise<void> {
    const { store, http, onEvent, segmentBytes } = this.#options;
    const { content, url, path } = file;
    const key = keyOf(content);
    const note = (text: string) => onEvent?.({ kind: "note", text });
    const onWait = () => note(`${path}: another process is fetching it; waiting for that.`);
    const release = await waitForLock(await store.partialLock(key), { signal, onWait });
    try {
      const known = content.hash.kind === "sha256" ? content.hash.hex : undefined;
      const arrived =
        known !== undefined &&
        !this.#broken.has(known) &&
        (await store.hasBlob({ sha256: known, size: content.size }));
      if (known !== undefined && arrived) {
        this.#there.set(key, known); // While we waited.
      } else {
        const folder = await store.partialFolder(key);
        let last: number | undefined;
        const { file: whole, sha256 } = await download({
          ...{ http, url, content, folder, slots, signal, parallel: connections },
          credential: this.#remote.credential,
          ...(segmentBytes === undefined ? {} : { segmentBytes }),
          onBytes: (done) => {
            this.#fetched += Math.max(0, done - (last ?? done));
            last = done;
            this.#report(key, done);
          },
          onRetry: (error, ms) => note(`${path}: ${retryText(error, ms)}`),
        });
        await store.adopt(whole, { sha256, size: content.size }, { replace: this.#broken.delete(sha256) });
        if (known === undefined) await store.noteArrival(key, sha256);
        else await store.removePartial(key);
        this.#there.set(key, sha256);
      }
      this.#report(key, content.size);
      onEvent?.({ kind: "file", path, bytes: content.size });
    } finally {
      await release();
    }
  }

  /** Takes away what only an unfinished pull needs. */
  async tidy(): Promise<void> {
    for (const [key, { content }] of byContent(this.#files)) {
      if (content.hash.kind === "git") await this.#options.store.forgetArrival(key);
    }
  }

  /** What the store will know; when all content is there. */
  manifest(): Manifest {
    const files: StoredFile[] = this.#files.map(({ path, content }) => ({
      path,
      size: content.size,
      sha256: this.#there.get(keyOf(content))!,
    }));
    return {
      format: FORMAT,
      name: this.#wanted.name,
      source: this.#remote.source,
      pulled: new Date().toISOString(),
      files: files.sort((a, b) => (a.path < b.path ? -1 : 1)),
    };
  }
}

/** @throws ConfigError when the name is that of a model from elsewhere */
function checkSameOrigin(name: string, before: StoredModel | undefined, { source }: RemoteModel): void {
  const other = before?.manifest.source;
  if (
    other === undefined ||
    (other.hub === source.hub && other.repo.toLowerCase() === source.repo.toLowerCase())
  )
    return;
  throw new ConfigError({
    where: name,
    rule: "is the name of a model from elsewhere",
    got: `${other.repo} of ${other.endpoint}`,
    remedy: `Choose another name with --as, or remove that one: pondera rm ${name}`,
  });
}

const sameContent = (a: Manifest, b: Manifest): boolean =>
  a.name === b.name && JSON.stringify([a.source, a.files]) === JSON.stringify([b.source, b.files]);

/**
 * Fetches a model into the store.
 * @param text  an alias, `owner/model[:revision]` or `model[:tag]`
 * @throws ConfigError when there is no such model or the options contradict each other; HttpError and FormatError when the hub
 *   fails; FileError when the disk is full or may not be written to; the signal's reason
 */
export async function pullModel(text: string, options: PullOptions): Promise<Pulled> {
  const { store, include = [], exclude = [], onEvent, check = false } = options;
  const wanted = wantedOf(text, options);
  const remote = await listRemote(wanted, options);
  for (const note of remote.notes) onEvent?.({ kind: "note", text: note });
  const where = `${wanted.repo} at ${new URL(remote.source.endpoint).host}`;
  if (remote.files.length === 0) throw new FormatError({ where, rule: "must have files", got: "none" });
  const { files, omitted } = selectFiles(where, remote.files, { include, exclude });
  checkFilePaths(
    where,
    files.map(({ path }) => path),
  );
  const name = parseModelName(wanted.name);
  const near = await store.find(name);
  const before = near !== undefined && sameName(parseModelName(near.name), name) ? near : undefined;
  checkSameOrigin(wanted.name, before, remote);
  const pull = new Pull(options, wanted, remote, files);
  for (let round = 1; ; round++) {
    await pull.look(before);
    if (round === 1) await pull.plan(omitted);
    await pull.fetch();
    const manifest = pull.manifest();
    const idle = pull.fetched === 0 && before !== undefined && sameContent(before.manifest, manifest);
    if (idle && (check ? (await store.verify(before)).length === 0 : await store.isWhole(before))) {
      return { model: before, fetched: 0, upToDate: true };
    }
    const missing = await store.commit(manifest);
    if (missing.length === 0) {
      await pull.tidy();
      return { model: await store.get(wanted.name), fetched: pull.fetched, upToDate: false };
    }
    if (round === MOST_ROUNDS) {
      throw new FileError({
        where: store.blobPath(missing[0]!.sha256),
        rule: "must stay where it is while a model is pulled",
        got: "another process that removes it",
      });
    }
  }
}
