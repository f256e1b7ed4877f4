/**
 * Batched generation against transformers' `generate`, the same weights on both sides, every row to its full length, in turns.
 *
 *     PONDERA_PYTHON=venv/bin/python node --import jiti/register bench/generate-vs-transformers.ts --batch 64,256
 */

import { Option } from "commander";
import { z } from "zod";
import { prepareGeneration } from "../src/app/bench/generate.ts";
import { describeMachine } from "../src/app/bench/measure.ts";
import { benchModel } from "../src/app/bench/model.ts";
import { wholeNumber, wholeNumbers } from "../src/app/cli/arguments.ts";
import { type ShapeOptions, shapeLine, shapeOf, withShape } from "../src/app/cli/shape.ts";
import { Runtime } from "../src/compute/runtime/runtime.ts";
import { benchFolder } from "./bench-folder.ts";
import {
  groupOf,
  isMain,
  main,
  type PeerOverride,
  startPeer,
  takeTurns,
  type VersusGroup,
  type VersusOptions,
  type VersusReport,
  versusCommand,
} from "./versus.ts";

export interface GenerateVersusOptions extends ShapeOptions, VersusOptions {
  readonly batch: readonly number[];
  readonly prompt: number;
  readonly newTokens: number;
  readonly cache: string;
}

const Answer = z.object({ seconds: z.array(z.number()) });

export async function generateVersusTransformers(
  options: GenerateVersusOptions,
  override: PeerOverride = {},
): Promise<VersusReport> {
  const { prompt: promptTokens, newTokens, cache, threads, rounds, onRound } = options;
  const shape = shapeOf(options);
  const model = benchModel(shape, promptTokens + newTokens);
  const folder = await benchFolder(model);
  const runtime = await Runtime.create({ threads });
  const groups: VersusGroup[] = [];
  let versions: Readonly<Record<string, string>> = {};
  try {
    for (const batch of options.batch) {
      const asked = { model: folder.path, batch, promptTokens, newTokens, cache, threads };
      const peer = await startPeer("generate_transformers.py", asked, override);
      try {
        versions = peer.facts.versions;
        const bench = await prepareGeneration(runtime, model, { batch, promptTokens, newTokens });
        try {
          await bench.generate(); // Builds the programs; the peer has warmed up before it said it was ready.
          const sides = [
            { name: "Pondera", turn: async () => [await bench.generate()] },
            {
              name: `transformers, ${cache}`,
              turn: async () => (await peer.request({ cmd: "generate", n: 1 }, Answer)).seconds,
            },
          ];
          groups.push(groupOf(`batch ${batch}`, bench.newTokens, await takeTurns(sides, rounds, onRound)));
        } finally {
          await bench.dispose();
        }
      } finally {
        await peer.close();
      }
    }
    return {
      benchmark: "generate-vs-transformers",
      what: `generating ${newTokens} tokens after prompts of ${promptTokens}, ${shapeLine(shape, model.shape.parameters)}, ${threads} threads`,
      machine: describeMachine(runtime),
      versions,
      groups,
    };
  } finally {
    runtime.dispose();
    await folder.remove();
  }
}

if (isMain(import.meta.url)) {
  const count = wholeNumber({ min: 1 });
  const command = withShape(
    versusCommand("generate-vs-transformers", "Generation against transformers' generate."),
  )
    .option("--batch <n,…>", "rows side by side", wholeNumbers({ min: 1 }), [64, 256])
    .option("--prompt <n>", "tokens of each prompt", count, 32)
    .option("--new-tokens <n>", "tokens of each answer", count, 128)
    .addOption(
      new Option("--cache <kind>", "transformers' cache")
        .choices(["dynamic", "static", "compiled"])
        .default("static"),
    );
  await main(command, generateVersusTransformers);
}
