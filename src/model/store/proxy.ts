/**
 * Proxies as the environment names them: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not (curl's
 * and Go's rules). Node 20 knows none of them by itself.
 */

import { setMaxListeners } from "node:events";
import {
  Agent as HttpAgent,
  request as httpRequest,
  type IncomingMessage,
  type RequestOptions,
} from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { BlockList, isIP, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
import { ConfigError } from "../../base/errors.ts";
import { HttpError, isTransient, networkError } from "./http-error.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface ProxyServer {
  readonly url: URL;
  /** Which variable names it, in capitals. */
  readonly variable: string;
}

const setting = (env: Environment, name: string): string =>
  env[name.toLowerCase()]?.trim() || env[name]?.trim() || "";

const portOf = (url: URL): number => Number(url.port) || (url.protocol === "https:" ? 443 : 80);
const hostOf = (url: URL): string => url.hostname.replace(/^\[|\]$/g, "").toLowerCase();

/** Whether an entry of NO_PROXY means this URL: `*`, a domain with all below it, an address, a block of addresses; any with a port. */
function covers(entry: string, url: URL): boolean {
  if (entry === "*") return true;
  const host = hostOf(url);
  const block = /^(.*)\/(\d{1,3})$/.exec(entry);
  if (block !== null) {
    const [family, own] = [isIP(block[1]!), isIP(host)];
    if (family === 0 || family !== own || Number(block[2]) > (family === 4 ? 32 : 128)) return false;
    const type = family === 4 ? "ipv4" : "ipv6";
    const list = new BlockList();
    list.addSubnet(block[1]!, Number(block[2]), type);
    return list.check(host, type);
  }
  const bare =
    isIP(entry) === 6 ? { host: entry } : /^\[?(?<host>.*?)\]?(?::(?<port>\d+))?$/.exec(entry)!.groups!;
  if (bare["port"] !== undefined && Number(bare["port"]) !== portOf(url)) return false;
  const domain = bare["host"]!.toLowerCase().replace(/^\*?\./, "");
  return domain !== "" && (host === domain || (isIP(host) === 0 && host.endsWith(`.${domain}`)));
}

function canDecode(text: string): boolean {
  try {
    decodeURIComponent(text);
    return true;
  } catch {
    return false;
  }
}

/**
 * The proxy through which a URL is to be fetched; undefined for none.
 * @throws ConfigError when the variable holds no http or https URL
 */
export function proxyFor(url: URL, env: Environment): ProxyServer | undefined {
  const name = url.protocol === "https:" ? "HTTPS_PROXY" : "HTTP_PROXY";
  const variable = setting(env, name) !== "" ? name : "ALL_PROXY";
  const text = setting(env, variable);
  if (text === "") return undefined;
  const entries = setting(env, "NO_PROXY").split(/[\s,]+/);
  if (entries.some((entry) => entry !== "" && covers(entry, url))) return undefined;
  const full = text.includes("://") ? text : `http://${text}`;
  const proxy = URL.canParse(full) ? new URL(full) : undefined;
  const parts = {
    where: variable,
    // Without what may be a password in it.
    got: JSON.stringify(text.replace(/^(.*?:\/\/)?.*@/s, "$1…@")),
  };
  if (proxy === undefined || !/^https?:$/.test(proxy.protocol)) {
    throw new ConfigError({
      ...parts,
      rule: "must be the http or https URL of a proxy",
      remedy: "SOCKS proxies are not supported; NO_PROXY names hosts to reach directly",
    });
  }
  if (!canDecode(proxy.username) || !canDecode(proxy.password)) {
    throw new ConfigError({
      ...parts,
      rule: "must have user and password in percent-encoding",
      remedy: "Write % as %25, @ as %40, : as %3A and / as %2F there",
    });
  }
  return { url: proxy, variable };
}

/** The header that names the user to a proxy whose URL holds one. */
function proxyHeaders(proxy: URL): Record<string, string> {
  if (proxy.username === "" && proxy.password === "") return {};
  const user = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`;
  return { "proxy-authorization": `Basic ${Buffer.from(user).toString("base64")}` };
}

/** What to do where nothing comes through a proxy. */
export const proxyRemedy = ({ variable }: ProxyServer): string =>
  `Check ${variable}; NO_PROXY names hosts to reach directly`;

/** Where a proxy listens, as options of a request to it. */
function proxyAddress(proxy: URL): RequestOptions & Pick<ConnectionOptions, "servername"> {
  const host = hostOf(proxy);
  // Or its certificate would be compared with the Host header, which names the server behind it.
  return { protocol: proxy.protocol, host, port: portOf(proxy), servername: isIP(host) === 0 ? host : "" };
}

/**
 * What a proxy's refusal means.
 * @param duty  what it must do, and did not
 */
export function proxyRefusal(
  { url, variable }: ProxyServer,
  duty: string,
  response: IncomingMessage,
): HttpError {
  const { statusCode: status = 0, statusMessage = "" } = response;
  const known = url.username !== "" || url.password !== "";
  const remedy =
    status !== 407
      ? `Does it allow that host? NO_PROXY names hosts to reach directly; ${variable} named the proxy`
      : known
        ? `Check user and password in ${variable}; signs in them are written like %40 for @`
        : `Put user and password into ${variable}: ${url.protocol}//USER:PASSWORD@${url.host}`;
  return new HttpError(
    { where: `proxy ${url.host}`, rule: `must ${duty}`, got: `${status} ${statusMessage}`.trim(), remedy },
    { transient: isTransient(status) },
  );
}

