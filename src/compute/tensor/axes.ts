/**
 * The axis legend. One letter, one meaning, in every shape comment, einsum-like string and suffix (`q_BTHD`).
 * Capitals are sizes; the same letter in lower case is an index along that axis.
 */
export const AXES = {
  B: "sequences in a batch",
  T: "query positions",
  S: "key positions, cached ones included",
  C: "model width",
  H: "query heads",
  Hk: "key/value heads",
  D: "head width",
  F: "hidden width of the feed-forward",
  V: "vocabulary",
  L: "layers",
  P: "prompts",
  G: "samples per prompt; B = P·G",
} as const;
