/** What a hub offers: a model as files with hashes. Which protocol told so does not matter any further. */

import type { Content } from "./download.ts";
import type { Credential } from "./http.ts";
import type { Source } from "./manifest.ts";

export interface RemoteFile {
  /** As the hub says; anything, until it has been checked. */
  readonly path: string;
  readonly content: Content;
  readonly url: URL;
}

export interface RemoteModel {
  readonly source: Source;
  readonly files: readonly RemoteFile[];
  /** What is shown to the server when fetching. */
  readonly credential?: Credential;
  /** Worth telling a person. */
  readonly notes: readonly string[];
}

/** A hub's address with a path behind it; parts are escaped by the caller. */
export function under(endpoint: URL, path: string): URL {
  return new URL(`${endpoint.pathname.replace(/\/+$/, "")}/${path}`, endpoint);
}
