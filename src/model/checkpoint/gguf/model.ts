/** A GGUF file as a model: its `config.json`, its tensors by Hugging Face name, its vocabulary. */

import { FormatError, invariant } from "../../../base/errors.ts";
import { type HostArray, hostArray } from "../../../compute/tensor/host.ts";
import { type Shape, sizeOf } from "../../../compute/tensor/shape.ts";
import type { GgufVocabulary } from "../../text/gguf.ts";
import type { FloatSource } from "../float-source.ts";
import { headRow } from "../rotary-rows.ts";
import { architectureOf, ggufConfig } from "./config.ts";
import { dequantizeInto } from "./dequantize.ts";
import { Metadata } from "./metadata.ts";
import { FREQUENCY_FACTORS, type NamedRecipe, type Recipe, tensorRecipes } from "./names.ts";
import type { GgufFile, GgufTensorInfo } from "./reader.ts";
import { openSplitGguf } from "./split.ts";
import { type BlockLayout, type GgmlType, layoutOf } from "./types.ts";
import { readVocabulary } from "./vocabulary.ts";

/** A matrix as the file stores it. */
export interface QuantizedTensor {
  readonly type: GgmlType;
  readonly shape: Shape;
  /** Rows of blocks, row-major. */
  readonly blocks: Uint8Array<ArrayBuffer>;
}

export interface GgufModel extends FloatSource {
  /** As in a Hugging Face `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Absent when the file has no tokenizer. */
  readonly vocabulary?: GgufVocabulary;
  /** What the file says of itself, and its tensors as it stores them, by its own names. */
  readonly header: Pick<GgufFile, "version" | "metadata" | "tensors">;
  /** How a tensor is stored; undefined when it is put together from several. */
  typeOf(name: string): GgmlType | undefined;
  /**
   * The blocks of a tensor, in the order of {@link FloatSource.readF32}'s rows.
   * @param memory  where to, if it is large enough; what was there before is lost
   * @throws FormatError when there is no such tensor, or it is put together from several
   */
  readBlocks(name: string, memory?: ArrayBuffer): Promise<QuantizedTensor>;
  /**
   * A row of a matrix that the file stores as it is, in float32, at once.
   * @param into  as many elements as a row has
   */
  readRow(name: string, row: number, into: Float32Array): void;
}

/** Bytes of a file read at once. */
const WINDOW_BYTES = 2 ** 20;

/** Some blocks of a tensor, in pieces of at most a window. @param visit gets the bytes and the number of the first block */
async function eachPiece(
  file: GgufFile,
  name: string,
  layout: BlockLayout,
  range: { readonly first: number; readonly count: number },
  visit: (bytes: Uint8Array<ArrayBuffer>, block: number) => void,
): Promise<void> {
  const most = Math.max(1, Math.floor(WINDOW_BYTES / layout.bytes));
  const window = new Uint8Array(Math.min(most, range.count) * layout.bytes);
  for (let done = 0; done < range.count; done += most) {
    const count = Math.min(most, range.count - done);
    const piece = window.subarray(0, count * layout.bytes);
    await file.readInto(name, piece, (range.first + done) * layout.bytes);
    visit(piece, done);
  }
}

/**
 * Cuts a piece at the ends of rows.
 * @param visit gets the bytes, the row and the block within it that they start at
 */
function eachRowPart(
  piece: Uint8Array<ArrayBuffer>,
  firstBlock: number,
  blocksPerRow: number,
  blockBytes: number,
  visit: (bytes: Uint8Array<ArrayBuffer>, row: number, block: number) => void,
): void {
  for (let at = 0; at < piece.byteLength; ) {
    const block = firstBlock + at / blockBytes;
    const within = block % blocksPerRow;
    const bytes = Math.min((blocksPerRow - within) * blockBytes, piece.byteLength - at);
    visit(piece.subarray(at, at + bytes), (block - within) / blocksPerRow, within);
    at += bytes;
  }
}

/** The blocks of the file that a recipe other than `keysValues` takes. */
function blockRange(
  recipe: Recipe,
  shape: Shape,
  { block }: BlockLayout,
): { readonly first: number; readonly count: number } {
  const count = sizeOf(shape) / block;
  return { first: recipe.kind === "expert" ? recipe.index * count : 0, count };
}

