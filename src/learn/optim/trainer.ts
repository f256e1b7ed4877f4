/**
 * A model in training: weights, optimizer state, and the two programs that move them.
 *
 * `accumulate` runs forward and backward on a micro-batch, its rows divided among programs side by side (shards.ts), and adds its
 * gradients to those waiting; `apply` turns them into an update. Weights and optimizer state exist twice and are written in turn, because a graph must never write
 * over its own input; so a step whose numbers are not finite is dropped by simply not taking its turn.
 */

import { ConfigError, NumericError } from "../../base/errors.ts";
import { mean } from "../../base/numbers.ts";
import { grad } from "../../compute/grad/reverse.ts";
import type { Value } from "../../compute/graph/ir.ts";
import { add, full, mul, scalar, sum } from "../../compute/graph/primitives.ts";
import { trace } from "../../compute/graph/trace.ts";
import type { DeviceTensor } from "../../compute/runtime/device-tensor.ts";
import { ProgramCache, tensorsOf } from "../../compute/runtime/jit.ts";
import type { Call } from "../../compute/runtime/program.ts";
import type { Runtime } from "../../compute/runtime/runtime.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { type Shape, sameShape, type TensorSpec } from "../../compute/tensor/shape.ts";
import type { ParameterSpec, TrainOutputs } from "../../model/arch/architecture.ts";
import { architectureOf, type ModelConfig, modelParameters, weightSpecs } from "../../model/arch/models.ts";
import { draftLoss } from "../losses/cross-entropy.ts";
import { batchSpecs, type Loss } from "../losses/loss.ts";
import { fromHidden } from "../losses/predictions.ts";
import type { PackedBatch } from "./rows.ts";
import { divideRows, eachShard, shardsOf, threadsOfShard } from "./shards.ts";
import { adamW, clipFactor, globalNorm, muon } from "./update.ts";

export interface OptimizerOptions {
  /** Optimizer of the matrices; embeddings, head and norms always take AdamW. */
  readonly matrices: "muon" | "adamw";
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  /** Muon's momentum. */
  readonly momentum: number;
  /** Decoupled decay of matrices, embeddings and head; norms are not decayed. */
  readonly weightDecay: number;
  /** Global norm to which gradients are clipped. */
  readonly clipNorm: number;
}

export const OPTIMIZER_DEFAULTS: OptimizerOptions = {
  matrices: "muon",
  beta1: 0.9,
  beta2: 0.95,
  epsilon: 1e-8,
  momentum: 0.95,
  weightDecay: 0,
  clipNorm: 1,
};

/** What a model with experts, or with a head for the token after next, learns beside its loss; all may change at any step. */
export interface AuxiliaryOptions {
  /** γ: how far an update moves the correction of an expert that had too many tokens, or too few. */
  readonly correctionRate: number;
  /** α: weight of the sequence-wise balance loss; each sequence counts as much as its tokens do in the loss. */
  readonly balance: number;
  /** λ: weight of the loss of the token after next, where the loss is that of the next. */
  readonly draft: number;
}

/** DeepSeek-V3's (arXiv:2412.19437 §4.2), λ that of its first 10T tokens. */
export const AUXILIARY_DEFAULTS: AuxiliaryOptions = { correctionRate: 0.001, balance: 1e-4, draft: 0.3 };

/** Tokens that each expert got, by the name of its layer's correction. */
export type ExpertLoads = Readonly<Record<string, Float64Array>>;

/** Rates of one update. */
export interface Rates {
  /** Of what AdamW moves. */
  readonly adamW: number;
  /** Of what Muon moves. */
  readonly muon: number;
}

/** Statistics of one or more micro-batches: sums add up, maxima take the larger. */
export interface Statistics {
  loss: number;
  readonly sums: Record<string, number>;
  readonly maxima: Record<string, number>;
}

/** Adds a micro-batch's statistics to a total. */
export function addStatistics(total: Statistics, part: Statistics): void {
  total.loss += part.loss;
  for (const [name, value] of Object.entries(part.sums)) total.sums[name] = (total.sums[name] ?? 0) + value;
  for (const [name, value] of Object.entries(part.maxima)) {
    total.maxima[name] = Math.max(total.maxima[name] ?? Number.NEGATIVE_INFINITY, value);
  }
}

