/**
 * The GGUF format, versions 2 and 3: a header, key/value metadata, tensor infos, then the tensors' blocks at aligned offsets,
 * all little-endian.
 *
 * Reading trusts nothing: every length is held against the bytes that are left before anything is allocated for it, the whole
 * header is checked before a tensor is read, and every error names the file, the field and what was expected there.
 *
 * @source github.com/ggml-org/ggml, docs/gguf.md. Stricter than it: names and keys occur once, arrays do not nest, tensors do
 *   not overlap, and only the element types of {@link GGML_TYPES} are known
 */

import { isUtf8 } from "node:buffer";
import { FormatError } from "../../../base/errors.ts";
import { type Shape, sizeOf } from "../../../compute/tensor/shape.ts";
import { concatBytes } from "../../text/byte-level.ts";
import { StringTable } from "../../text/strings.ts";
import { openRanges, type RangeReader } from "../range-reader.ts";
import { type GgmlType, ggmlTypeNames, ggmlTypeOf, layoutOf } from "./types.ts";

export type GgufArray =
  | StringTable
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array;

/** A metadata value. Whole numbers of 64 bits are bigint; booleans in arrays are 0 and 1. */
export type GgufValue = number | bigint | boolean | string | GgufArray;

export interface GgufTensorInfo {
  readonly type: GgmlType;
  /** Row-major, slowest axis first: the reverse of the order in the file. A row of blocks runs along the last axis. */
  readonly shape: Shape;
  readonly bytes: number;
}

/** An open file whose tensors are read when they are asked for. */
export interface GgufFile extends AsyncDisposable {
  readonly file: string;
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensorInfo>;
  /**
   * Fills `target` with a tensor's blocks, from its byte `start` on.
   * @throws FormatError when there is no such tensor; FileError when the file cannot be read
   */
  readInto(name: string, target: Uint8Array, start: number): Promise<void>;
  /** The same at once: for a few bytes. */
  readIntoSync(name: string, target: Uint8Array, start: number): void;
  close(): Promise<void>;
}

const MAGIC = 0x46554747;
const DEFAULT_ALIGNMENT = 32;
const ALIGNMENT_KEY = "general.alignment";

// Limits far above what models have (a vocabulary of 262,144 tokens takes about 15 MB), so that a damaged or hostile header
// cannot make more objects than its own bytes and some megabytes account for.
const MAX_HEADER_BYTES = 64 * 2 ** 20;
const MAX_STRINGS = 2 ** 21;
const MAX_KEYS = 2 ** 14;
const MAX_TENSORS = 2 ** 16;
const MAX_NAME_BYTES = 2 ** 16 - 1;
const MAX_DIMENSIONS = 4;
const MAX_ALIGNMENT = 2 ** 20;

const WINDOW_BYTES = 2 ** 18;

/** The metadata value types, by their numbers in the file. */
const VALUE_TYPES = [
  "uint8",
  "int8",
  "uint16",
  "int16",
  "uint32",
  "int32",
  "float32",
  "bool",
  "string",
  "array",
  "uint64",
  "int64",
  "float64",
] as const;
type ValueType = (typeof VALUE_TYPES)[number];
type NumberType = Exclude<ValueType, "string" | "array">;

const NUMBER_ARRAYS = {
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float32: Float32Array,
  bool: Uint8Array,
  uint64: BigUint64Array,
  int64: BigInt64Array,
  float64: Float64Array,
} as const satisfies Record<NumberType, unknown>;

/** Text as an error shows it: short, whatever a damaged file holds. */
const brief = (text: string): string => JSON.stringify(text.length > 60 ? `${text.slice(0, 57)}...` : text);

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Reads a header from front to back, a window at a time; every read is held against the end of the file. */
class Cursor {
  readonly #reader: RangeReader;
  readonly #limit: number;
  #window = new Uint8Array(0);
  #view = new DataView(this.#window.buffer);
  #windowStart = 0;
  #position = 0;
  #strings = 0;

  constructor(reader: RangeReader) {
    this.#reader = reader;
    this.#limit = Math.min(reader.size, MAX_HEADER_BYTES);
  }

  get position(): number {
    return this.#position;
  }

  get left(): number {
    return this.#limit - this.#position;
  }

  fail(field: string, rule: string, got: string): never {
    throw new FormatError({ where: `${this.#reader.file}: ${field}`, rule, got });
  }

  /** @throws FormatError when fewer bytes are left, in the file or of what a header may take */
  expectLeft(field: string, bytes: number | bigint): void {
    if (bytes <= this.left) return;
    const whole = this.#limit === this.#reader.size;
    const end = whole ? "end of the file" : `${MAX_HEADER_BYTES} bytes a header may take`;
    this.fail(field, `must lie before the ${end}, ${this.left} bytes on`, `${bytes} bytes`);
  }

