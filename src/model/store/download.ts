/**
 * One file from a server, in parallel ranges, resumable after any end, its hash checked before anybody may see it. The server
 * need not know ranges; then it is read in one go.
 */

import { createHash } from "node:crypto";
import { setMaxListeners } from "node:events";
import { createReadStream } from "node:fs";
import { type ErrorParts, FormatError } from "../../base/errors.ts";
import { fileError } from "../../base/files.ts";
import { type Credential, type Http, isPlain, type Reply, type RetryTeller, shownUrl } from "./http.ts";
import { HttpError } from "./http-error.ts";
import { PartialFile } from "./partial.ts";
import { missingRanges, type Range } from "./ranges.ts";

/** What a file must be. */
export interface Content {
  /** Bytes. */
  readonly size: number;
  /** `git` is the name of a git blob: SHA-1 over `blob SIZE`, a zero byte, and the content. */
  readonly hash: { readonly kind: "sha256" | "git"; readonly hex: string };
}

/** Lets so many work at the same time. */
export class Slots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async use<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free++;
      else next();
    }
  }
}

export interface DownloadOptions {
  readonly http: Http;
  readonly url: URL;
  readonly credential?: Credential | undefined;
  readonly content: Content;
  /** Where it is put together. */
  readonly folder: string;
  /** Connections, shared with other downloads. */
  readonly slots: Slots;
  /** Ranges of this file at the same time. */
  readonly parallel: number;
  /** Longest range of one request, in bytes. @default 64 MiB */
  readonly segmentBytes?: number;
  readonly signal?: AbortSignal | undefined;
  /** Told of how many bytes are there; fewer than before where some had to be thrown away. */
  readonly onBytes?: (done: number) => void;
  readonly onRetry?: RetryTeller;
}

export interface Downloaded {
  /** A whole, flushed file. */
  readonly file: string;
  readonly sha256: string;
}

const SEGMENT_BYTES = 64 * 2 ** 20;

/** What arrived counts for a resumed download after so many bytes or so long, whichever is first. */
const RECORD_BYTES = 16 * 2 ** 20;
const RECORD_MS = 1000;

/** A try that brought so much was no failure, however it ended. */
const PROGRESS_BYTES = 2 ** 20;

/** The server does not do ranges. */
class NoRanges extends Error {}

function failure(url: URL, parts: Omit<ErrorParts, "where">, transient: boolean): HttpError {
  return new HttpError({ where: shownUrl(url), ...parts }, { transient });
}

/** The first header of that name on the way, which the hub itself set. */
function hubHeader(reply: Reply, name: string): string | undefined {
  for (const headers of [...reply.hops, reply.headers]) {
    const value = headers[name];
    if (typeof value === "string") return value;
  }
  return undefined;
}

/** @throws FormatError when the hub now speaks of other content than it listed */
function checkLinked(url: URL, reply: Reply, { size, hash }: Content): void {
  const linkedSize = hubHeader(reply, "x-linked-size");
  const etag = hubHeader(reply, "x-linked-etag")?.replace(/^(?:W\/)?"(.*)"$/, "$1");
  const isHash =
    etag !== undefined && (hash.kind === "sha256" ? /^[0-9a-f]{64}$/ : /^[0-9a-f]{40}$/).test(etag);
  const sizes = linkedSize === undefined || Number(linkedSize) === size;
  if (sizes && (!isHash || etag === hash.hex)) return;
  reply.body.destroy();
  throw new FormatError({
    where: shownUrl(url),
    rule: `must be the file that was listed: ${size} bytes, ${hash.hex}`,
    got: `${linkedSize ?? size} bytes, ${etag ?? "no hash"}`,
    remedy: "It has changed meanwhile, or somebody in between changes it: pull again",
  });
}

/**
 * A reply that brings exactly this range.
 * @throws NoRanges when it brings something else of the file; HttpError when it is no part of such a file
 */
function checkRange(reply: Reply, range: Range, size: number): void {
  const { status, headers, url, body } = reply;
  const whole = range.start === 0 && range.end === size;
  const fail = (error: Error): never => {
    body.destroy();
    throw error;
  };
  if (status === 206) {
    const match = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(headers["content-range"] ?? "");
    const fits =
      match !== null &&
      Number(match[1]) === range.start &&
      Number(match[2]) === range.end - 1 &&
      isPlain(headers);
    if (!fits) fail(new NoRanges());
    if (match![3] !== "*" && Number(match![3]) !== size) {
      fail(failure(url, { rule: `the file must have ${size} bytes`, got: match![3]! }, true));
    }
  } else if (!whole) fail(new NoRanges());
  const length = headers["content-length"];
  const expected = range.end - range.start;
  if (length !== undefined && isPlain(headers) && Number(length) !== expected) {
    const got = `${length}${/html/.test(headers["content-type"] ?? "") ? " of a web page" : ""}`;
    fail(failure(url, { rule: `must send ${expected} bytes`, got }, true));
  }
}

class Download {
  readonly #options: DownloadOptions;
  readonly #partial: PartialFile;
  /** Bytes that are there, the latest perhaps not yet recorded. */
  #done: number;

  constructor(options: DownloadOptions, partial: PartialFile) {
    this.#options = options;
    this.#partial = partial;
    this.#done = partial.doneBytes;
    options.onBytes?.(this.#done);
  }

  #advance(bytes: number): void {
    this.#done += bytes;
    this.#options.onBytes?.(this.#done);
  }

