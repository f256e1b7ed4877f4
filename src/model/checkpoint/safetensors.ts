/**
 * The safetensors format: eight bytes with the header's length, a JSON header naming each tensor's dtype, shape and byte
 * range, then the tensors' bytes, back to back and little-endian (as every host is that ONNX Runtime ships for).
 *
 * Reading trusts nothing: the header is checked whole before any tensor is read, every error names the file and the field,
 * and nothing larger than the file is ever allocated. Writing gives the bytes that the reference implementation gives.
 *
 * @source github.com/huggingface/safetensors README.md, "Format"; stricter than it in refusing fields it would skip and
 * dtypes that `DType` has no name for
 */

import { basename, dirname, join } from "node:path";
import { FormatError, invariant } from "../../base/errors.ts";
import { readJson, writeFileAtomic } from "../../base/files.ts";
import { jsonText } from "../../base/json.ts";
import { BYTES, type DType } from "../../compute/tensor/dtype.ts";
import { type Shape, sizeOf } from "../../compute/tensor/shape.ts";
import { openRanges, type RangeReader } from "./range-reader.ts";

/** What a file can hold: every host dtype, and two that the host has no arrays of: bfloat16 and 8-bit floats (E4M3). */
export type StoredDType = DType | "bf16" | "f8_e4m3";

/** What {@link writeSafetensors} takes: a `HostArray`, a {@link StoredTensor}, or anything of their form. */
export interface TensorBytes {
  readonly dtype: StoredDType;
  readonly shape: Shape;
  /** Row-major elements; only the bytes matter. */
  readonly data: ArrayBufferView;
}

/** A tensor as a file holds it. */
export interface StoredTensor extends TensorBytes {
  /** Little-endian bytes, in a buffer of their own that starts with them, so that any typed array can view it. */
  readonly data: Uint8Array<ArrayBuffer>;
}

/** What a header says of one tensor. */
export interface TensorInfo {
  readonly dtype: StoredDType;
  readonly shape: Shape;
  readonly bytes: number;
}

/** One or several open files whose tensors are read one at a time, by name. */
export interface TensorSource extends AsyncDisposable {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, string>>;
  /** @throws FormatError when there is no such tensor; FileError when the file cannot be read */
  read(name: string): Promise<StoredTensor>;
  /**
   * Fills `target` with a tensor's bytes, from its byte `start` on.
   * @throws FormatError when there is no such tensor; FileError when the file cannot be read
   */
  readInto(name: string, target: Uint8Array, start: number): Promise<void>;
  /**
   * A tensor's bytes where the system keeps those of the file: see {@link RangeReader.map}. They outlive the source.
   * @returns undefined where files cannot be mapped
   * @throws FormatError when there is no such tensor
   */
  map(name: string): Promise<Uint8Array<ArrayBuffer> | undefined>;
  close(): Promise<void>;
}

/** In the order the reference lays tensors out: widest first, so that each is aligned to its own width. */
const FILE_DTYPES: readonly { readonly dtype: StoredDType; readonly name: string; readonly bytes: number }[] =
  [
    { dtype: "i64", name: "I64", bytes: BYTES.i64 },
    { dtype: "f32", name: "F32", bytes: BYTES.f32 },
    { dtype: "i32", name: "I32", bytes: BYTES.i32 },
    { dtype: "bf16", name: "BF16", bytes: 2 },
    { dtype: "f16", name: "F16", bytes: BYTES.f16 },
    { dtype: "f8_e4m3", name: "F8_E4M3", bytes: 1 },
    { dtype: "i8", name: "I8", bytes: BYTES.i8 },
    { dtype: "u8", name: "U8", bytes: BYTES.u8 },
    { dtype: "bool", name: "BOOL", bytes: BYTES.bool },
  ];

const PREFIX_BYTES = 8;
// A longer header is taken for damage or an attack. Deepseek-V3's 91,000 tensors, were they in one file, would take 14 MB and
// 730,000 values; the reference allows 100 MB. So much makes objects of about 64 MB.
const MAX_HEADER_BYTES = 32 * 2 ** 20;
const MAX_VALUES = 3 * 2 ** 18;
/** Header, tensor, list: nothing legal nests deeper. */
const MAX_DEPTH = 3;
const METADATA = "__metadata__";
/** What JSON calls whitespace. */
const WHITESPACE = " \t\n\r";

