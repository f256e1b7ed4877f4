/** Text in a terminal: safe to print, measured in columns, and small pictures made of block characters. */

import { stripVTControlCharacters } from "node:util";
import { mean } from "../../base/numbers.ts";

/**
 * Text of unknown origin, made safe to print: no escape sequences, control, formatting (right-to-left overrides, zero
 * width) or unassigned characters. Line breaks and tabs become spaces unless kept.
 */
export function printable(text: string, options: { readonly keepLines?: boolean } = {}): string {
  const lines = stripVTControlCharacters(text).split(/\r\n|[\n\r\u2028\u2029]/u);
  return lines
    .map((line) => line.replace(/\t/g, " ").replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}]/gu, ""))
    .join(options.keepLines === true ? "\n" : " ");
}

/** Whether a character takes two columns: East Asian wide blocks and emoji shown as pictures. */
const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{20000}-\u{3fffd}]|\p{Emoji_Presentation}/u;

/** Columns a terminal gives to printable text. */
export function columnsOf(text: string): number {
  let columns = 0;
  for (const character of text) {
    if (/\p{M}/u.test(character)) continue; // A mark sits on the character before it.
    columns += WIDE.test(character) ? 2 : 1;
  }
  return columns;
}

/** Text cut to at most `width` columns, its end then marked by `…`. */
export function ellipsize(text: string, width: number): string {
  if (columnsOf(text) <= width) return text;
  let kept = "";
  let columns = 0;
  for (const character of text) {
    columns += columnsOf(character);
    if (columns > width - 1) break;
    kept += character;
  }
  return width < 1 ? "" : `${kept}…`;
}

/** Text broken into lines of at most `width` columns, at blanks where there are any. */
export function wrap(text: string, width: number): string[] {
  const room = Math.max(1, width);
  const lines: string[] = [];
  for (const paragraph of text.split("\n")) {
    let line = "";
    let columns = 0;
    let lastBlank = -1; // Where in `line` the last blank begins.
    for (const character of paragraph) {
      const size = columnsOf(character);
      if (columns + size > room && line !== "") {
        if (character === " ") {
          lines.push(line);
          [line, columns, lastBlank] = ["", 0, -1];
          continue;
        }
        if (lastBlank > 0) {
          lines.push(line.slice(0, lastBlank));
          line = line.slice(lastBlank + 1);
        } else {
          lines.push(line);
          line = "";
        }
        columns = columnsOf(line);
        lastBlank = -1;
      }
      if (character === " ") lastBlank = line.length;
      line += character;
      columns += size;
    }
    lines.push(line);
  }
  return lines;
}

const BLOCKS = "▁▂▃▄▅▆▇█";

/**
 * A curve in `width` characters, from the smallest value to the largest; where there are more values than characters, each
 * shows the mean of its share. Flat curves sit at the bottom.
 */
export function sparkline(values: readonly number[], width: number): string {
  const finite = values.filter((v) => Number.isFinite(v));
  const columns = Math.min(width, finite.length);
  const means = Array.from({ length: columns }, (_, i) => {
    const share = finite.slice(
      Math.floor((i * finite.length) / columns),
      Math.floor(((i + 1) * finite.length) / columns),
    );
    return mean(share);
  });
  const low = Math.min(...means);
  const range = Math.max(...means) - low;
  return means
    .map(
      (v) =>
        BLOCKS[
          range === 0 ? 0 : Math.min(BLOCKS.length - 1, Math.floor(((v - low) / range) * BLOCKS.length))
        ],
    )
    .join("");
}

const EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/** A bar of `width` characters, `fraction` of it filled, to an eighth of a character. */
export function bar(fraction: number, width: number): { filled: string; rest: string } {
  const eighths = Math.round(Math.min(1, Math.max(0, fraction)) * width * 8);
  const filled = "█".repeat(Math.floor(eighths / 8)) + EIGHTHS[eighths % 8];
  return { filled, rest: "░".repeat(width - filled.length) };
}
