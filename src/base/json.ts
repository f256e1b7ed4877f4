/** JSON values: what lies where in one, and how one is written. */

/** The value at a path; undefined where there is none. */
export function valueAt(root: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (value, key) =>
      typeof value === "object" && value !== null ? (value as Record<PropertyKey, unknown>)[key] : undefined,
    root,
  );
}

/** A value as the text of a file, indented for a person. */
export const jsonText = (value: unknown): string => `${JSON.stringify(value, undefined, 2)}\n`;
