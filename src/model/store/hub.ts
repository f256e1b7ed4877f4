/**
 * The Hugging Face hub's protocol, and that of its mirrors: a revision is resolved to a commit, the commit's tree is listed, and
 * files are fetched at that commit, so that a branch that moves meanwhile does not matter.
 */

import { z } from "zod";
import { ConfigError, FormatError, NetworkError } from "../../base/errors.ts";
import { type Credential, type Http, type RetryTeller, shownUrl } from "./http.ts";
import { HttpError } from "./http-error.ts";
import { MOST_FILES } from "./manifest.ts";
import { tryModelName } from "./name.ts";
import { type RemoteFile, type RemoteModel, under } from "./remote.ts";

export const HF_ENDPOINT = "https://huggingface.co";

export interface HubOptions {
  readonly http: Http;
  readonly endpoint: URL;
  /** Shown to the endpoint's host alone. */
  readonly token?: string | undefined;
  /** `owner/model`. */
  readonly repo: string;
  /** Branch, tag or commit. */
  readonly revision: string;
  readonly signal?: AbortSignal | undefined;
  readonly onRetry?: RetryTeller;
}

/** Pages of a list: with the hub's pages, far more than {@link MOST_FILES}. */
const MOST_PAGES = 2000;

/** Bytes of one answer; a page of a tree has up to 1000 entries of some hundred bytes. */
const MOST_BYTES = 16 * 2 ** 20;

const Revision = z.object({
  id: z.string().optional(),
  sha: z.string().regex(/^[0-9a-f]{40}(?:[0-9a-f]{24})?$/),
});

const Sha256 = z
  .string()
  .transform((text) => text.replace(/^sha256:/, ""))
  .pipe(z.string().regex(/^[0-9a-f]{64}$/));

const Entry = z.object({
  type: z.string(),
  path: z.string(),
  size: z.int().nonnegative().optional(),
  oid: z.string().optional(),
  lfs: z.object({ oid: Sha256, size: z.int().nonnegative() }).nullish(),
});

function parse<T>(schema: z.ZodType<T>, url: URL, value: unknown): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  throw new FormatError({
    where: shownUrl(url),
    rule: "must answer in the hub's format",
    got: `${issue.path.join(".") || "the whole"}: ${issue.message}`,
    remedy: "Is this the address of a Hugging Face hub?",
  });
}

/** What a refusal means; the hub's own words are in a header, and a model that is not there and one that is secret look alike. */
function explain(error: unknown, { repo, revision, endpoint, token }: HubOptions): unknown {
  if (!(error instanceof HttpError) || error.status === undefined) return error;
  const code = String(error.headers["x-error-code"] ?? "");
  const parts = {
    where: `${repo} at ${endpoint.host}`,
    got: error.got ?? String(error.status),
    cause: error,
  };
  const set = token === undefined ? "set HF_TOKEN" : "check that the account of HF_TOKEN may read it";
  if (code === "GatedRepo" || (error.status === 403 && code === "")) {
    const remedy = `Accept its terms at ${shownUrl(under(endpoint, repo))}, then ${set}`;
    return new NetworkError({ ...parts, rule: "needs the permission of its owner", remedy });
  }
  if (code === "RevisionNotFound") {
    return new ConfigError({
      ...parts,
      rule: "must have the revision that is asked for",
      got: JSON.stringify(revision),
      remedy: `Leave it out for the main branch; its page names the others: ${shownUrl(under(endpoint, repo))}`,
    });
  }
  if (code === "RepoNotFound" || error.status === 404 || error.status === 401) {
    const remedy = `Check the spelling; if it is private, ${set}`;
    return new ConfigError({ ...parts, rule: "must be a model that the hub has and you may read", remedy });
  }
  return error;
}

