/**
 * Proxies as the environment names them: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not (curl's
 * and Go's rules). Node 20 knows none of them by itself.
 */

import { Agent as HttpAgent, request as httpRequest, type RequestOptions } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { BlockList, isIP, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
import { ConfigError, NetworkError } from "../../base/errors.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

const variable = (env: Environment, name: string): string =>
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

/**
 * The proxy through which a URL is to be fetched; undefined for none.
 * @throws ConfigError when the variable holds no http or https URL
 */
export function proxyFor(url: URL, env: Environment): URL | undefined {
  const name = url.protocol === "https:" ? "HTTPS_PROXY" : "HTTP_PROXY";
  const chosen = variable(env, name) !== "" ? name : "ALL_PROXY";
  const text = variable(env, chosen);
  if (text === "") return undefined;
  const entries = variable(env, "NO_PROXY").split(/[\s,]+/);
  if (entries.some((entry) => entry !== "" && covers(entry, url))) return undefined;
  const full = text.includes("://") ? text : `http://${text}`;
  const proxy = URL.canParse(full) ? new URL(full) : undefined;
  if (proxy !== undefined && /^https?:$/.test(proxy.protocol)) return proxy;
  throw new ConfigError({
    where: chosen,
    rule: "must be the http or https URL of a proxy",
    // Without what may be a password in it.
    got: JSON.stringify(text.replace(/\/\/.*@/, "//…@")),
    remedy: "SOCKS proxies are not supported; NO_PROXY names hosts to reach directly",
  });
}

/** The header that names the user to a proxy whose URL holds one. */
export function proxyHeaders(proxy: URL): Record<string, string> {
  if (proxy.username === "" && proxy.password === "") return {};
  const user = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`;
  return { "proxy-authorization": `Basic ${Buffer.from(user).toString("base64")}` };
}

/** Where a proxy listens, as options of a request to it. */
export function proxyAddress(proxy: URL): RequestOptions {
  return { protocol: proxy.protocol, host: hostOf(proxy), port: portOf(proxy) };
}

export const requestFor = (protocol: string | null | undefined): typeof httpRequest =>
  protocol === "https:" ? httpsRequest : httpRequest;

/** A connection to `host:port` through a proxy (CONNECT, RFC 9110 section 9.3.6). */
function openTunnel(proxy: URL, host: string, port: number, timeoutMs: number): Promise<Socket> {
  const authority = `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
  const where = `proxy ${proxy.host}`;
  return new Promise((resolve, reject) => {
    const request = requestFor(proxy.protocol)({
      ...proxyAddress(proxy),
      method: "CONNECT",
      path: authority,
      headers: { host: authority, ...proxyHeaders(proxy) },
      agent: false,
    });
    const timer = setTimeout(() => {
      request.destroy(
        new NetworkError({ where, rule: "must open a tunnel", got: `nothing for ${timeoutMs / 1000} s` }),
      );
    }, timeoutMs);
    request.on("connect", (response, socket: Socket, head: Buffer) => {
      clearTimeout(timer);
      if (response.statusCode === 200) {
        if (head.length > 0) socket.unshift(head);
        resolve(socket);
        return;
      }
      socket.destroy();
      reject(
        new NetworkError({
          where,
          rule: `must open a tunnel to ${authority}`,
          got: `${response.statusCode} ${response.statusMessage ?? ""}`.trim(),
          ...(response.statusCode === 407 ? { remedy: "Put user and password into the proxy's URL" } : {}),
        }),
      );
    });
    request.on("error", (error) => {
      clearTimeout(timer);
      reject(error);
    });
    request.end();
  });
}

/** https through a proxy: every connection is a tunnel of its own. */
class TunnelAgent extends HttpsAgent {
  readonly #proxy: URL;
  readonly #timeoutMs: number;

  constructor(proxy: URL, timeoutMs: number) {
    super({ keepAlive: true });
    this.#proxy = proxy;
    this.#timeoutMs = timeoutMs;
  }

  // Node's agents take a connection that comes later, through the callback.
  override createConnection(
    options: ConnectionOptions,
    callback?: (error: Error | null, stream: Duplex) => void,
  ): undefined {
    const done = callback as (error: Error | null, stream?: Duplex) => void;
    openTunnel(this.#proxy, options.host ?? "localhost", options.port ?? 443, this.#timeoutMs).then(
      (socket) => done(null, connectTls({ ...options, socket })),
      done,
    );
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

  /** Options of a GET request for a URL, by way of the proxy if there is one. */
  route(url: URL): RequestOptions {
    const proxy = proxyFor(url, this.#env);
    const direct = {
      protocol: url.protocol,
      host: hostOf(url),
      port: portOf(url),
      path: url.pathname + url.search,
    };
    if (url.protocol === "https:") {
      return { ...direct, agent: proxy === undefined ? this.#https : this.#tunnel(proxy) };
    }
    if (proxy === undefined) return { ...direct, agent: this.#http };
    const agent = proxy.protocol === "https:" ? this.#https : this.#http;
    return {
      ...proxyAddress(proxy),
      path: url.href.replace(/#.*$/, ""),
      headers: proxyHeaders(proxy),
      agent,
    };
  }

  #tunnel(proxy: URL): TunnelAgent {
    const known = this.#tunnels.get(proxy.href);
    if (known !== undefined) return known;
    const agent = new TunnelAgent(proxy, this.#timeoutMs);
    this.#tunnels.set(proxy.href, agent);
    return agent;
  }

  close(): void {
    for (const agent of [this.#http, this.#https, ...this.#tunnels.values()]) agent.destroy();
  }
}