  /** @returns where in the window the next bytes are, which then count as read */
  async #take(field: string, bytes: number): Promise<number> {
    this.expectLeft(field, bytes);
    if (this.#position + bytes > this.#windowStart + this.#window.byteLength) {
      const length = Math.min(Math.max(bytes, WINDOW_BYTES), this.#reader.size - this.#position);
      if (length !== this.#window.byteLength) {
        this.#window = new Uint8Array(length);
        this.#view = new DataView(this.#window.buffer);
      }
      await this.#reader.readInto(this.#window, this.#position);
      this.#windowStart = this.#position;
    }
    const at = this.#position - this.#windowStart;
    this.#position += bytes;
    return at;
  }

  async u32(field: string): Promise<number> {
    const at = await this.#take(field, 4);
    return this.#view.getUint32(at, true);
  }

  async u64(field: string): Promise<bigint> {
    const at = await this.#take(field, 8);
    return this.#view.getBigUint64(at, true);
  }

  /** A 64-bit count of things of at least `each` bytes, of which at most `most` are taken. */
  async count(field: string, each: number, most?: number): Promise<number> {
    const count = await this.u64(field);
    if (most !== undefined && count > most) this.fail(field, `must be at most ${most}`, `${count}`);
    this.expectLeft(field, count * BigInt(each));
    return Number(count);
  }

