/** The parts of @huggingface/jinja that are used, with types: its own declarations do not resolve under Node's rules. */

import * as library from "@huggingface/jinja";

/** A statement or expression of a parsed template. */
export interface Node {
  readonly type: string;
}

/** A value of a running template. */
export interface Value {
  readonly type: string;
  readonly value: unknown;
}

export interface Environment {
  /** Declares a variable from a JavaScript value. @throws SyntaxError when it is declared already */
  set(name: string, value: unknown): Value;
  /** Sets a variable of this scope. */
  setVariable(name: string, value: Value): Value;
}

export interface Interpreter {
  run(program: Node): Value;
  evaluate(statement: Node | undefined, environment: Environment): Value;
}

interface Library {
  readonly Environment: new (parent?: Environment) => Environment;
  readonly Interpreter: new (environment: Environment) => Interpreter;
  tokenize(
    source: string,
    options: { readonly lstrip_blocks: boolean; readonly trim_blocks: boolean },
  ): readonly unknown[];
  parse(tokens: readonly unknown[]): Node;
}

export const { Environment, Interpreter, tokenize, parse } = library as unknown as Library;
