/** Servers that break their promises: a pull ends with the right bytes or with an error that says what is wrong, and soon. */

import { readdir, writeFile } from "node:fs/promises";
import type { ServerResponse } from "node:http";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import { PonderaError } from "../../../src/base/errors.ts";
import { retryAfter } from "../../../src/model/store/http.ts";
import type { PullEvent, PullOptions } from "../../../src/model/store/pull.ts";
import { ModelStore } from "../../../src/model/store/store.ts";
import { temporaryFolder } from "../../base/temporary-folder.ts";
import { FakeHub, noise, type Seen, sendContent, sendJson, sha256 } from "./fake-hub.ts";
import { contents, expected, HASTE, pullFrom } from "./pulling.ts";

const WEIGHTS = noise(120_000);
const FILES = { "config.json": '{"a":1}', "model.safetensors": WEIGHTS };

let root: string;
let hub: FakeHub;
let store: ModelStore;
let events: PullEvent[];
beforeEach(async () => {
  root = await temporaryFolder();
  hub = await FakeHub.start();
  hub.publish("Qwen/Tiny", FILES);
  store = new ModelStore(join(root, "store"));
  events = [];
});

const pull = (name = "Qwen/Tiny", options: Partial<PullOptions> & { patience?: object } = {}) =>
  pullFrom(hub, name, { store, onEvent: (event) => events.push(event), ...options });

/** The right bytes are in the store, and nothing else. */
async function succeeds(options: Partial<PullOptions> = {}): Promise<void> {
  const { model } = await pull("Qwen/Tiny", options);
  expect(await contents(model.folder)).toEqual(expected(FILES));
  expect(await store.verify(model)).toEqual([]);
  expect(await readdir(join(store.root, "partial"))).toEqual([]);
}

/** No model, and no content that is not what its name says. */
async function fails(
  rule: RegExp,
  options: Partial<PullOptions> & { patience?: object } = {},
): Promise<void> {
  const error = await pull("Qwen/Tiny", options).then(
    () => undefined,
    (caught: unknown) => caught,
  );
  expect(String(error)).toMatch(rule);
  expect(error).toBeInstanceOf(PonderaError);
  expect(await store.list()).toEqual([]);
  expect((await readdir(root)).filter((name) => name !== "store")).toEqual([]);
}

/** Lets the storage do this, as often as is said, and then behave. */
function storage(
  act: (seen: Seen, response: ServerResponse) => void,
  times = Number.POSITIVE_INFINITY,
): void {
  let left = times;
  hub.misbehave = (seen, response) => {
    if (seen.server !== "storage" || left <= 0) return false;
    left--;
    act(seen, response);
    return true;
  };
}

/** Headers for the whole of the range, and so many bytes of it before the line goes dead. */
function cut(seen: Seen, response: ServerResponse, bytes: number): void {
  const content = hub.contentFor(seen);
  const [start, end] = /(\d+)-(\d+)/.exec(seen.headers.range!)!.slice(1).map(Number) as [number, number];
  response.writeHead(206, {
    "content-length": end - start + 1,
    "content-range": `bytes ${start}-${end}/${content.length}`,
  });
  response.write(content.subarray(start, start + bytes), () => response.destroy());
}

