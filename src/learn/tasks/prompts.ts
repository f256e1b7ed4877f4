/** How a model is given a prompt: as the text it is, or as a conversation in the model's own form. */

import type { ChatTemplate } from "../../model/text/chat-template.ts";
import type { Example } from "./task.ts";

/** What the model goes on from. */
export type PromptWriter = (example: Pick<Example<unknown>, "prompt" | "messages">) => string;

/** As it is. */
export const asText: PromptWriter = ({ prompt }) => prompt;

/**
 * As a conversation that the model is to answer, where it has a template; else as text.
 * @throws by what it returns: FormatError when the template refuses the messages
 */
export function asChat(template: Pick<ChatTemplate, "render"> | undefined): PromptWriter {
  if (template === undefined) return asText;
  return ({ prompt, messages }) => template.render(messages ?? [{ role: "user", content: prompt }]);
}
