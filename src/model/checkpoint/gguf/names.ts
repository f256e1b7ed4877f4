/**
 * GGUF tensors as the tensors of the same model in Hugging Face's naming and layout.
 *
 * @source github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py (TENSOR_NAMES), conversion/llama.py, deepseek.py
 */

import { FormatError } from "../../../base/errors.ts";
import type { Shape } from "../../../compute/tensor/shape.ts";
import type { GgufTensorInfo } from "./reader.ts";

export const GGUF_ARCHITECTURES = ["llama", "qwen2", "deepseek2"] as const;
export type GgufArchitecture = (typeof GGUF_ARCHITECTURES)[number];

export function isGgufArchitecture(name: string): name is GgufArchitecture {
  return (GGUF_ARCHITECTURES as readonly string[]).includes(name);
}

/** How a Hugging Face tensor is made of what the file holds. */
export type Recipe =
  /** As it is. */
  | { readonly kind: "whole"; readonly from: string }
  /**
   * Rows reordered within each head: the file has the rotary pairs side by side, 2i and 2i + 1, Hugging Face has them half a
   * head apart, i and i + D/2.
   */
  | { readonly kind: "heads"; readonly from: string; readonly heads: number }
  /** One matrix of a stack. */
  | { readonly kind: "expert"; readonly from: string; readonly index: number }
  /** MLA's decompression [H·(Dn + Dv), Rk] out of keys [H, Rk, Dn] and values [H, Dv, Rk]. */
  | { readonly kind: "keysValues"; readonly keys: string; readonly values: string };

export interface NamedRecipe {
  readonly recipe: Recipe;
  readonly shape: Shape;
}

const TOP: Readonly<Record<string, string>> = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};

/** Holds factors of rotary frequencies, which the config tells of. */
export const FREQUENCY_FACTORS = "rope_freqs.weight";

/** Names within a block, without `.weight` and `.bias`. */
const NORMS = { attn_norm: "input_layernorm", ffn_norm: "post_attention_layernorm" };
const FEED_FORWARD = { ffn_gate: "mlp.gate_proj", ffn_up: "mlp.up_proj", ffn_down: "mlp.down_proj" };
const GROUPED_QUERY = {
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
};
const LATENT = {
  attn_q: "self_attn.q_proj",
  attn_q_a: "self_attn.q_a_proj",
  attn_q_a_norm: "self_attn.q_a_layernorm",
  attn_q_b: "self_attn.q_b_proj",
  attn_kv_a_mqa: "self_attn.kv_a_proj_with_mqa",
  attn_kv_a_norm: "self_attn.kv_a_layernorm",
  attn_kv_b: "self_attn.kv_b_proj",
  attn_output: "self_attn.o_proj",
};
const EXPERTS = {
  ffn_gate_inp: "mlp.gate",
  ffn_gate_shexp: "mlp.shared_experts.gate_proj",
  ffn_up_shexp: "mlp.shared_experts.up_proj",
  ffn_down_shexp: "mlp.shared_experts.down_proj",
};
const STACKS: Readonly<Record<string, string>> = {
  ffn_gate_exps: "gate_proj",
  ffn_up_exps: "up_proj",
  ffn_down_exps: "down_proj",
};

const BLOCK: { readonly [A in GgufArchitecture]: Readonly<Record<string, string>> } = {
  llama: { ...NORMS, ...GROUPED_QUERY, ...FEED_FORWARD },
  qwen2: { ...NORMS, ...GROUPED_QUERY, ...FEED_FORWARD },
  deepseek2: { ...NORMS, ...LATENT, ...FEED_FORWARD, ...EXPERTS },
};
/** The selection bias, which Hugging Face has no `.bias` for. */
const ROUTER_BIAS = { from: "exp_probs_b.bias", to: "mlp.gate.e_score_correction_bias" };

/** Far above what models have (Deepseek-V3: 46,000), and little memory where a hostile file stacks a million tiny experts. */
const MAX_TENSORS = 2 ** 17;

export interface HeadCounts {
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
}

/**
 * How each tensor of the model, by Hugging Face name, is made of the file's.
 * @throws FormatError naming a tensor that the architecture has no place for, or whose shape does not fit
 */
