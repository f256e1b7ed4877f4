/** JSON values: what lies where in one, what is wrong with one, and how one is written. */

import type { z } from "zod";
import { FormatError } from "./errors.ts";

/** The value at a path; undefined where there is none. */
export function valueAt(root: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (value, key) =>
      typeof value === "object" && value !== null ? (value as Record<PropertyKey, unknown>)[key] : undefined,
    root,
  );
}

/** What of a value breaks a schema, as parts of an error: the first key that does, its rule, and what is there instead. */
export function schemaFault(
  where: string,
  json: unknown,
  { issues }: z.ZodError,
): { readonly where: string; readonly rule: string; readonly got: string } {
  const { path, message } = issues[0]!;
  const value = valueAt(json, path);
  return {
    where: path.length === 0 ? where : `${where}: ${path.map(String).join(".")}`,
    rule: message,
    got: value === undefined ? "nothing" : JSON.stringify(value),
  };
}

/** A value as a schema reads it. @throws FormatError naming the first key that breaks it */
export function parsedBy<T>(schema: z.ZodType<T>, where: string, json: unknown): T {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  throw new FormatError(schemaFault(where, json, parsed.error));
}

/** A value as the text of a file, indented for a person. */
export const jsonText = (value: unknown): string => `${JSON.stringify(value, undefined, 2)}\n`;
