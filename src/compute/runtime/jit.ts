/** From traced function to program: compiled once per key, which stands for shapes, dtypes and options. */

import { invariant } from "../../base/errors.ts";
import { cutGraph } from "../graph/cut.ts";
import type { Graph, Value } from "../graph/ir.ts";
import { checkGraph, type Outputs, trace } from "../graph/trace.ts";
import { lowerToOnnx } from "../onnx/lower.ts";
import { BYTES } from "../tensor/dtype.ts";
import { sizeOf, type TensorSpec } from "../tensor/shape.ts";
import type { DeviceTensor } from "./device-tensor.ts";
import type { NamedTensors, Program } from "./program.ts";
import type { Runtime } from "./runtime.ts";
import { type Stage, StagedProgram } from "./staged.ts";

export interface CompileOptions {
  /** For errors and profiles. */
  readonly name?: string;
  /** Values of inputs that never change: the runtime lays them out anew for its kernels. */
  readonly initializers?: NamedTensors;
  /** Input and output pairs that share memory: attention caches. */
  readonly inPlace?: readonly (readonly [input: string, output: string])[];
  /** Sizes that stand for any; see `LowerOptions.open`. */
  readonly open?: readonly number[];
  /** See `ProgramIO.threads`. */
  readonly threads?: number;
}

/** A program and the specs of what it yields, so that a caller can make tensors for them. */
export interface Compiled {
  readonly program: Program;
  readonly outputs: Readonly<Record<string, TensorSpec>>;
}

/** Lowers and loads a graph. */
export async function compile(
  runtime: Runtime,
  graph: Graph,
  options: CompileOptions = {},
): Promise<Compiled> {
  checkGraph(graph);
  const { program } = await load(runtime, graph, options);
  return { program, outputs: Object.fromEntries(graph.outputs) };
}

/** Stages that are laid out at once: as many as keep two cores at work. */
const AT_ONCE = 2;

/** Initializers that are read when they are needed. */
export interface LateInitializers {
  /** Of all there are, by graph input. */
  readonly specs: Readonly<Record<string, TensorSpec>>;
  /** Some of them; each is asked for once at most. */
  read(inputs: readonly string[]): Promise<NamedTensors>;
  /** Told once all are read and the last are being laid out: whoever has something else to do does it now. */
  afterLast?(): void;
  /** See `ProgramIO.returned`. */
  returned(input: string): void;
}

/**
 * Lowers a graph and loads it as several programs, one after the other, the last of them first: while the initializers of some are laid
 * out anew, those of the next are read, and what the first were laid out from is given back before the rest are there.
 * @param stages  programs at most
 */
export async function compileInStages(
  runtime: Runtime,
  graph: Graph,
  stages: number,
  late: LateInitializers,
  options: Omit<CompileOptions, "initializers"> = {},
): Promise<Compiled> {
  checkGraph(graph);
  const { inPlace = [], open, name = "program" } = options;
  const { specs } = late;
  const weigh = (input: string): number => {
    const spec = specs[input];
    return spec === undefined ? 0 : sizeOf(spec.shape) * BYTES[spec.dtype];
  };
  const graphs = cutGraph(graph, weigh, stages);
  const wanted = graphs.map(({ inputs }) =>
    [...inputs.keys()].filter((input) => Object.hasOwn(specs, input)),
  );
  invariant(new Set(wanted.flat()).size === wanted.flat().length, "an initializer is read by one stage");
  const returned = (input: string): void => late.returned(input);
  // The last stage first: it has the head of a model, which is larger than any other matrix, and little else is in memory then.
  const order = [...graphs.entries()].reverse();
  const loading: Promise<Stage>[] = [];
  let loaded: readonly Stage[];
  try {
    for (const [turn, [i, each]] of order.entries()) {
      checkGraph(each);
      await loading[turn - AT_ONCE];
      const initializers = await late.read(wanted[i]!);
      const { inputs, outputs } = each;
      const pairs = inPlace.filter(([input, output]) => inputs.has(input) && outputs.has(output));
      const own = { initializers, inPlace: pairs, name: `${name}, ${i + 1} of ${graphs.length}` };
      loading.push(load(runtime, each, { ...options, ...own }, returned));
      // Told of when all are waited for.
      loading[turn]!.catch(() => {});
    }
    late.afterLast?.();
    loaded = (await Promise.all(loading)).reverse();
  } catch (error) {
    for (const stage of await Promise.allSettled(loading)) {
      if (stage.status === "fulfilled") stage.value.program.dispose();
    }
    throw error;
  }
  const outputs = Object.fromEntries(graph.outputs);
  const io = { inputs: portsOf(graph, specs), outputs, inPlace, ...(open === undefined ? {} : { open }) };
  return { program: new StagedProgram(name, runtime, loaded, io), outputs };
}

