/** Grading files of completions: one JSON row a line in, one verdict a row out. */
import { z } from "zod";
import { LARGEST_NUMBER } from "./countdown/expression.ts";
import { type CountdownRules, type Verdict, verifyCountdown } from "./countdown/verify.ts";

/** More numbers than any game has; with exact values, this bounds the work that one row can ask for. */
const MOST_NUMBERS = 64;

const rowSchema = z.object({
  // No answer could write larger ones, and a verdict on it would blame the answer.
  numbers: z.array(z.int().nonnegative().max(LARGEST_NUMBER)).min(1).max(MOST_NUMBERS),
  target: z.int().min(-LARGEST_NUMBER).max(LARGEST_NUMBER),
  completion: z.string(),
});

function gradeLine(text: string, line: number, rules: CountdownRules): Verdict {
  const malformed = (why: string): Verdict => ({
    reward: 0,
    accuracy: 0,
    format: 0,
    reason: `line ${line}: ${why}`,
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    return malformed(`not JSON: ${(cause as Error).message}`);
  }
  const row = rowSchema.safeParse(value);
  if (row.success) return verifyCountdown(row.data, row.data.completion, rules);
  const issue = row.error.issues[0]!;
  return malformed(`${issue.path.length === 0 ? "the row" : issue.path.join(".")}: ${issue.message}`);
}

/**
 * The verdict on each row `{ numbers, target, completion }`, in order; other fields are ignored, as are blank lines.
 * A row that is no such row gets a verdict of zeros whose reason names its line, and the rest go on.
 */
export async function* gradeCountdown(
  lines: AsyncIterable<string> | Iterable<string>,
  rules: CountdownRules = {},
): AsyncGenerator<Verdict> {
  let line = 0;
  for await (const text of lines) {
    line++;
    if (text.trim() !== "") yield gradeLine(text, line, rules);
  }
}