interface Entry extends TensorInfo {
  /** Byte offset from the start of the file. */
  readonly start: number;
}

interface Header {
  readonly entries: ReadonlyMap<string, Entry>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** Text as an error shows it: short, whatever a damaged file holds. */
function brief(text: string): string {
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

function show(value: unknown): string {
  return value === undefined ? "nothing" : brief(JSON.stringify(value));
}

function parseJson(where: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FormatError({ where, rule: "must be JSON", got: brief(text), cause });
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** Index after the string that opens at `start`; the text's length when it never closes. */
function endOfString(text: string, start: number): number {
  let i = start + 1;
  while (i < text.length && text[i] !== '"') i += text[i] === "\\" ? 2 : 1;
  return i + 1;
}

/**
 * Refuses what `JSON.parse` lets pass: nesting of any depth, values without number, and a name given twice, of which it keeps the last. One pass,
 * before the text is known to be JSON; where it is not, `JSON.parse` will say so.
 */
function checkStructure(where: string, text: string): void {
  /** Names seen in each object that is open. */
  const open: Set<string>[] = [];
  let values = 0;
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if ((char === "{" || char === "[" || char === ",") && ++values > MAX_VALUES) {
      throw new FormatError({ where, rule: `must hold at most ${MAX_VALUES} values`, got: "more" });
    }
    if (char === "{" || char === "[") {
      if (open.push(new Set()) > MAX_DEPTH) {
        const got = `deeper at character ${i + 1}`;
        throw new FormatError({ where, rule: `must not nest deeper than ${MAX_DEPTH}`, got });
      }
    } else if (char === "}" || char === "]") {
      open.pop();
    } else if (char === '"') {
      const end = endOfString(text, i);
      let next = end;
      while (next < text.length && WHITESPACE.includes(text[next]!)) next++;
      if (text[next] === ":") {
        const name = parseJson(where, text.slice(i, end)) as string;
        if (open.at(-1)?.has(name)) {
          throw new FormatError({ where, rule: "a name must occur once", got: `${show(name)} twice` });
        }
        open.at(-1)?.add(name);
      }
      i = next - 1;
    }
  }
}

function parseMetadata(where: string, value: unknown): Record<string, string> {
  if (!isObject(value)) {
    throw new FormatError({ where, rule: "must be an object of strings", got: show(value) });
  }
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== "string") {
      throw new FormatError({ where: `${where}.${brief(key)}`, rule: "must be a string", got: show(text) });
    }
  }
  return value as Record<string, string>;
}

function parseEntry(where: string, value: unknown, dataStart: number, dataBytes: number): Entry {
  if (!isObject(value)) throw new FormatError({ where, rule: "must be an object", got: show(value) });
  const { dtype: dtypeName, shape, data_offsets: offsets, ...unknown } = value;
  const [extra] = Object.keys(unknown);
  if (extra !== undefined) {
    throw new FormatError({ where, rule: "must hold dtype, shape and data_offsets alone", got: show(extra) });
  }
  const dtype = FILE_DTYPES.find((known) => known.name === dtypeName);
  if (dtype === undefined) {
    const names = FILE_DTYPES.map((known) => known.name).join(", ");
    throw new FormatError({ where: `${where}.dtype`, rule: `must be one of ${names}`, got: show(dtypeName) });
  }
  if (!Array.isArray(shape) || !shape.every(isCount)) {
    throw new FormatError({
      where: `${where}.shape`,
      rule: "must be a list of whole numbers",
      got: show(shape),
    });
  }
  const bytes = sizeOf(shape) * dtype.bytes;
  if (!isCount(bytes)) {
    throw new FormatError({
      where: `${where}.shape`,
      rule: `must hold at most ${dataBytes} bytes of data`,
      got: show(shape),
    });
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw new FormatError({
      where: `${where}.data_offsets`,
      rule: "must be two whole numbers",
      got: show(offsets),
    });
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end || end > dataBytes) {
    throw new FormatError({
      where: `${where}.data_offsets`,
      rule: `must rise and stay within ${dataBytes} bytes of data`,
      got: show(offsets),
    });
  }
  if (end - begin !== bytes) {
    throw new FormatError({
      where: `${where}.data_offsets`,
      rule: `must span the ${bytes} bytes of ${dtype.name}${show(shape)}`,
      got: `${end - begin} bytes`,
    });
  }
  return { dtype: dtype.dtype, shape, bytes, start: dataStart + begin };
}

