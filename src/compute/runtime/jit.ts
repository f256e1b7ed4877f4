/** From traced function to program: compiled once per key, which stands for shapes, dtypes and options. */

import { cutGraph } from "../graph/cut.ts";
import type { Graph, Value } from "../graph/ir.ts";
import { checkGraph, type Outputs, trace } from "../graph/trace.ts";
import { lowerToOnnx } from "../onnx/lower.ts";
import type { TensorSpec } from "../tensor/shape.ts";
import type { DeviceTensor } from "./device-tensor.ts";
import type { NamedTensors, Program } from "./program.ts";
import type { Runtime } from "./runtime.ts";
import { type Stage, StagedProgram } from "./staged.ts";

export interface CompileOptions {
  /** For errors and profiles. */
  readonly name?: string;
  /** Values of inputs that never change: the runtime lays them out anew for its kernels. */
  readonly initializers?: NamedTensors;
  /** See `ProgramIO.returned`. */
  readonly returned?: (name: string) => void;
  /** Input and output pairs that share memory: attention caches. */
  readonly inPlace?: readonly (readonly [input: string, output: string])[];
  /** Sizes that stand for any; see `LowerOptions.open`. */
  readonly open?: readonly number[];
  /** See `ProgramIO.threads`. */
  readonly threads?: number;
  /**
   * Programs that it is cut into at most, loaded one after the other: what the first ones' initializers were laid out from is given back
   * before the last ones' are. @default 1
   */
  readonly stages?: number;
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
  const { stages = 1, initializers = {}, open, name = "program" } = options;
  const outputs = Object.fromEntries(graph.outputs);
  if (stages === 1) return { program: (await load(runtime, graph, options)).program, outputs };
  const bytes = (input: string): number => initializers[input]?.data.byteLength ?? 0;
  const graphs = cutGraph(graph, bytes, stages);
  /** Stages that read an initializer. */
  const readers = new Map<string, number>();
  for (const input of graphs.flatMap(({ inputs }) => [...inputs.keys()])) {
    readers.set(input, (readers.get(input) ?? 0) + 1);
  }
  const returned = (input: string): void => {
    const left = readers.get(input)! - 1;
    readers.set(input, left);
    if (left === 0) options.returned?.(input);
  };
  const loaded: Stage[] = [];
  try {
    for (const [i, each] of graphs.entries()) {
      checkGraph(each);
      const ordinal = `${name}, ${i + 1} of ${graphs.length}`;
      loaded.push(await load(runtime, each, { ...optionsWithin(options, each), returned, name: ordinal }));
    }
  } catch (error) {
    for (const { program } of loaded) program.dispose();
    throw error;
  }
  const io = { inputs: portsOf(graph, initializers), outputs, ...(open === undefined ? {} : { open }) };
  return { program: new StagedProgram(name, runtime, loaded, io), outputs };
}

async function load(runtime: Runtime, graph: Graph, options: CompileOptions): Promise<Stage> {
  const { initializers = {}, open } = options;
  const model = lowerToOnnx(graph, {
    initializers: new Set(Object.keys(initializers)),
    ...(open === undefined ? {} : { open }),
  });
  const io = { inputs: portsOf(graph, initializers), outputs: Object.fromEntries(graph.outputs) };
  return { program: await runtime.load(model, { ...options, ...io }), io };
}

/** Inputs that are not initializers. */
const portsOf = (graph: Graph, initializers: NamedTensors): Record<string, TensorSpec> =>
  Object.fromEntries([...graph.inputs].filter(([name]) => !Object.hasOwn(initializers, name)));

/** Options that speak of a graph's own inputs and outputs alone. */
function optionsWithin(options: CompileOptions, { inputs, outputs }: Graph): CompileOptions {
  const { initializers = {}, inPlace = [] } = options;
  return {
    ...options,
    initializers: Object.fromEntries(Object.entries(initializers).filter(([name]) => inputs.has(name))),
    inPlace: inPlace.filter(([input, output]) => inputs.has(input) && outputs.has(output)),
  };
}

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
    let program = this.#programs.get(key);
    if (program === undefined) {
      const { graph, options } = build();
      program = compile(this.#runtime, graph, { name: key, ...options });
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
