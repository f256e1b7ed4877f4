/**
 * A model as a folder that transformers.js and ONNX Runtime run: `config.json`, `generation_config.json`, the tokenizer's files,
 * and the graph in `onnx/`.
 *
 * @source transformers.js, src/utils/model-loader.js and src/utils/dtypes.js (names of files, `transformers.js_config`)
 */

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { ConfigError } from "../../base/errors.ts";
import { writeFileAtomic, writeFolderAtomic } from "../../base/files.ts";
import { modelHeader } from "../../compute/onnx/nodes.ts";
import { encodeModel, type TensorProto } from "../../compute/onnx/proto.ts";
import type { HostArray } from "../../compute/tensor/host.ts";
import type { LlamaConfig } from "../arch/llama.ts";
import type { ModelConfig } from "../arch/models.ts";
import { checkModelFiles, type WritableModel, writeModelFiles } from "../checkpoint/folder.ts";
import { decoderGraph, type OnnxType } from "./decoder.ts";
import { declared, type PlacedWeight, placeWeights, storedBytes, storedLength } from "./weights.ts";

export const ONNX_TYPES = ["F32", "F16"] as const satisfies readonly OnnxType[];

/** The folder inside the model's. */
export const GRAPHS = "onnx";
/** What transformers.js calls a type, and the graph's file for it. */
const VARIANT = {
  F32: { dtype: "fp32", file: "model.onnx" },
  F16: { dtype: "fp16", file: "model_fp16.onnx" },
} as const satisfies { readonly [T in OnnxType]: object };
/** Weights up to this are part of the graph's file; no file of that format may be larger than 2 GiB. */
const MAX_INLINE_BYTES = 2 ** 28;
/** Browsers fetch no larger file into memory. */
const MAX_DATA_BYTES = 2 ** 31 - 2 ** 20;

type Tensors = Readonly<Record<string, HostArray<"f32">>>;

export interface OnnxOptions {
  /** What matrices are stored as; everything is computed in float32. @default "F32" */
  readonly type?: OnnxType;
  /** Weights beyond that lie in files beside the graph. @default 256 MiB */
  readonly maxInlineBytes?: number;
  /** Such files are no larger, but for a tensor that is. @default just below 2 GiB */
  readonly maxDataBytes?: number;
}

/** @throws ConfigError on a model whose graph cannot be written */
function expectLlama(config: ModelConfig): LlamaConfig {
  if (config.modelType !== "deepseek_v3") return config;
  throw new ConfigError({
    where: "export to ONNX: model_type",
    rule: "must be llama or qwen2: experts and latent attention have no such graph",
    got: config.modelType,
    remedy: "Export it as hf, which transformers and vLLM load, or as gguf, which llama.cpp loads",
  });
}

const dataName = (graphFile: string, file: number): string =>
  `${graphFile}_data${file === 0 ? "" : `_${file}`}`;

function external(
  graphFile: string,
  { weight, file, offset, length }: PlacedWeight,
  tensors: Tensors,
): TensorProto {
  const entries = { location: dataName(graphFile, file), offset: `${offset}`, length: `${length}` };
  const externalData = Object.entries(entries).map(([key, value]) => ({ key, value }));
  return { ...declared(weight, tensors[weight.name]!.shape), externalData, dataLocation: 1 };
}

/** The bytes of one file, made when it is their turn. */
function* dataParts(placed: readonly PlacedWeight[], tensors: Tensors): Generator<Uint8Array> {
  let end = 0;
  for (const { weight, offset, length } of placed) {
    yield new Uint8Array(offset - end);
    yield storedBytes(weight, tensors[weight.name]!);
    end = offset + length;
  }
}

/** Writes the graph and its weights. @returns how many files lie beside the graph's */
async function writeGraph(
  folder: string,
  config: LlamaConfig,
  tensors: Tensors,
  { type = "F32", maxInlineBytes = MAX_INLINE_BYTES, maxDataBytes = MAX_DATA_BYTES }: OnnxOptions,
): Promise<number> {
  const graphFile = VARIANT[type].file;
  const { graph, weights } = decoderGraph(config, type);
  const shapeOf = (name: string) => tensors[name]!.shape;
  const total = weights.reduce((sum, weight) => sum + storedLength(weight, shapeOf(weight.name)), 0);
  const placed = total <= maxInlineBytes ? [] : placeWeights(weights, shapeOf, maxDataBytes);
  const files = placed.length === 0 ? 0 : placed.at(-1)!.file + 1;
  for (let file = 0; file < files; file++) {
    const part = placed.filter((one) => one.file === file);
    await writeFileAtomic(join(folder, dataName(graphFile, file)), dataParts(part, tensors));
  }
  const stored: TensorProto[] =
    files > 0
      ? placed.map((one) => external(graphFile, one, tensors))
      : weights.map((weight) => ({
          ...declared(weight, shapeOf(weight.name)),
          rawData: storedBytes(weight, tensors[weight.name]!),
        }));
  const initializer = [...graph.initializer, ...stored];
  await writeFileAtomic(
    join(folder, graphFile),
    encodeModel({ ...modelHeader(), graph: { ...graph, initializer } }),
  );
  return files;
}

/**
 * Writes the folder whole or not at all, replacing one that is there.
 * @throws ConfigError on a model that is neither llama nor qwen2, and as `saveModelFolder`; FormatError when the tensors are not
 *   those of the config; NumericError on a value that F16 has no number for; FileError when the folder cannot be written
 */
export async function saveOnnxFolder(
  folder: string,
  model: WritableModel,
  options: OnnxOptions = {},
): Promise<void> {
  const config = expectLlama(model.config);
  checkModelFiles(model);
  await writeFolderAtomic(folder, async (partial) => {
    await mkdir(join(partial, GRAPHS));
    const dataFiles = await writeGraph(join(partial, GRAPHS), config, model.tensors, options);
    const { dtype, file } = VARIANT[options.type ?? "F32"];
    const hints = {
      dtype,
      ...(dataFiles === 0 ? {} : { use_external_data_format: { [file]: dataFiles } }),
    };
    const extra = { ...model.extra, "transformers.js_config": hints };
    await writeModelFiles(partial, { ...model, extra });
  });
}