/** @throws FormatError unless the entries cover `dataStart` to `fileBytes` without gap or overlap */
function checkCoverage(
  file: string,
  entries: Map<string, Entry>,
  dataStart: number,
  fileBytes: number,
): void {
  const inOrder = [...entries].sort(([, a], [, b]) => a.start - b.start || a.bytes - b.bytes);
  let end = dataStart;
  for (const [name, entry] of inOrder) {
    if (entry.start !== end) {
      throw new FormatError({
        where: `${file}: ${brief(name)}.data_offsets`,
        rule: `must begin at ${end - dataStart}, where the tensor before ends: no gap, no overlap`,
        got: `${entry.start - dataStart}`,
      });
    }
    end += entry.bytes;
  }
  if (end !== fileBytes) {
    const last = inOrder.at(-1)?.[0];
    throw new FormatError({
      where: last === undefined ? `${file}: header` : `${file}: ${brief(last)}.data_offsets`,
      rule: `must have the data end where the file ends, at byte ${fileBytes}`,
      got: `byte ${end}`,
    });
  }
}

function parseHeader(file: string, bytes: Uint8Array, fileBytes: number): Header {
  const where = `${file}: header`;
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new FormatError({ where, rule: "must be UTF-8", got: "other bytes", cause });
  }
  if (!text.startsWith("{")) {
    throw new FormatError({ where, rule: 'must begin with "{"', got: show(text.slice(0, 1)) });
  }
  checkStructure(where, text);
  const parsed = parseJson(where, text) as Record<string, unknown>;
  const dataStart = PREFIX_BYTES + bytes.length;
  const entries = new Map<string, Entry>();
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(parsed)) {
    if (name === METADATA) metadata = parseMetadata(`${file}: ${METADATA}`, value);
    else entries.set(name, parseEntry(`${file}: ${brief(name)}`, value, dataStart, fileBytes - dataStart));
  }
  checkCoverage(file, entries, dataStart, fileBytes);
  return { entries, metadata };
}

async function readRange(
  reader: RangeReader,
  start: number,
  bytes: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const data = new Uint8Array(bytes);
  await reader.readInto(data, start);
  return data;
}

async function readHeader(reader: RangeReader): Promise<Header> {
  const { file, size } = reader;
  if (size < PREFIX_BYTES) {
    throw new FormatError({
      where: `${file}: header length`,
      rule: `must be the first ${PREFIX_BYTES} bytes of the file`,
      got: `${size} bytes`,
    });
  }
  const prefix = await readRange(reader, 0, PREFIX_BYTES);
  const length = new DataView(prefix.buffer).getBigUint64(0, true);
  const limit = Math.min(size - PREFIX_BYTES, MAX_HEADER_BYTES);
  if (length > limit) {
    throw new FormatError({
      where: `${file}: header length`,
      rule: `must be at most ${limit}`,
      got: `${length}`,
    });
  }
  return parseHeader(file, await readRange(reader, PREFIX_BYTES, Number(length)), size);
}

/**
 * Opens a file and checks its header; tensors are read when asked for.
 * @throws FileError when it cannot be read; FormatError naming the field that breaks the format
 */
