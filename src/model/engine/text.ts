/** Generation as text: a prompt in, pieces of its completions out as they are written. */

import { TextStream } from "../text/stream.ts";
import type { EncodeOptions, Tokenizer } from "../text/tokenizer-files.ts";
import type { Engine, TokenEngine } from "./engine.ts";
import type { SamplingOptions } from "./sampler.ts";

/** A model as far as text is concerned; a loaded model folder is one. */
export interface TextModel {
  readonly tokenizer: Tokenizer;
  /** Tokens that end a text. */
  readonly stopIds: readonly number[];
}

export interface TextRequest {
  readonly prompt: string;
  /** How many completions to draw. @default 1 */
  readonly samples?: number;
  /** Names the random streams, as in {@link Engine.generate}. */
  readonly seed: number;
  readonly path?: readonly number[];
}

export interface TextOptions extends Partial<SamplingOptions> {
  /** @default as many as the engine's positions leave */
  readonly maxNewTokens?: number;
  /** Texts that end a completion; they are not part of it. */
  readonly stop?: readonly string[];
  /** Told of every piece of a completion as it becomes certain. */
  readonly onText?: (sample: number, piece: string) => void;
  /** Told of every token, whether or not it adds text. */
  readonly onToken?: (sample: number) => void;
  /** Ends the completions where they are. */
  readonly signal?: AbortSignal;
}

export interface TextCompletion {
  readonly text: string;
  /** Length in tokens, a stop token included. */
  readonly tokens: number;
  /** `stop`: by a stop token or text; `length`: cut at the limit; `interrupted`: by the signal. */
  readonly finish: "stop" | "length" | "interrupted";
}

/**
 * A prompt as tokens. A begin token comes first where the model's files say so, unless the prompt is written with it, as chat
 * templates do.
 * @throws FormatError when the text has something the vocabulary cannot express
 */
export function encodePrompt(tokenizer: Tokenizer, prompt: string, options: EncodeOptions = {}): number[] {
  const ids = tokenizer.encode(prompt, options);
  const { addsBos, bosId } = tokenizer;
  return addsBos && bosId !== undefined && ids[0] !== bosId ? [bosId, ...ids] : ids;
}

/** One completion under way. */
class Writing {
  text = "";
  tokens = 0;
  finish: TextCompletion["finish"] | undefined;
  readonly #stream: TextStream;
  readonly #stops: readonly string[];
  readonly #give: (piece: string) => void;
  /** How much of the text has been given out; the rest may yet become a stop text. */
  #given = 0;

  constructor(stream: TextStream, stops: readonly string[], give: (piece: string) => void) {
    this.#stream = stream;
    this.#stops = stops;
    this.#give = give;
  }

  push(id: number): void {
    this.tokens++;
    this.#append(this.#stream.push(id));
  }

  /** A token that ends the text counts, and is no part of it. */
  stop(): void {
    this.tokens++;
    this.end("stop");
  }

  end(finish: TextCompletion["finish"]): void {
    this.#append(this.#stream.end());
    if (this.finish !== undefined) return;
    this.finish = finish;
    this.#giveUntil(this.text.length);
  }

  #append(piece: string): void {
    if (piece === "" || this.finish !== undefined) return;
    this.text += piece;
    const found = this.#stops.map((stop) => this.text.indexOf(stop, this.#given)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.text = this.text.slice(0, Math.min(...found));
      this.finish = "stop";
    }
    this.#giveUntil(this.finish === undefined ? this.text.length - this.#held() : this.text.length);
  }

  /** Length of the longest end of the text that begins a stop text. */
  #held(): number {
    for (let length = this.text.length - this.#given; length > 0; length--) {
      const end = this.text.slice(-length);
      if (this.#stops.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }

  #giveUntil(end: number): void {
    if (end > this.#given) this.#give(this.text.slice(this.#given, end));
    this.#given = Math.max(end, this.#given);
  }
}

/**
 * Completes a prompt.
 * @returns one completion per sample
 * @throws FormatError when the vocabulary cannot express the prompt; ConfigError when it leaves no room for a new token
 */
export async function generateText(
  engine: TokenEngine,
  model: TextModel,
  request: TextRequest,
  options: TextOptions = {},
): Promise<TextCompletion[]> {
  const { samples = 1, seed, path } = request;
  const { stop = [], onText, onToken, signal, maxNewTokens, ...sampling } = options;
  const prompt = encodePrompt(model.tokenizer, request.prompt);
  const room = Math.max(1, engine.maxPositions - prompt.length);
  const limit = Math.min(maxNewTokens ?? room, room);
  const stopIds = new Set(model.stopIds);
  const writings = Array.from(
    { length: samples },
    (_, sample) =>
      new Writing(new TextStream(model.tokenizer, prompt), stop, (piece) => onText?.(sample, piece)),
  );
  // When every completion has ended by a stop text, the engine need not write on.
  const enough = new AbortController();
  const either = AbortSignal.any([enough.signal, ...(signal === undefined ? [] : [signal])]);
  try {
    await engine.generate([{ prompt, samples, seed, ...(path === undefined ? {} : { path }) }], {
      ...sampling,
      maxNewTokens: limit,
      stopIds: model.stopIds,
      signal: either,
      onToken(_request, sample, id) {
        const writing = writings[sample]!;
        if (writing.finish !== undefined) return;
        if (stopIds.has(id)) writing.stop();
        else writing.push(id);
        onToken?.(sample);
        if (writing.tokens >= limit) writing.end("length");
        if (writings.every(({ finish }) => finish !== undefined)) enough.abort();
      },
    });
  } catch (error) {
    if (!either.aborted || error !== either.reason) throw error;
  }
  return writings.map((writing) => {
    writing.end("interrupted");
    return { text: writing.text, tokens: writing.tokens, finish: writing.finish! };
  });
}
