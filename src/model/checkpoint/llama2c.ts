/**
 * Models and tokenizers in the first format of llama2.c: seven numbers, then float32 tensors in a fixed order, every layer's
 * share of a tensor after another.
 *
 * @source github.com/karpathy/llama2.c, export.py (legacy_export), tokenizer.py (export), run.c (read_checkpoint)
 */

import { FormatError } from "../../base/errors.ts";
import { hostArray } from "../../compute/tensor/host.ts";
import { type Shape, sizeOf } from "../../compute/tensor/shape.ts";
import { type GgufVocabulary, TOKEN_TYPES } from "../text/gguf.ts";
import type { FloatSource } from "./float-source.ts";
import { openRanges, type RangeReader } from "./range-reader.ts";
import { headRow } from "./rotary-rows.ts";

export interface Llama2cModel extends FloatSource {
  /** As in a Hugging Face `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
}

const HEADER_BYTES = 28;
/** Above any model's, so that products of two stay exact. */
const MAX_SIZE = 2 ** 24;

interface Entry {
  readonly shape: Shape;
  /** Byte of the file. */
  readonly start: number;
  /** Heads whose rotary pairs the file has side by side. */
  readonly heads?: number;
}

interface Sizes {
  readonly width: number;
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly vocabulary: number;
  readonly positions: number;
  /** The head is the embedding. */
  readonly shared: boolean;
}

function readSizes(file: string, header: DataView): Sizes {
  const names = ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"] as const;
  const [width, hidden, layers, heads, kvHeads, signed, positions] = names.map((name, i) => {
    const value = header.getInt32(4 * i, true);
    // A negative vocabulary says that the head is not the embedding.
    const size = name === "vocab_size" ? Math.abs(value) : value;
    if (size < 1 || size > MAX_SIZE) {
      throw new FormatError({
        where: `${file}: ${name}`,
        rule: `must be from 1 to ${MAX_SIZE}`,
        got: `${value}`,
        remedy: "Only the first format of llama2.c is read (export.py --version 0)",
      });
    }
    return value;
  }) as [number, number, number, number, number, number, number];
  if (width % (2 * heads) !== 0 || heads % kvHeads !== 0) {
    throw new FormatError({
      where: `${file}: n_heads`,
      rule: "must divide dim into even heads, and be a multiple of n_kv_heads",
      got: `${heads} heads for dim ${width} and ${kvHeads} key heads`,
    });
  }
  return {
    width,
    hidden,
    layers,
    heads,
    kvHeads,
    vocabulary: Math.abs(signed),
    positions,
    shared: signed > 0,
  };
}

/** Where each tensor lies, by Hugging Face name, and where the last ends. */
function layOut(sizes: Sizes): { readonly entries: Map<string, Entry>; readonly end: number } {
  const { width: C, hidden: F, layers, heads, kvHeads, vocabulary: V } = sizes;
  const D = C / heads;
  const entries = new Map<string, Entry>();
  let end = HEADER_BYTES;
  const put = (name: string, shape: Shape, pairs?: number): void => {
    entries.set(name, { shape, start: end, ...(pairs === undefined ? {} : { heads: pairs }) });
    end += 4 * sizeOf(shape);
  };
  const each = (name: string, shape: Shape, pairs?: number): void => {
    for (let layer = 0; layer < layers; layer++) put(`model.layers.${layer}.${name}.weight`, shape, pairs);
  };
  put("model.embed_tokens.weight", [V, C]);
  each("input_layernorm", [C]);
  each("self_attn.q_proj", [heads * D, C], heads);
  each("self_attn.k_proj", [kvHeads * D, C], kvHeads);
  each("self_attn.v_proj", [kvHeads * D, C]);
  each("self_attn.o_proj", [C, heads * D]);
  each("post_attention_layernorm", [C]);
  each("mlp.gate_proj", [F, C]);
  each("mlp.down_proj", [C, F]);
  each("mlp.up_proj", [F, C]);
  put("model.norm.weight", [C]);
  // Tables of the rotary embedding, which follow from the sizes: a cosine and a sine for each position and pair.
  end += 4 * sizes.positions * D;
  if (!sizes.shared) put("lm_head.weight", [V, C]);
  return { entries, end };
}

function configOf(sizes: Sizes): Record<string, unknown> {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: sizes.vocabulary,
    hidden_size: sizes.width,
    intermediate_size: sizes.hidden,
    num_hidden_layers: sizes.layers,
    num_attention_heads: sizes.heads,
    num_key_value_heads: sizes.kvHeads,
    head_dim: sizes.width / sizes.heads,
    hidden_act: "silu",
    max_position_embeddings: sizes.positions,
    // Constants of llama2.c's model.py.
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    tie_word_embeddings: sizes.shared,
    bos_token_id: BOS,
    // Texts lie between begin tokens in training, so that the next one ends a text.
    eos_token_id: [BOS, EOS],
  };
}

