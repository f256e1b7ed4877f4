/**
 * Programs and calls: what is checked before ONNX Runtime is given an address.
 *
 * Everything that would be a silent wrong result or a crash in native code is an error here: names and specs that
 * differ, outputs written over inputs, use after disposal, two runs of one call at the same time.
 */

import { ConfigError, DTypeError, RuntimeError, ShapeError } from "../../base/errors.ts";
import type { ModelProto } from "../onnx/proto.ts";
import { sameShape, showSpec, type TensorSpec } from "../tensor/shape.ts";
import { type Binding, dtypeFromOnnx, type NamedTensors, type Port, type Session } from "./backend.ts";
import type { DeviceTensor } from "./device-tensor.ts";

export type { NamedTensors } from "./backend.ts";

/** What the caller knows of a model: it is held against what the model declares, and every binding against both. */
export interface ProgramIO {
  /** For errors and profiles: `train step 32x128`. */
  readonly name?: string;
  readonly inputs: Readonly<Record<string, TensorSpec>>;
  readonly outputs: Readonly<Record<string, TensorSpec>>;
  /**
   * Values of the model's external initializers, which ONNX Runtime lays out anew for its kernels: faster than inputs
   * for weights that never change. They are read in place where the backend can, and must not be written to while the program lives;
   * whoever has no other use for them may dispose of them once it is loaded.
   */
  readonly initializers?: NamedTensors;
  /**
   * Told of each initializer that is read no more, once the program is loaded, where the backend knows: what was laid out anew is. Of the
   * others when the program is disposed of.
   */
  readonly returned?: (name: string) => void;
  /**
   * `[input, output]` pairs that may share memory: only for operators that promise to update in place, as attention
   * does with its cache. Any other output over an input is refused, because kernels read what others have overwritten. Two
   * outputs may be in place over one input where the operator writes the same numbers to both: attention over a latent
   * cache, whose keys are its values.
   */
  readonly inPlace?: readonly (readonly [input: string, output: string])[];
  /**
   * Sizes that stand for any in the specs above, as in `LowerOptions`: every call may be bound to tensors of others, the same in all
   * of them.
   */
  readonly open?: readonly number[];
  /** Threads of a program that runs beside others; at most the runtime's. @default the runtime's */
  readonly threads?: number;
}

/** A model loaded for given shapes. */
export interface Program {
  readonly name: string;
  /**
   * Prepares a call that reads `inputs` and writes `outputs` in place; bind once, run many times.
   * @throws ConfigError on a missing or unknown name, or an output over an input that is not listed as in place
   * @throws ShapeError or DTypeError naming the tensor, the expected and the received spec
   * @throws RuntimeError when the program or a tensor has been disposed of
   */
  bind(inputs: NamedTensors, outputs: NamedTensors): Call;
  /** Frees the program and its calls, each as soon as no run of it is under way. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/** A program bound to its tensors. */
export interface Call {
  /** Runs once on a worker thread; the tensors must be left alone until it is done. @throws RuntimeError */
  run(): Promise<void>;
  /** Runs once and blocks: a few microseconds less per run, for tight loops. @throws RuntimeError */
  runSync(): void;
  /** Frees the binding, not the tensors; after the run that is under way, if any. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/** Something native, freed once it is disposed of and no run uses it. */
class Owned {
  readonly #free: () => void;
  #runs = 0;
  #disposed = false;

  constructor(free: () => void) {
    this.#free = free;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  get running(): boolean {
    return this.#runs > 0;
  }

  enter(): void {
    this.#runs++;
  }