async function load(
  runtime: Runtime,
  graph: Graph,
  options: CompileOptions,
  returned?: (input: string) => void,
): Promise<Stage> {
  const { initializers = {}, open } = options;
  const model = lowerToOnnx(graph, {
    initializers: new Set(Object.keys(initializers)),
    ...(open === undefined ? {} : { open }),
  });
  const io = { inputs: portsOf(graph, initializers), outputs: Object.fromEntries(graph.outputs) };
  const told = returned === undefined ? {} : { returned };
  return { program: await runtime.load(model, { ...options, ...io, ...told }), io };
}

/** Inputs that are not initializers. */
const portsOf = (graph: Graph, initializers: Readonly<Record<string, unknown>>): Record<string, TensorSpec> =>
  Object.fromEntries([...graph.inputs].filter(([name]) => !Object.hasOwn(initializers, name)));

/** Programs by key, each traced and compiled at first use. */
export class ProgramCache {
  readonly #runtime: Runtime;
  readonly #programs = new Map<string, Promise<Compiled>>();

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
  }

  /**
   * The program of this key.
   * @param key  must tell apart everything `build` depends on
   */
  get(
    key: string,
    build: () => { readonly graph: Graph; readonly options?: CompileOptions },
  ): Promise<Compiled> {
    return this.getCompiled(key, () => {
      const { graph, options } = build();
      return compile(this.#runtime, graph, { name: key, ...options });
    });
  }

  /** As {@link get}, of a program that is compiled in another way. */
  getCompiled(key: string, make: () => Promise<Compiled>): Promise<Compiled> {
    let program = this.#programs.get(key);
    if (program === undefined) {
      program = make();
      this.#programs.set(key, program);
      // A program that failed to build is not remembered.
      program.catch(() => this.#programs.delete(key));
    }
    return program;
  }

  async dispose(): Promise<void> {
    const programs = [...this.#programs.values()];
    this.#programs.clear();
    for (const program of await Promise.allSettled(programs)) {
      if (program.status === "fulfilled") program.value.program.dispose();
    }
  }
}

/**
 * Traces, compiles and runs a function once per signature of its arguments, on fresh tensors: convenient for tests and
 * small computations. Hot loops bind their own tensors.
 */
export function jit(
  runtime: Runtime,
  fn: (inputs: Readonly<Record<string, Value>>) => Outputs,
): (inputs: NamedTensors) => Promise<NamedTensors> {
  const programs = new ProgramCache(runtime);
  return async (inputs) => {
    const specs = Object.fromEntries(
      Object.entries(inputs).map(([name, { dtype, shape }]) => [name, { dtype, shape }]),
    );
    const compiled = await programs.get(JSON.stringify(specs), () => ({ graph: trace(specs, fn) }));
    const outputs = tensorsOf(runtime, compiled.outputs);
    const call = compiled.program.bind(inputs, outputs);
    try {
      await call.run();
    } finally {
      call.dispose();
    }
    return outputs;
  };
}

/** Zeroed tensors of the given specs. */
export function tensorsOf(
  runtime: Runtime,
  specs: Readonly<Record<string, TensorSpec>>,
): Record<string, DeviceTensor> {
  return Object.fromEntries(
    Object.entries(specs).map(([name, { dtype, shape }]) => [name, runtime.tensor(dtype, shape)]),
  );
}
