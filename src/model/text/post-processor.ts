/** The part of `tokenizer.json` that adds tokens to a text, as far as it begins texts with one. */

import { z } from "zod";

const Template = z.object({
  type: z.literal("TemplateProcessing"),
  single: z.array(z.object({ SpecialToken: z.object({ id: z.string() }).optional() })),
});
const Several = z.object({ type: z.literal("Sequence"), processors: z.array(z.unknown()) });

/** Whether a post-processor begins every text with the token. */
export function prepends(token: string, postProcessor: unknown): boolean {
  const several = Several.safeParse(postProcessor);
  if (several.success) return several.data.processors.some((one) => prepends(token, one));
  const template = Template.safeParse(postProcessor);
  return template.success && template.data.single[0]?.SpecialToken?.id === token;
}

/** The post-processor that begins each text, or pair of texts, with a token. */
export function beginsWith(token: string, id: number): object {
  const special = { SpecialToken: { id: token, type_id: 0 } };
  const sequence = (name: string, type_id: number): object => ({ Sequence: { id: name, type_id } });
  return {
    type: "TemplateProcessing",
    single: [special, sequence("A", 0)],
    pair: [special, sequence("A", 0), sequence("B", 1)],
    special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
  };
}
