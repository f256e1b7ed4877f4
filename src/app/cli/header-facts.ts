/** What the headers of a model's files say of what they store, and how an engine runs it; for any model, supported or not. */

import { type Shape, sizeOf } from "../../compute/tensor/shape.ts";
import type { ModelConfig } from "../../model/arch/models.ts";
import type { GgufModel } from "../../model/checkpoint/gguf/model.ts";
import type { GgufTensorInfo } from "../../model/checkpoint/gguf/reader.ts";
import { runOf, type StoredRun, wideningReason } from "../../model/checkpoint/gguf/running.ts";
import type { TensorSource } from "../../model/checkpoint/safetensors.ts";
import { byteSize, compact } from "../format.ts";
import { type Context, colorsFor, columnsOfOutput } from "./io.ts";
import { table } from "./table.ts";
import { printable } from "./text.ts";

/** Tensors of a model's files that are stored alike. */
export interface StoredType {
  readonly type: string;
  readonly tensors: number;
  readonly weights: number;
  readonly bytes: number;
  /** How `generate`, `chat` and `eval` run it; absent where they cannot, or where nothing but floats is stored. */
  readonly runs?: StoredRun;
}

export interface StoredFacts {
  /** The largest first. */
  readonly stored: readonly StoredType[];
  /** Of all tensors. */
  readonly bytes: number;
}

/** What a GGUF file says of itself. */
export interface GgufFacts extends StoredFacts {
  readonly version: number;
  /** The model's name, as whoever made the file calls it. */
  readonly name?: string;
  /** Why all of it is widened before it runs, where that is so. */
  readonly widened?: string;
  readonly vocabulary?: {
    readonly model: string;
    readonly pre?: string;
    readonly tokens: number;
    readonly chatTemplate: boolean;
  };
}

interface Tensor {
  readonly type: string;
  readonly shape: Shape;
  readonly bytes: number;
  readonly runs?: StoredRun;
}

