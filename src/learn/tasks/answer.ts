/**
 * The R1 way of writing: `<think>…</think><answer>…</answer>`. Searches are by `indexOf`, linear in the text, so that
 * no completion can make them slow.
 */

const THINK_OPEN = "<think>";
const THINK_CLOSE = "</think>";
const ANSWER_OPEN = "<answer>";
const ANSWER_CLOSE = "</answer>";

export interface FormatOptions {
  /**
   * `strict`: nothing but one thought and one answer, in this order, white space around them aside.
   * `lenient`: somewhere a thought ends and an answer follows.
   * @default "strict"
   */
  readonly mode?: "strict" | "lenient";
  /** Whether the prompt already ended in `<think>`, so that the completion starts inside the thought. @default false */
  readonly thinkOpened?: boolean;
}

/** The text after the last finished thought: an answer that the model only thinks of does not count. */
function afterThought(text: string): string {
  const end = text.lastIndexOf(THINK_CLOSE);
  return end < 0 ? text : text.slice(end + THINK_CLOSE.length);
}

/**
 * The last complete answer outside the thought, without white space around it; undefined when there is none.
 * Of several answers the last counts, as a reader would take it.
 */
export function readAnswer(text: string): string | undefined {
  const rest = afterThought(text);
  const end = rest.lastIndexOf(ANSWER_CLOSE);
  const start = end < 0 ? -1 : rest.lastIndexOf(ANSWER_OPEN, end);
  return start < 0 ? undefined : rest.slice(start + ANSWER_OPEN.length, end).trim();
}

const countsOnce = (text: string, tag: string): boolean => {
  const first = text.indexOf(tag);
  return first >= 0 && first === text.lastIndexOf(tag);
};

/** Whether a completion is written as thought, then answer. */
export function hasFormat(text: string, options: FormatOptions = {}): boolean {
  const { mode = "strict", thinkOpened = false } = options;
  if (mode === "lenient") return text.includes(THINK_CLOSE) && readAnswer(text) !== undefined;
  const body = (thinkOpened ? THINK_OPEN + text : text).trim();
  if (!body.startsWith(THINK_OPEN) || !body.endsWith(ANSWER_CLOSE)) return false;
  if (![THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE].every((tag) => countsOnce(body, tag)))
    return false;
  const thinkEnd = body.indexOf(THINK_CLOSE) + THINK_CLOSE.length;
  const answerStart = body.indexOf(ANSWER_OPEN);
  return thinkEnd <= answerStart && body.slice(thinkEnd, answerStart).trim() === "";
}
