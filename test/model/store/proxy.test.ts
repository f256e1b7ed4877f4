/** Ways out through proxies: which one the environment means, what is said to it, and what is said of it when it fails. */

import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { beforeEach, describe, expect, it } from "vitest";
import { ConfigError, NetworkError } from "../../../src/base/errors.ts";
import { Http } from "../../../src/model/store/http.ts";
import { type Environment, proxyFor } from "../../../src/model/store/proxy.ts";
import { pullModel } from "../../../src/model/store/pull.ts";
import { ModelStore } from "../../../src/model/store/store.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { FakeHub, noise } from "./fake-hub.ts";
import { FakeProxy } from "./fake-proxy.ts";
import { contents, expected, HASTE } from "./pulling.ts";

const FILES = { "config.json": '{"a":1}', "tokenizer.json": '{"b":2}' };
const fixture = (name: string) => fileURLToPath(new URL(`../../fixtures/tls/${name}`, import.meta.url));
const TLS = {
  key: await readFile(fixture("key.pem")),
  cert: await readFile(fixture("certificate.pem")),
};

let store: ModelStore;
let proxy: FakeProxy;
beforeEach(async () => {
  store = new ModelStore(await temporaryFolder());
  proxy = await FakeProxy.start();
});

async function startHub(tls?: typeof TLS): Promise<FakeHub> {
  const hub = await FakeHub.start(tls);
  hub.publish("Qwen/Tiny", FILES);
  return hub;
}

/** An address that nobody but the proxy can find. */
const hidden = (hub: FakeHub, scheme = "http") => `${scheme}://hub.test:${hub.port}`;

async function pull(endpoint: string, env: Environment, patience = HASTE) {
  const http = new Http({ env, patience });
  try {
    return await pullModel("Qwen/Tiny", { store, http, endpoint, env, segmentBytes: 50_000 });
  } finally {
    http.close();
  }
}

const failure = (endpoint: string, env: Environment, patience = HASTE): Promise<unknown> =>
  pull(endpoint, env, patience).then(
    () => undefined,
    (error: unknown) => error,
  );

describe("a plain http hub", () => {
  it("is reached through HTTP_PROXY, and so is the storage it redirects to", async () => {
    const hub = await startHub();
    const files = { ...FILES, "model.safetensors": noise(120_000) };
    hub.publish("Qwen/Tiny", files);
    const { model } = await pull(hidden(hub), { HTTP_PROXY: `http://127.0.0.1:${proxy.port}` });
    expect(await contents(model.folder)).toEqual(expected(files));
    expect(proxy.passed).toHaveLength(hub.seen.length);
    expect(proxy.passed[0]).toMatchObject({
      method: "GET",
      target: `${hidden(hub)}/api/models/Qwen/Tiny/revision/main`,
      headers: { host: `hub.test:${hub.port}` },
    });
    expect(proxy.passed.filter(({ target }) => target.startsWith(hub.storageUrl))).toHaveLength(3);
    for (const { headers } of proxy.passed) expect(headers["proxy-authorization"]).toBeUndefined();
  });

  it.each([
    ["http_proxy", "in small letters, before the one in capitals"],
    ["ALL_PROXY", "where there is none of its own"],
    ["all_proxy", "also in small letters"],
  ])("is reached through %s %s", async (name) => {
    const hub = await startHub();
    const capitals = name === "http_proxy" ? { HTTP_PROXY: "http://127.0.0.1:1" } : {};
    await pull(hidden(hub), {
      ...capitals,
      HTTPS_PROXY: "http://127.0.0.1:1",
      [name]: `127.0.0.1:${proxy.port}`,
    });
    expect(proxy.passed).toHaveLength(hub.seen.length);
  });

  it("is reached directly where NO_PROXY says so, in any case of letters", async () => {
    const hub = await startHub();
    await pull(hub.url, { HTTP_PROXY: `127.0.0.1:${proxy.port}`, no_proxy: "example.com, 127.0.0.1" });
    expect(proxy.passed).toEqual([]);
  });

  it("does not learn the user and password in the proxy's URL; the proxy gets them decoded", async () => {
    const hub = await startHub();
    const known = `Basic ${Buffer.from("me:p@ss:wörd").toString("base64")}`;
    proxy.refuse = ({ headers }) => (headers["proxy-authorization"] === known ? undefined : 407);
    await pull(hidden(hub), { HTTP_PROXY: `http://me:p%40ss%3Aw%C3%B6rd@127.0.0.1:${proxy.port}` });
    for (const { headers } of hub.seen) expect(JSON.stringify(headers)).not.toContain(known);
  });
});

