/**
 * Safetensors as float32 weights. Blocks of 8-bit floats, as DeepSeek-V3 and R1 are published, are scaled on the way: beside a
 * matrix `x.weight` of F8_E4M3 lies `x.weight_scale_inv`, one factor for each block of 128 × 128, the last of a row or column
 * smaller.
 *
 * @source github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md, "FP8 Weight Documentation"
 */

import { FormatError } from "../../base/errors.ts";
import { type HostArray, hostArray } from "../../compute/tensor/host.ts";
import { type Shape, sameShape } from "../../compute/tensor/shape.ts";
import type { FloatSource } from "./float-source.ts";
import type { TensorInfo, TensorSource } from "./safetensors.ts";
import { expectFloat, FLOAT_BYTES, toF32, widenInto } from "./widen.ts";

/** Rows and columns of a block that shares a scale. */
export const SCALE_BLOCK = 128;
const SCALE_SUFFIX = "_scale_inv";

/** Bytes of a file read at once; a multiple of every element's width. */
const WINDOW_BYTES = 2 ** 20;

/** Tensors smaller than this are not worth pages of their own. */
const MAPPED_BYTES = 2 ** 16;

/** Multiplies each 128 × 128 block of `y` [R, C] by its scale, f32[⌈R/128⌉, ⌈C/128⌉]. */
function scaleBlocks(y: Float32Array, [R, C]: readonly [number, number], scales: Float32Array): void {
  const perRow = Math.ceil(C / SCALE_BLOCK);
  for (let r = 0, at = 0; r < R; r++) {
    const first = Math.floor(r / SCALE_BLOCK) * perRow;
    for (let c = 0; c < C; c++, at++) y[at]! *= scales[first + Math.floor(c / SCALE_BLOCK)]!;
  }
}

class SafetensorsFloats implements FloatSource {
  readonly file: string;
  readonly shapes: ReadonlyMap<string, Shape>;
  readonly #source: TensorSource;

  constructor(file: string, source: TensorSource) {
    this.file = file;
    this.#source = source;
    const isScale = (name: string) =>
      name.endsWith(SCALE_SUFFIX) &&
      source.tensors.get(name.slice(0, -SCALE_SUFFIX.length))?.dtype === "f8_e4m3";
    this.shapes = new Map(
      [...source.tensors].filter(([name]) => !isScale(name)).map(([name, { shape }]) => [name, shape]),
    );
  }

  async readF32(name: string): Promise<HostArray<"f32">> {
    const info = this.#source.tensors.get(name);
    if (info === undefined || !this.shapes.has(name)) {
      throw new FormatError({
        where: this.file,
        rule: `must hold the tensor ${JSON.stringify(name)}`,
        got: "no such tensor",
      });
    }
    const dtype = expectFloat(info.dtype, `${this.file}: ${name}`);
    const scales = dtype === "f8_e4m3" ? await this.#scalesOf(name, info) : undefined;
    const mapped = dtype === "f32" && info.bytes >= MAPPED_BYTES ? await this.#source.map(name) : undefined;
    // After a header of any length numbers may lie across the boundaries that arrays need.
    if (mapped !== undefined && mapped.byteOffset % FLOAT_BYTES.f32 === 0) {
      const { buffer, byteOffset, byteLength } = mapped;
      return hostArray("f32", info.shape, new Float32Array(buffer, byteOffset, byteLength / FLOAT_BYTES.f32));
    }
    const array = hostArray("f32", info.shape);
    if (dtype === "f32") {
      await this.#source.readInto(name, new Uint8Array(array.data.buffer), 0);
      return array;
    }
    const width = FLOAT_BYTES[dtype];
    const window = new Uint8Array(Math.min(WINDOW_BYTES, info.bytes));
    for (let start = 0; start < info.bytes; start += WINDOW_BYTES) {
      const piece = window.subarray(0, Math.min(WINDOW_BYTES, info.bytes - start));
      await this.#source.readInto(name, piece, start);
      widenInto(dtype, piece, array.data.subarray(start / width, (start + piece.byteLength) / width));
    }
    if (scales !== undefined) scaleBlocks(array.data, info.shape as readonly [number, number], scales);
    return array;
  }

  /** @throws FormatError when the scales are missing or of another shape */
  async #scalesOf(name: string, { shape }: TensorInfo): Promise<Float32Array> {
    const scaleName = `${name}${SCALE_SUFFIX}`;
    const where = `${this.file}: ${scaleName}`;
    if (shape.length !== 2) {
      throw new FormatError({
        where: `${this.file}: ${name}`,
        rule: "must be a matrix, to have a scale for each block",
        got: `[${shape.join(",")}]`,
      });
    }
    const expected = shape.map((size) => Math.ceil(size / SCALE_BLOCK));
    const found = this.#source.tensors.get(scaleName)?.shape;
    if (found === undefined || !sameShape(found, expected)) {
      throw new FormatError({
        where,
        rule: `must have the shape [${expected.join(",")}], a scale for each ${SCALE_BLOCK} × ${SCALE_BLOCK} block of ${name}`,
        got: found === undefined ? "no such tensor" : `[${found.join(",")}]`,
      });
    }
    return toF32(await this.#source.read(scaleName), where).data;
  }

  close(): Promise<void> {
    return this.#source.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** The floats of open files, which {@link FloatSource.close} then closes. @param file what to name in errors */
export function safetensorsFloats(file: string, source: TensorSource): FloatSource {
  return new SafetensorsFloats(file, source);
}
