/** llama.cpp as a user of node-llama-cpp has it: its CPU build, greedy, nothing kept from one text to the next. */

import {
  getLlama,
  type Llama,
  type LlamaContext,
  type LlamaContextSequence,
  LlamaLogLevel,
  type LlamaModel,
  type Token,
} from "node-llama-cpp";
import { type Generated, type GgufSide, type LoadOptions, serveSide } from "./gguf-side.ts";
import { isMain } from "./versus.ts";

/** Tokens whose probabilities are asked for at once: each comes with those of the whole vocabulary. */
const PIECE = 16;

export class LlamaCppSide implements GgufSide {
  readonly name = "llama.cpp";
  #llama: Llama | undefined;
  #model: LlamaModel | undefined;
  #context: LlamaContext | undefined;
  #sequences: LlamaContextSequence[] = [];

  async start(threads: number): Promise<void> {
    this.#llama = await getLlama({
      ...{ gpu: false, build: "never", progressLogs: false },
      ...{ maxThreads: threads, logLevel: LlamaLogLevel.error },
    });
  }

  async load({ file, threads, sequences, positions }: LoadOptions): Promise<void> {
    this.#model = await this.#llama!.loadModel({ modelPath: file });
    this.#context = await this.#model.createContext({ contextSize: positions, sequences, threads });
    this.#sequences = Array.from({ length: sequences }, () => this.#context!.getSequence());
  }

  /** Special tokens in the text are such. */
  tokenize(text: string): number[] {
    return [...this.#model!.tokenize(text, true)];
  }

  async generate(prompts: readonly (readonly number[])[], newTokens: number): Promise<Generated> {
    const began = performance.now();
    let first = 0;
    const ids = await Promise.all(
      prompts.map(async (prompt, row) => {
        const sequence = this.#sequences[row]!;
        await sequence.clearHistory();
        const written: number[] = [];
        const tokens = sequence.evaluate(prompt as Token[], { temperature: 0, yieldEogToken: true });
        for await (const token of tokens) {
          first ||= performance.now() - began;
          written.push(token);
          if (written.length === newTokens) break;
        }
        return written;
      }),
    );
    return { ids, first: first / 1000, all: (performance.now() - began) / 1000 };
  }

  async score(ids: readonly number[]): Promise<number[]> {
    const [sequence] = this.#sequences as [LlamaContextSequence];
    await sequence.clearHistory();
    const logp: number[] = [];
    for (let done = 0; done + 1 < ids.length; done += PIECE) {
      const piece = ids.slice(done, Math.min(done + PIECE, ids.length - 1));
      // Without what node-llama-cpp filters by default: the probabilities of the model itself.
      const sampling = { temperature: 1, topK: 0, topP: 1, minP: 0 };
      const next = { generateNext: { probabilities: true, options: sampling } };
      const results = await sequence.controlledEvaluate(piece.map((id) => [id as Token, next]));
      for (const [i, result] of results.entries()) {
        logp.push(Math.log(result!.next.probabilities!.get(ids[done + i + 1] as Token)!));
      }
    }
    return logp;
  }

  async dispose(): Promise<void> {
    await this.#llama?.dispose();
  }
}

if (isMain(import.meta.url)) await serveSide(new LlamaCppSide());
