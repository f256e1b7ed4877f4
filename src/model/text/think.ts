/**
 * Splits what a reasoning model writes into thought, answer and plain text, as it streams.
 *
 * R1's form is `<think>…</think>` and then text; R1-Zero's puts `<answer>…</answer>` behind the thought. The opening tag may
 * have been written by the prompt's template instead of the model, and any tag may arrive in pieces.
 *
 * Models nest, repeat and forget tags, so the rules are few and lose no words:
 * - in plain text, an opening tag begins a section, and a closing tag that closes nothing is dropped;
 * - in a section, its own closing tag ends it, its own opening tag (a repetition) is dropped, and other tags are words;
 * - a section that is never closed ends with the text.
 */

export type ThinkKind = "think" | "answer" | "text";

/** A piece of one section, in the order written; neighbours of one kind belong together. Never empty. */
export interface ThinkEvent {
  readonly kind: ThinkKind;
  readonly text: string;
}

const SECTIONS = ["think", "answer"] as const;
const opening = (section: (typeof SECTIONS)[number]) => `<${section}>`;
const closing = (section: (typeof SECTIONS)[number]) => `</${section}>`;

/** The tags of R1-Zero's template, in the order it writes them. */
export const THINK_TAGS: readonly string[] = SECTIONS.flatMap((section) => [
  opening(section),
  closing(section),
]);

type Leads = readonly (readonly [tag: string, to: ThinkKind])[];

const tagsOf = (section: (typeof SECTIONS)[number]): Leads => [
  [opening(section), section],
  [closing(section), "text"],
];

/** The tags that mean something in a section of each kind, and the kind that each leads to. */
const LEADS: Readonly<Record<ThinkKind, Leads>> = {
  text: SECTIONS.flatMap(tagsOf),
  think: tagsOf("think"),
  answer: tagsOf("answer"),
};

/** The parser of one stream: `push` each chunk, then `end`. */
export class ThinkParser {
  #kind: ThinkKind;
  /** The start of what may become a tag. */
  #held = "";

  /** @param options.open the section the prompt's template opened, `<think>` having been written by it. @default "text" */
  constructor(options: { readonly open?: ThinkKind } = {}) {
    this.#kind = options.open ?? "text";
  }

  /** The section the stream is in; after {@link end}, anything but `text` was never closed. */
  get kind(): ThinkKind {
    return this.#kind;
  }

  /** What has become certain with this chunk; what may yet be a tag waits. */
  push(chunk: string): ThinkEvent[] {
    const text = this.#held + chunk;
    const events: ThinkEvent[] = [];
    let start = 0;
    let at = text.indexOf("<");
    while (at !== -1) {
      const lead = LEADS[this.#kind].find(([tag]) => text.startsWith(tag, at));
      if (lead !== undefined) {
        const [tag, to] = lead;
        this.#emit(events, text.slice(start, at));
        this.#kind = to;
        start = at + tag.length;
      } else if (LEADS[this.#kind].some(([tag]) => tag.startsWith(text.slice(at)))) {
        break;
      }
      at = text.indexOf("<", Math.max(start, at + 1));
    }
    const end = at === -1 ? text.length : at;
    this.#emit(events, text.slice(start, end));
    this.#held = text.slice(end);
    return events;
  }

  /** What was held back, now that no more can come: the start of a tag is words after all. */
  end(): ThinkEvent[] {
    const events: ThinkEvent[] = [];
    this.#emit(events, this.#held);
    this.#held = "";
    return events;
  }

  #emit(events: ThinkEvent[], text: string): void {
    if (text !== "") events.push({ kind: this.#kind, text });
  }
}

/** Joins neighbours of one kind. */
export function mergeThinkEvents(events: Iterable<ThinkEvent>): ThinkEvent[] {
  const merged: ThinkEvent[] = [];
  for (const event of events) {
    const last = merged.at(-1);
    if (last?.kind === event.kind) merged[merged.length - 1] = { ...last, text: last.text + event.text };
    else merged.push(event);
  }
  return merged;
}

/** A whole text, split: {@link ThinkParser} on one chunk. */
export function parseThink(text: string, options: { readonly open?: ThinkKind } = {}): ThinkEvent[] {
  const parser = new ThinkParser(options);
  return mergeThinkEvents([...parser.push(text), ...parser.end()]);
}
