/** A model's tensors as those of a GGUF file: `names.ts` read the other way, with the rows, stacks and halves that llama.cpp wants. */

import { FormatError } from "../../../base/errors.ts";
import type { HostArray } from "../../../compute/tensor/host.ts";
import { type Shape, sameShape } from "../../../compute/tensor/shape.ts";
import { pairsTogether } from "../rotary-rows.ts";
import type { GgufHeader } from "./from-config.ts";
import { ggufPlaceOf } from "./names.ts";

/** A piece of a tensor, made when it is written. */
interface Piece {
  /** The Hugging Face name, for errors. */
  readonly from: string;
  readonly data: () => Float32Array;
}

export interface ArrangedTensor {
  readonly shape: Shape;
  /** One after another. */
  readonly parts: readonly Piece[];
  /** Kept in float32 whatever the type asked for: the gate of experts. */
  readonly exact: boolean;
}

type Tensors = Readonly<Record<string, HostArray<"f32">>>;
type Sizes = Pick<GgufHeader, "architecture" | "layers" | "heads" | "kvHeads" | "nopeHeadDim">;

const GATE = "ffn_gate_inp";

/** Each head's keys of [H·(Dn + Dv), Rk], transposed, [H, Rk, Dn]. */
function keysOf(x: Float32Array, heads: number, Dn: number, Rk: number): Float32Array {
  const perHead = x.length / heads;
  const y = new Float32Array(heads * Dn * Rk);
  for (let h = 0; h < heads; h++) {
    for (let r = 0; r < Rk; r++) {
      for (let i = 0; i < Dn; i++) y[(h * Rk + r) * Dn + i] = x[h * perHead + i * Rk + r]!;
    }
  }
  return y;
}

/** Each head's values of the same, [H, Dv, Rk]. */
function valuesOf(x: Float32Array, heads: number, Dn: number, Rk: number): Float32Array {
  const perHead = x.length / heads;
  const y = new Float32Array(x.length - heads * Dn * Rk);
  for (let h = 0; h < heads; h++) {
    y.set(x.subarray(h * perHead + Dn * Rk, (h + 1) * perHead), (h * y.length) / heads);
  }
  return y;
}

/** Of a layer after the last: the head for the token after next, which llama.cpp has no use for. */
const isDraft = (name: string, layers: number): boolean =>
  Number(/^model\.layers\.(\d+)\./.exec(name)?.[1] ?? -1) >= layers;

/**
 * The file's tensors by name, in the order of the model's.
 * @throws FormatError on a tensor that such a model has not, or whose place is taken or shape does not fit
 */
export function arrangeTensors(sizes: Sizes, tensors: Tensors): Map<string, ArrangedTensor> {
  const { architecture, layers, heads, kvHeads, nopeHeadDim: Dn = 0 } = sizes;
  const arranged = new Map<string, ArrangedTensor>();
  const stacks = new Map<string, { readonly name: string; readonly array: HostArray<"f32"> }[]>();
  const fail = (where: string, rule: string, got: string): never => {
    throw new FormatError({ where, rule, got });
  };
  const whole = (name: string, from: string, shape: Shape, data: () => Float32Array, exact = false): void => {
    arranged.set(name, { shape, parts: [{ from, data }], exact });
  };
  for (const [name, array] of Object.entries(tensors)) {
    const { shape, data } = array;
    if (architecture === "deepseek2" && isDraft(name, layers)) continue;
    const place =
      ggufPlaceOf(architecture, name) ?? fail(name, `must be a tensor of a ${architecture} model`, "another");
    if (place.kind === "expert") {
      const stack = stacks.get(place.name) ?? [];
      stack[place.index] = { name, array };
      stacks.set(place.name, stack);
    } else if (place.kind === "keysValues") {
      const [rows, Rk] = shape as [number, number];
      const Dv = rows / heads - Dn;
      if (shape.length !== 2 || !Number.isInteger(Dv) || Dv < 1) {
        fail(
          name,
          `must have rows for ${heads} heads of keys, ${Dn} wide, and values`,
          `[${shape.join(",")}]`,
        );
      }
      whole(place.keys, name, [heads, Rk, Dn], () => keysOf(data, heads, Dn, Rk));
      whole(place.values, name, [heads, Dv, Rk], () => valuesOf(data, heads, Dn, Rk));
    } else {
      const pairs = place.part === "attn_q" ? heads : place.part === "attn_k" ? kvHeads : undefined;
      const reordered = architecture === "llama" && pairs !== undefined;
      const ordered = reordered ? () => pairsTogether(data, shape[0]!, pairs) : () => data;
      whole(place.name, name, shape, ordered, place.part === GATE);
    }
  }
  for (const [name, stack] of stacks) {
    const shape = stack[0]?.array.shape ?? [];
    for (let index = 0; index < stack.length; index++) {
      const one = stack[index] ?? fail(name, `must have a matrix of expert ${index}`, "none");
      if (sameShape(one.array.shape, shape)) continue;
      fail(one.name, `must be [${shape.join(",")}] as expert 0's`, `[${one.array.shape.join(",")}]`);
    }
    arranged.set(name, {
      shape: [stack.length, ...shape],
      parts: stack.map((one) => ({ from: one.name, data: () => one.array.data })),
      exact: false,
    });
  }
  return arranged;
}