/** Tensors by type; those of one type that run in two ways are two. */
function sumByType(tensors: Iterable<Tensor>): StoredFacts {
  const types = new Map<string, StoredType>();
  for (const { type, shape, bytes, runs } of tensors) {
    const key = `${type} ${runs?.as}`;
    const sum = types.get(key) ?? { type, tensors: 0, weights: 0, bytes: 0 };
    types.set(key, {
      type,
      tensors: sum.tensors + 1,
      weights: sum.weights + sizeOf(shape),
      bytes: sum.bytes + bytes,
      ...(runs === undefined ? {} : { runs }),
    });
  }
  const stored = [...types.values()].sort((a, b) => b.bytes - a.bytes);
  return { stored, bytes: stored.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/** Of safetensors, whose floats are all widened to float32. */
export function safetensorsFacts({ tensors }: Pick<TensorSource, "tensors">): StoredFacts {
  return sumByType([...tensors.values()].map(({ dtype, shape, bytes }) => ({ type: dtype, shape, bytes })));
}

/** @param config  of a model that is supported */
export function ggufFacts(
  { version, metadata, tensors }: GgufModel["header"],
  vocabulary?: GgufModel["vocabulary"],
  config?: ModelConfig,
): GgufFacts {
  const widened = config && wideningReason(config);
  const running = ({ type, shape }: GgufTensorInfo): Pick<Tensor, "runs"> =>
    config === undefined ? {} : { runs: runOf(type, shape, widened !== undefined) };
  const facts = sumByType([...tensors.values()].map((tensor) => ({ ...tensor, ...running(tensor) })));
  const name = metadata.get("general.name");
  return {
    version,
    ...(typeof name === "string" ? { name } : {}),
    ...facts,
    ...(widened === undefined ? {} : { widened }),
    ...(vocabulary === undefined
      ? {}
      : {
          vocabulary: {
            model: vocabulary.model,
            ...(vocabulary.pre === undefined ? {} : { pre: vocabulary.pre }),
            tokens: vocabulary.tokens.length,
            chatTemplate: vocabulary.chatTemplate !== undefined,
          },
        }),
  };
}

export const sumOf = (stored: readonly StoredType[]): Pick<StoredType, "tensors" | "weights"> => ({
  tensors: stored.reduce((sum, { tensors }) => sum + tensors, 0),
  weights: stored.reduce((sum, { weights }) => sum + weights, 0),
});

/** A line a type, and one for all. */
export function storedLines({ stored, bytes }: StoredFacts, io: Context): string[] {
  const rows: readonly StoredType[] = [...stored, { type: "all", ...sumOf(stored), bytes }];
  const isRun = stored.some(({ runs }) => runs !== undefined);
  return table(
    rows,
    [
      { title: "stored as", value: ({ type }) => type },
      { title: "tensors", value: ({ tensors }) => `${tensors}`, align: "right" },
      { title: "weights", value: ({ weights }) => compact(weights), align: "right" },
      { title: "take", value: (type) => byteSize(type.bytes), align: "right" },
      {
        title: "bits each",
        value: ({ bytes, weights }) => (weights === 0 ? "" : ((8 * bytes) / weights).toFixed(2)),
        align: "right",
      },
      ...(isRun ? [{ title: "run as", value: ({ runs }: StoredType) => runs?.as ?? "" }] : []),
    ],
    columnsOfOutput(io.stdout),
    colorsFor(io.stdout, io.env),
  );
}

/** `2^-24 (6.0e-8)`. */
const share = (rounding: number): string => `2^${Math.log2(rounding)} (${rounding.toExponential(1)})`;

/** What the last column means, a line for each of what is in it, and how large the error is. */
function runLines({ stored, widened }: GgufFacts): string[] {
  const runs = stored.flatMap(({ runs }) => runs ?? []);
  const of = (as: StoredRun["as"]): StoredRun[] => runs.filter((run) => run.as === as);
  const lines: string[] = [];
  if (of("blocks").length > 0) lines.push("blocks: whole numbers and scales exactly as stored");
  const [offsets] = of("blocks and offsets");
  if (offsets !== undefined) {
    lines.push(
      "blocks and offsets: whole numbers and scales exactly as stored, minima beside them as offsets in float32, each rounded",
      `  once: a weight is off by at most ${share(offsets.rounding)} of its block's offset`,
    );
  }
  if (lines.length > 0) {
    lines.push(
      "  generate, chat and eval run blocks so, what meets them rounded to 8 bits; other commands widen them",
    );
  }
  const floats = of("float32");
  const rounded = floats.find(({ rounding }) => rounding > 0);
  if (rounded !== undefined) {
    lines.push(
      "float32: widened; exactly what is stored, but that a weight of a type with minima is rounded once,",
      `  by at most ${share(rounded.rounding)} of itself`,
    );
  } else if (floats.length > 0) lines.push("float32: exactly what is stored, widened");
  if (widened !== undefined) lines.push(`  all is widened, to four bytes a weight: ${widened}`);
  return lines;
}

/** @param isSupported  whether the tokenizer, too, was looked for */
export function ggufLines(facts: GgufFacts, isSupported: boolean, io: Context): string[] {
  const { name, version, vocabulary } = facts;
  const text =
    vocabulary === undefined
      ? "no tokenizer"
      : `tokenizer ${[vocabulary.model, vocabulary.pre].filter((part) => part !== undefined).join(" ")} of ` +
        `${vocabulary.tokens.toLocaleString("en-US")} tokens, ${vocabulary.chatTemplate ? "with" : "without"} a chat template`;
  const named = `GGUF version ${version}${name === undefined ? "" : `, ${printable(name)}`}`;
  return [
    isSupported ? `${named}: ${printable(text)}` : named,
    "",
    ...storedLines(facts, io),
    "",
    ...(isSupported ? [...runLines(facts), ""] : []),
  ];
}