describe("a connection", () => {
  it("that is cut is gone on with from where it was cut", async () => {
    // Shorter than the last part, which may be among the first two to be asked for.
    storage((seen, response) => cut(seen, response, 10_000), 2);
    await succeeds();
    const ranges = hub.requests("/blobs/").map(({ headers }) => headers.range);
    expect(ranges.length).toBe(5);
    expect(ranges.slice(3).some((range) => /^bytes=(?:1|6|11)0000-/.test(range!))).toBe(true);
    expect(events.filter(({ kind }) => kind === "note")).toHaveLength(2);
  });

  it("that is cut each time before anything arrives is given up", async () => {
    storage((seen, response) => cut(seen, response, 0));
    await fails(/HttpError: .*\/blobs\/[0-9a-f]{64}: must send the whole of it; got/);
  });

  it("does not show the secret part of an address in an error", async () => {
    storage((seen, response) => cut(seen, response, 0));
    const error = await pull().catch((caught: unknown) => String(caught));
    expect(error).not.toContain("signature");
  });

  it("that brings bytes too slowly is given up", async () => {
    storage((seen, response) => {
      cut(seen, response, 0);
    }, 0);
    hub.misbehave = (seen, response) => {
      if (seen.server !== "storage") return false;
      response.writeHead(206, { "content-range": seen.headers.range!.replace("=", " ").concat("/120000") });
      const timer = setInterval(() => response.write("x"), 20);
      response.on("close", () => clearInterval(timer));
      return true;
    };
    await fails(/must send at least 1000 bytes in 0\.2 s; got \d+/, {
      patience: { ...HASTE, stallMs: 200, attempts: 2 },
    });
  });

  it("on which nothing ever comes is given up", async () => {
    hub.misbehave = () => true;
    await fails(/must answer; got nothing for 0\.2 s/, {
      patience: { ...HASTE, responseMs: 200, attempts: 2 },
    });
  });

  it("to nobody says so", async () => {
    await fails(/must answer; got .*ECONNREFUSED.*Check the address/, { endpoint: "http://127.0.0.1:1" });
  });
});

describe("ranges", () => {
  it("that are ignored do no harm: the file is read in one go", async () => {
    storage((seen, response) => sendContent({ ...seen, headers: {} }, response, hub.contentFor(seen)));
    await succeeds();
  });

  it("that are ignored when going on do no harm either", async () => {
    storage((seen, response) => cut(seen, response, 20_000));
    await expect(pull("Qwen/Tiny", { patience: { ...HASTE, attempts: 1 } })).rejects.toThrow();
    storage((seen, response) => sendContent({ ...seen, headers: {} }, response, hub.contentFor(seen)));
    await succeeds();
  });

  it.each([
    ["another range", "bytes 0-49999/120000"],
    ["nonsense", "bytes of all sorts"],
    ["no range at all", undefined],
  ])("that are answered with %s are asked for once, and the file then read in one go", async (_, range) => {
    storage((seen, response) => {
      if (seen.headers.range === undefined) return sendContent(seen, response, hub.contentFor(seen));
      response.writeHead(206, range === undefined ? {} : { "content-range": range });
      response.end(hub.contentFor(seen).subarray(1, 50_001));
    });
    await succeeds();
    const asked = hub.requests("/blobs/").map(({ headers }) => headers.range);
    expect(asked.length).toBeGreaterThan(1);
    expect(asked.indexOf(undefined)).toBe(asked.length - 1);
    expect(new Set(asked).size).toBe(asked.length);
  });

  it("of a file of another length are refused", async () => {
    storage((seen, response) => {
      response.writeHead(206, { "content-range": `${seen.headers.range!.replace("=", " ")}/120001` });
      response.end("x".repeat(50_000));
    });
    await fails(/the file must have 120000 bytes; got 120001/);
  });
});

describe("lengths", () => {
  it.each([
    ["too short", 49_999, /must send \d+ bytes; got 49999/],
    ["too long", 60_000, /must send \d+ bytes; got 60000/],
  ])("announced %s are refused", async (_, length, rule) => {
    storage((seen, response) => {
      response.writeHead(206, {
        "content-length": length,
        "content-range": `${seen.headers.range!.replace("=", " ")}/120000`,
      });
      response.end(Buffer.alloc(length));
    });
    await fails(rule);
  });

  it("not announced, and too long, are cut at the limit", async () => {
    storage((seen, response) => {
      response.writeHead(206, { "content-range": `${seen.headers.range!.replace("=", " ")}/120000` });
      const pour = () => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536)));
      };
      response.on("drain", pour);
      pour();
    });
    await fails(/must send \d+ bytes; got more/);
  });

  it.each([
    ["another length", { "x-linked-size": 7 }, /; got 7 bytes, no hash\. It has changed meanwhile/],
    ["another hash", { "x-linked-etag": `"${"0".repeat(64)}"` }, /; got 120000 bytes, 0{64}\. It has/],
  ])("that agree do not help where the hub's own headers then tell of %s", async (_, headers, rule) => {
    hub.misbehave = (seen, response) => {
      if (!seen.url.includes("/resolve/") || seen.url.endsWith("config.json")) return false;
      response.writeHead(302, { location: `${hub.storageUrl}/blobs/${sha256(WEIGHTS)}`, ...headers }).end();
      return true;
    };
    await fails(rule);
    await fails(/FormatError: .*: must be the file that was listed: 120000 bytes, [0-9a-f]{64}; got/);
  });
});

