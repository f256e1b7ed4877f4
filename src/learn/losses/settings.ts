/** The losses of the GRPO family by name, and the settings that each was published with. */

export const POLICY_LOSSES = ["grpo", "dr_grpo", "dapo", "cispo", "gspo"] as const;
export type PolicyLossName = (typeof POLICY_LOSSES)[number];

/** What advantages are divided by: the spread of their group, of the whole batch, or nothing. */
export type RewardScaling = "group" | "batch" | "none";

/** How far a ratio may go from 1 before it is clipped, to 1 − low and to 1 + high; and what an advantage is divided by. */
export interface LossSettings {
  readonly clipLow: number;
  readonly clipHigh: number;
  readonly scaling: RewardScaling;
}

/**
 * The settings that each loss was published with, taken when a run names the loss and not them. Of advantages all divide by the spread
 * of the group (DeepSeekMath eq. 3, DAPO eq. 9, GSPO eq. 6), but for Dr. GRPO, which was made to do without. Of bounds:
 * - grpo: 0.2 on both sides, PPO's; DeepSeekMath does not print its own, and R1 trained with 10 (Nature, Methods)
 * - dapo: 0.2 and 0.28, "clip-higher" (arXiv:2503.14476 eq. 10); here dr_grpo has them too
 * - gspo: 3e-4 and 4e-4 of the length-normalised ratio of sequences (arXiv:2507.18071 §5.1)
 * - cispo: no lower bound, and a ratio of at most 5 (arXiv:2506.13585 leaves the number open; 5 is TRL's `epsilon_high`)
 */
export const LOSS_SETTINGS: Readonly<Record<PolicyLossName, LossSettings>> = {
  grpo: { clipLow: 0.2, clipHigh: 0.2, scaling: "group" },
  dr_grpo: { clipLow: 0.2, clipHigh: 0.28, scaling: "none" },
  dapo: { clipLow: 0.2, clipHigh: 0.28, scaling: "group" },
  cispo: { clipLow: 1, clipHigh: 4, scaling: "group" },
  gspo: { clipLow: 3e-4, clipHigh: 4e-4, scaling: "group" },
};
