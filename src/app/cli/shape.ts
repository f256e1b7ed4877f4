/** Sizes of the model that a benchmark is about, as options. */

import type { Command } from "commander";
import { BENCH_SHAPE, type ModelShape } from "../bench/model.ts";
import { compact } from "../format.ts";
import { wholeNumber } from "./arguments.ts";

export interface ShapeOptions {
  readonly depth: number;
  readonly width: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly hidden?: number;
  readonly vocab: number;
}

export function withShape(command: Command): Command {
  const count = wholeNumber({ min: 1 });
  return command
    .option("--depth <n>", "layers", count, BENCH_SHAPE.layers)
    .option("--width <n>", "width of the model", count, BENCH_SHAPE.width)
    .option("--heads <n>", "attention heads; 32 wide if left out", count)
    .option("--kv-heads <n>", "heads of keys and values; as many if left out", count)
    .option("--hidden <n>", "width of the feed-forward; 8/3 of the model's if left out", count)
    .option("--vocab <n>", "size of the vocabulary", count, BENCH_SHAPE.vocab);
}

/** Sizes as asked, and those that follow from them. */
export function shapeOf({ depth, width, vocab, ...asked }: ShapeOptions): ModelShape {
  const heads = asked.heads ?? Math.max(1, Math.round(width / 32));
  const { kvHeads = heads, hidden = 8 * Math.ceil(width / 3) } = asked;
  return { layers: depth, width, heads, kvHeads, hidden, vocab };
}

/** `depth 6, width 256, 8 heads (8 for keys), 4.78M parameters`. */
export function shapeLine({ layers, width, heads, kvHeads }: ModelShape, parameters: number): string {
  return `depth ${layers}, width ${width}, ${heads} heads (${kvHeads} for keys), ${compact(parameters)} parameters`;
}
