/** Weights as whoever loads a model wants them, whatever file they come from. */

import type { HostArray } from "../../compute/tensor/host.ts";
import type { Shape } from "../../compute/tensor/shape.ts";

/** One or several open files whose tensors have Hugging Face names and are read one at a time, converted to float32. */
export interface FloatSource extends AsyncDisposable {
  /** What to name in errors. */
  readonly file: string;
  readonly shapes: ReadonlyMap<string, Shape>;
  /**
   * Reads a tensor into an array of its own, which may be pages of the file; besides it, no more than a window of the file is in
   * memory.
   * @throws FormatError when there is no such tensor; DTypeError when it holds no floats; FileError when it cannot be read
   */
  readF32(name: string): Promise<HostArray<"f32">>;
  close(): Promise<void>;
}