describe("an https hub", () => {
  it("is reached through a tunnel, and its certificate is held against the hub's name", async () => {
    const hub = await startHub(TLS);
    const error = await failure(hidden(hub, "https"), {
      HTTPS_PROXY: `http://me:pw@127.0.0.1:${proxy.port}`,
    });
    expect(proxy.passed[0]).toMatchObject({
      method: "CONNECT",
      target: `hub.test:${hub.port}`,
      headers: {
        host: `hub.test:${hub.port}`,
        "proxy-authorization": `Basic ${Buffer.from("me:pw").toString("base64")}`,
      },
    });
    // Nobody vouches for it here. What may be read is what the error says of it.
    expect(String(error)).toMatch(
      /^HttpError: https:\/\/hub\.test:\d+\/\S+ through proxy 127\.0\.0\.1:\d+: must answer; got self-signed certificate\. .*NODE_EXTRA_CA_CERTS\.$/,
    );
    expect(hub.seen).toEqual([]);
  });

  const main = fileURLToPath(new URL("../../../src/app/cli/main.ts", import.meta.url));
  /** Node reads NODE_EXTRA_CA_CERTS when it starts, so that takes a process of its own. */
  async function typed(argv: readonly string[], env: Record<string, string>) {
    const options = {
      env: { PATH: process.env["PATH"], NODE_EXTRA_CA_CERTS: fixture("certificate.pem"), ...env },
    };
    const command = ["--import", "jiti/register", main, ...argv, "--json"];
    const { stdout } = await promisify(execFile)(process.execPath, command, options);
    return JSON.parse(stdout);
  }

  it("and an https proxy are trusted by NODE_EXTRA_CA_CERTS, each by its own name", async () => {
    const [secret, open] = [await startHub(TLS), await startHub()];
    const secured = await FakeProxy.start(TLS);
    proxy.tunnelStatus = 201;
    const [tunnelled, forwarded] = await Promise.all([
      typed(["pull", "Qwen/Tiny"], {
        PONDERA_HOME: store.root,
        HF_ENDPOINT: hidden(secret, "https"),
        https_proxy: `http://127.0.0.1:${proxy.port}`,
      }),
      // A name that the proxy's certificate does not hold.
      typed(["pull", "Qwen/Tiny", "--endpoint", `http://elsewhere.test:${open.port}`], {
        PONDERA_HOME: await temporaryFolder(),
        HTTP_PROXY: `https://localhost:${secured.port}`,
      }),
    ]);
    for (const { path } of [tunnelled, forwarded]) expect(await contents(path)).toEqual(expected(FILES));
    expect(tunnelled.source.endpoint).toBe(hidden(secret, "https"));
    expect(secret.seen).toHaveLength(4);
    expect(new Set(proxy.passed.map(({ method }) => method))).toEqual(new Set(["CONNECT"]));
    // Two files at a time: the list's tunnel serves again, and one more is opened.
    expect(proxy.passed.length).toBeLessThan(4);
    expect(secured.passed).toHaveLength(open.seen.length);
  });
});

describe("a proxy that fails", () => {
  const both = [
    ["http", "HTTP_PROXY"],
    ["https", "HTTPS_PROXY"],
  ] as const;

  it.each(both)("to be there is named, with the variable that named it: %s", async (scheme, variable) => {
    const error = await failure(`${scheme}://hub.test`, { [variable]: "http://me:secret@127.0.0.1:1" });
    expect(error).toBeInstanceOf(NetworkError);
    expect(String(error)).toMatch(
      /proxy 127\.0\.0\.1:1: must .*; got connect ECONNREFUSED 127\.0\.0\.1:1\. Check HTTPS?_PROXY; NO_PROXY names hosts/,
    );
    expect(String(error)).toContain(`Check ${variable};`);
    expect(String(error)).not.toContain("secret");
  });

  it.each(both)(
    "for want of a password says where to put it, or to check it: %s",
    async (scheme, variable) => {
      proxy.refuse = () => 407;
      const address = `127.0.0.1:${proxy.port}`;
      const without = await failure(`${scheme}://hub.test`, { [variable]: address });
      expect(without).toBeInstanceOf(NetworkError);
      expect(String(without)).toMatch(/proxy 127\.0\.0\.1:\d+: must .*hub\.test.*; got 407/);
      expect(String(without)).toContain(
        `Put user and password into ${variable}: http://USER:PASSWORD@${address}.`,
      );
      expect(proxy.passed).toHaveLength(1); // Asked again, it would say the same.
      const wrong = await failure(`${scheme}://hub.test`, { [variable]: `http://me:secret@${address}` });
      expect(String(wrong)).toContain(`Check user and password in ${variable};`);
      expect(String(wrong)).not.toContain("secret");
    },
  );

  it("because it does not let that host pass is not taken for the hub", async () => {
    proxy.refuse = () => 403;
    const error = await failure("https://hub.test", { HTTPS_PROXY: `127.0.0.1:${proxy.port}` });
    expect(String(error)).toMatch(
      /proxy 127\.0\.0\.1:\d+: must open a tunnel to hub\.test:443; got 403 No\. Does it allow that host\?.*NO_PROXY.*HTTPS_PROXY/,
    );
    expect(proxy.passed).toHaveLength(1);
  });

  it.each(both)("for the moment is asked again: %s", async (scheme, variable) => {
    proxy.refuse = () => 503;
    const error = await failure(`${scheme}://hub.test`, { [variable]: `127.0.0.1:${proxy.port}` });
    expect(String(error)).toContain("got 503");
    expect(proxy.passed).toHaveLength(HASTE.attempts!);
  });

  it.each(both)("to say anything is not waited for, nor kept: %s", async (scheme, variable) => {
    proxy.refuse = () => null;
    const patience = { ...HASTE, responseMs: 150, attempts: 2 };
    const error = await failure(`${scheme}://hub.test`, { [variable]: `127.0.0.1:${proxy.port}` }, patience);
    expect(String(error)).toMatch(/proxy 127\.0\.0\.1:\d+: must .*; got nothing for 0\.15 s\. Check HTTP/);
    expect(proxy.passed).toHaveLength(2);
    await expect.poll(() => proxy.sockets.size).toBe(0);
  });

  it("to open a tunnel does not hold up the end of the program", async () => {
    proxy.refuse = () => null;
    const http = new Http({ env: { HTTPS_PROXY: `127.0.0.1:${proxy.port}` } });
    const stop = new AbortController();
    const reply = http.get(new URL("https://hub.test/"), { signal: stop.signal });
    await expect.poll(() => proxy.passed.length).toBe(1);
    const begun = performance.now();
    stop.abort(new Error("stopped"));
    await expect(reply).rejects.toThrow("stopped");
    expect(performance.now() - begun).toBeLessThan(5000); // Not only when patience has an end, after 30 s.
    http.close();
    await expect.poll(() => proxy.sockets.size).toBe(0);
    await delay(1); // An error without a listener would come now, and fail the run.
  });
});