  /** One request for a range. @param onEnd  told how far it came, also when it fails */
  async #request(range: Range, signal: AbortSignal, onEnd: (reached: number) => void): Promise<void> {
    const { http, url, credential, content } = this.#options;
    const whole = range.start === 0 && range.end === content.size;
    // Without the header where all is wanted: a server that compresses or does no ranges then does nothing wrong.
    const headers = whole ? {} : { range: `bytes=${range.start}-${range.end - 1}` };
    const reply = await http.get(url, { headers, credential, signal });
    checkLinked(url, reply, content);
    checkRange(reply, range, content.size);
    let at = range.start;
    let recorded = range.start;
    let lastRecord = Date.now();
    try {
      for await (const chunk of http.bytes(reply, signal)) {
        if (at + chunk.length > range.end) {
          throw failure(url, { rule: `must send ${range.end - range.start} bytes`, got: "more" }, true);
        }
        await this.#partial.write(chunk, at);
        at += chunk.length;
        this.#advance(chunk.length);
        if (at - recorded >= RECORD_BYTES || Date.now() - lastRecord >= RECORD_MS) {
          await this.#partial.record({ start: recorded, end: at });
          [recorded, lastRecord] = [at, Date.now()];
        }
      }
      if (at < range.end) {
        throw failure(
          url,
          { rule: `must send ${range.end - range.start} bytes`, got: `${at - range.start}` },
          true,
        );
      }
    } finally {
      onEnd(at);
      await this.#partial.record({ start: recorded, end: at });
    }
  }

  /** Brings a range, with as many requests as it takes, each going on where the last one ended. */
  async #bring(range: Range, signal: AbortSignal): Promise<void> {
    const { http, slots, onRetry } = this.#options;
    let start = range.start;
    let attempt = 0;
    while (start < range.end) {
      const begun = start;
      try {
        await slots.use(() =>
          this.#request({ start, end: range.end }, signal, (reached) => {
            start = reached;
          }),
        );
      } catch (error) {
        signal.throwIfAborted();
        attempt = start - begun >= PROGRESS_BYTES ? 1 : attempt + 1;
        await http.wait(error, attempt, { signal, ...(onRetry === undefined ? {} : { onRetry }) });
      }
    }
  }

  /** Brings what is missing, several ranges at a time. @throws NoRanges */
  async ranges(): Promise<void> {
    const { content, parallel, segmentBytes = SEGMENT_BYTES } = this.#options;
    const queue = missingRanges(this.#partial.done, content.size, segmentBytes);
    const stop = new AbortController();
    const signal =
      this.#options.signal === undefined ? stop.signal : AbortSignal.any([this.#options.signal, stop.signal]);
    setMaxListeners(0, signal); // One for each connection, which Node takes for a leak from the eleventh on.
    const worker = async (): Promise<void> => {
      for (let range = queue.shift(); range !== undefined; range = queue.shift())
        await this.#bring(range, signal);
    };
    let first: { readonly error: unknown } | undefined;
    const workers = Array.from({ length: Math.min(parallel, queue.length) }, () =>
      worker().catch((error: unknown) => {
        // The others' errors, once they are stopped, are of no interest.
        first ??= { error };
        stop.abort();
      }),
    );
    await Promise.all(workers);
    if (first !== undefined) throw first.error;
  }

  /** Brings the whole file in one answer, from the beginning each time. */
  async whole(): Promise<void> {
    const { http, slots, onRetry, content } = this.#options;
    const signal = this.#options.signal ?? new AbortController().signal;
    await http.retrying({ signal, ...(onRetry === undefined ? {} : { onRetry }) }, () =>
      slots.use(() => {
        this.#advance(-this.#done);
        return this.#request({ start: 0, end: content.size }, signal, () => undefined);
      }),
    );
  }
}

/** Both hashes of a file of this size, in hex. */
export async function hashesOf(
  file: string,
  size: number,
  signal?: AbortSignal,
): Promise<{ readonly sha256: string; readonly git: string }> {
  const [sha256, git] = [createHash("sha256"), createHash("sha1").update(`blob ${size}\0`)];
  try {
    for await (const chunk of createReadStream(file, { highWaterMark: 2 ** 20 }) as AsyncIterable<Buffer>) {
      signal?.throwIfAborted();
      sha256.update(chunk);
      git.update(chunk);
    }
  } catch (error) {
    throw fileError(file, "readable", error);
  }
  return { sha256: sha256.digest("hex"), git: git.digest("hex") };
}

/**
 * Fetches a file, or the rest of it. What has arrived stays in the folder whatever happens, for the next call.
 * @throws HttpError when the server fails for good; FormatError when it sends other content, twice; FileError when the disk is
 *   full or may not be written to; the signal's reason
 */
export async function download(options: DownloadOptions): Promise<Downloaded> {
  const { folder, content, url, signal } = options;
  for (let fresh = false; ; fresh = true) {
    const partial = await PartialFile.open(folder, content.size, { fresh });
    try {
      const work = new Download(options, partial);
      try {
        await work.ranges();
      } catch (error) {
        if (!(error instanceof NoRanges)) throw error;
        await work.whole();
      }
    } finally {
      await partial.close();
    }
    const hashes = await hashesOf(partial.path, content.size, signal);
    if (hashes[content.hash.kind] === content.hash.hex) return { file: partial.path, sha256: hashes.sha256 };
    // What an earlier process left may be what is wrong, and so may be what several answers were put together from.
    if (!fresh) continue;
    await PartialFile.remove(folder);
    throw new FormatError({
      where: shownUrl(url),
      rule: `must have the ${content.hash.kind === "git" ? "git hash" : "sha256"} ${content.hash.hex}`,
      got: `${hashes[content.hash.kind]}, twice`,
      remedy:
        "The hub's copy is damaged, or something in between changes it: try another connection, or later",
    });
  }
}
