/** Which bytes of a file are there, as half-open ranges. */

/** Bytes from `start` up to, and without, `end`. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/** The same bytes in as few ranges as possible, in order. */
export function mergeRanges(ranges: readonly Range[]): Range[] {
  const merged: { start: number; end: number }[] = [];
  for (const { start, end } of [...ranges].sort((a, b) => a.start - b.start)) {
    if (end <= start) continue;
    const last = merged.at(-1);
    if (last !== undefined && start <= last.end) last.end = Math.max(last.end, end);
    else merged.push({ start, end });
  }
  return merged;
}

/** The bytes of [0, size) that are in none of the ranges, in order, cut into pieces of at most `most`. */
export function missingRanges(ranges: readonly Range[], size: number, most: number): Range[] {
  const missing: Range[] = [];
  let at = 0;
  for (const { start, end } of [...mergeRanges(ranges), { start: size, end: size }]) {
    for (; at < Math.min(start, size); at = Math.min(at + most, start)) {
      missing.push({ start: at, end: Math.min(at + most, start, size) });
    }
    at = Math.max(at, end);
  }
  return missing;
}

export function totalOf(ranges: readonly Range[]): number {
  return mergeRanges(ranges).reduce((sum, { start, end }) => sum + end - start, 0);
}