describe("the environment", () => {
  const PROXIES = { HTTP_PROXY: "http://plain:1", HTTPS_PROXY: "http://secure:2" };

  it("names a proxy for each scheme; an empty variable is none", () => {
    const named = (url: string, env: Environment) => proxyFor(new URL(url), env)?.url.host;
    expect(named("http://x.test", PROXIES)).toBe("plain:1");
    expect(named("https://x.test", PROXIES)).toBe("secure:2");
    expect(named("https://x.test", { HTTP_PROXY: "http://plain:1" })).toBeUndefined();
    expect(named("https://x.test", { HTTPS_PROXY: " ", https_proxy: "" })).toBeUndefined();
    expect(named("https://x.test", { https_proxy: "small:3", HTTPS_PROXY: "capitals:4" })).toBe("small:3");
    expect(named("https://x.test", { ALL_PROXY: "all:5", HTTPS_PROXY: "own:6" })).toBe("own:6");
  });

  it.each([
    ["*", "https://any.test", true],
    ["hub.test", "https://hub.test", true],
    ["HUB.test", "https://Hub.Test/x", true],
    ["hub.test", "https://cdn.hub.test", true],
    [".hub.test", "https://cdn.hub.test", true],
    ["*.hub.test", "https://cdn.hub.test", true],
    ["hub.test", "https://myhub.test", false],
    ["hub.test", "https://hub.test.evil", false],
    ["hub.test:443", "https://hub.test", true],
    ["hub.test:443", "http://hub.test", false],
    ["hub.test:8443", "https://hub.test:8443", true],
    [".hub.test:8443", "https://cdn.hub.test", false],
    ["a.test,hub.test", "https://hub.test", true],
    ["a.test hub.test", "https://hub.test", true],
    ["a.test, ,", "https://hub.test", false],
    ["10.0.0.7", "http://10.0.0.7", true],
    ["0.0.7", "http://10.0.0.7", false],
    ["10.0.0.7:80", "http://10.0.0.7:8080", false],
    ["10.0.0.0/8", "http://10.200.3.4", true],
    ["10.0.0.0/8", "http://11.0.0.1", false],
    ["10.0.0.0/8", "http://ten.test", false],
    ["10.0.0.0/33", "http://10.0.0.1", false],
    ["::1", "http://[::1]", true],
    ["[::1]:8080", "http://[::1]:8080", true],
    ["[::1]:8080", "http://[::1]", false],
    ["fd00::/8", "http://[fd12::1]", true],
    ["fd00::/8", "http://[fe80::1]", false],
    ["", "https://hub.test", false],
  ])("excepts by NO_PROXY=%j %s: %s", (entries, url, direct) => {
    expect(proxyFor(new URL(url), { ...PROXIES, NO_PROXY: entries }) === undefined).toBe(direct);
  });

  it.each([
    ["socks5://me:secret@127.0.0.1:1080", '"socks5://…@127.0.0.1:1080". SOCKS proxies are not supported'],
    ["me:secret@host:99999", '"…@host:99999"'],
    ["http://me:sec@ret@host:99999", '"http://…@host:99999"'],
    ["http://me:100%secret@host", '"http://…@host". Write % as %25'],
  ])("that names %s is refused, and the password not shown", (text, shown) => {
    const find = () => proxyFor(new URL("https://hub.test"), { HTTPS_PROXY: text });
    expect(find).toThrow(ConfigError);
    expect(find).toThrow(shown);
    expect(find).not.toThrow(/secret|sec@ret/);
  });
});