class OpenGgufModel implements GgufModel {
  readonly file: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly vocabulary?: GgufVocabulary;
  readonly header: Pick<GgufFile, "version" | "metadata" | "tensors">;
  readonly shapes: ReadonlyMap<string, Shape>;
  readonly #gguf: GgufFile;
  readonly #recipes: ReadonlyMap<string, NamedRecipe>;

  constructor(
    gguf: GgufFile,
    config: Readonly<Record<string, unknown>>,
    vocabulary: GgufVocabulary | undefined,
    recipes: ReadonlyMap<string, NamedRecipe>,
  ) {
    this.file = gguf.file;
    this.config = config;
    if (vocabulary !== undefined) this.vocabulary = vocabulary;
    this.#gguf = gguf;
    this.header = gguf;
    this.#recipes = recipes;
    this.shapes = new Map([...recipes].map(([name, { shape }]) => [name, shape]));
  }

  #recipe(name: string): NamedRecipe {
    const found = this.#recipes.get(name);
    if (found !== undefined) return found;
    throw new FormatError({
      where: this.file,
      rule: `must hold the tensor ${JSON.stringify(name)}`,
      got: "no such tensor",
    });
  }

  #info(name: string): GgufTensorInfo {
    return this.#gguf.tensors.get(name)!;
  }

  typeOf(name: string): GgmlType | undefined {
    const { recipe } = this.#recipe(name);
    return recipe.kind === "keysValues" ? undefined : this.#info(recipe.from).type;
  }

  async readF32(name: string): Promise<HostArray<"f32">> {
    const { recipe, shape } = this.#recipe(name);
    const array = hostArray("f32", shape);
    if (recipe.kind === "keysValues") {
      await this.#readKeysValues(recipe.keys, recipe.values, array.data);
      return array;
    }
    const { type } = this.#info(recipe.from);
    const layout = layoutOf(type);
    const width = shape.at(-1)!;
    const rows = sizeOf(shape) / width;
    await eachPiece(this.#gguf, recipe.from, layout, blockRange(recipe, shape, layout), (piece, first) => {
      if (recipe.kind !== "heads") {
        dequantizeInto(type, piece, array.data, first * layout.block);
        return;
      }
      eachRowPart(piece, first, width / layout.block, layout.bytes, (bytes, row, block) => {
        const to = headRow(row, rows, recipe.heads) * width + block * layout.block;
        dequantizeInto(type, bytes, array.data, to);
      });
    });
    return array;
  }

  readRow(name: string, row: number, into: Float32Array): void {
    const { recipe, shape } = this.#recipe(name);
    const [rows, width] = shape as readonly [number, number];
    invariant(
      recipe.kind === "whole" && shape.length === 2 && into.length === width,
      `${name} is stored as it is, ${into.length} wide`,
    );
    invariant(row >= 0 && row < rows, `${name} has a row ${row}`);
    const { type } = this.#info(recipe.from);
    const { block, bytes } = layoutOf(type);
    const rowBytes = (width / block) * bytes;
    const stored = new Uint8Array(rowBytes);
    this.#gguf.readIntoSync(recipe.from, stored, row * rowBytes);
    dequantizeInto(type, stored, into);
  }

  async #readKeysValues(keys: string, values: string, y: Float32Array): Promise<void> {
    const [H, Rk, Dn] = this.#info(keys).shape as [number, number, number];
    const Dv = this.#info(values).shape[1]!;
    for (const [name, place] of [
      // [H, Rk, Dn] → [H, Dn, Rk], and after each head's keys its values, which lie as they should.
      [keys, (h: number, i: number) => h * (Dn + Dv) * Rk + (i % Dn) * Rk + Math.floor(i / Dn)],
      [values, (h: number, i: number) => (h * (Dn + Dv) + Dn) * Rk + i],
    ] as const) {
      const { type, shape } = this.#info(name);
      const layout = layoutOf(type);
      const perHead = sizeOf(shape) / H;
      const decoded = new Float32Array(Math.min(WINDOW_BYTES, sizeOf(shape)));
      const range = { first: 0, count: sizeOf(shape) / layout.block };
      await eachPiece(this.#gguf, name, layout, range, (piece, firstBlock) => {
        // Decoded a window at a time, too: a byte of blocks may be three elements.
        const step = Math.max(1, Math.floor(decoded.length / layout.block)) * layout.bytes;
        for (let at = 0; at < piece.byteLength; at += step) {
          const part = piece.subarray(at, at + step);
          const count = (part.byteLength / layout.bytes) * layout.block;
          const first = (firstBlock + at / layout.bytes) * layout.block;
          dequantizeInto(type, part, decoded);
          for (let i = 0; i < count; i++) {
            const element = first + i;
            y[place(Math.floor(element / perHead), element % perHead)] = decoded[i]!;
          }
        }
      });
    }
  }

  async readBlocks(name: string, memory?: ArrayBuffer): Promise<QuantizedTensor> {
    const { recipe, shape } = this.#recipe(name);
    if (recipe.kind === "keysValues") {
      throw new FormatError({
        where: `${this.file}: ${name}`,
        rule: "must be stored as one tensor for its blocks to be taken",
        got: `${recipe.keys} and ${recipe.values}`,
      });
    }
    const { type } = this.#info(recipe.from);
    const layout = layoutOf(type);
    const range = blockRange(recipe, shape, layout);
    const bytes = range.count * layout.bytes;
    const blocks =
      memory !== undefined && memory.byteLength >= bytes
        ? new Uint8Array(memory, 0, bytes)
        : new Uint8Array(bytes);
    if (recipe.kind !== "heads") {
      await this.#gguf.readInto(recipe.from, blocks, range.first * layout.bytes);
      return { type, shape, blocks };
    }
    const blocksPerRow = shape.at(-1)! / layout.block;
    const rows = range.count / blocksPerRow;
    await eachPiece(this.#gguf, recipe.from, layout, range, (piece, first) => {
      eachRowPart(piece, first, blocksPerRow, layout.bytes, (bytes, row, block) => {
        blocks.set(bytes, (headRow(row, rows, recipe.heads) * blocksPerRow + block) * layout.bytes);
      });
    });
    return { type, shape, blocks };
  }

  close(): Promise<void> {
    return this.#gguf.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

async function frequencyFactors(gguf: GgufFile): Promise<Float32Array | undefined> {
  const info = gguf.tensors.get(FREQUENCY_FACTORS);
  if (info === undefined) return undefined;
  if (info.type !== "F32" || info.shape.length !== 1 || info.bytes > WINDOW_BYTES) {
    throw new FormatError({
      where: `${gguf.file}: ${FREQUENCY_FACTORS}`,
      rule: "must be a short vector of F32",
      got: `${info.type}[${info.shape.join(",")}]`,
    });
  }
  const bytes = new Uint8Array(info.bytes);
  await gguf.readInto(FREQUENCY_FACTORS, bytes, 0);
  return new Float32Array(bytes.buffer);
}

/**
 * Opens a model, in one file or several; tensors are read when asked for.
 * @param file the first, where there are several
 * @throws FileError when the file cannot be read; FormatError naming what breaks the format, or has no counterpart in a
 *   Hugging Face model
 */
export async function openGgufModel(file: string): Promise<GgufModel> {
  const gguf = await openSplitGguf(file);
  try {
    const metadata = new Metadata(gguf);
    const architecture = architectureOf(metadata);
    const vocabulary = readVocabulary(metadata);
    const config = ggufConfig(metadata, {
      tensors: gguf.tensors,
      vocabulary,
      frequencyFactors: await frequencyFactors(gguf),
    });
    const recipes = tensorRecipes(file, architecture, gguf.tensors, {
      layers: config["num_hidden_layers"] as number,
      heads: config["num_attention_heads"] as number,
      kvHeads: config["num_key_value_heads"] as number,
    });
    return new OpenGgufModel(gguf, config, vocabulary, recipes);
  } catch (error) {
    await gguf.close();
    throw error;
  }
}
