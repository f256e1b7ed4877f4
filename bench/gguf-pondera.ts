/** Pondera on a GGUF file. */

import { ConfigError } from "../src/base/errors.ts";
import { Runtime } from "../src/compute/runtime/runtime.ts";
import { cacheShapeOf } from "../src/model/arch/architecture.ts";
import { architectureOf } from "../src/model/arch/models.ts";
import { loadStoredModel, type SourcedModel } from "../src/model/checkpoint/load.ts";
import { Engine } from "../src/model/engine/engine.ts";
import { StoredForward, type StoredOptions } from "../src/model/engine/stored-forward.ts";
import { type Generated, type GgufSide, type LoadOptions, serveSide } from "./gguf-side.ts";
import { isMain } from "./versus.ts";

/** @throws ConfigError on a model whose matrices are floats */
async function openFile(file: string): Promise<SourcedModel> {
  const model = await loadStoredModel(file);
  if ("source" in model) return model;
  throw new ConfigError({ where: file, rule: "must hold blocks of whole numbers", got: "floats" });
}

export class PonderaSide implements GgufSide {
  readonly name = "Pondera";
  readonly #activations: StoredOptions["activations"];
  #runtime: Runtime | undefined;
  #model: SourcedModel | undefined;
  #file = "";
  #positions = 0;
  #engine: Engine | undefined;

  /** @param activations  as in `StoredOptions`; for when both are compared */
  constructor(activations?: StoredOptions["activations"]) {
    this.#activations = activations;
  }

  #stored({ source: weights }: SourcedModel): StoredOptions {
    return this.#activations === undefined ? { weights } : { weights, activations: this.#activations };
  }

  async start(threads: number): Promise<void> {
    this.#runtime = await Runtime.create({ threads });
  }

  async load({ file, sequences, positions }: LoadOptions): Promise<void> {
    this.#model = await openFile(file);
    this.#file = file;
    this.#positions = positions;
    this.#engine = new Engine(this.#runtime!, this.#model.config, {
      slots: sequences,
      maxPositions: positions,
      stored: this.#stored(this.#model),
    });
    // Made when it is asked for, here while weights are laid out; llama.cpp has its vocabulary by now.
    await this.#engine.allRead;
    this.#model.tokenizer;
  }

  async generate(prompts: readonly (readonly number[])[], newTokens: number): Promise<Generated> {
    const began = performance.now();
    let first = 0;
    const requests = prompts.map((prompt) => ({ prompt, samples: 1, seed: 0 }));
    const completions = await this.#engine!.generate(requests, {
      maxNewTokens: newTokens,
      stopIds: [],
      temperature: 0,
      onToken: () => {
        first ||= performance.now() - began;
      },
    });
    const all = (performance.now() - began) / 1000;
    return { ids: completions.map(([completion]) => completion!.ids), first: first / 1000, all };
  }

  /** Token by token, by the products that decoding uses. */
  async score(ids: readonly number[]): Promise<number[]> {
    const { config } = this.#model!;
    const maxPositions = this.#positions;
    const specs = architectureOf(config).caches(config);
    const tensors = specs.map((spec) => this.#runtime!.tensor("f32", cacheShapeOf(spec, 1, maxPositions)));
    const caches = { specs, tensors, slots: 1, maxPositions };
    const forward = new StoredForward(
      this.#runtime!,
      config,
      caches,
      this.#stored(await openFile(this.#file)),
    );
    try {
      return await this.#logpOf(forward, ids);
    } finally {
      await forward.dispose();
    }
  }

  async #logpOf(forward: StoredForward, ids: readonly number[]): Promise<number[]> {
    const decoder = await forward.decoder(1);
    const logp: number[] = [];
    for (let i = 0; i + 1 < ids.length; i++) {
      decoder.ids[0] = ids[i]!;
      decoder.lengths[0] = i;
      decoder.total[0] = i + 1;
      await decoder.run();
      const largest = decoder.logits.reduce((a, b) => Math.max(a, b), -Infinity);
      const mass = decoder.logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0);
      logp.push(decoder.logits[ids[i + 1]!]! - largest - Math.log(mass));
    }
    return logp;
  }

  async dispose(): Promise<void> {
    await this.#engine?.dispose();
    this.#runtime?.dispose();
  }
}

if (isMain(import.meta.url)) await serveSide(new PonderaSide());
