/**
 * What a model predicts at every position, and what losses ask of it: the log-probability of the token that came, and the
 * entropy. With a vocabulary of 49,152, logits of 1,024 positions are 200 MB, and a loss with its gradient makes five such arrays.
 * So where they would be many, rows are taken a few at a time, and the backward pass works their logits out again instead of
 * keeping them: one more product with the head, and memory of a few rows.
 */

import type { Value } from "../../compute/graph/ir.ts";
import {
  add,
  concat,
  div,
  exp,
  matmul,
  mul,
  neg,
  reshape,
  scatterAddLast,
  slice,
  sub,
  sum,
  takeAlongLast,
  transposeLast,
  withGradient,
} from "../../compute/graph/primitives.ts";
import { logSoftmax } from "../../compute/ops/stable.ts";

/** log π(target) of each position. @param logp [B·T, V]; @param targets i32[B, T]; @returns [B, T] */
export function targetLogp(logp: Value, targets: Value): Value {
  const [B, T] = targets.shape as readonly [number, number];
  return reshape(takeAlongLast(logp, reshape(targets, [B * T, 1])), [B, T]);
}

/** −Σ p log p of each row. @param logp [B·T, V]; @returns [B·T] */
export function entropyOf(logp: Value): Value {
  return neg(sum(mul(exp(logp), logp), [-1]));
}

/** What a loss may ask of a model's predictions. */
export interface Predictions {
  /** log π(target), [B, T]. @param targets i32[B, T]; @param temperature divides the logits; absent: 1 */
  logp(targets: Value, temperature?: Value): Value;
  /** The same, and the entropy at that temperature, each [B, T]. */
  logpAndEntropy(targets: Value, temperature: Value): { readonly logp: Value; readonly entropy: Value };
}

/** @param logits [B·T, V], all at once */
export function fromLogits(logits: Value): Predictions {
  return {
    logp(targets, temperature) {
      return targetLogp(logSoftmax(temperature === undefined ? logits : div(logits, temperature)), targets);
    },
    logpAndEntropy(targets, temperature) {
      const logp = logSoftmax(div(logits, temperature));
      return { logp: targetLogp(logp, targets), entropy: reshape(entropyOf(logp), targets.shape) };
    },
  };
}

/** Most logits that are held at once: 32 MiB, and four or five arrays of that size. */
const LOGITS_AT_ONCE = 2 ** 23;

/**
 * Predictions of a head over hidden states.
 * @param hidden         [B·T, C], after the final norm
 * @param head           [V, C]
 * @param options.learns whether the head has a gradient
 * @param options.atOnce most logits held at once
 */
export function fromHidden(
  hidden: Value,
  head: Value,
  options: { readonly learns: boolean; readonly atOnce?: number },
): Predictions {
  const { learns, atOnce = LOGITS_AT_ONCE } = options;
  const [rows, V] = [hidden.shape[0]!, head.shape[0]!];
  if (rows * V <= atOnce) return fromLogits(matmul(hidden, transposeLast(head)));
  const blocks = { size: Math.max(1, Math.floor(atOnce / V)), learns };
  return {
    logp: (targets, temperature) =>
      reshape(inBlocks(hidden, head, { targets, temperature, entropy: false }, blocks), targets.shape),
    logpAndEntropy(targets, temperature) {
      const both = inBlocks(hidden, head, { targets, temperature, entropy: true }, blocks);
      const [logp, entropy] = [0, 1].map((i) => reshape(slice(both, 1, i, i + 1), targets.shape)) as [
        Value,
        Value,
      ];
      return { logp, entropy };
    },
  };
}

/** What is asked of every row. */
interface Question {
  /** i32[B, T] */
  readonly targets: Value;
  readonly temperature: Value | undefined;
  readonly entropy: boolean;
}

/**
 * log π(target) of every row, and beside it the entropy where that is asked: [N, 1] or [N, 2].
 *
 * With z the logits, p = softmax(z/τ) and l = log p, the gradients are ∂l_t/∂z = (1_t − p)/τ and
 * ∂H/∂z = −p·(l + H)/τ.
 */
function inBlocks(
  hidden: Value,
  head: Value,
  { targets, temperature, entropy }: Question,
  { size, learns }: { readonly size: number; readonly learns: boolean },
): Value {
  const N = hidden.shape[0]!;
  const wanted = reshape(targets, [N, 1]);
  const starts = Array.from({ length: Math.ceil(N / size) }, (_, i) => i * size);
  const cold = (x: Value): Value => (temperature === undefined ? x : div(x, temperature));
  const logpOf = (rows: Value): Value => logSoftmax(cold(matmul(rows, transposeLast(head))));
  const entropyColumn = (logp: Value): Value => reshape(entropyOf(logp), [logp.shape[0]!, 1]);
  const of = (x: Value, start: number): Value => slice(x, 0, start, Math.min(N, start + size));

  const answers = starts.map((start) => {
    const logp = logpOf(of(hidden, start));
    const chosen = takeAlongLast(logp, of(wanted, start));
    return entropy ? concat([chosen, entropyColumn(logp)], 1) : chosen;
  });
  return withGradient(concat(answers, 0), [hidden, head], (g) => {
    const dHidden: Value[] = [];
    let dHead: Value | undefined;
    // A block waits for the one before it, and all for the loss: else the runtime might work out the logits of all at
    // once, or take them for those of the forward pass and keep those.
    let before = mul(slice(slice(g, 0, 0, 1), 1, 0, 1), 0);
    for (const start of starts) {
      const rows = add(of(hidden, start), before);
      const logp = logpOf(rows);
      const p = exp(logp);
      const onTarget = slice(of(g, start), 1, 0, 1);
      const spread = entropy
        ? add(onTarget, mul(slice(of(g, start), 1, 1, 2), add(logp, entropyColumn(logp))))
        : onTarget;
      const scattered = scatterAddLast(of(wanted, start), onTarget, head.shape[0]!);
      const dLogits = cold(sub(scattered, mul(p, spread)));
      const dRows = matmul(dLogits, head);
      dHidden.push(dRows);
      let last = dRows;
      if (learns) {
        const part = matmul(transposeLast(dLogits), rows);
        dHead = dHead === undefined ? part : add(dHead, part);
        last = dHead;
      }
      before = mul(add(slice(slice(last, 0, 0, 1), 1, 0, 1), slice(slice(dRows, 0, 0, 1), 1, 0, 1)), 0);
    }
    return [concat(dHidden, 0), dHead ?? mul(head, 0)];
  });
}