  leave(): void {
    this.#runs--;
    if (this.#disposed && this.#runs === 0) this.#free();
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    if (this.#runs === 0) this.#free();
  }
}

/** A session and the bindings that must go before it; a member of `all` until it is disposed of. */
export class OwnedSession {
  readonly bindings = new Set<Owned>();
  readonly session: Owned;
  readonly #all: Set<OwnedSession>;

  constructor(session: Session, all: Set<OwnedSession>) {
    this.session = new Owned(() => session.release());
    this.#all = all;
    all.add(this);
  }

  dispose(): void {
    this.#all.delete(this);
    for (const binding of this.bindings) binding.dispose();
    this.session.dispose();
  }
}

/** Frees what its user forgot to dispose of. */
const forgotten = new FinalizationRegistry<{ dispose(): void }>((owned) => owned.dispose());

/**
 * A program over a backend's session, once the session's inputs and outputs are found to be those of `io`.
 * @param all  the runtime's sessions: this one is among them until the program is disposed of
 * @throws ConfigError, DTypeError or ShapeError where they differ; the session is then released
 */
export function createProgram(
  name: string,
  session: Session,
  io: ProgramIO,
  all: Set<OwnedSession>,
): Program {
  try {
    checkPorts(`program "${name}"`, "input", io.inputs, session.inputs);
    checkPorts(`program "${name}"`, "output", io.outputs, session.outputs);
    for (const [input, output] of io.inPlace ?? []) {
      expectName(`program "${name}": inPlace`, "input", input, io.inputs);
      expectName(`program "${name}": inPlace`, "output", output, io.outputs);
    }
  } catch (error) {
    session.release();
    throw error;
  }
  return new LoadedProgram(name, session, io, all);
}

class LoadedProgram implements Program {
  readonly name: string;
  readonly #session: Session;
  readonly #io: ProgramIO;
  readonly #owned: OwnedSession;

  constructor(name: string, session: Session, io: ProgramIO, all: Set<OwnedSession>) {
    this.name = name;
    this.#session = session;
    // Not its initializers: they are the session's now.
    const { inputs, outputs, inPlace = [], open = [] } = io;
    this.#io = { inputs, outputs, inPlace, open };
    this.#owned = new OwnedSession(session, all);
    forgotten.register(this, this.#owned, this);
  }

  bind(inputs: NamedTensors, outputs: NamedTensors): Call {
    const where = `program "${this.name}"`;
    expectLive(where, this.#owned.session);
    checkBinding(where, this.#io, inputs, outputs);
    const binding = this.#session.bind(inputs, outputs);
    const tensors = [...Object.values(inputs), ...Object.values(outputs)];
    const { bindings, session } = this.#owned;
    const owned = new Owned(() => {
      bindings.delete(owned);
      binding.release();
    });
    bindings.add(owned);
    const call = new BoundCall({ where, program: this, session, owned, binding, tensors });
    forgotten.register(call, owned, call);
    return call;
  }

  dispose(): void {
    forgotten.unregister(this);
    this.#owned.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

interface CallParts {
  readonly where: string;
  /** Held so that a program in use through its calls alone is not taken for forgotten. */
  readonly program: Program;
  readonly session: Owned;
  readonly owned: Owned;
  readonly binding: Binding;
  readonly tensors: readonly DeviceTensor[];
}

class BoundCall implements Call {
  readonly #parts: CallParts;

  constructor(parts: CallParts) {
    this.#parts = parts;
  }

  async run(): Promise<void> {
    this.#enter();
    try {
      await this.#parts.binding.run();
    } finally {
      this.#leave();
    }
  }

  runSync(): void {
    this.#enter();
    try {
      this.#parts.binding.runSync();
    } finally {
      this.#leave();
    }
  }

  dispose(): void {
    forgotten.unregister(this);
    this.#parts.owned.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #enter(): void {
    const { where, session, owned, tensors } = this.#parts;
    expectLive(where, session);
    expectLive(`call of ${where}`, owned);
    if (owned.running) {
      throw new RuntimeError({
        where: `call of ${where}`,
        rule: "a call runs once at a time, since it writes the same tensors each time",
        remedy: "Await the run under way, or bind a second call to tensors of its own",
      });
    }
    // Reading `data` throws for a tensor that has been disposed of.
    for (const tensor of tensors) if (tensor.disposed) tensor.data;
    session.enter();
    owned.enter();
  }

  #leave(): void {
    // The binding goes before the session it belongs to.
    this.#parts.owned.leave();
    this.#parts.session.leave();
  }
}

function expectLive(where: string, owned: Owned): void {
  if (owned.disposed) {
    throw new RuntimeError({ where, rule: "must not be used after dispose()" });
  }
}

type Side = "input" | "output";

/** Up to eight names, for an error about one that is not among them. */
function someNames(names: readonly string[]): string {
  const shown = names.slice(0, 8).join(", ");
  return names.length <= 8 ? shown : `${shown}, … (${names.length} in all)`;
}

function expectName(
  where: string,
  side: Side | "initializer",
  name: string,
  known: Readonly<Record<string, unknown>>,
): void {
  if (Object.hasOwn(known, name)) return;
  const names = Object.keys(known);
  throw new ConfigError({
    where,
    rule: `must name an ${side} of the model`,
    got: JSON.stringify(name),
    remedy: names.length === 0 ? `It has no ${side}s` : `Its ${side}s are ${someNames(names)}`,
  });
}

function showPort({ dtype, dims }: Port): string {
  return `${dtype ?? "an unknown type"}[${dims.map((n) => (n < 0 ? "?" : n)).join(",")}]`;
}

/** @throws DTypeError or ShapeError when `spec` is not what the model declares */
function expectPort(where: string, spec: TensorSpec, port: Port): void {
  const parts = { where, rule: `the model declares ${showPort(port)}`, got: showSpec(spec) };
  if (spec.dtype !== port.dtype) throw new DTypeError(parts);
  const fits =
    spec.shape.length === port.dims.length && port.dims.every((n, i) => n < 0 || n === spec.shape[i]);
  if (!fits) throw new ShapeError(parts);
}

/** Holds the specs the caller declared against the ports of the model. */
function checkPorts(
  where: string,
  side: Side | "initializer",
  declared: Readonly<Record<string, TensorSpec>>,
  ports: readonly Port[],
): void {
  const known = Object.fromEntries(ports.map((port) => [port.name, port]));
  for (const name of Object.keys(declared)) expectName(where, side, name, known);
  for (const port of ports) {
    const spec = Object.hasOwn(declared, port.name) ? declared[port.name] : undefined;
    if (spec === undefined) {
      throw new ConfigError({
        where,
        rule: `every ${side} of the model must be given`,
        got: `none for "${port.name}"`,
        remedy: `It is ${showPort(port)}`,
      });
    }
    expectPort(`${where}: ${side} "${port.name}"`, spec, port);
  }
}

/**
 * Holds initializers against the model's external ones before it is loaded: ONNX Runtime's own messages name no tensor,
 * and onnxruntime-node takes one of another shape for good.
 * @throws ConfigError, DTypeError or ShapeError where they differ
 */
export function checkInitializers(where: string, { graph }: ModelProto, initializers: NamedTensors): void {
  const ports = graph.initializer
    .filter(({ dataLocation }) => dataLocation === 1)
    .map(
      (tensor): Port => ({
        name: tensor.name,
        dtype: dtypeFromOnnx(tensor.dataType),
        dims: tensor.dims,
      }),
    );
  checkPorts(where, "initializer", initializers, ports);
}

/** What an open size is in the tensors given: the first axis that is exactly it says so. Undefined where none does. */
function openSize(
  open: number,
  specs: Readonly<Record<string, TensorSpec>>,
  tensors: NamedTensors,
): number | undefined {
  for (const [name, { shape }] of Object.entries(specs)) {
    const size = tensors[name]?.shape[shape.indexOf(open)];
    if (size !== undefined) return size;
  }
  return undefined;
}

/** Gives specs the sizes that open ones, and their multiples, have in a call's inputs. */
export function closer(
  { inputs: specs, open = [] }: Pick<ProgramIO, "inputs" | "open">,
  inputs: NamedTensors,
): (specs: Readonly<Record<string, TensorSpec>>) => Readonly<Record<string, TensorSpec>> {
  if (open.length === 0) return (same) => same;
  const sizes = open.map((each) => openSize(each, specs, inputs) ?? each);
  // By the size that was declared: what stands for one open size may be a multiple of another.
  const close = (n: number): number =>
    n === 0
      ? n
      : open.reduce((closed, each, i) => (n % each === 0 ? (closed / each) * sizes[i]! : closed), n);
  return (declared) =>
    Object.fromEntries(
      Object.entries(declared).map(([name, { dtype, shape }]) => [name, { dtype, shape: shape.map(close) }]),
    );
}

/** What a binding is held against. */
export type BindingIO = Pick<ProgramIO, "inputs" | "outputs" | "inPlace" | "open">;

/**
 * Holds the tensors of a binding against what a program takes and yields.
 * @throws ConfigError, ShapeError or DTypeError as {@link Program.bind} says
 */
export function checkBinding(
  where: string,
  io: BindingIO,
  inputs: NamedTensors,
  outputs: NamedTensors,
): void {
  const closed = closer(io, inputs);
  checkTensors(where, "input", closed(io.inputs), inputs);
  checkTensors(where, "output", closed(io.outputs), outputs);
  checkOverlap(where, io.inPlace ?? [], inputs, outputs);
}

/** Holds the tensors of a binding against the declared specs. */
function checkTensors(
  where: string,
  side: Side,
  specs: Readonly<Record<string, TensorSpec>>,
  tensors: NamedTensors,
): void {
  for (const name of Object.keys(tensors)) expectName(where, side, name, specs);
  for (const [name, spec] of Object.entries(specs)) {
    const tensor = Object.hasOwn(tensors, name) ? tensors[name] : undefined;
    if (tensor === undefined) {
      throw new ConfigError({
        where,
        rule: `every ${side} must be bound`,
        got: `none for "${name}"`,
        remedy: `Bind a tensor ${showSpec(spec)} to it`,
      });
    }
    const parts = {
      where: `${where}: ${side} "${name}"`,
      rule: `must be ${showSpec(spec)}`,
      got: showSpec(tensor),
    };
    if (tensor.dtype !== spec.dtype) throw new DTypeError(parts);
    if (!sameShape(tensor.shape, spec.shape)) throw new ShapeError(parts);
  }
}

interface Region {
  readonly name: string;
  readonly side: Side;
  readonly start: number;
  readonly end: number;
}

/**
 * Refuses outputs that share memory with an input or with each other. ONNX Runtime does not look for this: a kernel
 * then reads what another has already overwritten, and the result is wrong without a word.
 */
function checkOverlap(
  where: string,
  inPlace: readonly (readonly [input: string, output: string])[],
  inputs: NamedTensors,
  outputs: NamedTensors,
): void {
  const buffers = new Map<ArrayBufferLike, Region[]>();
  const regionsOf = (side: Side, tensors: NamedTensors) =>
    Object.entries(tensors).map(([name, { data }]) => {
      const region: Region = { name, side, start: data.byteOffset, end: data.byteOffset + data.byteLength };
      const earlier = buffers.get(data.buffer);
      const shared = (earlier ?? []).filter((other) => other.start < region.end && region.start < other.end);
      if (earlier === undefined) buffers.set(data.buffer, [region]);
      else earlier.push(region);
      return { region, shared };
    });
  // Inputs may share memory with each other: they are only read.
  regionsOf("input", inputs);
  for (const { region, shared } of regionsOf("output", outputs)) {
    for (const other of shared) {
      const over = inPlace.flatMap(([input, output]) => (output === region.name ? [input] : []));
      const allowed =
        other.side === "input"
          ? over.includes(other.name)
          : inPlace.some(([input, output]) => output === other.name && over.includes(input));
      if (allowed && other.start === region.start && other.end === region.end) continue;
      throw new ConfigError({
        where: `${where}: output "${region.name}"`,
        rule: allowed
          ? `must cover the memory of ${other.side} "${other.name}" exactly to update it in place`
          : `must not share memory with ${other.side} "${other.name}"`,
        got: `bytes ${region.start} to ${region.end} over ${other.start} to ${other.end} of one buffer`,
        remedy: allowed
          ? "Bind the same tensor to both"
          : "Use two tensors in turn; only pairs listed as inPlace when the program is loaded may share one",
      });
    }
  }
}
