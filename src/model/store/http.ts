/**
 * GET requests to servers that may be slow, broken or hostile: bounded in time and memory, redirects followed by hand so that a
 * token goes to nobody but the server it is for.
 */

import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import { pipeline, type Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { createBrotliDecompress, createGunzip, createInflate } from "node:zlib";
import { z } from "zod";
import { FormatError, PonderaError } from "../../base/errors.ts";
import { packageVersion } from "../../base/version.ts";
import { HttpError, isTransient, networkError } from "./http-error.ts";
import {
  Connections,
  type Environment,
  type ProxyServer,
  proxyRefusal,
  proxyRemedy,
  requestFor,
} from "./proxy.ts";

/** How long to be patient. */
export interface Patience {
  /** Longest wait for the headers of an answer. */
  readonly responseMs: number;
  /** A body must bring {@link stallBytes} in each such time. */
  readonly stallMs: number;
  readonly stallBytes: number;
  /** Tries of one thing without getting any further. */
  readonly attempts: number;
  /** Before the second try; doubled before each further one, up to {@link mostDelayMs}. */
  readonly firstDelayMs: number;
  readonly mostDelayMs: number;
  /** A server that asks to wait for longer is not waited for. */
  readonly mostRetryAfterMs: number;
}

export const PATIENCE: Patience = {
  responseMs: 30_000,
  stallMs: 30_000,
  // A model at less than 1 kB/s is no download; a server that sends a byte now and then holds us up for ever.
  stallBytes: 30_000,
  attempts: 6,
  firstDelayMs: 500,
  mostDelayMs: 20_000,
  mostRetryAfterMs: 300_000,
};

/** A token and the one server it may be shown to. */
export interface Credential {
  readonly token: string;
  /** As `URL.origin`. */
  readonly origin: string;
}

export interface GetOptions {
  readonly headers?: Readonly<Record<string, string>>;
  readonly credential?: Credential | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface Reply {
  /** Where it came from, redirects followed. */
  readonly url: URL;
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** Headers of the redirects on the way. */
  readonly hops: readonly IncomingHttpHeaders[];
  readonly body: IncomingMessage;
}

const MOST_REDIRECTS = 10;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
/** A URL for people: signed queries are secrets, and long. */
export const shownUrl = (url: URL): string => `${url.origin}${url.pathname}`;

/** Who failed, and what may help, where there is no answer yet: a proxy in between may be to blame. */
function unanswered(url: URL, proxy: ProxyServer | undefined) {
  if (proxy === undefined) return { where: shownUrl(url), rule: "must answer" };
  return {
    where: `${shownUrl(url)} through proxy ${proxy.url.host}`,
    rule: "must answer",
    remedy: proxyRemedy(proxy),
  };
}

/** Milliseconds that a Retry-After header asks for (RFC 9110 section 10.2.3); undefined where it makes no sense. */
export function retryAfter(header: string | undefined, now: number): number | undefined {
  if (header === undefined) return undefined;
  if (/^\s*\d{1,9}\s*$/.test(header)) return 1000 * Number(header);
  const date = Date.parse(header);
  return Number.isNaN(date) ? undefined : Math.max(0, date - now);
}

const DECODERS: Readonly<Record<string, () => NodeJS.ReadWriteStream & Readable>> = {
  gzip: createGunzip,
  "x-gzip": createGunzip,
  deflate: createInflate,
  br: createBrotliDecompress,
};

const encodingOf = (headers: IncomingHttpHeaders): string =>
  (headers["content-encoding"] ?? "identity").trim().toLowerCase();

const Refusal = z.union([
  z.object({ error: z.string() }).transform(({ error }) => error),
  z
    .object({ errors: z.array(z.object({ message: z.string() })).min(1) })
    .transform(({ errors }) => errors.map(({ message }) => message).join("; ")),
]);

/** What a server says of a refusal, in one line: the message alone where it is in one of the hubs' forms. */
function saidIn(text: string): string {
  let said = text;
  try {
    said = Refusal.safeParse(JSON.parse(text)).data ?? text;
  } catch {
    // No JSON: then its text is for people.
  }
  return said.replace(/\s+/g, " ").trim().slice(0, 200);
}

/** Whether a body is what it stands for, and no compressed form of it. */
export const isPlain = (headers: IncomingHttpHeaders): boolean =>
  ["identity", ""].includes(encodingOf(headers));

export class Http {
  readonly patience: Patience;
  readonly #connections: Connections;

  constructor(options: { readonly env: Environment; readonly patience?: Partial<Patience> }) {
    this.patience = { ...PATIENCE, ...options.patience };
    this.#connections = new Connections(options.env, this.patience.responseMs);
  }

  /** Closes connections that are kept for later. */
  close(): void {
    this.#connections.close();
  }

  #once(
    url: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal | undefined,
  ): Promise<IncomingMessage> {
    const { responseMs } = this.patience;
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const { route, proxy } = this.#connections.route(url);
      const request = requestFor(route.protocol)({
        ...route,
        method: "GET",
        headers: {
          host: url.host,
          "user-agent": `pondera/${packageVersion()}`,
          // Bytes are counted and hashed, and weights do not shrink.
          "accept-encoding": "identity",
          ...(route.headers as Record<string, string> | undefined),
          ...headers,
        },
        ...(signal === undefined ? {} : { signal }),
      });
      const settle = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", onAbort);
      };
      // At once: while a proxy keeps it waiting for a connection, a request that is destroyed does not say so.
      const fail = (error: unknown) => {
        settle();
        reject(error);
      };
      const onAbort = () => fail(signal?.reason);
      signal?.addEventListener("abort", onAbort);
      const timer = setTimeout(() => {
        const got = `nothing for ${responseMs / 1000} s`;
        fail(new HttpError({ ...unanswered(url, proxy), got }, { transient: true }));
        request.destroy();
      }, responseMs);
      request.on("response", (response) => {
        settle();
        if (response.statusCode !== 407 || proxy === undefined) return resolve(response);
        response.destroy();
        reject(proxyRefusal(proxy, `let us through to ${url.host}`, response));
      });
      request.on("error", (error) => {
        fail(signal?.aborted ? signal.reason : networkError(unanswered(url, proxy), error));
      });
      request.end();
    });
  }

  /**
   * What a server answers, redirects followed. The body must be read, or destroyed.
   * @throws HttpError when it cannot be reached, redirects without end, or answers with a status that is no success
   */
  async get(start: URL, options: GetOptions = {}): Promise<Reply> {
    let url = start;
    let credential = options.credential;
    const hops: IncomingHttpHeaders[] = [];
    for (;;) {
      // Once elsewhere, the token is gone for good: who redirects back might choose where on our server it is shown.
      if (credential !== undefined && credential.origin !== url.origin) credential = undefined;
      const authorization = credential === undefined ? {} : { authorization: `Bearer ${credential.token}` };
      const body = await this.#once(url, { ...options.headers, ...authorization }, options.signal);
      const { headers } = body;
      const status = body.statusCode ?? 0;
      if (!REDIRECTS.has(status)) {
        if (status >= 200 && status < 300) return { url, status, headers, hops, body };
        throw await this.#refusal(url, body, url.origin !== start.origin);
      }
      body.destroy();
      hops.push(headers);
      url = this.#redirected(url, headers.location, hops.length);
    }
  }

  #redirected(from: URL, location: string | undefined, count: number): URL {
    const fail = (rule: string, got: string) =>
      new HttpError({ where: shownUrl(from), rule, got }, { transient: false });
    if (count > MOST_REDIRECTS)
      throw fail(`must lead somewhere within ${MOST_REDIRECTS} redirects`, "one more");
    if (location === undefined || !URL.canParse(location, from.href)) {
      throw fail("a redirect must say where to", JSON.stringify(location?.slice(0, 200) ?? "nothing"));
    }
    const to = new URL(location, from);
    if (!/^https?:$/.test(to.protocol)) throw fail("a redirect must lead to http or https", to.protocol);
    if (from.protocol === "https:" && to.protocol === "http:") {
      throw fail("a redirect must not lead from https to http", shownUrl(to));
    }
    if (to.username !== "" || to.password !== "") throw fail("a redirect must name no user", shownUrl(to));
    return to;
  }

  /**
   * The error for a status that is no success, with the beginning of what the server says about it.
   * @param elsewhere  whether another server redirected to this one
   */
  async #refusal(url: URL, body: IncomingMessage, elsewhere: boolean): Promise<HttpError> {
    const { headers, statusMessage } = body;
    const status = body.statusCode ?? 0;
    // The signed address of a storage may have run out; asked again, the hub gives a new one.
    const expired = elsewhere && (status === 401 || status === 403);
    let said = "";
    try {
      if (isPlain(headers) && !/html/.test(headers["content-type"] ?? "")) {
        said = (await this.#read(url, body, 2000, undefined, true)).toString("utf8");
      }
    } catch (error) {
      // The status is what matters; why its text could not be read does not.
      if (!(error instanceof PonderaError)) throw error;
    } finally {
      body.destroy();
    }
    const text = saidIn(said);
    const wait = retryAfter(headers["retry-after"], Date.now());
    const tooLong = wait !== undefined && wait > this.patience.mostRetryAfterMs;
    return new HttpError(
      {
        where: shownUrl(url),
        rule: "must answer with success",
        got: `${status} ${statusMessage ?? ""}`.trim() + (text === "" ? "" : `: ${text}`),
        ...(tooLong
          ? { remedy: `It asks to be left alone for ${Math.ceil(wait / 1000)} s: try again then` }
          : {}),
      },
      { status, headers, transient: (isTransient(status) || expired) && !tooLong, retryAfterMs: wait },
    );
  }

  /**
   * A reply's bytes as they arrive, decompressed if they were compressed.
   * @throws HttpError when the connection is cut, or too little arrives
   */
  async *bytes(reply: Pick<Reply, "url" | "headers" | "body">, signal?: AbortSignal): AsyncGenerator<Buffer> {
    const { url, headers, body } = reply;
    const { stallMs, stallBytes } = this.patience;
    const decoder = DECODERS[encodingOf(headers)];
    if (decoder === undefined && !isPlain(headers)) {
      body.destroy();
      throw new FormatError({
        where: shownUrl(url),
        rule: "must send bytes in an encoding that was asked for",
        got: JSON.stringify(encodingOf(headers).slice(0, 40)),
      });
    }
    let arrived = 0;
    let checked = 0;
    let waiting = true; // For the network, and not for whoever uses the bytes.
    body.on("data", (chunk: Buffer) => {
      arrived += chunk.length;
    });
    body.pause();
    const stall = setInterval(() => {
      if (waiting && arrived - checked < stallBytes) {
        body.destroy(
          new HttpError(
            {
              where: shownUrl(url),
              rule: `must send at least ${stallBytes} bytes in ${stallMs / 1000} s`,
              got: `${arrived - checked}`,
            },
            { transient: true },
          ),
        );
      }
      checked = arrived;
    }, stallMs);
    const abort = () => body.destroy(signal?.reason);
    signal?.addEventListener("abort", abort);
    const stream: AsyncIterable<Buffer> =
      decoder === undefined
        ? body
        : (pipeline(body, decoder(), () => undefined) as unknown as AsyncIterable<Buffer>);
    try {
      signal?.throwIfAborted();
      for await (const chunk of stream) {
        waiting = false;
        yield chunk;
        waiting = true;
      }
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      throw networkError({ where: shownUrl(url), rule: "must send the whole of it" }, error);
    } finally {
      clearInterval(stall);
      signal?.removeEventListener("abort", abort);
      body.destroy();
    }
  }

  /** All bytes. @param cut  whether more than `most` are cut off, and not an error */
  async #read(
    url: URL,
    body: IncomingMessage,
    most: number,
    signal: AbortSignal | undefined,
    cut = false,
  ): Promise<Buffer> {
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of this.bytes({ url, headers: body.headers, body }, signal)) {
      chunks.push(chunk);
      size += chunk.length;
      if (size > most && !cut) {
        throw new FormatError({
          where: shownUrl(url),
          rule: `must answer with at most ${most} bytes`,
          got: "more",
        });
      }
      if (size > most) break;
    }
    return Buffer.concat(chunks).subarray(0, most);
  }

  /**
   * A JSON answer, to be parsed by the caller's schema; transient failures are tried again.
   * @param options.most  bytes, decompressed
   * @throws HttpError as {@link get}; FormatError when the answer is no JSON or too long
   */
  async json(
    url: URL,
    options: GetOptions & { readonly most: number; readonly onRetry?: RetryTeller },
  ): Promise<{ value: unknown; bytes: Buffer; headers: IncomingHttpHeaders }> {
    return this.retrying(options, async () => {
      const headers = { accept: "application/json", ...options.headers };
      const reply = await this.get(url, { ...options, headers });
      const bytes = await this.#read(reply.url, reply.body, options.most, options.signal);
      const expected = Number(reply.headers["content-length"]);
      if (isPlain(reply.headers) && expected >= 0 && expected !== bytes.length) {
        throw new HttpError(
          { where: shownUrl(url), rule: `must send ${expected} bytes`, got: `${bytes.length}` },
          { transient: true },
        );
      }
      try {
        return {
          value: JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)),
          bytes,
          headers: reply.headers,
        };
      } catch (cause) {
        const type = reply.headers["content-type"] ?? "no type";
        throw new FormatError({
          where: shownUrl(url),
          rule: "must answer with JSON",
          got: `${type}: ${JSON.stringify(bytes.toString("utf8", 0, 60))}`,
          remedy:
            "A login page or a proxy may stand in between: open the address in a browser, or choose another --endpoint",
          cause,
        });
      }
    });
  }

  /** Runs `work` again after transient failures, as patience allows. */
  async retrying<T>(
    options: { readonly signal?: AbortSignal | undefined; readonly onRetry?: RetryTeller },
    work: () => Promise<T>,
  ): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        await this.wait(error, attempt, options);
      }
    }
  }

  /** Waits after the failure of an attempt, the first being 1. @throws the failure itself, when there is to be no other attempt */
  async wait(
    error: unknown,
    attempt: number,
    options: { readonly signal?: AbortSignal | undefined; readonly onRetry?: RetryTeller },
  ): Promise<void> {
    const { attempts, firstDelayMs, mostDelayMs } = this.patience;
    if (!(error instanceof HttpError) || !error.transient || attempt >= attempts) throw error;
    const ms = error.retryAfterMs ?? Math.min(mostDelayMs, firstDelayMs * 2 ** (attempt - 1));
    options.onRetry?.(error, ms);
    await delay(ms, undefined, options.signal === undefined ? {} : { signal: options.signal });
  }
}

/** Told of each failure that is tried again, and after how long. */
export type RetryTeller = (error: HttpError, delayMs: number) => void;
