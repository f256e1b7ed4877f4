/**
 * Names of models in the store: `[owner/]model[:tag]`. Case is kept for people and does not count otherwise, because on many
 * disks two names that differ in case alone are one folder.
 */

import { ConfigError } from "../../base/errors.ts";

export interface ModelName {
  readonly owner?: string;
  readonly model: string;
  /** An Ollama tag, or the revision of a repository where it is not the main one. */
  readonly tag?: string;
}

/** Longest owner, model or tag: what the hubs allow, and short enough for every file system. */
const MOST_CHARACTERS = 96;
const PART = /^[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?$/;

/** Names that Windows gives to devices, with any extension and in any folder. */
const DEVICE = /^(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\.|$)/i;

/** Whether Windows takes this for a device and not for a file. */
export const isDevice = (segment: string): boolean => DEVICE.test(segment);

function isPart(text: string): boolean {
  return text.length <= MOST_CHARACTERS && PART.test(text) && !isDevice(text);
}

/** The name that a text is, or undefined. */
export function tryModelName(text: string): ModelName | undefined {
  // The tag may hold slashes (refs/pr/1); owner and model hold no colon.
  const colon = text.indexOf(":");
  const [path, tag] = colon < 0 ? [text] : [text.slice(0, colon), text.slice(colon + 1)];
  const parts = path.split("/");
  if (parts.length > 2 || !parts.every(isPart)) return undefined;
  if (tag !== undefined && (tag.length > MOST_CHARACTERS || !tag.split("/").every(isPart))) return undefined;
  const [owner, model] = parts.length === 2 ? [parts[0]!, parts[1]!] : [undefined, parts[0]!];
  return { ...(owner === undefined ? {} : { owner }), model, ...(tag === undefined ? {} : { tag }) };
}

/** The name in an address that was copied from a browser, or from elsewhere (`hf.co/owner/model`). */
function nameInAddress(text: string): string | undefined {
  const path = /^(?:https?:\/\/)?[\w-]+(?:\.[\w-]+)+(?::\d+)?\/(?:library\/)?([^/?#]+(?:\/[^/?#]+)?)/.exec(
    text,
  )?.[1];
  return path !== undefined && tryModelName(path) !== undefined ? path : undefined;
}

/** @throws ConfigError when the text is no name */
export function parseModelName(text: string): ModelName {
  const name = tryModelName(text);
  if (name !== undefined) return name;
  const meant = nameInAddress(text.slice(0, 1000));
  throw new ConfigError({
    where: "model's name",
    rule: `must be [owner/]model[:tag], each of letters, digits and ._- and at most ${MOST_CHARACTERS} long`,
    got: JSON.stringify(text.length > 120 ? `${text.slice(0, 120)}…` : text),
    remedy:
      meant === undefined
        ? "For instance Qwen/Qwen2.5-0.5B-Instruct, or deepseek-r1:1.5b"
        : `Give the name without the address: ${meant}`,
  });
}

export function formatModelName({ owner, model, tag }: ModelName): string {
  return `${owner === undefined ? "" : `${owner}/`}${model}${tag === undefined ? "" : `:${tag}`}`;
}

/** Parts that a name leaves out; no name can hold a plus. */
const NO_OWNER = "+library";
const NO_TAG = "+main";

/**
 * Where a name's manifest lies below `models/`: three folders, the same for names that differ in case alone and for no
 * others.
 */
export function nameFolders({ owner, model, tag }: ModelName): readonly [string, string, string] {
  const fold = (text: string) => text.toLowerCase().replaceAll("/", "+");
  return [owner === undefined ? NO_OWNER : fold(owner), fold(model), tag === undefined ? NO_TAG : fold(tag)];
}

export function sameName(a: ModelName, b: ModelName): boolean {
  return nameFolders(a).join("/") === nameFolders(b).join("/");
}
