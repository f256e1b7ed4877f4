/** What a conversation needs beside its template: where turns end, thoughts left behind, and room in the context. */

import type { ChatMessage, ChatTemplate } from "./chat-template.ts";
import type { Tokenizer } from "./tokenizer-files.ts";

const [OPEN, CLOSE] = ["<think>", "</think>"];

/** Whether a prompt ends by opening the thought, so that the completion begins inside it. */
export function opensThought(prompt: string): boolean {
  return prompt.trimEnd().endsWith(OPEN);
}

/**
 * A completion as later turns are to remember it: what comes after the thought, as DeepSeek-R1's own template keeps it. Of one
 * that was cut off within its thought, what came before, which is often nothing.
 * @param thinkOpened whether the prompt opened the thought
 */
export function withoutThought(completion: string, thinkOpened = false): string {
  const closed = completion.lastIndexOf(CLOSE);
  if (closed >= 0) return completion.slice(closed + CLOSE.length);
  if (thinkOpened) return "";
  const opened = completion.indexOf(OPEN);
  return opened < 0 ? completion : completion.slice(0, opened);
}

/** Text that no template has a reason to change. */
const PROBE = "pondera";

/**
 * The tokens with which a template ends the assistant's turn, such as `<|im_end|>`; none where it ends with ordinary text or
 * cannot be told. Files do not always count them among the tokens that end a text.
 */
export function turnEndIds(template: ChatTemplate, tokenizer: Tokenizer): number[] {
  const messages = [
    { role: "user", content: "1" },
    { role: "assistant", content: PROBE },
  ];
  let text: string;
  try {
    text = template.render(messages, { addGenerationPrompt: false });
  } catch {
    // Whatever the template refuses in these, it will say of the person's own messages.
    return [];
  }
  const at = text.lastIndexOf(PROBE);
  if (at < 0) return [];
  const [first] = tokenizer.encode(text.slice(at + PROBE.length));
  if (first === undefined) return [];
  // Written out by a person it is other tokens, if it is one of the tokens that speak to the model.
  const isControl = !encodesAs(tokenizer, tokenizer.piece(first), first);
  return isControl ? [first] : [];
}

/** A model in a conversation: a turn also ends where its template ends it. */
export function endingTurns<M extends { readonly tokenizer: Tokenizer; readonly stopIds: readonly number[] }>(
  model: M,
  template: ChatTemplate,
): M {
  const stopIds = [...new Set([...model.stopIds, ...turnEndIds(template, model.tokenizer)])];
  return { ...model, stopIds };
}

function encodesAs(tokenizer: Tokenizer, text: string, id: number): boolean {
  try {
    return tokenizer.encode(text, { allowSpecial: false }).includes(id);
  } catch {
    // A vocabulary of characters may not have those of the token's name.
    return false;
  }
}

export interface FittedConversation {
  /** The conversation as the model reads it, ready to be answered. */
  readonly prompt: string;
  /** The messages that are in it. */
  readonly messages: readonly ChatMessage[];
  /** Messages left out: the oldest, whole turns of them. */
  readonly dropped: number;
}

/** Messages without the oldest turn: system messages at the start stay, and a turn begins with what a person says. */
function withoutOldest(messages: readonly ChatMessage[]): ChatMessage[] | undefined {
  const start = messages.findIndex(({ role }) => role !== "system");
  const next = messages.findIndex(({ role }, i) => i > start && role === "user");
  if (start < 0 || next < 0) return undefined;
  return [...messages.slice(0, start), ...messages.slice(next)];
}

/**
 * A conversation written for the model, its oldest turns left out until it has at most `limit` tokens. The last turn stays,
 * whatever its length.
 * @throws FormatError when the template does not take the messages
 */
export function fitConversation(
  template: ChatTemplate,
  conversation: readonly ChatMessage[],
  options: { readonly limit: number; readonly lengthOf: (prompt: string) => number },
): FittedConversation {
  let messages = conversation;
  for (;;) {
    const prompt = template.render(messages);
    const fewer = options.lengthOf(prompt) > options.limit ? withoutOldest(messages) : undefined;
    if (fewer === undefined) return { prompt, messages, dropped: conversation.length - messages.length };
    messages = fewer;
  }
}