/** An update that was refused, as its new weights are not finite where its gradients are: one that a lower rate can help. */
export class UpdateError extends NumericError {}

type Slot = 0 | 1;
type Floats = Record<string, DeviceTensor<"f32">>;

const other = (slot: Slot): Slot => (slot === 0 ? 1 : 0);

/** Names of optimizer state, next to the weight they belong to. */
const stateNames = {
  m: (name: string): string => `m/${name}`,
  v: (name: string): string => `v/${name}`,
};

/** Prefixes of the second copies in a graph: what is written, and gradients. */
const NEXT = "next/";
const GRADIENT = "gradient/";
const WAITING = "waiting/";
/** Of the gradients of one shard among an update's inputs. */
const gradientPrefix = (i: number): string => `${GRADIENT}${i}/`;
/** Prefix of loads among a loss graph's outputs, and of what is added to corrections among an update's inputs. */
const LOAD = "load/";
const MOVE = "move/";
/** Scalars of every loss graph whose model has use for them. */
const BALANCE = "auxiliary/balance";
const DRAFT = "auxiliary/draft";

export class Trainer {
  readonly config: ModelConfig;
  readonly options: OptimizerOptions;
  readonly auxiliary: AuxiliaryOptions;
  /** Updates taken so far. */
  updates = 0;
  readonly #runtime: Runtime;
  readonly #programs: ProgramCache;
  /** Of what an update moves: with adapters those alone. */
  readonly #specs: readonly ParameterSpec[];
  /** The other weights, if any: shared with whoever gave them. */
  readonly #frozen: Readonly<Floats>;
  /** Weights and optimizer state, twice. */
  readonly #state: readonly [Floats, Floats];
  /** For each shard. */
  readonly #gradients: readonly (readonly [Floats, Floats])[];
  readonly #calls = new Map<string, Call>();
  readonly #buffers = new Map<string, Record<string, DeviceTensor>>();
  #current: Slot = 0;
  /** Where each shard's waiting gradients are; undefined where none wait. */
  #waiting: (Slot | undefined)[] = [];
  /** Of the micro-batches whose gradients wait. */
  #loads: Record<string, Float64Array> = {};

  private constructor(
    runtime: Runtime,
    config: ModelConfig,
    options: OptimizerOptions,
    auxiliary: AuxiliaryOptions,
    frozen: Readonly<Floats>,
  ) {
    this.config = config;
    this.options = options;
    this.auxiliary = auxiliary;
    this.#runtime = runtime;
    this.#programs = new ProgramCache(runtime);
    this.#specs = movedParameters(config);
    this.#frozen = frozen;
    const zeros = (specs: Record<string, TensorSpec>): Floats => tensorsOf(runtime, specs) as Floats;
    this.#state = [zeros(this.stateSpecs()), zeros(this.stateSpecs())];
    this.#gradients = Array.from({ length: shardsOf(config) }, () => [
      zeros(this.#gradientSpecs()),
      zeros(this.#gradientSpecs()),
    ]);
  }

  /**
   * A trainer over a copy of the given weights.
   * @param weights  those that are trained: all of the model's, or the adapters'
   * @param frozen   the others, which are read in place
   * @throws ConfigError when a weight is missing or of another shape
   */
  static create(
    runtime: Runtime,
    config: ModelConfig,
    weights: Readonly<Record<string, HostArray<"f32">>>,
    options: Partial<OptimizerOptions> = {},
    auxiliary: Partial<AuxiliaryOptions> = {},
    frozen: Readonly<Floats> = {},
  ): Trainer {
    const moved = new Set(movedParameters(config).map(({ name }) => name));
    const still = modelParameters(config).filter(({ name }) => !moved.has(name));
    for (const { name, shape } of still) expectTensor(name, shape, frozen[name]);
    const trainer = new Trainer(
      runtime,
      config,
      { ...OPTIMIZER_DEFAULTS, ...options },
      { ...AUXILIARY_DEFAULTS, ...auxiliary },
      Object.fromEntries(still.map(({ name }) => [name, frozen[name]!])),
    );
    const specs = Object.entries(weightSpecs(config)).filter(([name]) => moved.has(name));
    trainer.#write(weights, Object.fromEntries(specs));
    return trainer;
  }

