/** Writes GGUF files, version 3. What is written reads back through `reader.ts` and through gguf-py. */

import { invariant } from "../../../base/errors.ts";
import { writeFileAtomic } from "../../../base/files.ts";
import type { Shape } from "../../../compute/tensor/shape.ts";
import { sizeOf } from "../../../compute/tensor/shape.ts";
import { GGML_TYPES, type GgmlType } from "./types.ts";

/** A metadata value and how it is stored. */
export type WritableValue =
  | readonly ["uint32", number]
  | readonly ["float32", number]
  | readonly ["bool", boolean]
  | readonly ["string", string]
  | readonly ["strings", readonly string[]]
  | readonly ["float32s", Float32Array]
  | readonly ["int32s", Int32Array];

export interface WritableTensor {
  readonly type: GgmlType;
  /** Row-major, slowest axis first. */
  readonly shape: Shape;
  /** Makes the blocks when it is their turn, in one piece or several, so that one tensor at a time is in memory. */
  readonly blocks: () => Iterable<Uint8Array>;
}

const ALIGNMENT = 32;
/** Numbers of value types. */
const TYPE = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;

/** Little-endian bytes, appended. */
class Bytes {
  readonly parts: Uint8Array[] = [];
  length = 0;

  raw(bytes: Uint8Array): this {
    this.parts.push(bytes);
    this.length += bytes.byteLength;
    return this;
  }

  u8(value: number): this {
    return this.raw(Uint8Array.of(value));
  }

  u32(value: number): this {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value, true);
    return this.raw(bytes);
  }

  u64(value: number): this {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
    return this.raw(bytes);
  }

  string(text: string): this {
    const bytes = Buffer.from(text, "utf8");
    return this.u64(bytes.byteLength).raw(bytes);
  }

  value(value: WritableValue): this {
    switch (value[0]) {
      case "uint32":
        return this.u32(TYPE.uint32).u32(value[1]);
      case "float32":
        return this.u32(TYPE.float32).raw(new Uint8Array(Float32Array.of(value[1]).buffer));
      case "bool":
        return this.u32(TYPE.bool).u8(value[1] ? 1 : 0);
      case "string":
        return this.u32(TYPE.string).string(value[1]);
      case "strings":
        this.u32(TYPE.array).u32(TYPE.string).u64(value[1].length);
        for (const text of value[1]) this.string(text);
        return this;
      case "float32s":
      case "int32s": {
        const [kind, array] = value;
        const element = kind === "float32s" ? TYPE.float32 : TYPE.int32;
        this.u32(TYPE.array).u32(element).u64(array.length);
        return this.raw(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
      }
    }
  }

  pad(): this {
    return this.raw(new Uint8Array(padding(this.length)));
  }
}

const padding = (length: number): number => (ALIGNMENT - (length % ALIGNMENT)) % ALIGNMENT;

function bytesOf({ type, shape }: WritableTensor): number {
  const { block, bytes } = GGML_TYPES[type];
  invariant(shape.length > 0 && shape.at(-1)! % block === 0, "rows are whole blocks");
  return (sizeOf(shape) / block) * bytes;
}

/**
 * Writes a file whole or not at all.
 * @throws FileError when it cannot be written; whatever a tensor's `blocks` throws
 */
export async function writeGguf(
  file: string,
  metadata: ReadonlyMap<string, WritableValue>,
  tensors: ReadonlyMap<string, WritableTensor>,
): Promise<void> {
  const header = new Bytes().raw(Buffer.from("GGUF")).u32(3).u64(tensors.size).u64(metadata.size);
  for (const [key, value] of metadata) header.string(key).value(value);
  let offset = 0;
  for (const [name, tensor] of tensors) {
    header.string(name).u32(tensor.shape.length);
    for (const size of [...tensor.shape].reverse()) header.u64(size);
    header.u32(GGML_TYPES[tensor.type].id).u64(offset);
    offset += bytesOf(tensor);
    offset += padding(offset);
  }
  header.pad();
  function* parts(): Generator<Uint8Array> {
    yield* header.parts;
    for (const tensor of tensors.values()) {
      let bytes = 0;
      for (const blocks of tensor.blocks()) {
        bytes += blocks.byteLength;
        yield blocks;
      }
      invariant(bytes === bytesOf(tensor), "blocks fill their tensor");
      yield new Uint8Array(padding(bytes));
    }
  }
  await writeFileAtomic(file, parts());
}
