/** A completion as a reader wants it: the thought apart from what was said after it. */

import { opensThought } from "../model/text/conversation.ts";
import { parseThink } from "../model/text/think.ts";

export interface SplitCompletion {
  readonly thought: string;
  /** The answer and any text outside of tags; empty when the model never got there. */
  readonly answer: string;
}

/** @param prompt   what the completion continues; when it ends by opening the thought, the completion begins inside it */
export function splitCompletion(prompt: string, completion: string): SplitCompletion {
  const open = opensThought(prompt) ? "think" : "text";
  const events = parseThink(completion, { open });
  const of = (isThought: boolean) =>
    events
      .filter((event) => (event.kind === "think") === isThought)
      .map((event) => event.text.trim())
      .filter((text) => text !== "")
      .join("\n");
  return { thought: of(true), answer: of(false) };
}

/** A prompt without the tag that opens the thought. */
export function promptText(prompt: string): string {
  return prompt
    .trimEnd()
    .replace(/<think>$/, "")
    .trim();
}