  /** Whether adapters alone are trained. */
  get adapted(): boolean {
    return this.#specs[0]!.kind === "adapter";
  }

  #usesMuon(spec: ParameterSpec): boolean {
    return spec.kind === "matrix" && this.options.matrices === "muon";
  }

  /** What has a gradient. */
  #trained(): readonly ParameterSpec[] {
    return this.#specs.filter(({ kind }) => kind !== "correction");
  }

  #corrections(): readonly ParameterSpec[] {
    return this.#specs.filter(({ kind }) => kind === "correction");
  }

  #gradientSpecs(): Record<string, TensorSpec> {
    return Object.fromEntries(this.#trained().map(({ name, shape }) => [name, { dtype: "f32", shape }]));
  }

  /** Scalars of a loss's graph, those of what is learnt beside it included. */
  #scalarsOf(loss: Loss): string[] {
    const draft = loss.draft === true && architectureOf(this.config).draft(this.config) !== undefined;
    return [...loss.scalars, ...(this.#corrections().length > 0 ? [BALANCE] : []), ...(draft ? [DRAFT] : [])];
  }

  /** Weights and optimizer state by name: what a checkpoint holds. */
  stateSpecs(): Record<string, TensorSpec> {
    const specs: Record<string, TensorSpec> = {};
    for (const spec of this.#specs) {
      const like: TensorSpec = { dtype: "f32", shape: spec.shape };
      specs[spec.name] = like;
      if (spec.kind === "correction") continue;
      specs[stateNames.m(spec.name)] = like;
      if (!this.#usesMuon(spec)) specs[stateNames.v(spec.name)] = like;
    }
    return specs;
  }

  /** The current weights: live tensors, of which the next `apply` replaces those of {@link moved}. */
  weights(): Record<string, DeviceTensor<"f32">> {
    return { ...this.#frozen, ...this.moved() };
  }

  /** The weights that updates move, as they are now; live tensors that the next `apply` replaces. */
  moved(): Record<string, DeviceTensor<"f32">> {
    const state = this.#state[this.#current];
    return Object.fromEntries(this.#specs.map(({ name }) => [name, state[name]!]));
  }

  /** A copy of the weights that move, and of the optimizer's state. */
  snapshot(): Record<string, HostArray<"f32">> {
    const state = Object.entries(this.#state[this.#current]);
    return Object.fromEntries(
      state.map(([name, { shape, data }]) => [name, hostArray("f32", shape, data.slice())]),
    );
  }

  /** Continues from a snapshot. @throws ConfigError when it is of another model or optimizer */
  restore(snapshot: Readonly<Record<string, HostArray<"f32">>>, updates: number): void {
    this.#write(snapshot, this.stateSpecs());
    this.#forget();
    this.updates = updates;
  }

  /** Drops the gradients waiting, and the loads with them. */
  #forget(): void {
    this.#waiting = [];
    this.#loads = {};
  }

  /** Takes tensors over, all or none. */
  #write(arrays: Readonly<Record<string, HostArray<"f32">>>, specs: Record<string, TensorSpec>): void {
    for (const [name, { shape }] of Object.entries(specs)) expectTensor(name, shape, arrays[name]);
    const state = this.#state[this.#current];
    for (const name of Object.keys(specs)) state[name]!.data.set(arrays[name]!.data);
  }

  /**
   * Forward and backward on one micro-batch; its gradients are added to those waiting.
   * @throws NumericError when the loss is not finite; the gradients waiting are then dropped
   */
  async accumulate(
    loss: Loss,
    batch: PackedBatch,
    scalars: Readonly<Record<string, number>> = {},
  ): Promise<Statistics> {
    const parts = divideRows(batch, this.#gradients.length);
    const outcomes = await eachShard(this.#runtime, parts, (part, shard) =>
      this.#accumulateShard(loss, part, scalars, shard),
    );
    const statistics: Statistics = { loss: 0, sums: {}, maxima: {} };
    for (const { statistics: each } of outcomes) addStatistics(statistics, each);
    if (!Number.isFinite(statistics.loss)) {
      this.#forget();
      throw new NumericError({
        where: `update ${this.updates + 1}`,
        rule: "the loss must be finite",
        got: String(statistics.loss),
        remedy: "The last good weights are kept; lower the learning rate or raise the clipping",
      });
    }
    for (const [shard, { to }] of outcomes.entries()) this.#waiting[shard] = to;
    for (const { name, shape } of this.#corrections()) {
      this.#loads[name] ??= new Float64Array(shape[0]!);
      for (const { outputs } of outcomes) {
        for (const [e, n] of outputs[LOAD + name]!.data.entries()) this.#loads[name][e]! += n;
      }
    }
    return statistics;
  }

  /** Forward and backward on one shard's rows; its gradients are in `to`, and count once they are said to wait. */
  async #accumulateShard(
    loss: Loss,
    batch: PackedBatch,
    scalars: Readonly<Record<string, number>>,
    shard: number,
  ): Promise<{ readonly statistics: Statistics; readonly outputs: Floats; readonly to: Slot }> {
    const [B, T] = batch.ids.shape as readonly [number, number];
    const from = this.#waiting[shard];
    const to: Slot = from === undefined ? 0 : other(from);
    const shared = batch.prefixes !== undefined;
    const key = `${loss.key}:${B}x${T}${shared ? ":shared" : ""}`;
    const own = `${key}:${shard}`;
    const gradients = this.#gradients[shard]!;
    const inputs = this.#tensors(own, "in", {
      ...batchSpecs(loss, B, T, shared),
      ...scalarSpecs(this.#scalarsOf(loss)),
    });
    for (const name of ["ids", "positions", "segments", "prefixes", "targets"] as const) {
      const source = batch[name];
      if (source !== undefined) (inputs[name]!.data as Int32Array).set(source.data);
    }
    for (const name of loss.tokenInputs) {
      const source = name === "weights" ? batch.weights : batch.extra[name];
      if (source === undefined)
        throw new ConfigError({ where: `loss ${loss.key}`, rule: `needs ${name} per token` });
      (inputs[name]!.data as Float32Array).set(source.data);
    }
    const given: Readonly<Record<string, number>> = {
      ...scalars,
      [BALANCE]: this.auxiliary.balance,
      [DRAFT]: this.auxiliary.draft,
    };
    for (const name of this.#scalarsOf(loss)) {
      const value: number | undefined = given[name];
      if (value === undefined)
        throw new ConfigError({ where: `loss ${loss.key}`, rule: `needs the scalar ${name}` });
      (inputs[name]!.data as Float32Array)[0] = value;
    }

    const compiled = await this.#programs.get(`${key}:${from === undefined ? "first" : "more"}`, () => ({
      graph: this.#lossGraph(loss, B, T, { adding: from !== undefined, shared }),
      options: { threads: threadsOfShard(this.#runtime, this.#gradients.length) },
    }));
    const statisticSpecs = Object.entries(compiled.outputs).filter(([name]) => !name.startsWith(GRADIENT));
    const outputs = this.#tensors(own, "out", Object.fromEntries(statisticSpecs)) as Floats;
    const call = this.#call(`${own}:${this.#current}:${from}>${to}`, () => {
      const waiting = from === undefined ? {} : prefixed(WAITING, gradients[from]);
      return compiled.program.bind(
        { ...this.weights(), ...inputs, ...waiting },
        { ...outputs, ...prefixed(GRADIENT, gradients[to]) },
      );
    });
    await call.run();

    const statistics: Statistics = { loss: outputs["loss"]!.data[0]!, sums: {}, maxima: {} };
    for (const [name, tensor] of Object.entries(outputs)) {
      if (name.startsWith("sum/")) statistics.sums[name.slice(4)] = tensor.data[0]!;
      if (name.startsWith("max/")) statistics.maxima[name.slice(4)] = tensor.data[0]!;
    }
    return { statistics, outputs, to };
  }

  /**
   * Takes one update with the gradients waiting.
   * @returns the global gradient norm before clipping, and how many tokens each expert got since the last update
   * @throws NumericError naming the first tensor whose gradient is not finite, {@link UpdateError} the first that would not be
   *   after the update; weights and state stay as they were
   */
  async apply(rates: Rates): Promise<{ gradientNorm: number; loads: ExpertLoads }> {
    const waiting = this.#waitingGradients();
    if (waiting.length === 0)
      throw new ConfigError({ where: "apply", rule: "needs gradients", remedy: "Call accumulate first" });
    const loads = this.#loads;
    this.#forget();
    const step = this.updates + 1;
    const { beta1, beta2, weightDecay, clipNorm } = this.options;
    const scalars = {
      adamWRate: rates.adamW,
      muonRate: rates.muon,
      weightDecay,
      clipNorm,
      correction1: 1 / (1 - beta1 ** step),
      correction2: 1 / (1 - beta2 ** step),
    };
    const inputs = this.#tensors("apply", "in", {
      ...scalarSpecs(Object.keys(scalars)),
      ...this.#moveSpecs(),
    }) as Floats;
    for (const [name, value] of Object.entries(scalars)) inputs[name]!.data[0] = value;
    for (const [name, load] of Object.entries(loads)) {
      const even = mean(load);
      const moves = inputs[MOVE + name]!.data;
      for (const [e, n] of load.entries()) moves[e] = this.auxiliary.correctionRate * Math.sign(even - n);
    }
    const outputs = this.#tensors("apply", "out", scalarSpecs(["norm", "total"])) as Floats;
    const { program } = await this.#programs.get(`apply:${waiting.length}`, () => ({
      graph: this.#updateGraph(Object.keys(scalars), waiting.length),
    }));
    const next = other(this.#current);
    const slots = waiting.map(({ shard, slot }) => `${shard}.${slot}`).join();
    const call = this.#call(`apply:${this.#current}:${slots}`, () =>
      program.bind(
        {
          ...this.#state[this.#current],
          ...Object.assign({}, ...waiting.map(({ gradients }, i) => prefixed(gradientPrefix(i), gradients))),
          ...inputs,
        },
        { ...prefixed(NEXT, this.#state[next]), ...outputs },
      ),
    );
    await call.run();
    const gradientNorm = outputs["norm"]!.data[0]!;
    const where = `update ${step}`;
    if (!Number.isFinite(gradientNorm)) {
      const bad = notFinite(waiting.flatMap(({ gradients }) => Object.entries(gradients)));
      throw new NumericError({
        where,
        rule: "gradients must be finite",
        got: bad === undefined ? `a global norm of ${gradientNorm}` : `a non-finite gradient of ${bad}`,
        remedy: "The last good weights are kept; lower the learning rate or raise the clipping",
      });
    }
    const total = outputs["total"]!.data[0]!;
    if (!Number.isFinite(total)) {
      const bad = notFinite(Object.entries(this.#state[next]));
      throw new UpdateError({
        where,
        rule: "new weights must be finite",
        got: bad === undefined ? `weights whose sum is ${total}` : `non-finite values of ${bad}`,
        remedy: "The last good weights are kept; lower the learning rate",
      });
    }
    this.#current = next;
    this.updates = step;
    return { gradientNorm, loads };
  }

  /** The waiting gradients, copied; for tests and diagnosis. */
  gradients(): Record<string, HostArray<"f32">> {
    const waiting = this.#waitingGradients();
    if (waiting.length === 0) throw new ConfigError({ where: "gradients", rule: "needs gradients waiting" });
    return Object.fromEntries(
      this.#trained().map(({ name, shape }) => {
        const total = waiting[0]!.gradients[name]!.data.slice();
        for (const { gradients } of waiting.slice(1)) {
          for (const [i, g] of gradients[name]!.data.entries()) total[i]! += g;
        }
        return [name, hostArray("f32", shape, total)];
      }),
    );
  }

  /** Those of the shards that have any. */
  #waitingGradients(): { readonly shard: number; readonly slot: Slot; readonly gradients: Floats }[] {
    return this.#waiting.flatMap((slot, shard) =>
      slot === undefined ? [] : [{ shard, slot, gradients: this.#gradients[shard]![slot] }],
    );
  }

  async dispose(): Promise<void> {
    for (const call of this.#calls.values()) call.dispose();
    this.#calls.clear();
    await this.#programs.dispose();
  }

  /** Tensors of a program, made at first use. */
  #tensors(key: string, side: "in" | "out", specs: Record<string, TensorSpec>): Record<string, DeviceTensor> {
    let tensors = this.#buffers.get(`${side}:${key}`);
    if (tensors === undefined) {
      tensors = tensorsOf(this.#runtime, specs);
      this.#buffers.set(`${side}:${key}`, tensors);
    }
    return tensors;
  }

  #call(key: string, bind: () => Call): Call {
    let call = this.#calls.get(key);
    if (call === undefined) {
      call = bind();
      this.#calls.set(key, call);
    }
    return call;
  }

  #lossGraph(
    loss: Loss,
    B: number,
    T: number,
    { adding, shared }: { readonly adding: boolean; readonly shared: boolean },
  ) {
    const architecture = architectureOf(this.config);
    const draft = loss.draft === true && T > 1 ? architecture.draft(this.config) : undefined;
    const waiting = adding ? prefixed(WAITING, this.#gradientSpecs()) : {};
    const specs = {
      ...weightSpecs(this.config),
      ...batchSpecs(loss, B, T, shared),
      ...scalarSpecs(this.#scalarsOf(loss)),
      ...waiting,
    };
    return trace(specs, (x: Record<string, Value>) => {
      const { ids, positions, segments, targets } = x as Record<
        "ids" | "positions" | "segments" | "targets",
        Value
      >;
      const rows = { ids, positions, segments, ...(shared ? { prefixes: x["prefixes"]! } : {}) };
      const model = architecture.train(x, rows, this.config);
      const learns = !this.adapted;
      const predictions = ({ hidden, head }: TrainOutputs) => fromHidden(hidden, head, { learns });
      const result = loss.build(predictions(model), x, { targets, segments }, x);
      const weights = x["weights"]!;
      const sums: Record<string, Value> = { ...result.sums };
      const routing = [...model.routing];
      let objective = result.loss;
      if (draft !== undefined) {
        // The next token is the target, and beyond the end of a sequence nothing is asked.
        const after = draft.train(x, model.hidden, { ...rows, next: targets }, this.config);
        sums["draft"] = draftLoss(predictions(after), { segments, targets, weights });
        objective = add(objective, mul(x[DRAFT]!, sums["draft"]));
        routing.push(...after.routing);
      }
      if (routing.length > 0) {
        sums["balance"] = routing
          .map(({ balance }) => sum(mul(weights, balance)))
          .reduce((a, b) => add(a, b));
        objective = add(objective, mul(x[BALANCE]!, sums["balance"]));
      }
      const loads = new Map(routing.map(({ correction, load }) => [correction, load]));
      const none = (shape: Shape): Value => full(result.loss, shape, 0);
      const names = this.#trained().map(({ name }) => name);
      const gradients = grad(
        objective,
        names.map((name) => x[name]!),
      );
      const total = gradients.map((g, i) => (adding ? add(x[WAITING + names[i]!]!, g) : g));
      return {
        loss: result.loss,
        ...prefixed("sum/", sums),
        ...prefixed("max/", result.maxima),
        ...Object.fromEntries(
          this.#corrections().map(({ name, shape }) => [LOAD + name, loads.get(name) ?? none(shape)]),
        ),
        ...Object.fromEntries(names.map((name, i) => [GRADIENT + name, total[i]!])),
      };
    });
  }

  #moveSpecs(): Record<string, TensorSpec> {
    return Object.fromEntries(
      this.#corrections().map(({ name, shape }) => [MOVE + name, { dtype: "f32", shape }]),
    );
  }

  /** @param shards  how many have gradients, whose sum is what counts */
  #updateGraph(scalars: readonly string[], shards: number) {
    const prefixes = Array.from({ length: shards }, (_, i) => gradientPrefix(i));
    const specs = {
      ...this.stateSpecs(),
      ...Object.assign({}, ...prefixes.map((prefix) => prefixed(prefix, this.#gradientSpecs()))),
      ...scalarSpecs(scalars),
      ...this.#moveSpecs(),
    };
    return trace(specs, (x: Record<string, Value>) => {
      const gradients = new Map(
        this.#trained().map(({ name }) => [
          name,
          prefixes.map((prefix) => x[prefix + name]!).reduce((a, b) => add(a, b)),
        ]),
      );
      const raw = [...gradients.values()];
      const norm = globalNorm(raw);
      const factor = clipFactor(norm, x["clipNorm"]!);
      const next: Record<string, Value> = {};
      const decay = x["weightDecay"]!;
      const byShape = new Map<string, ParameterSpec[]>();
      for (const spec of this.#specs.filter((spec) => this.#usesMuon(spec))) {
        const key = spec.shape.join("x");
        byShape.set(key, [...(byShape.get(key) ?? []), spec]);
      }
      for (const group of byShape.values()) {
        const names = group.map(({ name }) => name);
        const updated = muon(
          names.map((name) => x[name]!),
          names.map((name) => gradients.get(name)!),
          names.map((name) => x[stateNames.m(name)]!),
          { learningRate: x["muonRate"]!, weightDecay: decay, gradientScale: factor },
          this.options,
        );
        for (const [i, name] of names.entries()) {
          next[NEXT + name] = updated.weights[i]!;
          next[NEXT + stateNames.m(name)] = updated.momenta[i]!;
        }
      }
      const rate = {
        learningRate: x["adamWRate"]!,
        correction1: x["correction1"]!,
        correction2: x["correction2"]!,
      };
      for (const { name } of this.#corrections()) next[NEXT + name] = add(x[name]!, x[MOVE + name]!);
      for (const spec of this.#trained().filter((spec) => !this.#usesMuon(spec))) {
        const { name } = spec;
        const state = { m: x[stateNames.m(name)]!, v: x[stateNames.v(name)]! };
        const weightDecay = spec.kind === "norm" || spec.kind === "bias" ? scalar(decay, 0) : decay;
        const clipped = mul(gradients.get(name)!, factor);
        const updated = adamW(x[name]!, clipped, state, { ...rate, weightDecay }, this.options);
        next[NEXT + name] = updated.weight;
        next[NEXT + stateNames.m(name)] = updated.m;
        next[NEXT + stateNames.v(name)] = updated.v;
      }
      // Not finite where one of them is not, whichever it is; of finite ones the sum overflows near 1e38.
      const total = this.#trained()
        .map(({ name }) => sum(next[NEXT + name]!))
        .reduce((a, b) => add(a, b));
      return { norm, total, ...next };
    });
  }
}

/** The parameters that updates move: adapters where there are any, else all. */
function movedParameters(config: ModelConfig): ParameterSpec[] {
  const all = modelParameters(config);
  const adapters = all.filter(({ kind }) => kind === "adapter");
  return adapters.length > 0 ? adapters : all;
}

/** The name of the first tensor that holds a value that is not finite; undefined where none does. */
function notFinite(tensors: readonly (readonly [string, DeviceTensor<"f32">])[]): string | undefined {
  return tensors.find(([, { data }]) => !data.every(Number.isFinite))?.[0];
}

/** @throws ConfigError unless the tensor is there and has the shape */
function expectTensor(name: string, shape: Shape, tensor: { readonly shape: Shape } | undefined): void {
  if (tensor !== undefined && sameShape(tensor.shape, shape)) return;
  throw new ConfigError({
    where: `trainer: ${name}`,
    rule: `needs a tensor f32[${shape}]`,
    got: tensor === undefined ? "none" : `f32[${tensor.shape}]`,
    remedy: "Use the weights and optimizer of the same model",
  });
}

function scalarSpecs(names: readonly string[]): Record<string, TensorSpec> {
  return Object.fromEntries(names.map((name) => [name, { dtype: "f32" as const, shape: [] }]));
}

function prefixed<T>(prefix: string, record: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(Object.entries(record).map(([name, value]) => [prefix + name, value]));
}
