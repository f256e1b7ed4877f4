/** Several programs that run one after the other, as one. */

import type { DeviceTensor } from "./device-tensor.ts";
import {
  type BindingIO,
  type Call,
  checkBinding,
  closer,
  type NamedTensors,
  type Program,
  type ProgramIO,
} from "./program.ts";
import type { Runtime } from "./runtime.ts";

/** One of them, and its inputs and outputs. */
export interface Stage {
  readonly program: Program;
  readonly io: Pick<ProgramIO, "inputs" | "outputs">;
}

export class StagedProgram implements Program {
  readonly name: string;
  readonly #runtime: Runtime;
  readonly #stages: readonly Stage[];
  readonly #io: BindingIO;

  /** @param io  of all of them together; what else a stage yields is for later ones */
  constructor(name: string, runtime: Runtime, stages: readonly Stage[], io: BindingIO) {
    this.name = name;
    this.#runtime = runtime;
    this.#stages = stages;
    this.#io = io;
  }

  bind(inputs: NamedTensors, outputs: NamedTensors): Call {
    // As of one program: a stage knows neither the others' names nor what they read.
    checkBinding(`program "${this.name}"`, this.#io, inputs, outputs);
    const closed = closer(this.#io, inputs);
    /** What stages hand to later ones, in memory of this call's own. */
    const handed: Record<string, DeviceTensor> = {};
    const calls: Call[] = [];
    try {
      for (const { program, io } of this.#stages) {
        for (const [name, { dtype, shape }] of Object.entries(closed(io.outputs))) {
          if (!Object.hasOwn(this.#io.outputs, name)) handed[name] = this.#runtime.tensor(dtype, shape);
        }
        const pick = (names: object, tensors: NamedTensors): NamedTensors =>
          Object.fromEntries(
            Object.keys(names).flatMap((name) => {
              const tensor = handed[name] ?? tensors[name];
              return tensor === undefined ? [] : [[name, tensor]];
            }),
          );
        calls.push(program.bind(pick(io.inputs, inputs), pick(io.outputs, outputs)));
      }
    } catch (error) {
      for (const call of calls) call.dispose();
      throw error;
    }
    return new StagedCall(calls);
  }

  dispose(): void {
    for (const { program } of this.#stages) program.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

class StagedCall implements Call {
  readonly #calls: readonly Call[];

  constructor(calls: readonly Call[]) {
    this.#calls = calls;
  }

  async run(): Promise<void> {
    for (const call of this.#calls) await call.run();
  }

  runSync(): void {
    for (const call of this.#calls) call.runSync();
  }

  dispose(): void {
    for (const call of this.#calls) call.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
