/** The map of the project: its rooms, and who may import whom. docs/ARCHITECTURE.md says the same in words. */

/**
 * What each room may import, besides itself and base. A district (`compute`, `model`, `learn`) stands for all its
 * rooms. Nobody may import app.
 */
export const ARROWS: Readonly<Record<string, readonly string[]>> = {
  base: [],

  "compute/tensor": [],
  "compute/graph": ["compute/tensor"],
  "compute/ops": ["compute/tensor", "compute/graph"],
  "compute/grad": ["compute/tensor", "compute/graph", "compute/ops"],
  "compute/onnx": ["compute/tensor", "compute/graph"],
  "compute/runtime": ["compute"],

  "model/nn": ["compute"],
  "model/arch": ["compute", "model/nn"],
  "model/text": ["compute/tensor"],
  "model/checkpoint": ["compute/tensor", "compute/runtime", "model/arch", "model/text"],
  "model/onnx": [
    "compute/tensor",
    "compute/onnx",
    "model/nn",
    "model/arch",
    "model/text",
    "model/checkpoint",
  ],
  "model/store": [],
  "model/engine": ["compute", "model/nn", "model/arch", "model/text"],

  "learn/tasks": ["compute", "model"],
  "learn/losses": ["compute"],
  "learn/optim": ["compute", "model", "learn/losses"],
  "learn/cost": ["compute", "model"],
  "learn/runs": ["compute/tensor", "model/checkpoint", "learn/tasks"],
  "learn/eval": ["compute", "model", "learn/runs", "learn/tasks"],
  "learn/train": [
    "compute",
    "model",
    "learn/runs",
    "learn/tasks",
    "learn/losses",
    "learn/optim",
    "learn/cost",
    "learn/eval",
  ],

  // A user's task file is loaded with the public API in reach, which only the command line can hand it.
  app: ["compute", "model", "learn", ""],
  // The public API, src/index.ts.
  "": ["compute", "model", "learn"],
};