async function openModel(reader: RangeReader): Promise<Llama2cModel> {
  const { file, size } = reader;
  if (size < HEADER_BYTES) {
    throw new FormatError({
      where: file,
      rule: `must begin with ${HEADER_BYTES} bytes of sizes`,
      got: `${size} bytes`,
    });
  }
  const header = new Uint8Array(HEADER_BYTES);
  await reader.readInto(header, 0);
  const sizes = readSizes(file, new DataView(header.buffer));
  const { layers, width } = sizes;
  // Two norms a layer. Asked first, so that a damaged number of layers is not laid out.
  const least = 8 * layers * width;
  const { entries, end } = size < least ? { entries: new Map<string, Entry>(), end: least } : layOut(sizes);
  if (end !== size) {
    const bytes = size < least ? `more than ${least}` : `${end}`;
    throw new FormatError({
      where: file,
      rule: `must have the ${bytes} bytes that its sizes ask for`,
      got: `${size}`,
    });
  }
  const close = () => reader.close();
  return {
    file,
    config: configOf(sizes),
    shapes: new Map([...entries].map(([name, { shape }]) => [name, shape])),
    async readF32(name) {
      const entry = entries.get(name);
      if (entry === undefined) {
        throw new FormatError({
          where: file,
          rule: `must hold the tensor ${JSON.stringify(name)}`,
          got: "no such tensor",
        });
      }
      const array = hostArray("f32", entry.shape);
      const bytes = new Uint8Array(array.data.buffer);
      if (entry.heads === undefined) {
        await reader.readInto(bytes, entry.start);
        return array;
      }
      const [rows, width] = entry.shape as readonly [number, number];
      for (let row = 0; row < rows; row++) {
        const to = 4 * width * headRow(row, rows, entry.heads);
        await reader.readInto(bytes.subarray(to, to + 4 * width), entry.start + 4 * width * row);
      }
      return array;
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

/**
 * Opens a model (`stories260K.bin`); tensors are read when asked for.
 * @throws FileError when it cannot be read; FormatError when its sizes and its length do not fit
 */
export async function openLlama2c(file: string): Promise<Llama2cModel> {
  const reader = await openRanges(file);
  try {
    return await openModel(reader);
  } catch (error) {
    await reader.close();
    throw error;
  }
}

const UNKNOWN = 0;
const BOS = 1;
const EOS = 2;
const FIRST_BYTE = 3;
const BYTES = 256;
/** Longest token; the longest of published vocabularies has 48 bytes. */
const MAX_TOKEN_BYTES = 1024;
const MAX_TOKENIZER_BYTES = 2 ** 26;

/**
 * Reads a tokenizer (`tok512.bin`): the longest token's length, then each token's score, length and bytes. Special and byte
 * tokens are where every SentencePiece vocabulary of llama has them.
 * @param vocabularySize the model's, which says how many tokens there are
 * @throws FileError when it cannot be read; FormatError when it ends early or late, or a token breaks the format
 */
export async function readLlama2cTokenizer(file: string, vocabularySize: number): Promise<GgufVocabulary> {
  const reader = await openRanges(file);
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    if (reader.size > MAX_TOKENIZER_BYTES || reader.size < 4) {
      throw new FormatError({
        where: file,
        rule: `must have 4 to ${MAX_TOKENIZER_BYTES} bytes`,
        got: `${reader.size}`,
      });
    }
    bytes = new Uint8Array(reader.size);
    await reader.readInto(bytes, 0);
  } finally {
    await reader.close();
  }
  const fail = (id: number, rule: string, got: string): never => {
    throw new FormatError({ where: `${file}: token ${id}`, rule, got });
  };
  const view = new DataView(bytes.buffer);
  const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const tokens: string[] = [];
  const scores: number[] = [];
  let at = 4;
  for (let id = 0; id < vocabularySize; id++) {
    if (at + 8 > bytes.length)
      fail(id, `must be there: the model has ${vocabularySize} tokens`, "the end of the file");
    const score = view.getFloat32(at, true);
    const length = view.getInt32(at + 4, true);
    if (!Number.isFinite(score)) fail(id, "must have a finite score", `${score}`);
    if (length < 1 || length > MAX_TOKEN_BYTES || at + 8 + length > bytes.length) {
      fail(id, `must have from 1 to ${MAX_TOKEN_BYTES} bytes, before the end of the file`, `${length}`);
    }
    try {
      tokens.push(utf8.decode(bytes.subarray(at + 8, at + 8 + length)));
    } catch {
      fail(id, "must be UTF-8 text", "other bytes");
    }
    scores.push(score);
    at += 8 + length;
  }
  if (at !== bytes.length) {
    throw new FormatError({
      where: file,
      rule: `must end after ${vocabularySize} tokens`,
      got: `${bytes.length - at} bytes more`,
    });
  }
  const byteToken = (id: number) => `<0x${(id - FIRST_BYTE).toString(16).toUpperCase().padStart(2, "0")}>`;
  for (let id = FIRST_BYTE; id < Math.min(FIRST_BYTE + BYTES, vocabularySize); id++) {
    if (tokens[id] !== byteToken(id)) fail(id, `must be ${byteToken(id)}`, JSON.stringify(tokens[id]));
  }
  if (vocabularySize < FIRST_BYTE + BYTES)
    fail(vocabularySize - 1, "must come after all bytes", "too few tokens");
  const special = ["<unk>", "<s>", "</s>"];
  return {
    model: "llama",
    // llama2.c has spaces in place of SentencePiece's ▁, and breaks around the marks of begin and end.
    tokens: tokens.map(
      (token, id) => special[id] ?? (id < FIRST_BYTE + BYTES ? token : token.replaceAll(" ", "▁")),
    ),
    scores: Float32Array.from(scores),
    tokenTypes: Int32Array.from({ length: vocabularySize }, (_, id) => {
      if (id === UNKNOWN) return TOKEN_TYPES.unknown;
      if (id < FIRST_BYTE) return TOKEN_TYPES.control;
      return id < FIRST_BYTE + BYTES ? TOKEN_TYPES.byte : TOKEN_TYPES.normal;
    }),
    bosId: BOS,
    eosId: EOS,
    unknownId: UNKNOWN,
    addBos: true,
    addSpacePrefix: true,
  };
}
