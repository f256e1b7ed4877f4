/** Where the fields of a GGUF header lie: a second, trusting reader, so that a test can make any one of them wrong. */

/** What a number of the header says. */
export type GgufFieldKind = "count" | "length" | "type" | "rank" | "dimension" | "offset";

export interface GgufField {
  readonly kind: GgufFieldKind;
  /** Byte of the file. */
  readonly at: number;
  readonly bytes: 4 | 8;
}

export interface GgufFields {
  readonly fields: readonly GgufField[];
  /** Where metadata, tensor infos and their end lie. */
  readonly boundaries: readonly number[];
}

const [STRING, ARRAY] = [8, 9];
/** Bytes of each type of value, by its number; of strings and arrays, which say themselves, none. */
const VALUE_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];

/** @param whole a sound file */
export function ggufFields(whole: Buffer): GgufFields {
  const fields: GgufField[] = [];
  // After the magic and the version.
  let at = 8;
  const number = (kind: GgufFieldKind, bytes: 4 | 8): number => {
    fields.push({ kind, at, bytes });
    const value = bytes === 4 ? whole.readUInt32LE(at) : Number(whole.readBigUInt64LE(at));
    at += bytes;
    return value;
  };
  const string = (): void => {
    const length = number("length", 8);
    at += length;
  };
  const value = (type: number): void => {
    if (type === STRING) {
      string();
      return;
    }
    if (type !== ARRAY) {
      at += VALUE_BYTES[type]!;
      return;
    }
    const element = number("type", 4);
    const length = number("length", 8);
    if (element !== STRING) at += length * VALUE_BYTES[element]!;
    else for (let i = 0; i < length; i++) string();
  };
  const [tensors, keys] = [number("count", 8), number("count", 8)];
  const boundaries = [at];
  for (let i = 0; i < keys; i++) {
    string();
    value(number("type", 4));
  }
  boundaries.push(at);
  for (let i = 0; i < tensors; i++) {
    string();
    const rank = number("rank", 4);
    for (let d = 0; d < rank; d++) number("dimension", 8);
    number("type", 4);
    number("offset", 8);
  }
  boundaries.push(at);
  return { fields, boundaries };
}