describe("content", () => {
  const flip = (seen: Seen, response: ServerResponse) => {
    const content = Buffer.from(hub.contentFor(seen));
    content[70_000]! ^= 1;
    sendContent(seen, response, content);
  };

  it("that is wrong once is fetched again", async () => {
    storage(flip, 3);
    await succeeds();
    expect(hub.requests("/blobs/").length).toBe(6);
  });

  it("that is wrong twice is refused, and not kept", async () => {
    storage(flip);
    await fails(/FormatError: .*must have the sha256 [0-9a-f]{64}; got [0-9a-f]{64}, twice/);
    const kept = Object.keys(await contents(join(store.root, "partial")));
    expect(kept.filter((path) => /data|journal/.test(path))).toEqual([]);
    expect(await store.hasBlob({ sha256: sha256(WEIGHTS), size: WEIGHTS.length })).toBe(false);
  });

  it("of small files is held to git's hash", async () => {
    hub.misbehave = (seen, response) => {
      if (!seen.url.endsWith("config.json")) return false;
      sendContent(seen, response, Buffer.from('{"a":2}'));
      return true;
    };
    await fails(/must have the git hash [0-9a-f]{40}; got [0-9a-f]{40}/);
  });

  it("left over from before and since damaged is found by the hash, and fetched again", async () => {
    storage((seen, response) => cut(seen, response, 20_000));
    await expect(pull("Qwen/Tiny", { patience: { ...HASTE, attempts: 1 } })).rejects.toThrow();
    const [folder] = (await readdir(join(store.root, "partial"))).filter((name) =>
      name.startsWith("sha256-"),
    );
    const journal = join(store.root, "partial", folder!, "journal");
    await writeFile(journal, "size 120000\n0 100000\nnonsense\n-1 5\n5 999999999\n7 110");
    hub.seen.length = 0;
    storage(() => undefined, 0);
    await succeeds();
    expect(hub.requests("/blobs/")[0]!.headers.range).toBe("bytes=100000-119999");
    expect(hub.requests("/blobs/").length).toBe(4);
  });
});

describe("a server that is busy or broken", () => {
  const answer = (status: number, headers: Record<string, string>, times: number) => {
    let left = times;
    hub.misbehave = (_, response) => {
      if (left-- <= 0) return false;
      response.writeHead(status, headers).end("busy");
      return true;
    };
  };

  it.each([[500], [502], [503], [504], [429], [408]])("with %d is asked again", async (status) => {
    answer(status, {}, 2);
    await succeeds();
    expect(events.filter(({ kind }) => kind === "note")).toHaveLength(2);
  });

  it("is left alone for as long as it asks", async () => {
    answer(429, { "retry-after": "1" }, 1);
    const begun = performance.now();
    await succeeds();
    expect(performance.now() - begun).toBeGreaterThan(950);
    expect(events[0]).toMatchObject({
      kind: "note",
      text: expect.stringMatching(
        /^Qwen\/Tiny: trying again in 1 s; got 429 Too Many Requests: busy, but http:.* must answer with success$/,
      ),
    });
  });

  it("that asks for an hour is not waited for", async () => {
    answer(429, { "retry-after": "3600" }, 99);
    await fails(/429.*It asks to be left alone for 3600 s: try again then/);
  });

  it("for good is given up, with what it says", async () => {
    answer(503, { "content-type": "text/plain" }, 99);
    await fails(/must answer with success; got 503 Service Unavailable: busy/);
  });

  it("whose signed address has run out is asked for another", async () => {
    storage((_, response) => void response.writeHead(403).end(), 2);
    await succeeds();
  });

  it("says when to come back in two ways", () => {
    const now = Date.parse("2026-11-25T12:00:00Z");
    expect(retryAfter("120", now)).toBe(120_000);
    expect(retryAfter("Wed, 25 Nov 2026 12:01:00 GMT", now)).toBe(60_000);
    expect(retryAfter("Wed, 25 Nov 2026 11:00:00 GMT", now)).toBe(0);
    for (const nonsense of [undefined, "soon", "-5x", "1e9999999"])
      expect(retryAfter(nonsense, now)).toBeUndefined();
  });
});

