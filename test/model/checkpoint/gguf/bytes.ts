/** GGUF files put together field by field, so that a test can make one field wrong. */
export class GgufBytes {
  #bytes: number[] = [];

  u8(value: number): this {
    this.#bytes.push(value);
    return this;
  }

  u32(value: number): this {
    for (let i = 0; i < 4; i++) this.#bytes.push((value >>> (8 * i)) & 255);
    return this;
  }

  u64(value: bigint): this {
    for (let i = 0n; i < 8n; i++) this.#bytes.push(Number((value >> (8n * i)) & 255n));
    return this;
  }

  f32(...values: number[]): this {
    this.#bytes.push(...new Uint8Array(Float32Array.from(values).buffer));
    return this;
  }

  text(value: string): this {
    for (const byte of Buffer.from(value, "utf8")) this.#bytes.push(byte);
    return this;
  }

  string(value: string): this {
    return this.u64(BigInt(Buffer.byteLength(value))).text(value);
  }

  start(counts: {
    readonly version?: number;
    readonly tensors?: number | bigint;
    readonly keys?: number | bigint;
  }): this {
    this.text("GGUF").u32(counts.version ?? 3);
    return this.u64(BigInt(counts.tensors ?? 0)).u64(BigInt(counts.keys ?? 0));
  }

  /** A key and the number of its value's type; the value follows. */
  key(name: string, type: number): this {
    return this.string(name).u32(type);
  }

  /** @param dimensions in the file's order, fastest first */
  tensor(
    name: string,
    dimensions: readonly (number | bigint)[],
    type: number,
    offset: number | bigint,
  ): this {
    this.string(name).u32(dimensions.length);
    for (const size of dimensions) this.u64(BigInt(size));
    return this.u32(type).u64(BigInt(offset));
  }

  align(to: number): this {
    while (this.#bytes.length % to !== 0) this.#bytes.push(0);
    return this;
  }

  done(): Uint8Array {
    return Uint8Array.from(this.#bytes);
  }
}
