/** Log-probabilities of given tokens under given weights: the reference policy of the KL term, and the sampler's check. */

import type { Value } from "../../compute/graph/ir.ts";
import { trace } from "../../compute/graph/trace.ts";
import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import { ProgramCache, tensorsOf } from "../../compute/runtime/jit.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { sizeOf, type TensorSpec } from "../../compute/tensor/shape.ts";
import { architectureOf, type ModelConfig, weightSpecs } from "../../model/arch/models.ts";
import { fromHidden } from "../losses/predictions.ts";
import type { PackedBatch } from "./rows.ts";
import { divideRows, eachShard, shardsOf, threadsOfShard } from "./shards.ts";

const BATCH_INPUTS = ["ids", "positions", "segments", "prefixes", "targets"] as const;

export class Scorer {
  readonly #runtime: Runtime;
  readonly #config: ModelConfig;
  readonly #programs: ProgramCache;
  readonly #shards: number;

  constructor(runtime: Runtime, config: ModelConfig) {
    this.#runtime = runtime;
    this.#config = config;
    this.#programs = new ProgramCache(runtime);
    this.#shards = shardsOf(config);
  }

  /**
   * log π(target) at every position of a packed batch, from logits divided by the temperature.
   * @returns f32[B·T], meaningless at padding
   */
  async score(
    weights: Readonly<Record<string, DeviceTensor<"f32">>>,
    batch: PackedBatch,
    temperature: number,
  ): Promise<Float32Array> {
    const shards = divideRows(batch, this.#shards);
    const parts = await eachShard(this.#runtime, shards, (part) =>
      this.#scoreShard(weights, part, temperature),
    );
    const logp = new Float32Array(sizeOf(batch.ids.shape));
    let at = 0;
    for (const part of parts) {
      logp.set(part, at);
      at += part.length;
    }
    return logp;
  }

  async #scoreShard(
    weights: Readonly<Record<string, DeviceTensor<"f32">>>,
    batch: PackedBatch,
    temperature: number,
  ): Promise<Float32Array> {
    const shape = batch.ids.shape;
    const given = BATCH_INPUTS.filter((name) => batch[name] !== undefined);
    const integers: Record<string, TensorSpec> = Object.fromEntries(
      given.map((name) => [name, { dtype: "i32" as const, shape }]),
    );
    const specs = {
      ...weightSpecs(this.#config),
      ...integers,
      temperature: { dtype: "f32" as const, shape: [] },
    };
    const { program, outputs: outputSpecs } = await this.#programs.get(
      `score:${shape.join("x")}:${given.length}`,
      () => ({
        graph: trace(specs, (x: Record<string, Value>) => {
          const { targets, ...rows } = Object.fromEntries(given.map((name) => [name, x[name]!])) as Record<
            (typeof BATCH_INPUTS)[number],
            Value
          >;
          const { hidden, head } = architectureOf(this.#config).train(x, rows, this.#config);
          return { logp: fromHidden(hidden, head, { learns: false }).logp(targets, x["temperature"]!) };
        }),
        options: { threads: threadsOfShard(this.#runtime, this.#shards) },
      }),
    );
    const inputs = tensorsOf(this.#runtime, integers) as Record<string, DeviceTensor<"i32">>;
    for (const name of given) inputs[name]!.data.set(batch[name]!.data);
    const outputs = tensorsOf(this.#runtime, outputSpecs) as Record<string, DeviceTensor<"f32">>;
    const call = program.bind(
      { ...weights, ...inputs, temperature: this.#runtime.tensor("f32", [], [temperature]) },
      outputs,
    );
    try {
      await call.run();
    } finally {
      call.dispose();
    }
    return outputs["logp"]!.data;
  }

  async dispose(): Promise<void> {
    await this.#programs.dispose();
  }
}
