/**
 * Training steps against PyTorch's, the same model, batch and optimizer on both sides, in turns.
 *
 *     PONDERA_PYTHON=venv/bin/python node --import jiti/register bench/train-vs-torch.ts --mode eager compile
 */

import { Option } from "commander";
import { z } from "zod";
import { describeMachine } from "../src/app/bench/measure.ts";
import { prepareTraining } from "../src/app/bench/train.ts";
import { wholeNumber } from "../src/app/cli/arguments.ts";
import { type ShapeOptions, shapeLine, shapeOf, withShape } from "../src/app/cli/shape.ts";
import { Runtime } from "../src/compute/runtime/runtime.ts";
import type { PythonPeer } from "./python-peer.ts";
import {
  groupOf,
  isMain,
  main,
  type PeerOverride,
  type Side,
  startPeer,
  takeTurns,
  type VersusOptions,
  type VersusReport,
  versusCommand,
} from "./versus.ts";

export interface TrainVersusOptions extends ShapeOptions, VersusOptions {
  readonly batch: number;
  readonly tokens: number;
  /** Parts our side works on the batch in. */
  readonly parts: number;
  /** Steps of each turn. */
  readonly steps: number;
  readonly mode: readonly string[];
}

const Answer = z.object({ ms: z.array(z.number()) });

export async function trainVersusTorch(
  options: TrainVersusOptions,
  override: PeerOverride = {},
): Promise<VersusReport> {
  const { batch, tokens, parts, steps, mode: modes, threads, rounds, onRound } = options;
  const shape = shapeOf(options);
  const runtime = await Runtime.create({ threads });
  const peers: PythonPeer[] = [];
  try {
    const { layers, width, heads, kvHeads, hidden: ffn, vocab } = shape;
    for (const mode of modes) {
      const sizes = { layers, width, heads, kvHeads, ffn, vocab, batch, tokens };
      peers.push(await startPeer("train_torch.py", { ...sizes, mode, threads }, override));
    }
    const bench = await prepareTraining(runtime, { shape, batch, tokens, parts, optimizer: "adamw" });
    try {
      for (let i = 0; i < 2; i++) await bench.step(); // As many as the peer takes to warm up.
      const ours = async (): Promise<number[]> => {
        const seconds: number[] = [];
        for (let i = 0; i < steps; i++) seconds.push(await bench.step());
        return seconds;
      };
      const theirs = peers.map(
        (peer, i): Side => ({
          name: `PyTorch ${modes[i]}`,
          turn: async () =>
            (await peer.request({ cmd: "steps", n: steps }, Answer)).ms.map((ms) => ms / 1000),
        }),
      );
      const timed = await takeTurns([{ name: "Pondera", turn: ours }, ...theirs], rounds, onRound);
      return {
        benchmark: "train-vs-torch",
        what: `training ${shapeLine(shape, bench.parameters)}, batch ${batch} × ${tokens}, AdamW, ${threads} threads`,
        machine: describeMachine(runtime),
        versions: peers[0]?.facts.versions ?? {},
        groups: [groupOf("a step", bench.tokensPerStep, timed)],
      };
    } finally {
      await bench.dispose();
    }
  } finally {
    for (const peer of peers) await peer.close();
    runtime.dispose();
  }
}

if (isMain(import.meta.url)) {
  const count = wholeNumber({ min: 1 });
  const command = withShape(versusCommand("train-vs-torch", "Training steps against PyTorch's."))
    .option("--batch <n>", "rows", count, 32)
    .option("--tokens <n>", "tokens in each", count, 128)
    .option("--parts <n>", "parts our side works on the batch in", count, 1)
    .option("--steps <n>", "steps of each turn", count, 5)
    .addOption(new Option("--mode <mode...>", "PyTorch's").choices(["eager", "compile"]).default(["eager"]));
  await main(command, trainVersusTorch);
}