export function tensorRecipes(
  file: string,
  architecture: GgufArchitecture,
  tensors: ReadonlyMap<string, GgufTensorInfo>,
  counts: HeadCounts,
): Map<string, NamedRecipe> {
  const recipes = new Map<string, NamedRecipe>();
  const fail = (name: string, rule: string, got: string): never => {
    throw new FormatError({ where: `${file}: tensor ${JSON.stringify(name)}`, rule, got });
  };
  const add = (name: string, recipe: Recipe, shape: Shape): void => {
    if (recipes.size === MAX_TENSORS) {
      throw new FormatError({ where: file, rule: `must hold at most ${MAX_TENSORS} tensors`, got: "more" });
    }
    recipes.set(name, { recipe, shape });
  };
  const expectRank = (name: string, shape: Shape, rank: number): void => {
    if (shape.length !== rank) fail(name, `must have ${rank} dimensions`, `[${shape.join(",")}]`);
  };

  for (const [name, { shape }] of tensors) {
    if (name === FREQUENCY_FACTORS) continue;
    const top = TOP[name];
    if (top !== undefined) {
      add(top, { kind: "whole", from: name }, shape);
      continue;
    }
    const [, layer, part, suffix] = /^blk\.(\d{1,6})\.([a-z_]+)\.(weight|bias)$/.exec(name) ?? [];
    if (layer === undefined || part === undefined || Number(layer) >= counts.layers) {
      fail(name, `must be a tensor of a ${architecture} model of ${counts.layers} layers`, "another");
    }
    const at = `model.layers.${Number(layer)}`;
    // No other biases are in models of these architectures.
    const biased = architecture === "qwen2" && ["attn_q", "attn_k", "attn_v"].includes(part!);
    const stack = architecture === "deepseek2" && suffix === "weight" ? STACKS[part!] : undefined;
    const plain = BLOCK[architecture][part!];
    const known = Object.hasOwn(BLOCK[architecture], part!) && (suffix === "weight" || biased);
    if (known) {
      const heads = part === "attn_q" ? counts.heads : part === "attn_k" ? counts.kvHeads : undefined;
      const to = `${at}.${plain}.${suffix}`;
      if (architecture === "llama" && heads !== undefined) {
        expectRank(name, shape, 2);
        if (heads < 1 || shape[0]! % (2 * heads) !== 0) {
          fail(name, `must have rows for ${heads} heads of rotary pairs`, `${shape[0]}`);
        }
        add(to, { kind: "heads", from: name, heads }, shape);
      } else {
        add(to, { kind: "whole", from: name }, shape);
      }
    } else if (stack !== undefined && Object.hasOwn(STACKS, part!)) {
      expectRank(name, shape, 3);
      const [experts, ...one] = shape as [number, number, number];
      for (let index = 0; index < experts; index++) {
        add(`${at}.mlp.experts.${index}.${stack}.weight`, { kind: "expert", from: name, index }, one);
      }
    } else if (architecture === "deepseek2" && name.endsWith(`.${ROUTER_BIAS.from}`)) {
      add(`${at}.${ROUTER_BIAS.to}`, { kind: "whole", from: name }, shape);
    } else if (architecture === "deepseek2" && suffix === "weight" && part === "attn_k_b") {
      // Some files hold the matrix whole, too.
      if (tensors.has(`blk.${layer}.attn_kv_b.weight`)) continue;
      const values = `blk.${layer}.attn_v_b.weight`;
      const valueShape =
        tensors.get(values)?.shape ?? fail(name, `must come with ${values}`, "no such tensor");
      expectRank(name, shape, 3);
      expectRank(values, valueShape, 3);
      const [H, Rk, Dn] = shape as [number, number, number];
      const [valueHeads, Dv, valueRank] = valueShape as [number, number, number];
      if (valueHeads !== H || valueRank !== Rk) {
        fail(values, `must be [${H}, Dv, ${Rk}], as ${name} is`, `[${valueShape.join(",")}]`);
      }
      add(`${at}.self_attn.kv_b_proj.weight`, { kind: "keysValues", keys: name, values }, [
        H * (Dn + Dv),
        Rk,
      ]);
    } else if (architecture === "deepseek2" && suffix === "weight" && part === "attn_v_b") {
      // Taken together with the keys.
      if (!tensors.has(`blk.${layer}.attn_k_b.weight`))
        fail(name, "must come with its keys, attn_k_b", "no such tensor");
    } else {
      fail(name, `must be a tensor of a ${architecture} model`, "another");
    }
  }
  return recipes;
}

const inverted = (names: Readonly<Record<string, string>>): ReadonlyMap<string, string> =>
  new Map(Object.entries(names).map(([from, to]) => [to, from]));

const TOP_INVERTED = inverted(TOP);
const BLOCK_INVERTED: { readonly [A in GgufArchitecture]: ReadonlyMap<string, string> } = {
  llama: inverted(BLOCK.llama),
  qwen2: inverted(BLOCK.qwen2),
  deepseek2: inverted(BLOCK.deepseek2),
};
const STACKS_INVERTED = inverted(STACKS);

/** Where a tensor goes in a file. */
export type Place =
  /** A tensor of its own; `part` is its name within its block. */
  | { readonly kind: "whole"; readonly name: string; readonly part?: string }
  /** One matrix of a stack. */
  | { readonly kind: "expert"; readonly name: string; readonly index: number }
  /** Two tensors: each head's keys, transposed, and its values. */
  | { readonly kind: "keysValues"; readonly keys: string; readonly values: string };

/**
 * Where a tensor of a model, by its Hugging Face name, goes in a GGUF file: {@link tensorRecipes}, the other way.
 * @returns undefined for a tensor that such a model has not
 */
export function ggufPlaceOf(architecture: GgufArchitecture, name: string): Place | undefined {
  const top = TOP_INVERTED.get(name);
  if (top !== undefined) return { kind: "whole", name: top };
  const [, layer, module] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? [];
  if (layer === undefined || module === undefined) return undefined;
  const at = `blk.${layer}`;
  if (architecture === "deepseek2") {
    if (module === ROUTER_BIAS.to) return { kind: "whole", name: `${at}.${ROUTER_BIAS.from}` };
    if (module === `${LATENT.attn_kv_b}.weight`) {
      return { kind: "keysValues", keys: `${at}.attn_k_b.weight`, values: `${at}.attn_v_b.weight` };
    }
    const [, index, matrix] = /^mlp\.experts\.(\d+)\.([a-z_]+)\.weight$/.exec(module) ?? [];
    const stack = matrix === undefined ? undefined : STACKS_INVERTED.get(matrix);
    if (stack !== undefined) return { kind: "expert", name: `${at}.${stack}.weight`, index: Number(index) };
  }
  const [, plain, suffix] = /^([a-z_.]+)\.(weight|bias)$/.exec(module) ?? [];
  const part = plain === undefined ? undefined : BLOCK_INVERTED[architecture].get(plain);
  return part === undefined ? undefined : { kind: "whole", name: `${at}.${part}.${suffix}`, part };
}
