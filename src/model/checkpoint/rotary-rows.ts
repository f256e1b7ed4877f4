/**
 * Two orders of the rows of query and key matrices. Rotary embedding turns pairs of a head's D rows: Hugging Face's llama pairs
 * i with i + D/2; Meta's own weights, llama2.c and llama.cpp pair 2i with 2i + 1. One is the other with rows exchanged.
 *
 * @source github.com/huggingface/transformers, models/llama/convert_llama_weights_to_hf.py (permute)
 */

/** Where in Hugging Face's order a row goes whose pair is beside it. @param rows in all, of which each of `heads` has as many */
export function headRow(row: number, rows: number, heads: number): number {
  const D = rows / heads;
  const within = row % D;
  return row - within + (within >> 1) + (within & 1) * (D / 2);
}

/**
 * A matrix in Hugging Face's order with its pairs side by side.
 * @param x f32[rows, …], row-major
 */
export function pairsTogether(x: Float32Array, rows: number, heads: number): Float32Array {
  const width = x.length / rows;
  const y = new Float32Array(x.length);
  for (let row = 0; row < rows; row++) {
    const from = headRow(row, rows, heads) * width;
    y.set(x.subarray(from, from + width), row * width);
  }
  return y;
}
