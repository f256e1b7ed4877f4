/**
 * DeepSeek's own form of a config: the arguments of its reference inference, as in `inference/configs/config_671B.json`. What a
 * file does not say is what the reference takes then. The module that predicts the token after next is no part of it.
 *
 * Of the two gates that the form knows, ours is that of V3 and R1; files of V2 are refused for theirs. Tensors that are converted
 * for the reference have names of their own, and are not read.
 *
 * @source github.com/deepseek-ai/DeepSeek-V3, inference/model.py (ModelArgs, Gate), inference/convert.py
 */

import { z } from "zod";
import type { DeepseekV3Config } from "./deepseek-v3.ts";
import {
  count,
  countOrNone,
  DEFAULT_ROPE_THETA,
  expertCount,
  layerCount,
  MOST_EXPERTS_IN_ALL,
  parseJson,
  positive,
} from "./json.ts";

/** The one width at which the reference's gate has a correction, and ranks groups by the sum of their two best scores. */
const CORRECTED_WIDTH = 7168;
/** Of all norms; the form has no argument for it. */
const RMS_NORM_EPSILON = 1e-6;

const keys = {
  vocab_size: count.default(102_400),
  dim: z.literal(CORRECTED_WIDTH, `must be ${CORRECTED_WIDTH}: gates of other widths have no correction`),
  inter_dim: count.default(10_944),
  moe_inter_dim: count.default(1408),
  n_layers: layerCount.default(27),
  n_dense_layers: countOrNone.default(1),
  n_heads: count.default(16),
  n_routed_experts: expertCount.default(64),
  n_shared_experts: countOrNone.default(2),
  n_activated_experts: count.default(6),
  n_expert_groups: count.default(1),
  n_limited_groups: count.default(1),
  score_func: z.literal(
    "sigmoid",
    'must be "sigmoid": "softmax", the gate of V2 and of files that name none, is not supported',
  ),
  route_scale: positive.default(1),
  /** 0: queries come from the model's width at once. */
  q_lora_rank: countOrNone.default(0),
  kv_lora_rank: count.default(512),
  qk_nope_head_dim: count.default(128),
  qk_rope_head_dim: count.default(64),
  v_head_dim: count.default(128),
  max_seq_len: count.default(16_384),
  original_seq_len: count.default(4096),
  rope_theta: positive.default(DEFAULT_ROPE_THETA),
  rope_factor: z.number("must be a number").min(1, "must be at least 1").default(40),
  beta_fast: positive.default(32),
  beta_slow: positive.default(1),
  mscale: positive.default(1),
  // How the reference runs, not what the model computes.
  max_batch_size: z.unknown().optional(),
  dtype: z.unknown().optional(),
  scale_fmt: z.unknown().optional(),
};

/** What says more of a model's kind than its sizes comes first, so that of several faults it is the one that is named. */
const Gate = z.looseObject({ score_func: keys.score_func, dim: keys.dim });

const Schema = z.looseObject(keys).superRefine((json, context) => {
  const fail = (key: string, message: string) => context.addIssue({ code: "custom", path: [key], message });
  for (const key of Object.keys(json)) {
    if (!Object.hasOwn(keys, key)) fail(key, "must be absent: the reference of V3 has no such argument");
  }
  const { n_routed_experts: experts, n_expert_groups: groups, n_limited_groups: chosen } = json;
  if (json.qk_rope_head_dim % 2 !== 0) fail("qk_rope_head_dim", "must be even, for rotary pairs");
  if (experts % groups !== 0) fail("n_expert_groups", `must divide n_routed_experts (${experts})`);
  if (chosen > groups) fail("n_limited_groups", `must be at most n_expert_groups (${groups})`);
  if (json.n_layers * experts > MOST_EXPERTS_IN_ALL) {
    fail("n_routed_experts", `must be at most ${MOST_EXPERTS_IN_ALL} in all layers together`);
  }
  if (json.n_activated_experts > (experts / groups) * chosen) {
    fail("n_activated_experts", "must be at most the experts of n_limited_groups groups");
  }
  if (json.n_dense_layers > json.n_layers) {
    fail("n_dense_layers", `must be at most n_layers (${json.n_layers})`);
  }
  if (json.beta_fast <= json.beta_slow) fail("beta_fast", "must be larger than beta_slow");
});

/** Whether a parsed file is of this form: it names no architecture, and two sizes that together no other form calls so. */
export function isDeepseekArgs(json: object): boolean {
  return !("model_type" in json) && "n_layers" in json && "kv_lora_rank" in json;
}

/**
 * Reads a parsed file of this form.
 * @param where names the file in errors
 * @throws ConfigError naming the key whose value is missing, malformed or not supported
 */
export function parseDeepseekArgs(where: string, json: unknown): DeepseekV3Config {
  parseJson(where, json, Gate);
  const it = parseJson(where, json, Schema);
  const scaled = it.max_seq_len > it.original_seq_len;
  return {
    modelType: "deepseek_v3",
    vocabSize: it.vocab_size,
    hiddenSize: it.dim,
    intermediateSize: it.inter_dim,
    expertSize: it.moe_inter_dim,
    layers: it.n_layers,
    denseLayers: it.n_dense_layers,
    heads: it.n_heads,
    ...(it.q_lora_rank === 0 ? {} : { queryRank: it.q_lora_rank }),
    kvRank: it.kv_lora_rank,
    nopeHeadDim: it.qk_nope_head_dim,
    ropeHeadDim: it.qk_rope_head_dim,
    valueHeadDim: it.v_head_dim,
    routedExperts: it.n_routed_experts,
    sharedExperts: it.n_shared_experts,
    expertsPerToken: it.n_activated_experts,
    expertGroups: it.n_expert_groups,
    groupsPerToken: it.n_limited_groups,
    normalizeExperts: true,
    expertScale: it.route_scale,
    draftLayers: 0,
    rmsNormEpsilon: RMS_NORM_EPSILON,
    ropeTheta: it.rope_theta,
    ...(scaled
      ? {
          ropeScaling: {
            type: "yarn",
            factor: it.rope_factor,
            betaFast: it.beta_fast,
            betaSlow: it.beta_slow,
            originalPositions: it.original_seq_len,
            mscale: it.mscale,
          },
        }
      : {}),
    maxPositions: it.max_seq_len,
    tieEmbeddings: false,
  };
}
