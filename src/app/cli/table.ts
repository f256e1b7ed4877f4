/** Tables of plain text, their columns as wide as what is in them. */

import type { Colors } from "./live-view.ts";
import { columnsOf, ellipsize, printable } from "./text.ts";

export interface Column<Row> {
  readonly title: string;
  readonly value: (row: Row) => string;
  /** Numbers sit on the right. @default "left" */
  readonly align?: "left" | "right";
}

/** Lines of a table, the last column cut where the width ends. Values may hold anything; they are made safe to print. */
export function table<Row>(
  rows: readonly Row[],
  columns: readonly Column<Row>[],
  width: number,
  colors: Colors,
): string[] {
  const cells = rows.map((row) => columns.map((column) => printable(column.value(row))));
  const widths = columns.map((column, c) =>
    Math.max(columnsOf(column.title), ...cells.map((row) => columnsOf(row[c]!))),
  );
  const lay = (values: readonly string[]) =>
    ellipsize(
      values
        .map((value, c) => {
          const padding = " ".repeat(widths[c]! - columnsOf(value));
          return columns[c]?.align === "right" ? padding + value : value + padding;
        })
        .join("  ")
        .trimEnd(),
      width,
    );
  return [colors.dim(lay(columns.map((column) => column.title))), ...cells.map(lay)];
}
