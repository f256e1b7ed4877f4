/** What the `config.json` of every architecture has in common. */

import { z } from "zod";
import { ConfigError } from "../../base/errors.ts";
import { schemaFault } from "../../base/json.ts";

export const count = z.int("must be a whole number").positive("must be positive");
export const countOrNone = z.int("must be a whole number").nonnegative("must not be negative");
export const positive = z.number("must be a number").positive("must be positive");
/** A setting that we do not compute, and that must therefore be off. */
export const off = (what: string) => z.literal(false, `must be false: ${what} are not supported`).nullish();

export const DEFAULT_ROPE_THETA = 10_000;

/** More layers, and more experts, than any model has: what a config says is made into a list of tensors. */
const MOST_LAYERS = 1024;
const MOST_EXPERTS = 4096;
/** Of all layers together; DeepSeek-V3 has 15,616. */
export const MOST_EXPERTS_IN_ALL = 3 * 2 ** 14;
export const layerCount = count.max(MOST_LAYERS, `must be at most ${MOST_LAYERS}`);
export const expertCount = count.max(MOST_EXPERTS, `must be at most ${MOST_EXPERTS}`);

/** Keys that every architecture has; weights are float32 once loaded, whatever they were in the file. */
export const commonKeys = {
  vocab_size: count,
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: layerCount,
  num_attention_heads: count,
  hidden_act: z.literal("silu", 'must be "silu": no other activation is supported').default("silu"),
  rms_norm_eps: positive.default(1e-6),
  tie_word_embeddings: z.boolean("must be true or false").default(false),
  rope_theta: positive.nullish(),
  partial_rotary_factor: z.literal(1, "must be 1: every pair of a head is rotated").nullish(),
  dtype: z.unknown().optional(),
  torch_dtype: z.unknown().optional(),
};

/** `model_type` and `architectures` of one architecture. */
export const identityKeys = (type: string, model: string) => ({
  model_type: z.literal(type, `must be "${type}"`),
  architectures: z
    .array(z.string())
    .refine((names) => names.includes(model), `must name ${model}`)
    .nullish(),
});

/** `rope_parameters` (transformers 5) or `rope_scaling` (before): how positions are scaled, if by one of `types`. */
export function ropeKeys<const T extends string>(types: readonly T[]) {
  const type = z.enum(["default", ...types], `must be "default"${types.map((t) => ` or "${t}"`).join("")}`);
  return z.looseObject(
    {
      rope_theta: positive.optional(),
      rope_type: type.optional(),
      /** What `rope_type` was called before. */
      type: type.optional(),
      partial_rotary_factor: z.literal(1, "must be 1: every pair of a head is rotated").optional(),
    },
    "must be an object",
  );
}

type Rope = { readonly [key: string]: unknown };

/**
 * Where a config keeps its rotary settings: the newer key, or the older one where that alone says more than the default.
 * @returns the key and its object; undefined where positions are not scaled
 */
export function scaledRope(json: {
  readonly rope_parameters?: Rope | null | undefined;
  readonly rope_scaling?: Rope | null | undefined;
}): { readonly key: "rope_parameters" | "rope_scaling"; readonly rope: Rope } | undefined {
  for (const key of ["rope_parameters", "rope_scaling"] as const) {
    const rope = json[key];
    const type = rope?.["rope_type"] ?? rope?.["type"] ?? "default";
    if (rope && type !== "default") return { key, rope };
  }
  return undefined;
}

/** The rotary base, wherever it is given. */
export function ropeTheta(json: {
  readonly rope_theta?: number | null | undefined;
  readonly rope_parameters?: { readonly rope_theta?: number | undefined } | null | undefined;
  readonly rope_scaling?: { readonly rope_theta?: number | undefined } | null | undefined;
}): { readonly theta: number; readonly agree: boolean } {
  const given = [json.rope_parameters, json.rope_scaling, json]
    .map((where) => where?.rope_theta ?? undefined)
    .filter((theta) => theta !== undefined);
  return { theta: given[0] ?? DEFAULT_ROPE_THETA, agree: new Set(given).size <= 1 };
}

/** A value as an error shows it: short, whatever a damaged file holds. */
const brief = (text: string): string => (text.length > 200 ? `${text.slice(0, 197)}...` : text);

/**
 * A JSON document as its schema reads it.
 * @param where names the file in errors
 * @throws ConfigError naming the key whose value is missing, malformed or not supported
 */
export function parseJson<T>(where: string, json: unknown, schema: z.ZodType<T>): T {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const fault = schemaFault(where, json, parsed.error);
  throw new ConfigError({ ...fault, got: brief(fault.got) });
}

/** Keys of a document that a schema does not know. */
export function unknownKeys(
  json: Readonly<Record<string, unknown>>,
  known: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  return Object.fromEntries(Object.entries(json).filter(([key]) => !Object.hasOwn(known, key)));
}