export const requestFor = (protocol: string | null | undefined): typeof httpRequest =>
  protocol === "https:" ? httpsRequest : httpRequest;

interface TunnelOptions {
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

/** A connection to `host:port` through a proxy (CONNECT, RFC 9110 section 9.3.6). */
function openTunnel(proxy: ProxyServer, host: string, port: number, options: TunnelOptions): Promise<Socket> {
  const { timeoutMs, signal } = options;
  const authority = `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
  const duty = `open a tunnel to ${authority}`;
  const parts = {
    where: `proxy ${proxy.url.host}`,
    rule: `must ${duty}`,
    remedy: proxyRemedy(proxy),
  };
  return new Promise((resolve, reject) => {
    const request = requestFor(proxy.url.protocol)({
      ...proxyAddress(proxy.url),
      method: "CONNECT",
      path: authority,
      headers: { host: authority, ...proxyHeaders(proxy.url) },
      agent: false,
      signal,
    });
    const timer = setTimeout(() => {
      request.destroy(
        new HttpError({ ...parts, got: `nothing for ${timeoutMs / 1000} s` }, { transient: true }),
      );
    }, timeoutMs);
    request.on("connect", (response, socket: Socket, head: Buffer) => {
      clearTimeout(timer);
      const status = response.statusCode ?? 0;
      if (status >= 200 && status < 300) {
        if (head.length > 0) socket.unshift(head);
        resolve(socket);
        return;
      }
      socket.destroy();
      reject(proxyRefusal(proxy, duty, response));
    });
    request.on("error", (error) => {
      clearTimeout(timer);
      reject(networkError(parts, error));
    });
    request.end();
  });
}

/** https through a proxy: every connection is a tunnel of its own. */
class TunnelAgent extends HttpsAgent {
  readonly #proxy: ProxyServer;
  readonly #timeoutMs: number;
  readonly #closing = new AbortController();

  constructor(proxy: ProxyServer, timeoutMs: number) {
    super({ keepAlive: true });
    this.#proxy = proxy;
    this.#timeoutMs = timeoutMs;
    setMaxListeners(0, this.#closing.signal); // One for each tunnel that is being opened.
  }

  // Node's agents take a connection that comes later, through the callback.
  override createConnection(
    options: ConnectionOptions,
    callback?: (error: Error | null, stream: Duplex) => void,
  ): undefined {
    const done = callback as (error: Error | null, stream?: Duplex) => void;
    const { host = "localhost", port = 443 } = options;
    openTunnel(this.#proxy, host, port, { timeoutMs: this.#timeoutMs, signal: this.#closing.signal }).then(
      (socket) => done(null, connectTls({ ...options, socket })),
      done,
    );
  }

  /** Also gives up tunnels that are not open yet, which Node's agents know nothing of and would keep the process waiting. */
  override destroy(): void {
    this.#closing.abort();
    super.destroy();
  }
}

/** Connections kept for the next request, one pool for each way out. */
export class Connections {
  readonly #http = new HttpAgent({ keepAlive: true });
  readonly #https = new HttpsAgent({ keepAlive: true });
  readonly #tunnels = new Map<string, TunnelAgent>();
  readonly #env: Environment;
  readonly #timeoutMs: number;

  constructor(env: Environment, timeoutMs: number) {
    this.#env = env;
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Options of a GET request for a URL, by way of the proxy if there is one.
   * @throws ConfigError as {@link proxyFor}
   */
  route(url: URL): { readonly route: RequestOptions; readonly proxy: ProxyServer | undefined } {
    const proxy = proxyFor(url, this.#env);
    const direct = {
      protocol: url.protocol,
      host: hostOf(url),
      port: portOf(url),
      path: url.pathname + url.search,
    };
    if (url.protocol === "https:") {
      return { route: { ...direct, agent: proxy === undefined ? this.#https : this.#tunnel(proxy) }, proxy };
    }
    if (proxy === undefined) return { route: { ...direct, agent: this.#http }, proxy };
    const route = {
      ...proxyAddress(proxy.url),
      path: url.href.replace(/#.*$/, ""),
      headers: proxyHeaders(proxy.url),
      agent: proxy.url.protocol === "https:" ? this.#https : this.#http,
    };
    return { route, proxy };
  }

  #tunnel(proxy: ProxyServer): TunnelAgent {
    const known = this.#tunnels.get(proxy.url.href);
    if (known !== undefined) return known;
    const agent = new TunnelAgent(proxy, this.#timeoutMs);
    this.#tunnels.set(proxy.url.href, agent);
    return agent;
  }

  close(): void {
    for (const agent of [this.#http, this.#https, ...this.#tunnels.values()]) agent.destroy();
  }
}