  /** The bytes of a string, in the window. */
  async #stringBytes(field: string, most: number): Promise<Uint8Array> {
    if (++this.#strings > MAX_STRINGS) {
      this.fail(field, `must be among the first ${MAX_STRINGS} strings`, "more");
    }
    const length = await this.count(`${field}, length`, 1, most);
    const at = await this.#take(field, length);
    const bytes = this.#window.subarray(at, at + length);
    if (!isUtf8(bytes)) this.fail(field, "must be UTF-8 text", `${length} other bytes`);
    return bytes;
  }

  async string(field: string, most = MAX_HEADER_BYTES): Promise<string> {
    return utf8.decode(await this.#stringBytes(field, most));
  }

  /** So many strings, those that lie whole in the window without waiting for each: a vocabulary has a hundred thousand. */
  async strings(field: string, count: number): Promise<StringTable> {
    const [starts, ends] = [new Uint32Array(count), new Uint32Array(count)];
    const pieces: Uint8Array[] = [];
    let size = 0;
    /** @returns where they will be */
    const keep = (more: Uint8Array): number => {
      pieces.push(more);
      size += more.length;
      return size - more.length;
    };
    for (let done = 0; done < count; done++) {
      const many = this.#windowStrings(starts.subarray(done), ends.subarray(done));
      const at = keep(many.bytes);
      for (let i = done; i < done + many.count; i++) {
        starts[i]! += at;
        ends[i]! += at;
      }
      done += many.count;
      if (done === count) break;
      const text = await this.#stringBytes(`${field}[${done}]`, MAX_HEADER_BYTES);
      starts[done] = keep(text.slice());
      ends[done] = size;
    }
    return new StringTable(concatBytes(pieces), starts, ends);
  }

  /**
   * Strings as long as they are sound and lie in the window; `#stringBytes` says what is wrong with others.
   * @param starts  takes where each begins in the bytes returned, and `ends` before where it ends: as many as there are
   */
  #windowStrings(
    starts: Uint32Array,
    ends: Uint32Array,
  ): { readonly count: number; readonly bytes: Uint8Array } {
    const first = this.#position - this.#windowStart;
    const end = Math.min(this.#window.byteLength, this.#limit - this.#windowStart);
    let at = first;
    let count = 0;
    while (count < starts.length && at + 8 <= end && this.#strings + count < MAX_STRINGS) {
      const start = at + 8;
      const length = this.#view.getUint32(at, true);
      if (this.#view.getUint32(at + 4, true) !== 0 || start + length > end) break;
      starts[count] = start - first;
      at = start + length;
      ends[count] = at - first;
      count++;
    }
    let bytes = this.#window.slice(first, at);
    // Zeros between them instead of lengths, which are no part of a character: all are sound if the whole is.
    for (let i = 0; i < count; i++) bytes.fill(0, starts[i]! - 8, starts[i]!);
    if (!isUtf8(bytes)) {
      count = 0;
      while (isUtf8(bytes.subarray(starts[count], ends[count]))) count++;
      bytes = bytes.subarray(0, count === 0 ? 0 : ends[count - 1]!);
    }
    this.#strings += count;
    this.#position += bytes.length;
    return { count, bytes };
  }

  async number(field: string, type: NumberType): Promise<number | bigint | boolean> {
    const at = await this.#take(field, NUMBER_ARRAYS[type].BYTES_PER_ELEMENT);
    const view = this.#view;
    switch (type) {
      case "uint8":
        return view.getUint8(at);
      case "int8":
        return view.getInt8(at);
      case "uint16":
        return view.getUint16(at, true);
      case "int16":
        return view.getInt16(at, true);
      case "uint32":
        return view.getUint32(at, true);
      case "int32":
        return view.getInt32(at, true);
      case "float32":
        return view.getFloat32(at, true);
      case "uint64":
        return view.getBigUint64(at, true);
      case "int64":
        return view.getBigInt64(at, true);
      case "float64":
        return view.getFloat64(at, true);
      case "bool": {
        const byte = view.getUint8(at);
        if (byte > 1) this.fail(field, "must be 0 or 1, for false or true", `${byte}`);
        return byte === 1;
      }
    }
  }

  async numbers(field: string, type: NumberType): Promise<GgufArray> {
    const Type = NUMBER_ARRAYS[type];
    const length = await this.count(`${field}, length`, Type.BYTES_PER_ELEMENT);
    const array = new Type(length);
    const bytes = new Uint8Array(array.buffer);
    for (let done = 0; done < bytes.length; ) {
      const part = Math.min(bytes.length - done, WINDOW_BYTES);
      const at = await this.#take(field, part);
      bytes.set(this.#window.subarray(at, at + part), done);
      done += part;
    }
    if (type === "bool" && bytes.some((byte) => byte > 1)) {
      this.fail(field, "must hold 0 or 1, for false or true", "another value");
    }
    return array;
  }

  async valueType(field: string): Promise<ValueType> {
    const id = await this.u32(field);
    return (
      VALUE_TYPES[id] ??
      this.fail(field, `must be the number of a value type, below ${VALUE_TYPES.length}`, `${id}`)
    );
  }

  async value(field: string): Promise<GgufValue> {
    const type = await this.valueType(`${field}, type`);
    if (type === "string") return await this.string(field);
    if (type !== "array") return await this.number(field, type);
    const element = await this.valueType(`${field}, type of its elements`);
    if (element === "array")
      this.fail(field, "must be an array of numbers, booleans or strings", "of arrays");
    if (element !== "string") return await this.numbers(field, element);
    // Each string takes eight bytes for its length.
    const length = await this.count(`${field}, length`, 8, MAX_STRINGS);
    return await this.strings(field, length);
  }
}

async function readVersion(cursor: Cursor): Promise<number> {
  const magic = await cursor.u32("magic");
  if (magic !== MAGIC) {
    cursor.fail("magic", 'must be the four bytes "GGUF"', `0x${magic.toString(16).padStart(8, "0")}`);
  }
  const version = await cursor.u32("version");
  if (version === 2 || version === 3) return version;
  const swapped = version === 0x02000000 || version === 0x03000000;
  cursor.fail(
    "version",
    "must be 2 or 3, little-endian",
    swapped ? "a big-endian file" : `version ${version}`,
  );
}

interface Entry extends GgufTensorInfo {
  readonly offset: number;
}

async function readTensorInfo(cursor: Cursor, name: string): Promise<Entry> {
  const field = `tensor ${brief(name)}`;
  const rank = await cursor.u32(`${field}, number of dimensions`);
  if (rank < 1 || rank > MAX_DIMENSIONS) {
    cursor.fail(`${field}, number of dimensions`, `must be from 1 to ${MAX_DIMENSIONS}`, `${rank}`);
  }
  const dimensions: bigint[] = [];
  for (let i = 0; i < rank; i++) dimensions.push(await cursor.u64(`${field}, dimension ${i}`));
  const typeId = await cursor.u32(`${field}, type`);
  const type = ggmlTypeOf(typeId);
  if (type === undefined) {
    cursor.fail(`${field}, type`, `must be one of ${ggmlTypeNames.join(", ")}`, `type ${typeId}`);
  }
  const elements = dimensions.reduce((product, size) => product * size, 1n);
  if (elements < 1n || elements > Number.MAX_SAFE_INTEGER) {
    cursor.fail(`${field}, dimensions`, "must be positive, their product below 2^53", `[${dimensions}]`);
  }
  const { block, bytes } = layoutOf(type);
  const shape = dimensions.map(Number).reverse();
  if (shape.at(-1)! % block !== 0) {
    cursor.fail(
      `${field}, dimension 0`,
      `must be a multiple of ${type}'s blocks of ${block}`,
      `${shape.at(-1)}`,
    );
  }
  const offset = await cursor.u64(`${field}, offset`);
  if (offset > Number.MAX_SAFE_INTEGER) cursor.fail(`${field}, offset`, "must be below 2^53", `${offset}`);
  return { type, shape, bytes: (sizeOf(shape) / block) * bytes, offset: Number(offset) };
}

function alignmentOf(cursor: Cursor, metadata: ReadonlyMap<string, GgufValue>): number {
  const value = metadata.get(ALIGNMENT_KEY) ?? DEFAULT_ALIGNMENT;
  if (
    typeof value === "number" &&
    value >= 1 &&
    value <= MAX_ALIGNMENT &&
    Number.isInteger(Math.log2(value))
  ) {
    return value;
  }
  cursor.fail(ALIGNMENT_KEY, `must be a power of two up to ${MAX_ALIGNMENT}`, brief(String(value)));
}

/** Tensors lie at multiples of the alignment, inside the file, and no two share a byte. */
function checkPlaces(
  cursor: Cursor,
  entries: ReadonlyMap<string, Entry>,
  alignment: number,
  dataBytes: number,
): void {
  const inOrder = [...entries].sort(([, a], [, b]) => a.offset - b.offset);
  let end = 0;
  let before = "";
  for (const [name, { offset, bytes }] of inOrder) {
    const field = `tensor ${brief(name)}, offset`;
    if (offset % alignment !== 0) {
      cursor.fail(field, `must be a multiple of the alignment ${alignment}`, `${offset}`);
    }
    if (offset < end) {
      cursor.fail(field, `must not be below ${end}, where tensor ${brief(before)} ends`, `${offset}`);
    }
    end = offset + bytes;
    if (end > dataBytes) {
      cursor.fail(
        field,
        `its ${bytes} bytes must lie inside the file's ${Math.max(dataBytes, 0)} bytes of data`,
        `offset ${offset}`,
      );
    }
    before = name;
  }
}

interface Header {
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly entries: ReadonlyMap<string, Entry>;
  /** Byte of the file from which offsets count. */
  readonly dataStart: number;
}

async function readHeader(reader: RangeReader): Promise<Header> {
  const cursor = new Cursor(reader);
  const version = await readVersion(cursor);
  // The smallest tensor info: a name's length, a rank, a dimension, a type, an offset. The smallest pair: a key's length, a
  // type, a value.
  const tensorCount = await cursor.count("number of tensors", 32, MAX_TENSORS);
  const keyCount = await cursor.count("number of metadata keys", 13, MAX_KEYS);
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < keyCount; i++) {
    const key = await cursor.string(`metadata key ${i}`, MAX_NAME_BYTES);
    if (metadata.has(key)) cursor.fail(`metadata key ${i}`, "must occur once", `${brief(key)} twice`);
    metadata.set(key, await cursor.value(`metadata ${brief(key)}`));
  }
  const entries = new Map<string, Entry>();
  for (let i = 0; i < tensorCount; i++) {
    const name = await cursor.string(`name of tensor ${i}`, MAX_NAME_BYTES);
    if (entries.has(name)) cursor.fail(`name of tensor ${i}`, "must occur once", `${brief(name)} twice`);
    entries.set(name, await readTensorInfo(cursor, name));
  }
  const alignment = alignmentOf(cursor, metadata);
  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  checkPlaces(cursor, entries, alignment, reader.size - dataStart);
  return { version, metadata, entries, dataStart };
}

/**
 * Opens a file and checks its header; tensors are read when asked for.
 * @throws FileError when it cannot be read; FormatError naming the field that breaks the format
 */
export async function openGguf(file: string): Promise<GgufFile> {
  const reader = await openRanges(file);
  let header: Header;
  try {
    header = await readHeader(reader);
  } catch (error) {
    await reader.close();
    throw error;
  }
  const { version, metadata, entries, dataStart } = header;
  const close = () => reader.close();
  /** Where in the file bytes of a tensor are. */
  const placeOf = (name: string, start: number, bytes: number): number => {
    const entry = entries.get(name);
    if (entry === undefined || start < 0 || start + bytes > entry.bytes) {
      throw new FormatError({
        where: `${file}: tensor ${brief(name)}`,
        rule: `must hold the bytes ${start} to ${start + bytes}`,
        got: entry === undefined ? "no such tensor" : `${entry.bytes} bytes`,
      });
    }
    return dataStart + entry.offset + start;
  };
  return {
    file,
    version,
    metadata,
    tensors: entries,
    readInto: async (name, target, start) => reader.readInto(target, placeOf(name, start, target.byteLength)),
    readIntoSync: (name, target, start) =>
      reader.readIntoSync(target, placeOf(name, start, target.byteLength)),
    close,
    [Symbol.asyncDispose]: close,
  };
}
