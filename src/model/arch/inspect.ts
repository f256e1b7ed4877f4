/** What a model is and what it takes, from its config alone: its tensors, its weights, its memory at each precision. */

import { type Shape, sizeOf } from "../../compute/tensor/shape.ts";
import type { ParameterSpec } from "./architecture.ts";
import { architectureOf, cachedNumbers, type ModelConfig, modelParameters } from "./models.ts";

/** How numbers may be stored. Norms, biases and corrections are float32 in all of them. */
export const PRECISIONS = ["float32", "bfloat16", "fp8", "int8", "int4"] as const;
export type Precision = (typeof PRECISIONS)[number];

/** Rows and columns of a block of fp8 that shares a float32 scale (arXiv:2412.19437 §3.3). */
const FP8_BLOCK = 128;
/** Numbers of a block of integers that shares a float16 scale. */
const INTEGER_BLOCK = 32;

/** Bytes of one tensor. Where matrices are quantised, embedding, head and gates of experts stay bfloat16. */
export function tensorBytes({ name, shape, kind }: ParameterSpec, precision: Precision): number {
  const numbers = sizeOf(shape);
  if (precision === "float32" || !(kind === "matrix" || kind === "embedding" || kind === "head")) {
    return 4 * numbers;
  }
  if (precision === "bfloat16" || kind !== "matrix" || name.endsWith(".mlp.gate.weight")) return 2 * numbers;
  if (precision === "fp8") {
    return numbers + 4 * shape.reduce((blocks, n) => blocks * Math.ceil(n / FP8_BLOCK), 1);
  }
  const [rows, columns] = shape as readonly [number, number];
  const perRow = Math.ceil(columns / INTEGER_BLOCK);
  return rows * perRow * (INTEGER_BLOCK * (precision === "int8" ? 1 : 0.5) + 2);
}

/** A tensor, or what lies under one name; neighbours that are alike but for their number are one node. */
export interface TensorNode {
  /** Part of a name between dots: `experts`, `3`, or `0-255` for several. */
  readonly name: string;
  /** How many there are of it, side by side. */
  readonly count: number;
  /** Weights of all of them. */
  readonly parameters: number;
  /** Of a tensor. */
  readonly shape?: Shape;
  readonly children?: readonly TensorNode[];
}

interface Branch {
  readonly children: Map<string, Branch>;
  shape?: Shape;
}

const isNumber = (name: string): boolean => /^\d+$/.test(name);

/** What makes two nodes alike: everything but their own name. */
const contentKey = ({ shape, children }: TensorNode): string => JSON.stringify({ shape, children });

function nodesOf(branch: Branch): TensorNode[] {
  const nodes: { node: TensorNode; key: string; first: string }[] = [];
  for (const [name, child] of branch.children) {
    const children = nodesOf(child);
    const parameters =
      child.shape === undefined
        ? children.reduce((sum, node) => sum + node.parameters, 0)
        : sizeOf(child.shape);
    const node: TensorNode = {
      name,
      count: 1,
      parameters,
      ...(child.shape === undefined ? { children } : { shape: child.shape }),
    };
    const key = contentKey(node);
    const last = nodes.at(-1);
    if (last !== undefined && isNumber(name) && isNumber(last.first) && last.key === key) {
      last.node = {
        ...last.node,
        name: `${last.first}-${name}`,
        count: last.node.count + 1,
        parameters: last.node.parameters + parameters,
      };
    } else nodes.push({ node, key, first: name });
  }
  return nodes.map(({ node }) => node);
}

/** Tensors as a tree over the parts of their names. */
export function tensorTree(specs: readonly ParameterSpec[]): TensorNode[] {
  const root: Branch = { children: new Map() };
  for (const { name, shape } of specs) {
    let at = root;
    for (const part of name.split(".")) {
      let next = at.children.get(part);
      if (next === undefined) {
        next = { children: new Map() };
        at.children.set(part, next);
      }
      at = next;
    }
    at.shape = shape;
  }
  return nodesOf(root);
}

export interface Inspection {
  readonly architecture: string;
  readonly parameters: {
    /** Of the model, the drafting module not counted. */
    readonly total: number;
    /** Those that one token is multiplied with: not the embedding's look-up, and of routed experts those it goes to. */
    readonly active: number;
    /** Of the module that predicts the token after next, beside the total. */
    readonly draft: number;
  };
  readonly cache: {
    /** Of one token in all layers, in bfloat16. */
    readonly bytesPerToken: number;
    readonly numbersPerToken: number;
    readonly maxPositions: number;
  };
  /** Bytes of the weights, the drafting module not counted. */
  readonly memory: Readonly<Record<Precision, number>>;
  readonly tensors: readonly TensorNode[];
}

/** @throws ConfigError when the config breaks a rule of its architecture */
export function inspectModel(config: ModelConfig): Inspection {
  const architecture = architectureOf(config);
  architecture.check(config);
  const all = modelParameters(config);
  const main = config.modelType === "deepseek_v3" ? modelParameters({ ...config, draftLayers: 0 }) : all;
  const weights = (specs: readonly ParameterSpec[]): number =>
    specs.reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  const bytes = (precision: Precision): number =>
    main.reduce((sum, spec) => sum + tensorBytes(spec, precision), 0);
  const numbersPerToken = cachedNumbers(config);
  return {
    architecture: architecture.name,
    parameters: {
      total: weights(main),
      active: architecture.activeParameters(config),
      draft: weights(all) - weights(main),
    },
    cache: { bytesPerToken: 2 * numbersPerToken, numbersPerToken, maxPositions: config.maxPositions },
    memory: Object.fromEntries(PRECISIONS.map((precision) => [precision, bytes(precision)])) as Record<
      Precision,
      number
    >,
    tensors: tensorTree(all),
  };
}

/** Whether a model and one sequence fit a memory, and how long that may be. */
export interface Fit {
  readonly bytes: number;
  readonly fits: boolean;
  /** Positions of one sequence that fit beside the weights, at most the model's own limit; 0 where these do not fit. */
  readonly positions: number;
}

/** Share of a memory that programs and their intermediate results are left. */
const HEADROOM = 0.1;

/** Weights of so many bytes; a number of the cache takes two, bfloat16, unless told otherwise. */
export function fitIn(
  memoryBytes: number,
  weightBytes: number,
  { cache }: Pick<Inspection, "cache">,
  cacheNumberBytes = 2,
): Fit {
  const left = memoryBytes * (1 - HEADROOM) - weightBytes;
  const perToken = cache.numbersPerToken * cacheNumberBytes;
  const positions = Math.max(0, Math.min(cache.maxPositions, Math.floor(left / perToken)));
  return { bytes: weightBytes, fits: positions > 0, positions };
}

/** At each precision; the cache is float32 beside float32 weights, and bfloat16 otherwise. */
export function fitsIn(
  memoryBytes: number,
  inspection: Inspection,
): (Fit & { readonly precision: Precision })[] {
  return PRECISIONS.map((precision) => {
    const weights = inspection.memory[precision];
    return { precision, ...fitIn(memoryBytes, weights, inspection, precision === "float32" ? 4 : 2) };
  });
}