/** The address of the next page (RFC 8288): its path alone, since a mirror may still name the hub it mirrors. */
function nextPage(link: string | undefined, url: URL): URL | undefined {
  const match = /<([^<>]*)>\s*;[^,<]*\brel="?next"?/.exec((link ?? "").slice(0, 8192));
  if (match === null || !URL.canParse(match[1]!, url.href)) return undefined;
  const { pathname, search } = new URL(match[1]!, url);
  return new URL(pathname + search, url);
}

async function listTree(
  options: HubOptions,
  repo: string,
  commit: string,
  credential: Credential | undefined,
) {
  const { http, endpoint, signal, onRetry } = options;
  const entries: z.infer<typeof Entry>[] = [];
  const seen = new Set<string>();
  let url: URL | undefined = under(endpoint, `api/models/${repo}/tree/${commit}?recursive=true&expand=false`);
  while (url !== undefined) {
    const asked: URL = url;
    seen.add(asked.href);
    const { value, headers } = await http.json(asked, {
      ...{ most: MOST_BYTES, credential, signal },
      ...(onRetry === undefined ? {} : { onRetry }),
    });
    entries.push(...parse(z.array(Entry), asked, value));
    url = nextPage(typeof headers.link === "string" ? headers.link : undefined, asked);
    const files = entries.filter(({ type }) => type === "file").length;
    if (files > MOST_FILES || seen.size > MOST_PAGES || (url !== undefined && seen.has(url.href))) {
      throw new FormatError({
        where: shownUrl(asked),
        rule: `must list at most ${MOST_FILES} files, each once`,
        got: url !== undefined && seen.has(url.href) ? "a page that follows itself" : "more",
      });
    }
  }
  return entries;
}

function fileOf(endpoint: URL, repo: string, commit: string, entry: z.infer<typeof Entry>): RemoteFile {
  const { path, lfs, oid, size } = entry;
  const url = under(
    endpoint,
    `${repo}/resolve/${commit}/${path.split("/").map(encodeURIComponent).join("/")}`,
  );
  if (lfs != null) return { path, url, content: { size: lfs.size, hash: { kind: "sha256", hex: lfs.oid } } };
  if (size !== undefined && oid !== undefined && /^[0-9a-f]{40}$/.test(oid)) {
    return { path, url, content: { size, hash: { kind: "git", hex: oid } } };
  }
  throw new FormatError({
    where: `${repo} at ${endpoint.host}`,
    rule: "must tell size and hash of every file",
    got: `${JSON.stringify(path.slice(0, 80))} without them`,
    remedy: "Without them nobody can check what arrives: choose another --endpoint",
  });
}

/**
 * A repository's files at a revision.
 * @throws ConfigError when there is no such model or revision, or no access to it; HttpError when the hub cannot be reached;
 *   FormatError when it answers in no known way
 */
export async function listHub(options: HubOptions): Promise<RemoteModel> {
  const { http, endpoint, token, repo, revision, signal, onRetry } = options;
  const credential = token === undefined ? undefined : { token, origin: endpoint.origin };
  try {
    const url = under(endpoint, `api/models/${repo}/revision/${encodeURIComponent(revision)}`);
    const { value } = await http.json(url, {
      ...{ most: MOST_BYTES, credential, signal },
      ...(onRetry === undefined ? {} : { onRetry }),
    });
    const { id = repo, sha: commit } = parse(Revision, url, value);
    const canonical = tryModelName(id);
    if (canonical === undefined || canonical.tag !== undefined) {
      throw new FormatError({
        where: shownUrl(url),
        rule: "must name a model",
        got: JSON.stringify(id.slice(0, 80)),
      });
    }
    const entries = await listTree(options, id, commit, credential);
    return {
      source: { hub: "hf", endpoint: shownUrl(endpoint).replace(/\/$/, ""), repo: id, revision, commit },
      files: entries
        .filter(({ type }) => type === "file")
        .map((entry) => fileOf(endpoint, id, commit, entry)),
      ...(credential === undefined ? {} : { credential }),
      notes: id === repo ? [] : [`${repo} is called ${id} there`],
    };
  } catch (error) {
    throw explain(error, options);
  }
}
