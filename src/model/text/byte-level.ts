/**
 * The byte alphabet of GPT-2: each byte has a printable character, so that byte-pair vocabularies can be kept as text. Bytes
 * that print stand for themselves, the others for the characters from U+0100 on, in order.
 * @source github.com/openai/gpt-2, src/encoder.py, bytes_to_unicode
 */

const prints = (byte: number): boolean =>
  (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;

/** The character of each byte. */
export const BYTE_CHARACTERS: readonly string[] = (() => {
  let moved = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(prints(byte) ? byte : moved++));
})();

const BYTES = new Map(BYTE_CHARACTERS.map((character, byte) => [character.charCodeAt(0), byte]));

const encoder = new TextEncoder();

/** UTF-8; halves of surrogate pairs become U+FFFD, as they have no bytes. */
export const utf8 = (text: string): Uint8Array => encoder.encode(text);

/** Text from UTF-8; what is no UTF-8 becomes U+FFFD. A byte order mark is a character like others. */
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
export const fromUtf8 = (bytes: Uint8Array): string => decoder.decode(bytes);

const strict = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });

/** Bytes of the character that a byte begins; 1 where it begins none. */
const lengthOf = (byte: number): number => (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1);

/** Text from UTF-8; a byte that belongs to no whole character is written as `<0xE2>`. */
export function spellBytes(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; ) {
    const first = bytes[at]!;
    const end = at + lengthOf(first);
    try {
      text += strict.decode(bytes.subarray(at, end));
      at = end;
    } catch {
      text += `<0x${first.toString(16).toUpperCase().padStart(2, "0")}>`;
      at++;
    }
  }
  return text;
}

/** Bytes as their characters. */
export function toByteCharacters(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += BYTE_CHARACTERS[byte];
  return text;
}

/** The bytes of a token: of its characters, or its UTF-8 when one of them stands for no byte. */
export function fromByteCharacters(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTES.get(token.charCodeAt(i));
    if (byte === undefined) return utf8(token);
    bytes[i] = byte;
  }
  return bytes;
}

/** Several runs of bytes as one. */
export function concatBytes(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
