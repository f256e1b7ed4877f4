/** A folder's graph, run by onnxruntime-node alone, as a stranger would. */

import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";

type Caches = Readonly<Record<string, Tensor>>;

export interface Stepped {
  /** f32[B, T, V] */
  readonly logits: Float32Array;
  readonly vocab: number;
  readonly past: Caches;
}

const integers = (rows: readonly (readonly number[])[]): Tensor =>
  new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0]!.length]);

export class OnnxDecoder {
  readonly session: InferenceSession;
  readonly #layers: number;
  readonly #kvHeads: number;
  readonly #headDim: number;

  private constructor(session: InferenceSession) {
    const caches = session.inputMetadata.filter(({ name }) => name.startsWith("past_key_values."));
    const first = caches[0];
    if (first?.isTensor !== true) throw new Error("no caches");
    this.session = session;
    this.#layers = caches.length / 2;
    [this.#kvHeads, this.#headDim] = [first.shape[1] as number, first.shape[3] as number];
  }

  static async open(folder: string, file = "model.onnx"): Promise<OnnxDecoder> {
    const options = { intraOpNumThreads: 1, logSeverityLevel: 3 } as const;
    return new OnnxDecoder(await InferenceSession.create(join(folder, "onnx", file), options));
  }

  /** What a first call has in place of caches. */
  empty(batch: number): Caches {
    const entries = Array.from({ length: this.#layers }, (_, layer) =>
      ["key", "value"].map((part) => [
        `past_key_values.${layer}.${part}`,
        new Tensor("float32", new Float32Array(0), [batch, this.#kvHeads, 0, this.#headDim]),
      ]),
    );
    return Object.fromEntries(entries.flat());
  }

  /** @param mask of the cache and the new tokens; positions follow from it as transformers.js counts them */
  async step(
    ids: readonly (readonly number[])[],
    mask: readonly (readonly number[])[],
    past: Caches,
  ): Promise<Stepped> {
    const positions = mask.map((row) => {
      let seen = 0;
      const all = row.map((real) => (real === 1 ? seen++ : 1));
      return all.slice(-ids[0]!.length);
    });
    const feeds = {
      input_ids: integers(ids),
      attention_mask: integers(mask),
      position_ids: integers(positions),
      ...past,
    };
    const { logits, ...present } = await this.session.run(feeds);
    const renamed = Object.entries(present).map(([name, tensor]) => [
      name.replace("present", "past_key_values"),
      tensor,
    ]);
    return {
      logits: logits!.data as Float32Array,
      vocab: logits!.dims[2]!,
      past: Object.fromEntries(renamed) as Caches,
    };
  }

  /** Prompts padded on the left to one length, then the likeliest token of each row, `count` times. */
  async greedy(prompts: readonly (readonly number[])[], count: number): Promise<number[][]> {
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    const padding = prompts.map((prompt) => new Array<number>(longest - prompt.length).fill(0));
    let ids: readonly (readonly number[])[] = prompts.map((prompt, i) => [...padding[i]!, ...prompt]);
    let mask = prompts.map((prompt, i) => [...padding[i]!, ...prompt.map(() => 1)]);
    let past = this.empty(prompts.length);
    const said: number[][] = prompts.map(() => []);
    for (let t = 0; t < count; t++) {
      const { logits, vocab, past: next } = await this.step(ids, mask, past);
      const T = ids[0]!.length;
      const best = said.map((_, row) => {
        const at = (row * T + T - 1) * vocab;
        const last = logits.subarray(at, at + vocab);
        return last.indexOf(Math.max(...last));
      });
      for (const [row, id] of best.entries()) said[row]!.push(id);
      ids = best.map((id) => [id]);
      mask = mask.map((row) => [...row, 1]);
      past = next;
    }
    return said;
  }

  async dispose(): Promise<void> {
    await this.session.release();
  }
}