export async function openSafetensors(file: string): Promise<TensorSource> {
  const reader = await openRanges(file);
  let header: Header;
  try {
    header = await readHeader(reader);
  } catch (error) {
    await reader.close();
    throw error;
  }
  const close = () => reader.close();
  const entryOf = (name: string): Entry => {
    const entry = header.entries.get(name);
    if (entry === undefined) throw missing(file, name);
    return entry;
  };
  return {
    tensors: header.entries,
    metadata: header.metadata,
    async read(name) {
      const { dtype, shape, start, bytes } = entryOf(name);
      return { dtype, shape, data: await readRange(reader, start, bytes) };
    },
    async readInto(name, target, start) {
      const entry = entryOf(name);
      invariant(start >= 0 && start + target.byteLength <= entry.bytes, "a range lies inside its tensor");
      await reader.readInto(target, entry.start + start);
    },
    async map(name) {
      const { start, bytes } = entryOf(name);
      const buffer = await reader.map();
      return buffer && new Uint8Array(buffer, start, bytes);
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

function missing(file: string, name: string): FormatError {
  return new FormatError({ where: file, rule: `must hold the tensor ${show(name)}`, got: "no such tensor" });
}

function parseWeightMap(indexFile: string, index: unknown): Map<string, string> {
  const where = `${indexFile}: weight_map`;
  const map = isObject(index) ? index["weight_map"] : undefined;
  if (!isObject(map)) {
    throw new FormatError({ where, rule: "must be an object of tensor names to file names", got: show(map) });
  }
  const files = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    // A shard lies beside its index: a path could name any file of this machine.
    if (typeof file !== "string" || /[/\\\0]/.test(file) || file === "." || file === "..") {
      throw new FormatError({
        where: `${where}.${brief(name)}`,
        rule: "must be a file name, without a folder",
        got: show(file),
      });
    }
    files.set(name, file);
  }
  return files;
}

/**
 * Opens the files that a `model.safetensors.index.json` names; the index and the files must agree on every tensor.
 * @throws FileError when a file cannot be read; FormatError when the index or a file breaks its format, or they disagree
 */
export async function openSharded(indexFile: string): Promise<TensorSource> {
  const weightMap = parseWeightMap(indexFile, await readJson(indexFile));
  const shards = new Map<string, TensorSource>();
  const close = async () => {
    await Promise.all([...shards.values()].map((shard) => shard.close()));
  };
  const tensors = new Map<string, TensorInfo>();
  const metadata: Record<string, string> = {};
  try {
    for (const shardName of new Set(weightMap.values())) {
      const file = join(dirname(indexFile), shardName);
      const shard = await openSafetensors(file);
      shards.set(shardName, shard);
      Object.assign(metadata, shard.metadata);
      for (const name of shard.tensors.keys()) {
        if (weightMap.get(name) !== shardName) {
          throw new FormatError({
            where: `${file}: ${brief(name)}`,
            rule: `must be where ${basename(indexFile)} says`,
            got: weightMap.has(name) ? `${weightMap.get(name)} there` : "no such tensor there",
          });
        }
      }
    }
    for (const [name, shardName] of weightMap) {
      const info = shards.get(shardName)?.tensors.get(name);
      if (info === undefined) throw missing(join(dirname(indexFile), shardName), name);
      tensors.set(name, info);
    }
  } catch (error) {
    await close();
    throw error;
  }
  const shardOf = (name: string): TensorSource => {
    const shard = shards.get(weightMap.get(name) ?? "");
    if (shard === undefined) throw missing(indexFile, name);
    return shard;
  };
  return {
    tensors,
    metadata,
    read: async (name) => await shardOf(name).read(name),
    readInto: async (name, target, start) => await shardOf(name).readInto(name, target, start),
    map: async (name) => await shardOf(name).map(name),
    close,
    [Symbol.asyncDispose]: close,
  };
}

/**
 * Every tensor of a file, in memory.
 * @throws FileError when it cannot be read; FormatError naming the field that breaks the format
 */
export async function readSafetensors(
  file: string,
): Promise<{ tensors: Map<string, StoredTensor>; metadata: Record<string, string> }> {
  const source = await openSafetensors(file);
  try {
    const tensors = new Map<string, StoredTensor>();
    for (const name of source.tensors.keys()) tensors.set(name, await source.read(name));
    return { tensors, metadata: { ...source.metadata } };
  } finally {
    await source.close();
  }
}

/** By code unit, as every machine does it: `localeCompare` would let the locale decide. */
const byName = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);

function encodeHeader(
  file: string,
  tensors: Readonly<Record<string, TensorBytes>>,
  metadata: Readonly<Record<string, string>>,
): { readonly header: Uint8Array; readonly order: readonly TensorBytes[] } {
  const laidOut = Object.entries(tensors)
    .map(([name, tensor]) => ({ name, tensor, rank: FILE_DTYPES.findIndex((d) => d.dtype === tensor.dtype) }))
    .sort((a, b) => a.rank - b.rank || byName(a.name, b.name));
  const fields: string[] = [];
  const keys = Object.keys(metadata).sort(byName);
  if (keys.length > 0) {
    const pairs = keys.map((key) => `${JSON.stringify(key)}:${JSON.stringify(metadata[key])}`);
    fields.push(`${JSON.stringify(METADATA)}:{${pairs.join(",")}}`);
  }
  let end = 0;
  for (const { name, tensor, rank } of laidOut) {
    const dtype = FILE_DTYPES[rank]!;
    const bytes = sizeOf(tensor.shape) * dtype.bytes;
    if (name === METADATA || bytes !== tensor.data.byteLength) {
      throw new FormatError({
        where: `${file}: ${name}`,
        rule:
          name === METADATA
            ? "is a name the format keeps for itself"
            : `${dtype.name}[${tensor.shape.join(",")}] takes ${bytes} bytes`,
        got: `${tensor.data.byteLength} bytes`,
      });
    }
    const info = { dtype: dtype.name, shape: tensor.shape, data_offsets: [end, end + bytes] };
    fields.push(`${JSON.stringify(name)}:${JSON.stringify(info)}`);
    end += bytes;
  }
  const json = Buffer.from(`{${fields.join(",")}}`, "utf8");
  const padded = Math.ceil(json.length / PREFIX_BYTES) * PREFIX_BYTES;
  const header = Buffer.alloc(PREFIX_BYTES + padded, " ");
  header.writeBigUInt64LE(BigInt(padded));
  json.copy(header, PREFIX_BYTES);
  return { header, order: laidOut.map((item) => item.tensor) };
}

/**
 * Writes a file whole or not at all. The bytes depend on names and values alone, not on the order of `tensors`: widest
 * dtype first, then by name, and the header padded so that the data starts at a multiple of eight.
 * @throws FormatError when a tensor's bytes do not fit its shape; FileError when the file cannot be written
 */
export async function writeSafetensors(
  file: string,
  tensors: Readonly<Record<string, TensorBytes>>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const { header, order } = encodeHeader(file, tensors, metadata);
  const data = order.map(
    (tensor) => new Uint8Array(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength),
  );
  await writeFileAtomic(file, [header, ...data]);
}

/**
 * Writes `model.safetensors` into a folder or, where it would be larger than `maxBytes`, `model-00001-of-0000N.safetensors` and
 * `model.safetensors.index.json`: tensors in the order given, each shard filled as far as it goes.
 * @throws as {@link writeSafetensors}
 */
export async function writeSharded(
  folder: string,
  tensors: Readonly<Record<string, TensorBytes>>,
  metadata: Readonly<Record<string, string>>,
  maxBytes: number,
): Promise<void> {
  const shards: { bytes: number; readonly tensors: Record<string, TensorBytes> }[] = [];
  for (const [name, tensor] of Object.entries(tensors)) {
    const last = shards.at(-1);
    const { byteLength } = tensor.data;
    if (last === undefined || last.bytes + byteLength > maxBytes) {
      shards.push({ bytes: byteLength, tensors: { [name]: tensor } });
    } else {
      last.bytes += byteLength;
      last.tensors[name] = tensor;
    }
  }
  if (shards.length <= 1) {
    await writeSafetensors(join(folder, "model.safetensors"), tensors, metadata);
    return;
  }
  const number = (i: number) => String(i).padStart(5, "0");
  const places: Record<string, string> = {};
  for (const [i, shard] of shards.entries()) {
    const file = `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
    await writeSafetensors(join(folder, file), shard.tensors, metadata);
    for (const name of Object.keys(shard.tensors)) places[name] = file;
  }
  const total_size = shards.reduce((sum, { bytes }) => sum + bytes, 0);
  const weight_map = Object.fromEntries(Object.entries(places).sort(([a], [b]) => byName(a, b)));
  const index = jsonText({ metadata: { total_size }, weight_map });
  await writeFileAtomic(join(folder, "model.safetensors.index.json"), index);
}