describe("redirects", () => {
  const redirect = (location: string | undefined, status = 302) =>
    storage(
      (_, response) => void response.writeHead(status, location === undefined ? {} : { location }).end(),
    );

  it("without end are given up", async () => {
    redirect("/blobs/again");
    await fails(/must lead somewhere within 10 redirects; got one more/);
    expect(hub.seen.length).toBeLessThan(60);
  });

  it.each([
    ["file:///etc/passwd", /must lead to http or https; got file:/],
    ["data:,x", /must lead to http or https; got data:/],
    ["http://user:pw@localhost/", /must name no user; got http:\/\/localhost\//],
    ["http://[", /must say where to; got "http:\/\/\["/],
    [undefined, /must say where to; got "nothing"/],
  ])("to %s are not followed", async (location, rule) => {
    redirect(location);
    await fails(rule);
  });
});

describe("what should be JSON", () => {
  const everywhere = (act: (response: ServerResponse) => void) => {
    hub.misbehave = (_, response) => {
      act(response);
      return true;
    };
  };

  it("and is a web page is shown, with what may stand in between", async () => {
    everywhere(
      (response) =>
        void response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><p>Log in"),
    );
    await fails(
      /must answer with JSON; got text\/html: "<!doctype html><p>Log in"\. A login page or a proxy may stand in between/,
    );
  });

  it("and has no end is not read to the end", async () => {
    everywhere((response) => {
      response.writeHead(200, { "content-type": "application/json" });
      const pour = () => {
        while (!response.destroyed && response.write(`["${"x".repeat(65_000)}",`));
      };
      response.on("drain", pour);
      pour();
    });
    await fails(/must answer with at most 16777216 bytes; got more/);
  });

  it("and is compressed is understood, and a small bomb of it defused", async () => {
    hub.misbehave = (seen, response) => {
      if (!seen.url.includes("/revision/")) return false;
      const json = JSON.stringify({ sha: hub.repositories.get("Qwen/Tiny")!.commit });
      response.writeHead(200, { "content-encoding": "gzip" }).end(gzipSync(json));
      return true;
    };
    await succeeds();
    everywhere(
      (response) =>
        void response
          .writeHead(200, { "content-encoding": "gzip" })
          .end(gzipSync(Buffer.alloc(50 * 2 ** 20, 32))),
    );
    await expect(pull("Qwen/Other")).rejects.toThrow(/must answer with at most 16777216 bytes; got more/);
    everywhere((response) => void response.writeHead(200, { "content-encoding": "gzip" }).end("no gzip"));
    await expect(pull("Qwen/Other")).rejects.toThrow(/must send the whole of it; got incorrect header check/);
    everywhere((response) => void response.writeHead(200, { "content-encoding": "zip" }).end("{}"));
    await expect(pull("Qwen/Other")).rejects.toThrow(/an encoding that was asked for; got "zip"/);
  });

  it("and is of another kind is refused, whatever it is", async () => {
    let answer: unknown;
    everywhere((response) => sendJson(response, answer));
    await fc.assert(
      fc.asyncProperty(
        fc.jsonValue({ maxDepth: 3 }),
        fc.constantFrom("Qwen/Tiny", "tiny:1"),
        async (value, name) => {
          answer = value;
          await expect(pull(name)).rejects.toBeInstanceOf(PonderaError);
        },
      ),
      { numRuns: 60 },
    );
    expect(await store.list()).toEqual([]);
  });

  it("and is nested without measure is refused", async () => {
    everywhere((response) => void response.writeHead(200).end("[".repeat(1e6) + "]".repeat(1e6)));
    await fails(/FormatError/);
  });

  it("and is a list whose next page is itself is refused", async () => {
    hub.misbehave = (seen, response) => {
      if (!seen.url.includes("/tree/")) return false;
      sendJson(response, [], { link: `<${hub.url}${seen.url}>; rel="next"` });
      return true;
    };
    await fails(/each once; got a page that follows itself/);
  });
});

describe("content that comes compressed", () => {
  it("is decompressed, checked, and never longer than it should be", async () => {
    const zipped = (seen: Seen, response: ServerResponse) =>
      void response.writeHead(200, { "content-encoding": "gzip" }).end(gzipSync(hub.contentFor(seen)));
    storage(zipped);
    await succeeds();
    hub.publish("Qwen/Tiny", { ...FILES, "model.safetensors": noise(120_000, 5) });
    storage(
      (_, response) =>
        void response.writeHead(200, { "content-encoding": "gzip" }).end(gzipSync(Buffer.alloc(2 ** 24))),
    );
    await expect(pull()).rejects.toThrow(/must send 120000 bytes; got more/);
  });
});

describe("names that a hub gives", () => {
  const entry = (path: string) => ({
    type: "file",
    path,
    size: 0,
    oid: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
  });

  it.each([
    ...[
      "../escaped",
      "a/../../../escaped",
      "/tmp/escaped",
      "..\\escaped",
      "C:\\escaped",
      "a\0b",
      "CON",
      "nul.txt",
      "x/aux",
    ],
    ...[
      ".",
      "..",
      "",
      "a//b",
      "a.",
      "x".repeat(300),
      "x/".repeat(5000).concat("x"),
      "\u202etxt.exe",
      "a:b",
      "__proto__/../..",
    ],
  ])("never write outside the store, nor what some system cannot hold: %j", async (path) => {
    hub.publish("Qwen/Tiny", {}, [entry("config.json"), entry(path)]);
    await fails(/file names must be relative.*--exclude/);
    expect(hub.requests("/resolve/")).toEqual([]);
  });

  it.each([[300], [100_000]])("of %d letters are refused, and cut where they are told of", async (length) => {
    hub.publish("Qwen/Tiny", {}, [entry("x".repeat(length))]);
    await fails(/^.{0,100}file names must be relative.{0,300}$/s);
  });

  it("and that are one on some disks are refused, and can be left out", async () => {
    hub.publish("Qwen/Tiny", { "README.md": "", "readme.md": "" });
    await fails(
      /must stay apart where case does not count; got "README\.md" and "readme\.md"\. Leave one out with --exclude/,
    );
    expect(
      Object.keys(await contents((await pull("Qwen/Tiny", { exclude: ["readme.md"] })).model.folder)),
    ).toEqual(["README.md"]);
  });

  it("like those that objects have are names like others", async () => {
    const files = { __proto__x: "", constructor: "", toString: "1", "hasOwnProperty/valueOf": "2" };
    hub.publish("Qwen/Tiny", files);
    expect(await contents((await pull()).model.folder)).toEqual(expected(files));
  });

  it("and sizes larger than any disk are refused before anything is fetched", async () => {
    hub.publish("Qwen/Tiny", {}, [{ ...entry("config.json"), size: Number.MAX_SAFE_INTEGER }]);
    await fails(/must have room for 9007199254740991 bytes; got \d+ free\. Free some space/);
    hub.publish("Qwen/Tiny", {}, [{ ...entry("config.json"), size: -1 }]);
    await fails(/must answer in the hub's format; got 0\.size/);
    hub.publish("Qwen/Tiny", {}, [{ type: "file", path: "config.json", size: 3 }]);
    await fails(/must tell size and hash of every file/);
  });

  it("in a registry are made here, and its digests are nothing but hashes", async () => {
    hub.misbehave = (seen, response) => {
      if (!seen.url.includes("/manifests/")) return false;
      const layer = {
        mediaType: "application/vnd.ollama.image.model",
        size: 1,
        digest: "sha256:../../escaped",
      };
      sendJson(response, { schemaVersion: 2, config: layer, layers: [layer] });
      return true;
    };
    await expect(pull("tiny:1")).rejects.toThrow(/must be the manifest of a model; got config\.digest/);
    expect(await readdir(root)).toEqual([]);
  });
});
